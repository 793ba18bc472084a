"""Metrics against NumPy in float64: one number a row, over the positions that count."""

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    LlamaModel,
)

from headscope._support.running import run_model
from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.effects.metrics import Drift, Kl, Loss, MaskedLoss, Metric, UserMetric
from headscope.effects.resolving import METRICS, resolve_metric
from headscope.errors import MetricError, UnknownNameError
from tests.families import build_further
from tests.models import VOCABULARY, build, make_batches
from tests.reference.likelihood import log_softmax

Floats = npt.NDArray[np.float64]


def _loss_by_hand(logits: Tensor, ids: Tensor, mask: Tensor, columns: list[int] | None = None) -> list[float]:
    """Token by token; `columns`: the only positions whose prediction is scored."""
    logp, rows = log_softmax(logits), []
    for row in range(len(ids)):
        losses = [
            -logp[row, t, ids[row, t + 1]]
            for t in range(ids.shape[1] - 1)
            if mask[row, t] and mask[row, t + 1] and (columns is None or t in columns)
        ]
        rows.append(float(np.mean(losses)))
    return rows


def _run(metric: Metric, model: nn.Module, batch: dict[str, Tensor]) -> object:
    with torch.no_grad():
        return run_model(model, metric.inputs(model, batch))


def _left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "attention_mask": batch["attention_mask"].flip(1)}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "causal"])
def test_loss_is_the_mean_cross_entropy_of_the_next_token(name: str, side: str) -> None:
    model, batch = build(name), make_batches(name, 1)[0]
    batch = _left(batch) if side == "left" else batch
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    want = _loss_by_hand(logits.logits, batch["input_ids"], batch["attention_mask"])
    got = Loss().measure(_run(Loss(), model, batch), batch)
    assert got.shape == (3,)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.ptp(want) > 0.05


def test_loss_of_a_model_in_double_precision_is_exact_and_takes_bare_logits() -> None:
    model, batch = build("nanogpt").double(), make_batches("nanogpt", 1)[0]
    with torch.no_grad():
        logits = model(batch["input_ids"])
    want = _loss_by_hand(logits, batch["input_ids"], torch.ones(3, 12))
    np.testing.assert_allclose(Loss().measure(logits, batch), want, rtol=1e-13)


def test_half_precision_logits_are_scored_in_single() -> None:
    logits = 3 * torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    batch = {"input_ids": torch.randint(0, 50, (2, 5))}
    want = _loss_by_hand(logits.float(), batch["input_ids"], torch.ones(2, 5))
    np.testing.assert_allclose(Loss().measure(logits, batch), want, rtol=1e-6)


def _heads_input(model: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    model.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_only_the_scored_positions_reach_the_vocabulary(name: str) -> None:
    model, batch, shapes = build(name), make_batches(name, 1)[0], []
    with torch.no_grad():
        full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    _heads_input(model, shapes)
    metric = Loss(positions=3, seed=1)
    columns = metric.inputs(model, batch)["logits_to_keep"].tolist()
    got = metric.measure(_run(metric, model, batch), batch)
    assert len(columns) in (3, 4)
    assert shapes == [(3, len(columns), 32)]
    want = _loss_by_hand(full, batch["input_ids"], batch["attention_mask"], columns)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    shapes.clear()
    _run(Loss(), model, batch)
    assert shapes == [(3, 11, 32)]  # the last position predicts nothing
    shapes.clear()
    _run(Drift(), model, batch)
    assert shapes == [(3, 1, 32)]


def test_a_model_that_cannot_be_asked_gives_all_and_is_scored_at_the_same_positions() -> None:
    model, batch = build("nanogpt"), make_batches("nanogpt", 1)[0]
    metric = Loss(positions=4, seed=2)
    assert "logits_to_keep" not in metric.inputs(model, batch)
    with torch.no_grad():
        logits = model(batch["input_ids"])
    columns = Loss(positions=4, seed=2).inputs(build("gpt2"), batch)["logits_to_keep"].tolist()
    want = _loss_by_hand(logits, batch["input_ids"], torch.ones(3, 12), columns)
    np.testing.assert_allclose(metric.measure(logits, batch), want, rtol=1e-5)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 12), st.integers(0, 5),
    arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(3, 12)), elements=st.booleans()),
)  # fmt: skip
def test_every_row_keeps_a_scored_position_whatever_the_padding(positions: int, seed: int, mask: np.ndarray) -> None:
    batch = {"input_ids": torch.zeros(mask.shape, dtype=torch.long), "attention_mask": torch.tensor(mask).long()}
    keep = mask[:, :-1] & mask[:, 1:]
    asked = Loss(positions, seed).inputs(_Asked(), batch)["logits_to_keep"].numpy()
    columns = asked[:1] if len(set(asked)) == 1 else asked  # one alone is asked for twice
    assert (np.diff(columns) > 0).all()
    assert keep.any(0)[columns].all()
    assert (keep[:, columns].any(1) == keep.any(1)).all()
    assert min(positions, keep.any(0).sum()) <= len(columns) <= positions + len(mask)
    again = Loss(positions, seed).inputs(_Asked(), batch)["logits_to_keep"].numpy()
    np.testing.assert_array_equal(asked, again)


class _Asked(nn.Module):
    def forward(self, input_ids: Tensor, logits_to_keep: Tensor) -> Tensor:
        return input_ids


def test_the_draw_of_positions_is_seeded_and_not_always_the_first() -> None:
    batch = {"input_ids": torch.zeros(2, 200, dtype=torch.long)}
    drawn = [Loss(20, seed).inputs(_Asked(), batch)["logits_to_keep"].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0]) > 100


@pytest.mark.parametrize("metric", [Loss(), Kl(), MaskedLoss(mask_token_id=1)])
def test_a_row_with_nothing_to_score_is_refused(metric: Metric) -> None:
    batch = {"input_ids": torch.zeros(3, 4, dtype=torch.long), "attention_mask": torch.ones(3, 4, dtype=torch.long)}
    batch["attention_mask"][1] = 0
    logits = torch.zeros(3, 4, 7)
    with pytest.raises(MetricError, match="row 1 of a batch has no position to score"):
        metric.measure(logits, batch, logits)


def test_a_row_of_one_token_has_no_next_one() -> None:
    batch = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
    with pytest.raises(MetricError, match="row 0 of a batch has no position to score"):
        Loss().measure(torch.zeros(1, 1, 7), batch)


def test_labels_in_the_batch_are_not_handed_on() -> None:
    batch = make_batches("llama", 1)[0]
    batch["labels"] = batch["input_ids"]
    for metric in (Loss(), Kl(), MaskedLoss()):
        assert "labels" not in metric.inputs(build("llama"), batch)


# --- distances


def _two(name: str, metric: Metric, batch: dict[str, Tensor]) -> tuple[object, object]:
    """The outputs of a model intact and without a few heads."""
    model = build(name)
    intact = _run(metric, model, batch)
    with ablate(model, ["L0H0", "L1H1"], example={"input_ids": batch["input_ids"]}):
        return intact, _run(metric, model, batch)


@pytest.mark.parametrize("name", ["gpt2", "llama", "causal"])
def test_kl_is_the_divergence_from_the_intact_model(name: str) -> None:
    batch = make_batches(name, 1)[0]
    intact, without = _two(name, Kl(), batch)
    old, new = log_softmax(intact.logits), log_softmax(without.logits)
    mask = batch["attention_mask"].numpy().astype(bool)
    want = [
        np.mean([np.sum(np.exp(old[r, t]) * (old[r, t] - new[r, t])) for t in range(12) if mask[r, t]])
        for r in range(3)
    ]
    np.testing.assert_allclose(Kl().measure(without, batch, intact), want, rtol=1e-4)
    assert min(want) > 1e-3
    assert Kl().measure(intact, batch, intact).abs().max() == 0


def test_kl_at_a_few_positions_is_their_mean() -> None:
    batch, metric = make_batches("llama", 1, padded=False)[0], Kl(positions=3, seed=4)
    columns = metric.inputs(build("llama"), batch)["logits_to_keep"]
    assert len(columns) == 3
    intact, without = _two("llama", metric, batch)
    assert intact.logits.shape == (3, 3, VOCABULARY)
    old, new = log_softmax(intact.logits), log_softmax(without.logits)
    want = (np.exp(old) * (old - new)).sum(-1).mean(1)
    np.testing.assert_allclose(metric.measure(without, batch, intact), want, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["bert", "encoder", "llama"])
def test_drift_is_one_minus_the_cosine_of_mean_pooled_hidden_states(name: str, side: str) -> None:
    batch = make_batches(name, 1)[0]
    batch = _left(batch) if side == "left" else batch
    intact, without = _two(name, Drift(), batch)
    mask = batch["attention_mask"].numpy().astype(bool)
    pooled = []
    for output in (intact, without):
        hidden = output.hidden_states[-1] if name == "llama" else output.last_hidden_state
        pooled.append([hidden[row].numpy().astype(np.float64)[mask[row]].mean(0) for row in range(3)])
    want = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*pooled, strict=True)]
    np.testing.assert_allclose(Drift().measure(without, batch, intact), want, rtol=1e-5)
    assert min(want) > 1e-3
    assert Drift().measure(intact, batch, intact).abs().max() == 0


def test_an_encoder_decoder_with_a_head_is_judged_by_its_decoder() -> None:
    sizes = {"d_model": 32, "num_layers": 1, "num_heads": 4, "d_kv": 8, "d_ff": 48, "pad_token_id": 0}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", vocab_size=60, **sizes)).eval()
    batch = make_batches("bert", 1)[0]
    batch["decoder_input_ids"] = ids = batch["input_ids"].flip(1)[:, :7].contiguous()
    anatomy = discover(model)
    Loss().check(anatomy)
    with torch.no_grad():
        logits = run_model(model, Loss().inputs(model, batch)).logits[:, :-1]
        output = run_model(model, Drift().inputs(model, batch))
    want = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
    torch.testing.assert_close(Loss().measure(run_model(model, batch), batch).float(), want)
    pooled = torch.nn.functional.normalize(output.decoder_hidden_states[-1].mean(1), dim=-1)
    torch.testing.assert_close(Drift().embed(output, batch).float(), pooled)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(1e-9, 1e-3))
def test_drift_tells_tiny_differences_apart(seed: int, size: float) -> None:
    """1 - cosine itself is all cancellation there."""
    generator = torch.Generator().manual_seed(seed)
    a, step = (torch.randn(1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    step = step - (step * a).sum() / (a * a).sum() * a
    batch = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
    tangent = size * float(step.norm() / a.norm())
    want = 1 - 1 / np.sqrt(1 + tangent**2) if tangent > 1e-4 else tangent**2 / 2
    np.testing.assert_allclose(Drift().measure(a + size * step, batch, a), [want], rtol=1e-6)


def _small_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
                   init_std=0.5)
    ).eval()  # fmt: skip


def test_of_an_encoder_decoder_the_decoders_positions_are_compared() -> None:
    model = _small_bart()
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    decoder_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :5],
             "decoder_attention_mask": decoder_mask}  # fmt: skip
    for metric in (Kl(), Drift()):
        intact = _run(metric, model, batch)
        with ablate(model, ["L0H0", "L2H1"]):
            without = _run(metric, model, batch)
        got = metric.measure(without, batch, intact)
        # what the decoder says at positions that do not count may change as it will
        for output in (without,):
            output.logits[1, 2:] += 100
            output.decoder_hidden_states = output.decoder_hidden_states and tuple(
                state.index_fill(1, torch.arange(2, 5), 9.0) * torch.tensor([0.0, 1.0])[:, None, None]
                + state * torch.tensor([1.0, 0.0])[:, None, None]
                for state in output.decoder_hidden_states
            )
        torch.testing.assert_close(metric.measure(without, batch, intact), got)
        assert got.min() > 1e-4


# --- names, functions, refusals


def _resolve(metric: object, model: nn.Module, batch: dict[str, Tensor]) -> Metric:
    return resolve_metric(metric, model, discover(model, {"input_ids": batch["input_ids"]}), batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "want"),
    [("gpt2", Loss), ("llama", Loss), ("gemma3", Loss), ("causal", Loss), ("bert", Drift), ("encoder", Drift)],
)
def test_auto_chooses_by_model(name: str, want: type[Metric]) -> None:
    assert type(_resolve("auto", build(name), make_batches(name, 1)[0])) is want


def test_auto_for_a_bare_decoder_an_encoder_decoder_and_a_masked_head() -> None:
    batch = make_batches("llama", 1)[0]
    bare = LlamaModel(build("llama").config).eval()
    assert type(_resolve("auto", bare, batch)) is Drift
    both = {**batch, "decoder_input_ids": batch["input_ids"][:, :5]}
    model = build_further("t5")
    assert type(resolve_metric("auto", model, discover(model), both)) is Drift
    assert type(_resolve("auto", BertForMaskedLM(build("bert").config).eval(), batch)) is MaskedLoss


def test_names_objects_and_functions_become_metrics() -> None:
    model, batch = build("llama"), make_batches("llama", 1)[0]
    assert {name: type(_resolve(name, model, batch)).__name__ for name in METRICS} == {
        "loss": "Loss", "mlm": "MaskedLoss", "kl": "Kl", "drift": "Drift", "error": "ErrorRate",
        "cross_entropy": "CrossEntropy",
    }  # fmt: skip
    own = Loss(positions=2, seed=9)
    assert _resolve(own, model, batch) is own
    with pytest.raises(UnknownNameError, match="no metric 'perplexity'; there are: auto, loss, mlm, kl, drift"):
        _resolve("perplexity", model, batch)


def test_a_large_vocabulary_is_paid_for_at_a_few_positions() -> None:
    model, batch = build("llama"), {"input_ids": torch.zeros(8, 256, dtype=torch.long)}
    anatomy = discover(model)
    assert resolve_metric("loss", model, anatomy, batch).positions is None
    model.config.vocab_size = 262_144
    for name in ("loss", "kl"):
        positions = resolve_metric(name, model, anatomy, batch).positions
        assert positions * 8 * 262_144 <= 2**26
        assert positions == 32


def test_functions_with_two_and_three_arguments() -> None:
    model, batch = build("llama"), make_batches("llama", 1)[0]

    def norm(output: object, batch: dict[str, Tensor]) -> Tensor:
        return output.logits.flatten(1).norm(dim=1)

    def away(output: object, batch: dict[str, Tensor], intact: object) -> Tensor:
        return (output.logits - intact.logits).flatten(1).norm(dim=1)

    two, three = _resolve(norm, model, batch), _resolve(away, model, batch)
    assert (two.name, three.name) == ("norm", "away")
    intact, without = _two("llama", two, batch)
    torch.testing.assert_close(two.measure(without, batch, intact), without.logits.flatten(1).norm(dim=1))
    torch.testing.assert_close(
        three.measure(without, batch, intact), (without.logits - intact.logits).flatten(1).norm(dim=1)
    )
    assert not two.is_distance
    with pytest.raises(MetricError, match=r"'away' looks at the intact model's output.*ablation"):
        three.measure(without, batch)
    optional = _resolve(lambda output, batch, scale=2.0: scale * norm(output, batch), model, batch)
    torch.testing.assert_close(optional.measure(intact, batch), 2 * norm(intact, batch))
    for wrong in (lambda: 0, lambda output: 0, lambda a, b, c, d: 0):
        with pytest.raises(MetricError, match=r"takes \(output, batch\) or \(output, batch, intact\)"):
            _resolve(wrong, model, batch)


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(2), torch.ones(3, 1), 0.5, np.ones(3)])
def test_a_function_must_give_one_value_a_row(value: object) -> None:
    metric = UserMetric(lambda output, batch: value, "mine")
    with pytest.raises(MetricError, match=r"'mine' must return one value a row, shape \(3,\); it gave") as raised:
        metric.measure(None, make_batches("llama", 1)[0])
    assert ("reduction='none'" in str(raised.value)) == (isinstance(value, torch.Tensor) and value.ndim == 0)


@pytest.mark.parametrize("name", ["bert", "encoder"])
def test_an_encoder_cannot_be_asked_for_next_token_loss(name: str) -> None:
    with pytest.raises(MetricError, match=r"sees the tokens ahead.*metric='drift'"):
        _resolve("loss", build(name), make_batches(name, 1)[0])
    with pytest.raises(MetricError, match="sees the tokens ahead"):
        _resolve(Loss(positions=3), build(name), make_batches(name, 1)[0])


@pytest.mark.parametrize("metric", [Loss(), Kl(), MaskedLoss(mask_token_id=1)])
@pytest.mark.parametrize("output", [SimpleNamespace(), SimpleNamespace(logits=torch.ones(2, 5)), (1, 2), None])
def test_an_output_without_logits_is_refused(metric: Metric, output: object) -> None:
    batch = {"input_ids": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(MetricError, match=r"no logits of shape \(batch, position, vocabulary\)"):
        metric.measure(output, batch, output)


def test_an_output_without_hidden_states_and_a_batch_without_tokens_are_refused() -> None:
    batch = {"input_ids": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(MetricError, match="nor a vector for each row"):
        Drift().measure(SimpleNamespace(), batch, SimpleNamespace())
    pixels = {"pixel_values": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(MetricError, match=r"hold no tokens to score \(they hold \['pixel_values'\]\)"):
        Loss().inputs(build("llama"), pixels)


def test_only_distances_have_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(MetricError, match="'loss' is no distance"):
        Loss().direction(None, {}, generator)
    assert [name for name, kind in METRICS.items() if kind.is_distance] == ["kl", "drift"]
