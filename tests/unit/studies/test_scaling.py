"""Cost scaling: operations as counted by hand, fits that find planted exponents, the fused layer as exact as any."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from headscope.errors import InputError
from headscope.models.reference import MultiHeadAttention
from headscope.studies.growing import growth
from headscope.studies.scaling import KERNELS, MODES, PARTS, Fused, Scaling, scale_costs

TINY = Scaling(width=32, lengths=(8, 16, 32), heads=4, counts=(1, 2, 8), length=16, rounds=2)


@pytest.fixture(scope="module")
def costs() -> pd.DataFrame:
    return scale_costs(TINY)


def test_every_curve_is_there(costs: pd.DataFrame) -> None:
    assert len(costs) == 2 * (3 + 2 * 3) * len(PARTS) * len(MODES) * len(KERNELS)
    assert costs.notna().all(axis=None)
    assert (costs["seconds"] > 0).all()


def test_torch_counts_what_one_counts_by_hand(costs: pd.DataFrame) -> None:
    assert (costs["flops"] == costs["analytic"]).all()


def test_at_fixed_width_operations_stay_and_maps_take_memory(costs: pd.DataFrame) -> None:
    one = costs[(costs["part"] == "attention") & (costs["against"] == "heads") & (costs["arm"] == "width")]
    for (_, kernel), own in one.groupby(["mode", "kernel"]):
        by_heads = own.groupby("n_heads")
        assert by_heads["flops"].first().nunique() == 1
        held = by_heads["bytes"].first()
        if kernel == "eager":
            assert held.is_monotonic_increasing
            maps = 4 * TINY.length**2
            assert held[8] - held[2] >= 6 * maps  # scores and weights are alive together, or either alone
        else:
            assert held[8] < held[1] * 1.2


def test_growth_finds_planted_exponents() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "part": "attention", "against": "length", "arm": "width", "mode": "inference", "kernel": "eager",
            "length": length, "n_heads": 8, "head_dim": 8, "round": number,
            "seconds": 1e-6 * length**1.7 * np.exp(0.01 * rng.standard_normal()),
            "bytes": 4 * length**2, "flops": 10 * length, "analytic": 10 * length,
        }
        for length in (64, 128, 256, 512)
        for number in range(8)
    ]  # fmt: skip
    found = growth(pd.DataFrame(rows)).set_index("quantity")
    seconds = found.loc["seconds"]
    assert seconds["exponent_low"] < 1.7 < seconds["exponent_high"]
    assert seconds["exponent"] == pytest.approx(1.7, abs=0.02)
    assert found.loc["bytes", ["exponent", "exponent_low", "exponent_high", "last"]].tolist() == [2, 2, 2, 2]
    assert found.loc["flops", ["times", "times_low", "times_high"]].tolist() == [8, 8, 8]


def test_the_fused_layer_is_the_same_function() -> None:
    attention, x = MultiHeadAttention(32, 4, 8), torch.randn(2, 12, 32)
    torch.testing.assert_close(Fused.of(attention)(x), attention(x))


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="2 rounds"):
        replace(TINY, rounds=1)
    with pytest.raises(InputError, match="do not divide the width 32"):
        replace(TINY, counts=(1, 5))
