"""similarity(): passes, memory, intervals, two models, sides of an encoder-decoder, and what is refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2LMHeadModel

import headscope as hs
from headscope.errors import InputError, NumericalError, UnknownNameError
from headscope.likeness.asking import How
from headscope.likeness.comparing import compare_heads
from headscope.likeness.measures import MEASURES
from headscope.likeness.measures.cka import Cka
from headscope.sites import Anatomy
from headscope.text.nulls import scramble_tokens
from headscope.uncertainty.blocks import Blocks
from tests import models
from tests.families import build_any
from tests.reference import jackknife
from tests.reference import similarity as reference
from tests.watched import make_inputs


def rows_by_block(model: torch.nn.Module, batches: list, want: str, layer: int) -> list[list[np.ndarray]]:
    """By block of documents, (token, dim) of each head of a layer: by hand, from captures."""
    dealt, found = Blocks(), [[] for _ in range(10)]
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "document"}
        with torch.no_grad(), hs.capture(model, (want,)) as seen:
            model(**inputs)
        kept = batch["attention_mask"].bool()
        block = dealt.place(batch["document"], kept.sum(1))
        tensor = seen[layer].tensors[want].transpose(1, 2).double()
        for row in range(len(kept)):
            found[int(block[row])].append(tensor[row][kept[row]].numpy())
    return [np.concatenate(own) for own in found if own]


@pytest.mark.parametrize("of", ["q", "k", "v", "z", "contribution"])
@pytest.mark.parametrize("measure", ["cka", "cka_biased", "procrustes"])
def test_values_and_intervals_are_those_of_tensors_that_were_captured(of: str, measure: str) -> None:
    model, batches = models.build("llama").double(), models.make_batches("llama", n_batches=3)
    twin = {"cka": reference.unbiased_cka, "cka_biased": reference.biased_cka, "procrustes": reference.procrustes}
    table = hs.similarity(model, batches, measure, of)
    groups = rows_by_block(model, batches, of, layer=1)
    n_heads = groups[0].shape[1]
    first = len(table.heads) - n_heads
    for a, b in ((0, 1), (n_heads - 1, 0)):
        flat = [np.hstack([group[:, a], group[:, b]]) for group in groups]

        def estimate(rows: np.ndarray, width: int = groups[0].shape[2]) -> float:
            return twin[measure](rows[:, :width], rows[:, width:])

        np.testing.assert_allclose(table.matrix[first + a, first + b], estimate(np.concatenate(flat)), rtol=1e-9)
        got = table.low[first + a, first + b], table.high[first + a, first + b]
        np.testing.assert_allclose(got, jackknife.interval(estimate, flat), rtol=1e-7, atol=1e-9)


def test_one_document_has_values_and_says_why_it_has_no_interval() -> None:
    model, batches = models.build("bert"), models.make_batches("bert")
    same = [{**batch, "document": torch.zeros_like(batch["document"])} for batch in batches]
    table = hs.similarity(model, same)
    assert np.isfinite(table.matrix).any()
    assert np.isnan(table.low).all()
    assert "only 1 document" in table.facts["why_no_interval"]
    assert "why_no_interval" not in hs.similarity(model, batches).facts
    assert np.isnan(hs.similarity(model, same, "predict").matrix).all()


def test_a_model_and_itself_are_compared_as_one_model_is() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    for scope in ("layer", "model"):
        alone = hs.similarity(model, batches, scope=scope)
        two = hs.similarity(model, batches, scope=scope, other=copy.deepcopy(model))
        assert two.other == two.heads == alone.heads
        np.testing.assert_allclose(two.matrix, alone.matrix, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(two.low, alone.low, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("measure", ["cka", "predict", "pattern_js", "weights_ov"])
def test_a_symmetric_measure_gives_each_pair_of_one_model_once(measure: str, tmp_path: Path) -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    n_heads, n_layers = 8, 2
    table = hs.similarity(model, batches, measure)
    again = (table.save(tmp_path), hs.PairTable.load(tmp_path, measure))[1]
    for one in (table, again):
        once, every = len(one.to_frame()), len(one.to_frame(every=True))
        assert every == n_layers * n_heads**2
        assert once == (every if measure == "predict" else n_layers * n_heads * (n_heads - 1) // 2)
        assert (one.matrix == one.matrix.T)[np.isfinite(one.matrix)].all() == (measure != "predict")
        np.testing.assert_array_equal(one.matrix, table.matrix)
        np.testing.assert_array_equal(one.low, table.low)
    two = hs.similarity(model, batches, measure, other=copy.deepcopy(model))
    assert len(two.to_frame()) == n_layers * n_heads**2


@pytest.mark.parametrize("measure", ["cka", "cosine", "predict", "pattern_js", "weights_ov"])
def test_a_pruned_model_keeps_its_heads_numbers(measure: str) -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    smaller = hs.prune(model, ["L0H1", "L1H0"])
    table = hs.similarity(model, batches, measure, other=smaller)
    assert hs.HeadId(0, 1) not in table.column_heads
    assert table.matrix.shape == (len(table.heads), len(table.heads) - 2)
    assert table["L0H0", "L0H0"] == pytest.approx(1, abs=1e-3)  # the first layer reads what it read before
    assert abs(table["L0H0", "L0H2"]) < 1
    assert set(table.to_frame()) >= {"head_a", "head_b", "value"}


@pytest.mark.parametrize("of", ["z", "k", "contribution"])
def test_models_of_other_shapes_are_compared_head_by_head(of: str) -> None:
    one, other = models.build("gpt2").double(), models.build("gemma3").double()  # 4 heads of 8, 4 of 16 on one key head
    batches = models.make_batches("gpt2")
    table = hs.similarity(one, batches, "cka_biased", of, scope="model", other=other)
    assert table.matrix.shape == (8, {"z": 8, "k": 2, "contribution": 8}[of])
    rows = [[np.concatenate(rows_by_block(model, batches, of, layer)) for layer in (0, 1)] for model in (one, other)]
    ours, theirs = ([head for layer in own for head in layer.transpose(1, 0, 2)] for own in rows)
    want = [[reference.biased_cka(a, b) for b in theirs] for a in ours]
    np.testing.assert_allclose(table.matrix, want, rtol=1e-9, atol=1e-9)


class Thinned(nn.Module):
    """A model that leaves out every second token."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.build("gpt2")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> object:
        return self.inner(input_ids=input_ids[:, ::2])


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("measure", ["cka", "cosine", "predict", "cka_minibatch", "pattern_cosine"])
def test_models_that_see_different_positions_are_refused(measure: str, scope: str) -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2", padded=False)
    with pytest.raises(InputError, match="no heads of GPT2LMHeadModel and of the other model, Thinned, see the same"):
        hs.similarity(model, batches, measure, scope=scope, other=Thinned())


def test_a_causal_model_and_an_encoder_are_refused_and_not_left_blank() -> None:
    batches = models.make_batches("gpt2")
    with pytest.raises(InputError, match="both be causal or neither"):
        hs.similarity(models.build("gpt2"), batches, other=models.build("bert"))


def test_encoder_and_decoder_see_different_positions() -> None:
    model, inputs = build_any("t5"), make_inputs("t5")
    inputs = {**inputs, "decoder_input_ids": inputs["input_ids"][:, :6]}
    table = hs.similarity(model, [inputs], scope="model")
    kind = {site.layer: site.kind for site in hs.discover(model).sites}
    encoder = np.array([kind[head.layer] == "self" for head in table.heads])
    assert encoder.any()
    assert np.isnan(table.matrix[encoder][:, ~encoder]).all()
    for side in (encoder, ~encoder):
        assert np.isfinite(table.matrix[np.ix_(side, side)]).all()


def test_measures_of_maps_stand_beside_random_tokens_where_there_are_tokens() -> None:
    model, batches = models.build("bert"), models.make_batches("bert")
    table = hs.similarity(model, batches, "pattern_js", seed=3)
    assert "random_tokens" in table.nulls
    np.testing.assert_array_equal(np.isnan(table.nulls["random_tokens"]), np.isnan(table.matrix))
    assert not np.allclose(np.nan_to_num(table.nulls["random_tokens"]), np.nan_to_num(table.matrix))
    np.testing.assert_array_equal(
        table.nulls["random_tokens"], hs.similarity(model, batches, "pattern_js", seed=3).nulls["random_tokens"]
    )
    assert hs.similarity(model, batches, "cka").nulls.get("random_tokens") is None


@pytest.mark.parametrize("measure", ["pattern_cosine", "pattern_js"])
def test_maps_of_a_model_without_tokens_have_no_null(measure: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModel.from_config(AutoConfig.for_model("vit", **sizes, image_size=16, patch_size=4)).eval()
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    table = hs.similarity(model, [{"pixel_values": pixels}], measure)
    assert np.isfinite(table.matrix).all()
    assert "random_tokens" not in table.nulls
    assert "no token ids" in table.facts["why_no_null"]


class _Picky(nn.Module):
    """A model that takes only what it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.build("bert")

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if not bool((input_ids[:, 1:] >= input_ids[:, :-1]).all()):
            raise ValueError("tokens come in order")
        return self.inner(input_ids).last_hidden_state


def test_a_model_that_takes_no_random_tokens_keeps_its_numbers() -> None:
    batch = {"input_ids": torch.arange(3, 17).repeat(3, 1)}
    table, other = compare_heads(_Picky().eval(), [batch], [("pattern_js", None), ("cka", None)], How(seed=1))
    assert "random_tokens" not in table.nulls
    assert "does not take random tokens" in table.facts["why_no_null"]
    assert "tokens come in order" in table.facts["why_no_null"]
    assert np.isfinite(table.matrix).any()
    assert "why_no_null" not in other.facts


def test_a_null_is_the_value_on_scrambled_tokens_of_both_sides() -> None:
    model, inputs = build_any("t5"), make_inputs("t5")
    batch = {**inputs, "decoder_input_ids": inputs["input_ids"][:, 2:9]}
    table = hs.similarity(model, [batch], "pattern_cosine", scope="model", seed=5)
    (scrambled,) = scramble_tokens([batch], seed=5)
    assert not torch.equal(scrambled["decoder_input_ids"], batch["decoder_input_ids"])
    np.testing.assert_array_equal(
        table.nulls["random_tokens"], hs.similarity(model, [scrambled], "pattern_cosine", scope="model").matrix
    )


def test_one_pass_serves_all_measures_asked() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    seen = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(1))
    anatomy = hs.discover(model)
    seen.clear()
    names = [name for name in MEASURES if MEASURES[name].sources[0] != "pattern"]
    tables = compare_heads(model, batches, [(name, None) for name in names], How(), anatomy=anatomy)
    handle.remove()
    assert len(seen) == len(batches)
    assert [table.name for table in tables] == names
    for table in tables:
        alone = hs.similarity(model, batches, table.name)
        np.testing.assert_array_equal(alone.matrix, table.matrix)


def test_weights_need_no_text_and_a_query_head_reads_its_own_key_head() -> None:
    model = models.build("llama")
    table = hs.similarity(model, measure="weights_qk", scope="model")
    site = hs.discover(model).sites[0]
    layer = model.model.layers[0].self_attn
    q = layer.q_proj.weight.detach().double().unflatten(0, (site.n_heads, -1)).numpy()
    k = layer.k_proj.weight.detach().double().unflatten(0, (site.n_kv_heads, -1)).numpy()
    share = site.n_heads // site.n_kv_heads
    products = [q[head].T @ k[head // share] for head in range(site.n_heads)]
    want = reference.all_pairs(reference.cosine, products)
    np.testing.assert_allclose(table.matrix[: site.n_heads, : site.n_heads], want, rtol=1e-9, atol=1e-9)
    within = hs.similarity(model, measure="weights_qk")
    assert np.isnan(within.matrix[: site.n_heads, site.n_heads :]).all()
    assert "no text" in within.facts["why_no_interval"]


def test_what_a_measure_does_not_compare_is_named() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(UnknownNameError, match="pattern_js does not compare 'z'; it compares: pattern"):
        hs.similarity(model, batches, "pattern_js", "z")
    with pytest.raises(InputError, match="pass batches"):
        hs.similarity(model)
    assert isinstance(hs.discover(model), Anatomy)


def test_a_measure_that_is_not_registered_is_refused_before_the_model_runs() -> None:
    class Own(Cka):
        """Not registered."""

    model, batches, steps = models.build("gpt2"), models.make_batches("gpt2"), []
    with pytest.raises(UnknownNameError, match="not an object of a registered measure"):
        hs.similarity(model, batches, Own(), progress=lambda *step: steps.append(step))
    assert steps == []


def test_a_measure_cannot_need_a_statistic_that_relates_no_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(MEASURES["cka"]):  # type: ignore[misc]
        """Needs the means of layers."""

        needs = frozenset({"means"})

    monkeypatch.setitem(MEASURES._entries, "odd", Odd)
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(UnknownNameError, match="a measure cannot need 'means'"):
        hs.similarity(model, batches, Odd())


def test_documents_without_a_position_that_counts_do_not_count() -> None:
    model, batches = models.build("bert"), models.make_batches("bert", n_batches=1)
    lengths = batches[0]["attention_mask"].sum(1)
    left = int((lengths > 9).sum())
    assert 0 < left < len(lengths)
    table = hs.similarity(model, batches, skip_first=9)
    assert table.facts["documents"] == left


def test_weights_of_an_encoder_and_of_a_decoder_are_not_set_against_each_other() -> None:
    model = build_any("t5")
    kinds = [site.kind for site in hs.discover(model).sites for _ in site.heads]
    alike = hs.similarity(model, measure="weights_ov", scope="model").matrix
    assert len(set(kinds)) == 3
    np.testing.assert_array_equal(np.isnan(alike), [[a != b for b in kinds] for a in kinds])


def test_weights_of_two_models_need_no_text_that_both_take() -> None:
    first, batches = models.build("llama"), models.make_batches("llama")
    few_words = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    table = hs.similarity(first, batches, "weights_ov", other=few_words.eval(), scope="model")
    assert np.isfinite(table.matrix).all()
    with pytest.raises(InputError, match="does not take these batches"):
        hs.similarity(first, batches, "cka", other=few_words)


def test_weights_that_are_no_number_are_refused_by_name() -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    last = hs.discover(model).sites[-1].output
    assert last is not None
    with torch.no_grad():
        model.get_submodule(last.module).weight[0, 0] = torch.nan
    for call in (
        lambda: hs.similarity(model, batches, "cosine"),
        lambda: hs.similarity(model, measure="weights_ov"),
        lambda: hs.importance(model, batches, "norm"),
        lambda: hs.importance(model, batches, "replaceability"),
        lambda: hs.redundancy(model, batches),
    ):
        with pytest.raises(NumericalError, match=r"layers\.1\.self_attn\.o_proj"):
            call()


@pytest.mark.parametrize(("measure", "of"), [("cosine", "contribution"), ("cka", "contribution")])
def test_what_no_layer_has_is_refused_with_the_reason(measure: str, of: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    model = AutoModel.from_config(
        AutoConfig.for_model("diffllama", vocab_size=60, num_key_value_heads=2, **sizes)
    ).eval()
    with pytest.raises(InputError, match=r"none of the attention layers of DiffLlamaModel .* told apart in o"):
        hs.similarity(model, [{"input_ids": torch.arange(3, 21).view(2, 9)}], measure=measure, of=of)
