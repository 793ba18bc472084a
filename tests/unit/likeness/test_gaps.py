"""Gaps: where a number is missing the table says why."""

import numpy as np
import torch

import headscope as hs
from headscope.models.reference import Transformer
from tests import models
from tests.families import build_any


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


def test_an_encoder_and_a_decoder_are_told_apart_in_words() -> None:
    model = build_any("t5")
    batches = models.make_batches("gpt2")
    for batch in batches:
        batch["decoder_input_ids"] = batch["input_ids"][:, :5].contiguous()
    table = hs.similarity(model, batches, scope="model")
    assert table.facts["why_no_value"] == (
        "not between heads that see different positions, as an encoder's and a decoder's"
    )
