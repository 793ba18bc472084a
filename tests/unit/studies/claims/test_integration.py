"""C17: effective ranks by hand, and the rule layer by layer."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from headscope.models.reference import Transformer, example
from headscope.studies.claims.integration import Integration
from headscope.studies.layers import Layer, named
from headscope.studies.reach import Reach
from headscope.studies.rulings import rule
from headscope.studies.subjects import Subject
from tests.families import build_any
from tests.models import build
from tests.words import same_numbers

CLAIM = Integration()


def make_subject(model: Any) -> Subject:
    return Subject("small", model, example()[1], quick=True)


def planted(*layers: tuple[str, float, float]) -> dict[str, float]:
    """Words of layers, each with its kind and the interval of its ratio."""
    words: dict[str, float] = {"tokens": 100.0, "window": 0.0}
    for number, (kind, low, high) in enumerate(layers):
        ranks = {"one": 3.0, "side_by_side": 20.0, "projected": 15.0, "ratio": 5.0}
        known = {**ranks, "least_low": low, "largest_high": high}
        words |= {named(name, Layer(kind, number)): value for name, value in known.items()}
    return words


MORE, SAME, WIDE = (1.01, 1.2), (0.8, 1.0), (0.9, 1.1)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([("causal", *MORE)] * 2, "holds"),
        ([("causal", *SAME)] * 2, "does not hold"),
        ([("causal", 1 + 1e-6, 1 + 2e-6)] * 2, "does not hold"),  # equal but for rounding
        ([("causal", *WIDE)] * 2, "not decided (more documents: intervals span 1)"),
        ([("causal", *SAME), ("causal", *WIDE)], "not decided (more documents: intervals span 1)"),
        ([("encoder", *MORE), ("causal", *SAME)], "holds in part (encoder layers only)"),
        ([("causal", *MORE)] * 3 + [("causal", *WIDE)], "holds in part (all layers but 3)"),
        ([("causal", *MORE)] + [("causal", *SAME)] * 4, "holds in part (layer 0 only)"),
        ([("causal", *MORE), ("causal", *SAME)] * 5, "holds in part (5 of 10 layers)"),
    ],
)
def test_every_layer_is_judged_by_itself(layers: Any, told: str) -> None:
    assert CLAIM.decide(planted(*layers)).told() == told


def test_kinds_of_layers_are_told_apart_in_both_languages() -> None:
    words = planted(("encoder", *MORE), ("encoder", *MORE), ("cross", *MORE))
    said, followed = CLAIM.say(words), CLAIM.follow(words)
    assert "In encoder layers (2) one head's contribution varies in 3.0 directions" in said.en
    assert "In cross-attention layers (1)" in said.en
    assert "side by side vary in 20.0 directions, and their sum in 75% as many." in followed.en
    assert same_numbers(said)
    assert same_numbers(followed)


@pytest.mark.parametrize(("length", "most"), [(7, 64), (7, 7), (8, 64), (20, 64)])
def test_kinds_are_those_of_masks_and_a_window_that_no_row_reaches_is_told(length: int, most: int) -> None:
    """Layer 0 looks back 8 tokens; rows of 7 tokens are below, of 20 above."""
    torch.manual_seed(0)
    model: Any = build("gemma3")
    model.config.max_position_embeddings = most
    rows = [{"input_ids": torch.randint(3, 50, (12, length)), "document": torch.arange(12)}]
    measured = CLAIM.measure(Subject("small", model, rows, quick=True))
    assert measured.table["kind"].tolist() == ["windowed" if most == 64 else "causal", "causal"]
    said = CLAIM.say(measured.words)
    assert (f"up to {length} tokens, so a window of 8 hides nothing in them" in said.en) == (length < 20)
    assert same_numbers(said)


def test_heads_with_random_weights_pass_the_bar_as_well() -> None:
    """As the page says under how far it reaches."""
    model, _ = example()
    for kind in (model, Transformer(50, width=16, n_layers=2, n_heads=4, length=32).eval()):
        assert rule("C17", CLAIM, lambda kind=kind: [make_subject(kind)], "").verdict.word == "holds"


def test_heads_that_all_write_along_one_line_integrate_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(50, width=16, n_layers=1, n_heads=4, length=32).eval()
    attention: Any = model.blocks[0].attention
    attention.output.weight.data = torch.outer(torch.randn(16), torch.randn(16))
    ruling = rule("C17", CLAIM, lambda: [make_subject(model)], "")
    assert ruling.effect == pytest.approx(1.0, abs=1e-3)
    assert ruling.verdict.word == "does not hold"


def test_sides_of_a_model_have_kinds() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (12, 12))
    rows = [{"input_ids": ids, "decoder_input_ids": ids[:, :7], "document": torch.arange(12)}]
    table = CLAIM.measure(Subject("t5", build_any("t5"), rows, quick=True)).table
    assert set(table["kind"]) == {"encoder", "causal", "cross"}


def test_a_window_is_held_against_rows_of_its_own_side() -> None:
    """An encoder reads rows of 40 tokens, its decoder 7: a window of 9 hides much of one, nothing of the other."""
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (12, 40))
    rows = [{"input_ids": ids, "decoder_input_ids": ids[:, :7], "document": torch.arange(12)}]
    subject = Subject("t5", build_any("t5"), rows, quick=True)
    sides = {site.layer: site.kind for site in subject.anatomy.sites}
    for side, told in (("encoder", (0, 0)), ("causal", (9, 7))):
        subject.__dict__["reach"] = {
            layer: Reach("windowed" if kind == side else kind, 40, 0.5, 0.5, 9) for layer, kind in sides.items()
        }
        assert subject.idle_window == told
    subject.__dict__["reach"] = {}  # no layer's mask can be had
    assert subject.idle_window == (0, 0)
    subject.model.config.sliding_window = 64
    assert subject.idle_window == (64, 40)


def test_ranks_hold_up_by_hand() -> None:
    subject = make_subject(example()[0])
    measured = CLAIM.measure(subject)
    model: Any = subject.model
    outputs: list[Tensor] = []
    hook = model.blocks[0].attention.output.register_forward_pre_hook(lambda _m, args: outputs.append(args[0]))
    with torch.no_grad():
        for batch in subject.batches:
            model(batch["input_ids"])
    hook.remove()
    z = torch.cat(outputs).flatten(0, 1).numpy().astype(np.float64)
    w = model.blocks[0].attention.output.weight.detach().numpy().astype(np.float64)

    def rank(rows: np.ndarray) -> float:
        spread = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        shares = spread[spread > 1e-12 * spread[0]] / spread.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    row = measured.table.iloc[0]
    apart = [z[:, 8 * h : 8 * h + 8] @ w[:, 8 * h : 8 * h + 8].T for h in range(4)]
    assert row["side_by_side"] == pytest.approx(rank(np.concatenate(apart, axis=1)), rel=1e-4)
    assert row["projected"] == pytest.approx(rank(z @ w.T), rel=1e-4)
    assert row["one"] == pytest.approx(np.mean([rank(own) for own in apart]), rel=1e-4)


def test_ranks_do_not_change_where_the_model_does_not() -> None:
    model, _ = example()
    before = CLAIM.measure(make_subject(model)).table
    attention: Any = model.blocks[0].attention
    for head, factor in enumerate((10.0, 0.1, 3.0, 1.0)):
        own = slice(8 * head, 8 * head + 8)
        attention.value.weight.data[own] *= factor
        attention.value.bias.data[own] *= factor
        attention.output.weight.data[:, own] /= factor
    after = CLAIM.measure(make_subject(model)).table
    pd.testing.assert_frame_equal(before, after, rtol=1e-3)


def test_a_head_that_writes_nothing_varies_in_no_direction_and_takes_no_layer_down() -> None:
    model = build_any("gpt2")
    whole = CLAIM.measure(make_subject(model))
    projection = model.transformer.h[0].attn.c_proj.weight  # (heads × head_dim, width)
    with torch.no_grad():
        projection[: projection.shape[0] // model.config.n_head] = 0
    measured = CLAIM.measure(make_subject(model))
    assert np.isfinite(measured.table["ratio"]).all()
    assert len(measured.table) == len(whole.table)
    assert "nan" not in CLAIM.say(measured.words).en
    with torch.no_grad():
        projection[:] = 0
    assert len(CLAIM.measure(make_subject(model)).table) == len(whole.table) - 1
