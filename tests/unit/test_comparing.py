"""similarity(): passes, memory, intervals, two models, sides of an encoder-decoder, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2LMHeadModel

import headscope as hs
from headscope.comparing import How, compare_heads, parse_memory
from headscope.errors import InputError, NumericalError, UnknownNameError
from headscope.heads import Anatomy
from headscope.measures import MEASURES
from headscope.measures.cka import Cka
from headscope.nulls import scramble_tokens
from headscope.observation import Blocks
from headscope.reference import Transformer
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


def test_several_passes_under_little_memory_give_the_same_table() -> None:
    model, batches = build_any("gpt2"), models.make_batches("gpt2")
    anatomy = hs.discover(model)
    site = anatomy.sites[0]
    whole = hs.similarity(model, batches, scope="model")
    rows = site.n_heads * (site.head_dim + 1)
    # two layers fit at once, and no more
    few = hs.similarity(model, batches, scope="model", memory=2 * 8.0 * (2 * rows) ** 2 * 1.01)
    np.testing.assert_allclose(few.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isfinite(whole.low).all()
    with pytest.raises(InputError, match=r"two layers alone take .* more than"):
        hs.similarity(model, batches, scope="model", memory=1000)


def deep_model() -> GPT2LMHeadModel:
    """Five layers, one head of which does nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=models.VOCABULARY, n_positions=64, n_embd=16, n_layer=5, n_head=2, bos_token_id=1, eos_token_id=1
        )
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # head 1 of layer 3: v of eight dimensions, in (in, out)
        attention = model.transformer.h[3].attn.c_attn
        attention.weight[:, 40:48] = 0
        attention.bias[40:48] = 0
    return model


@pytest.mark.parametrize(("measure", "sums"), [("cka", 2), ("cosine", 2), ("procrustes", 2), ("predict", 5)])
@pytest.mark.parametrize(("layers", "passes"), [(2, 10), (4, 3)])
def test_as_many_passes_as_memory_asks_for(measure: str, sums: int, layers: int, passes: int) -> None:
    model, batches, steps = deep_model(), models.make_batches("gpt2"), []
    whole = hs.similarity(model, batches, measure, scope="model")
    memory = sums * 8.0 * (layers * 2 * 9) ** 2  # that many layers of two heads of eight dimensions
    few = hs.similarity(
        model, batches, measure, scope="model", memory=memory, progress=lambda *step: steps.append(step)
    )
    assert steps == [("watching", 1, passes * len(batches))] * (passes * len(batches))
    idle = whole.heads.index(hs.HeadId(3, 1))
    assert np.isnan(few.matrix[idle]).all()
    assert np.isnan(few.matrix[:, idle]).all()
    assert np.isfinite(np.delete(np.delete(few.matrix, idle, 0), idle, 1)).all()
    np.testing.assert_allclose(few.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isnan(few.low).all()
    assert np.isfinite(whole.low).any()
    assert "did not fit into memory" in few.facts["why_no_interval"]
    assert "why_no_interval" not in whole.facts


def test_passes_over_groups_of_layers_meet_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    from headscope import comparing

    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    whole = hs.similarity(model, batches, scope="model")
    monkeypatch.setattr(comparing, "_plan", lambda *_: (1, [[0], [0, 1], [1]]))
    parts = hs.similarity(model, batches, scope="model")
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isnan(parts.low).all()


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


def test_too_little_memory_for_two_models_is_refused() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(InputError, match=r"two layers alone take .*compare within layers"):
        hs.similarity(model, batches, scope="model", other=copy.deepcopy(model), memory=1000)


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
    assert table.null is not None
    np.testing.assert_array_equal(np.isnan(table.null), np.isnan(table.matrix))
    assert not np.allclose(np.nan_to_num(table.null), np.nan_to_num(table.matrix))
    np.testing.assert_array_equal(table.null, hs.similarity(model, batches, "pattern_js", seed=3).null)
    assert hs.similarity(model, batches, "cka").null is None


@pytest.mark.parametrize("measure", ["pattern_cosine", "pattern_js"])
def test_maps_of_a_model_without_tokens_have_no_null(measure: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModel.from_config(AutoConfig.for_model("vit", **sizes, image_size=16, patch_size=4)).eval()
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    table = hs.similarity(model, [{"pixel_values": pixels}], measure)
    assert np.isfinite(table.matrix).all()
    assert table.null is None
    assert "no token ids" in table.facts["why_no_null"]


def test_a_null_is_the_value_on_scrambled_tokens_of_both_sides() -> None:
    model, inputs = build_any("t5"), make_inputs("t5")
    batch = {**inputs, "decoder_input_ids": inputs["input_ids"][:, 2:9]}
    table = hs.similarity(model, [batch], "pattern_cosine", scope="model", seed=5)
    (scrambled,) = scramble_tokens([batch], seed=5)
    assert not torch.equal(scrambled["decoder_input_ids"], batch["decoder_input_ids"])
    np.testing.assert_array_equal(table.null, hs.similarity(model, [scrambled], "pattern_cosine", scope="model").matrix)


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


@pytest.mark.parametrize("memory", ["lots", "-1GB", 0, "GB", "inf"])
def test_memory_is_a_size(memory: object) -> None:
    with pytest.raises(InputError, match="memory is a number of bytes"):
        parse_memory(memory)  # type: ignore[arg-type]
    assert parse_memory("500 MB") == 5e8


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


def test_passes_without_the_encoder_deal_documents_as_one_pass_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from headscope import comparing

    model, inputs = build_any("t5"), make_inputs("t5")
    rows = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    length = rows["input_ids"].shape[1]
    mask = (torch.arange(length) < torch.arange(2, 2 + len(rows["input_ids"]))[:, None]).long()
    batch = {**rows, "attention_mask": mask, "decoder_input_ids": rows["input_ids"][:, :6]}
    whole = hs.similarity(model, [batch], "predict", scope="model")
    layers = [site.layer for site in hs.discover(model).sites]
    monkeypatch.setattr(comparing, "_plan", lambda *_: (2, [[a] for a in layers]))
    parts = hs.similarity(model, [batch], "predict", scope="model")
    known = ~np.isnan(parts.matrix)
    assert known.sum() > len(layers)
    np.testing.assert_allclose(parts.matrix[known], whole.matrix[known], rtol=1e-6, atol=1e-6)


def test_a_measure_cannot_need_a_statistic_that_relates_no_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(MEASURES["cka"]):  # type: ignore[misc]
        """Needs the means of layers."""

        needs = frozenset({"means"})

    monkeypatch.setitem(MEASURES._entries, "odd", Odd)
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(UnknownNameError, match="a measure cannot need 'means'"):
        hs.similarity(model, batches, Odd())


def test_within_layers_little_memory_takes_more_passes() -> None:
    model, batches = build_any("gpt2"), models.make_batches("gpt2")
    whole = hs.similarity(model, batches)
    site = hs.discover(model).sites[0]
    alone = 13 * 8.0 * (site.n_heads * (site.head_dim + 1)) ** 2
    few = hs.similarity(model, batches, memory=1.01 * alone)
    np.testing.assert_array_equal(few.matrix, whole.matrix)
    np.testing.assert_array_equal(few.low, whole.low)
    with pytest.raises(InputError, match="layer 0 alone takes"):
        hs.similarity(model, batches, memory=0.9 * alone)


def test_intervals_across_the_model_are_made_on_request_in_as_many_passes_as_they_take() -> None:
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=5, n_head=2, n_positions=32)
    torch.manual_seed(0)
    model, batches = GPT2LMHeadModel(config), models.make_batches("gpt2")
    rows = 2 * (8 + 1)
    room = 13 * 8.0 * (3 * rows) ** 2  # all blocks of three layers
    plain = hs.similarity(model, batches, scope="model", memory=room)
    assert np.isnan(plain.low).all()
    asked = hs.similarity(model, batches, scope="model", memory=room, intervals=True)
    whole = hs.similarity(model, batches, scope="model")
    np.testing.assert_allclose(asked.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(asked.low, whole.low, rtol=1e-6, atol=1e-9)


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


def test_a_table_says_of_which_models_it_is_and_why_it_is_empty() -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    narrow = Transformer(models.VOCABULARY, width=16, n_heads=2, causal=True)
    table = hs.similarity(model, batches, "cosine", other=narrow, scope="model")
    assert (table.facts["model_class"], table.facts["other_class"]) == ("LlamaForCausalLM", "Transformer")
    assert np.isnan(table.matrix).all()
    assert "one width" in table.facts["why_no_value"]
    assert "of two models" in table._repr_html_()
    one = [{name: value[:1] for name, value in batches[0].items()}]
    assert "no intervals: only 1 document" in hs.similarity(model, one)._repr_html_()
    assert "no values: only 1 document: what is fitted" in repr(hs.similarity(model, one, "predict"))


def test_heads_without_a_value_and_layers_without_a_pair_are_named() -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    site = hs.discover(model).site(1)
    (values,) = site.value
    with torch.no_grad():
        model.get_submodule(values.module).weight[list(values.heads[0])] = 0
    silent = [str(head) for head, source in zip(site.heads, site.kv_of_query, strict=True) if source == 0]
    table = hs.similarity(model, batches)
    assert table.facts["why_no_value"] == f"not for {', '.join(silent)}, which do not vary"
    assert "why_no_value" not in hs.similarity(model, batches, of="q").facts
    alone = hs.similarity(models.build("gemma3"), batches, of="k")
    assert alone.facts["why_no_value"].startswith("no layer has two key heads that vary")
    assert "why_no_value" not in hs.similarity(models.build("gemma3"), batches, of="k", scope="model").facts


def test_weights_of_two_models_need_no_text_that_both_take() -> None:
    first, batches = models.build("llama"), models.make_batches("llama")
    few_words = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    table = hs.similarity(first, batches, "weights_ov", other=few_words.eval(), scope="model")
    assert np.isfinite(table.matrix).all()
    with pytest.raises(InputError, match="does not take these batches"):
        hs.similarity(first, batches, "cka", other=few_words)


def _of_lengths(*lengths: int) -> list[dict[str, torch.Tensor]]:
    """Rows of those lengths, each a batch and a document of its own."""
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, models.VOCABULARY, (1, length), generator=generator)} for length in lengths]


def test_documents_that_are_too_short_leave_no_number_or_no_interval_and_the_table_says_so() -> None:
    model = models.build("llama")
    none = hs.similarity(model, _of_lengths(*[3] * 12), "cka_minibatch")
    assert np.isnan(none.matrix).all()
    assert none.facts["why_no_value"] == "only 0 positions count; give more text"
    one = hs.similarity(model, _of_lengths(12, *[3] * 11), "cka_minibatch")
    assert np.isfinite(one.matrix).any()
    assert one.facts["tokens"] == 12
    assert "only 1 document" in one.facts["why_no_interval"]
    thin = hs.similarity(model, _of_lengths(2, 2), "cka")
    assert np.isfinite(thin.matrix).any()
    assert np.isnan(thin.low).all()
    assert "too little is left" in thin.facts["why_no_interval"]
    assert hs.similarity(model, _of_lengths(3)).facts["why_no_value"] == "only 3 positions count; give more text"


def test_halves_are_those_of_the_documents_that_hold_a_position() -> None:
    model = models.build("llama")
    lengths = (9, 1, 9, 1, 9, 1, 9, 9)
    some = hs.similarity(model, _of_lengths(*lengths), "predict", skip_first=1)
    alone = hs.similarity(model, _of_lengths(*lengths)[::2], "predict", skip_first=1)
    assert np.isfinite(some.low[some.heads.index(hs.HeadId(0, 0)), 1])
    assert "why_no_interval" not in some.facts
    assert alone.facts["documents"] == 4


def test_two_models_are_compared_in_as_many_passes_as_memory_asks_for() -> None:
    sizes = {"vocab_size": models.VOCABULARY, "n_positions": 64, "n_embd": 32, "n_head": 4}
    first, second = (GPT2LMHeadModel(GPT2Config(**sizes, n_layer=layers)).eval() for layers in (4, 3))
    batches = models.make_batches("gpt2")
    whole = hs.similarity(first, batches, other=second, scope="model")
    seen: list[int] = []
    parts = hs.similarity(
        first, batches, other=second, scope="model", memory="100KB", progress=lambda *step: seen.append(step[2])
    )
    assert max(seen) > 2 * len(batches), "more than two passes"
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-9)
    assert "did not fit" in parts.facts["why_no_interval"]
    sure = hs.similarity(first, batches, other=second, scope="model", memory="600KB", intervals=True)
    np.testing.assert_allclose(sure.low, whole.low, rtol=1e-6)
    with pytest.raises(InputError, match="two layers alone take"):
        hs.similarity(first, batches, other=second, scope="model", memory="5KB")
    single = GPT2LMHeadModel(GPT2Config(**sizes, n_layer=1)).eval()
    with pytest.raises(InputError, match="one layer takes"):
        hs.similarity(single, batches, scope="model", memory="5KB")


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


def test_an_encoder_and_a_decoder_are_told_apart_in_words() -> None:
    model = build_any("t5")
    batches = models.make_batches("gpt2")
    for batch in batches:
        batch["decoder_input_ids"] = batch["input_ids"][:, :5].contiguous()
    table = hs.similarity(model, batches, scope="model")
    assert table.facts["why_no_value"] == (
        "not between heads that see different positions, as an encoder's and a decoder's"
    )
