"""`analyze` of models that are no text models of transformers, to the report and back from the saved run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import headscope as hs
from headscope.studies.asking import ask_model
from headscope.studies.subjects import Subject
from headscope.text.sides import Reader, halved, needs_halves
from headscope.text.splits import sample_batches
from tests.cli.conftest import make_tokenizer
from tests.unit.effects.test_labelled import X, Y, _Classifier
from tests.unit.text.test_feeding import _Gpt

BUDGET = hs.Budget(ablation_tokens=16, passes=0)
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, 50, (16, 9), generator=GENERATOR)
PICTURES = torch.randn(16, 3, 16, 16, generator=GENERATOR)


def _vit() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)).eval()


def _clip() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 59}
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    ).eval()


def _whisper() -> Any:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=20,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def _steps(output: Any, batch: Any) -> Tensor:
    return output[0].argmax(-1).double().mean(1)


CASES: dict[str, tuple[Callable[[], Any], Any, Any, str]] = {
    "a language model that takes idx": (_Gpt, {"idx": TOKENS}, "auto", "loss"),
    "with what it is to tell": (_Gpt, (TOKENS, TOKENS.roll(-1, 1)), "auto", "loss"),
    "by a metric that moves in steps": (_Gpt, {"idx": TOKENS}, _steps, "_steps"),
    "pictures by accuracy": (_vit, (PICTURES, Y[:16]), "error", "error"),
    "vectors with labels": (_Classifier, (X, Y), "auto", "cross_entropy"),
    "two towers": (_clip, {"input_ids": TOKENS.clamp(min=1), "pixel_values": PICTURES}, "auto", "drift"),
    "two towers with their loss": (
        _clip, {"input_ids": TOKENS.clamp(min=1), "pixel_values": PICTURES, "return_loss": True}, "auto", "drift",
    ),
    "a number beside the rows": (
        _Classifier, {"x": X, "labels": Y, "scale": torch.tensor(2.0)}, "auto", "cross_entropy",
    ),
    "sound with labels": (
        _whisper, {"input_features": torch.randn(16, 8, 40), "labels": TOKENS[:, :5] + 4}, "auto", "loss",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_report_is_written_and_the_run_read_back(name: str, tmp_path: Path) -> None:
    make, batches, metric, judged_by = CASES[name]
    model = make().eval()
    run = hs.analyze(model, batches=batches, metric=metric, budget=BUDGET)
    assert run.facts["metric"] == judged_by
    page = run.report(tmp_path / "report").read_text(encoding="utf-8")
    assert run.verdict.sentence.split(",")[0] in page
    run.save(tmp_path / "run")
    again = hs.Analysis.load(tmp_path / "run")
    np.testing.assert_array_equal(again.importance.score, run.importance.score)
    has_gradient = judged_by not in ("error", "_steps")
    assert ("gradient" in again.scores) == has_gradient
    assert again.candidates["gradient"].notna().all() == has_gradient
    assert ("has no gradient" in again.facts.get("left_out", "")) == (not has_gradient)
    assert ("Left out" in page) == (not has_gradient)
    assert again.claims.empty


def test_claims_stand_beside_random_tokens_whatever_these_are_called() -> None:
    run = hs.analyze(
        _Gpt().eval(), batches={"idx": TOKENS}, budget=hs.Budget(ablation_tokens=16, passes=0, claims=True)
    )
    (diversity,) = run.claims.query("claim == 'C6'").to_dict("records")
    assert "By their maps they are worth" in diversity["sentence"]
    assert "On random tokens maps are worth" in diversity["sentence"]


def test_a_claim_about_all_layers_stands_beside_random_tokens_in_all_of_them_or_in_none() -> None:
    batch = {"input_ids": TOKENS.clamp(min=4), "pixel_values": PICTURES}
    sentence = ask_model(Subject("two towers", _clip(), [batch]), ["C6"]).rulings[0].sentence.en
    assert "By their maps they are worth" in sentence
    assert "random tokens" not in sentence


TEXTS = [" ".join(f"w{(7 * i + j) % 40}" for j in range(30)) for i in range(16)]
SIDES = "the first half of each window is read by the encoder, the second by the decoder"


def _t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


def test_a_t5_with_plain_text() -> None:
    model, tokenizer = _t5(), make_tokenizer(pad=True)
    run = hs.analyze(model, tokenizer, texts=TEXTS, budget=hs.Budget(length=12, ablation_tokens=60, passes=0))
    assert run.facts["metric"] == "drift"
    assert run.facts["sides"] == SIDES
    assert {site.kind for site in run.anatomy.sites} == {"self", "causal", "cross"}
    assert np.isfinite(run.importance.score).all()
    as_batches = hs.analyze(model, tokenizer, batches=TEXTS, budget=hs.Budget(length=12, ablation_tokens=60, passes=0))
    np.testing.assert_array_equal(as_batches.importance.score, run.importance.score)


def test_every_step_by_itself_takes_text_for_a_t5_where_it_is_named() -> None:
    model, tokenizer = _t5(), make_tokenizer(pad=True)
    batches = hs.text_batches(tokenizer, TEXTS, length=24, model=model)
    assert batches.facts["sides"] == SIDES
    anatomy = hs.discover(model, batches[0])
    assert {site.kind for site in anatomy.sites} == {"self", "causal", "cross"}
    tables = [
        hs.importance(model, batches), hs.importance(model, batches, "norm"), hs.similarity(model, batches),
        hs.similarity(model, batches, "pattern_js"), hs.roles(model, batches, tokenizer),
        hs.importance(model, sample_batches(batches, 60)), hs.redundancy(model, batches),
        hs.compare(model, model, batches, scores=["norm"]),
    ]  # fmt: skip
    assert [table.facts["sides"] for table in tables] == [SIDES] * len(tables)
    assert SIDES in repr(tables[0])
    inputs = {name: value for name, value in batches[0].items() if name != "document"}
    with torch.no_grad(), hs.capture(model, ("z",), anatomy=anatomy) as seen:
        model(**inputs)
    assert [seen[layer].z.shape[2] for layer in seen] == [12, 12, 12]
    whole = hs.text_batches(tokenizer, TEXTS, length=24, model=_Gpt())
    assert "sides" not in whole.facts
    assert "decoder_input_ids" not in whole[0]


@pytest.mark.parametrize(
    "step", [hs.importance, hs.similarity, hs.roles, lambda model, one: hs.discover(model, one[0])]
)
def test_what_to_write_is_said_where_a_decoder_was_given_nothing(step: Callable[..., Any]) -> None:
    with pytest.raises(hs.HeadscopeError, match=r"hs\.text_batches\(tokenizer, texts, model=model\)"):
        step(_t5(), hs.text_batches(make_tokenizer(pad=True), TEXTS, length=24))


def test_text_goes_by_the_name_that_a_forward_of_one_s_own_has_for_it() -> None:
    texts = [" ".join(f"w{(7 * i + j) % 40}" for j in range(30)) for i in range(16)]
    budget = hs.Budget(length=12, ablation_tokens=60, passes=0)
    run = hs.analyze(_Gpt().eval(), make_tokenizer(pad=True), texts=texts, budget=budget)
    assert run.facts["metric"] == "loss"
    assert "sides" not in run.facts
    assert np.isfinite(run.importance.score).all()
    rows = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    made = Reader(_Gpt(), halves=False).take(rows | {"document": torch.tensor([3, 4])})
    assert list(made) == ["idx", "kept", "document"]
    assert torch.equal(made["kept"], rows["attention_mask"])


def test_halves_are_those_of_each_row() -> None:
    config = T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, decoder_start_token_id=0)
    rows = {"input_ids": torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 0, 0]]), "document": torch.tensor([3, 4])}
    rows["attention_mask"] = (rows["input_ids"] > 0).long()
    model = T5ForConditionalGeneration(config)
    assert needs_halves(model, rows)
    made = halved(model, rows)
    assert made["input_ids"].tolist() == [[5, 6, 7], [11, 12, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert made["decoder_input_ids"].tolist() == [[0, 8], [0, 13]]
    assert made["decoder_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert made["document"].tolist() == [3, 4]
    assert not needs_halves(_Gpt(), rows)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(Y[:9], "labels"), (torch.full((16,), 7), "labels"), (torch.rand(16), "labels")],
    ids=["too few", "no such class", "no classes"],
)
def test_labels_that_fit_nothing_are_refused(labels: Tensor, said: str) -> None:
    with pytest.raises(hs.HeadscopeError, match=said):
        hs.analyze(_Classifier().eval(), batches={"x": X[:16], "labels": labels}, budget=BUDGET)


def test_a_metric_sees_the_intact_output_also_by_default() -> None:
    def distance(output: Any, batch: Any, intact: Any = None) -> Tensor:
        assert intact is not None
        return (output[0] - intact[0]).square().mean((1, 2))

    run = hs.analyze(_Gpt().eval(), batches={"idx": TOKENS}, metric=distance, budget=BUDGET)
    assert (run.importance.score > 0).all()
