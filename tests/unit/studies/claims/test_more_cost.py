"""C8: what grows with the number of heads, at fixed width and at fixed head_dim."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from headscope.studies.claims import claim_named
from headscope.studies.headcount import Sweep
from headscope.studies.scaling import KERNELS, MODES
from tests.words import same_numbers

CLAIM: Any = claim_named("C8")
GROWS: dict[str, float] = {"seconds": 1.0, "bytes": 1.0, "flops": 1.0}  # powers of the number of heads


def costs(width: dict[str, Any], head_dim: dict[str, Any]) -> pd.DataFrame:
    """Powers by quantity, or by quantity and kernel; 0 where none is told."""
    rows = []
    for arm, powers in (("width", width), ("head_dim", head_dim)):
        for mode in MODES:
            for kernel in KERNELS:
                power = {name: powers.get(f"{name} {kernel}", powers.get(name, 0.0)) for name in GROWS}
                rows += [
                    {
                        "part": "attention", "against": "heads", "arm": arm, "mode": mode, "kernel": kernel,
                        "length": 8, "n_heads": n, "head_dim": 32 // n if arm == "width" else 4, "round": number,
                        "analytic": 1.0,
                        **{name: 10.0 * n ** power[name] for name in GROWS},
                    }
                    for n in (1, 4, 16)
                    for number in range(3)
                ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("width", "head_dim", "verdict"),
    [
        (GROWS, GROWS, "holds"),
        ({}, {}, "does not hold"),
        (
            {"seconds": 1.0, "bytes eager": 1.0},
            GROWS,
            "holds in part (all at fixed head_dim; time, memory with eager at fixed width)",
        ),
        ({}, {"flops": 1.0}, "holds in part (operations at fixed head_dim)"),
        ({"seconds": 0.03}, {}, "does not hold"),  # × 1.09
        ({"seconds": 0.05}, {}, "holds in part (time at fixed width)"),  # × 1.15
    ],
)
def test_arms_are_told_apart(width: Any, head_dim: Any, verdict: str) -> None:
    words = CLAIM.measure(costs(width, head_dim)).words
    assert CLAIM.decide(words).told() == verdict
    assert same_numbers(CLAIM.say(words))


def test_one_sentence_tells_what_grows_in_each_arm() -> None:
    words = CLAIM.measure(costs({"seconds": 0.5, "bytes eager": 1.0}, GROWS)).words
    said = CLAIM.say(words)
    assert "at fixed width the same parameters and operations, × 16 (× 1) the memory, × 4 the time;" in said.en
    assert "パラメータ数と演算量は変わらず、メモリが16倍(1倍)、時間が4倍" in said.ja
    assert "at fixed head_dim they take × 16 the parameters, × 16 the operations, × 16 the memory" in said.en
    assert said.en.count(". ") == 0


def test_the_table_has_both_modes_and_kernels() -> None:
    told = CLAIM.tabled(costs({"seconds": 0.5, "bytes eager": 1.0}, GROWS))
    rows = [line.strip("| ").split(" | ") for line in told.en.splitlines()]
    assert rows[0] == ["arm", "what grows", "inference, eager", "inference, sdpa", "training, eager", "training, sdpa"]
    assert rows[2:5] == [
        ["fixed width", "operations", *["× 1"] * 4],
        ["fixed width", "memory", "× 16 [4]", "× 1", "× 16 [4]", "× 1"],
        ["fixed width", "time", *["× 4 [4]"] * 4],
    ]
    assert "| 幅固定 | メモリ |" in told.ja


def test_growth_begins_where_it_is_clear_from_there_on() -> None:
    slow = costs({}, {})
    slow["seconds"] = slow["n_heads"].map({1: 10.0, 4: 10.9, 16: 20.0})
    assert "| fixed width | time | × 2 [16] |" in CLAIM.tabled(slow).en
    slow["seconds"] = slow["n_heads"].map({1: 10.0, 4: 20.0, 16: 10.9})
    assert "| fixed width | time | × 1.09 |" in CLAIM.tabled(slow).en


def test_the_headline_leaves_kernels_and_parameters_out() -> None:
    told = CLAIM.headline(CLAIM.measure(costs({"seconds": 0.5, "bytes eager": 1.0}, GROWS)).words)
    assert told.en.startswith(
        "With 16 heads in place of 1, cut out of the same width, inference takes the same operations, × 16 the memory, "
    )
    assert "同じ幅を分ける場合は演算量は変わらず、メモリが16倍、時間が4倍、" in told.ja


def test_learners_of_all_tasks_are_one_figure() -> None:
    rows = [
        {
            "task": task, "arm": arm, "n_heads": n, "seed": seed, "parameters": 100.0, "flops": size * 10.0,
            "memory": size * n, "seconds": size * 0.1 * n**power,
        }
        for task, size, power in (("a", 1.0, 1.0), ("b", 1000.0, 0.0))
        for arm in ("width", "head_dim")
        for n in (1, 4)
        for seed in range(3 if task == "a" else 5)
    ]  # fmt: skip
    sweep = Sweep(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), {})
    words, figures = CLAIM.beside(sweep)
    assert words.en
    assert words.ja
    assert list(figures) == ["step"]
    figure = figures["step"]
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["parameters"], [1, 1])
    np.testing.assert_allclose(lines["memory"], [1, 4])
    np.testing.assert_allclose(lines["time"], [1, 2])  # the geometric mean of 4 and 1, whatever their sizes
