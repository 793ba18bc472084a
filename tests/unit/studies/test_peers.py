"""Tools that stand beside this one in the benchmark: they may be absent, or may not take a model."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from headscope.studies.benchmark import bench_watching
from headscope.studies.peers import transformer_lens
from tests import models


def stand_in(monkeypatch: pytest.MonkeyPatch, boot: object) -> None:
    """A TransformerLens that does what `boot` does."""
    package, bridge = ModuleType("transformer_lens"), ModuleType("transformer_lens.model_bridge")
    bridge.TransformerBridge = SimpleNamespace(boot_transformers=boot)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_lens", package)
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", bridge)


def test_without_it_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    peers, why_none = transformer_lens(models.build("gpt2"))
    assert peers == {}
    assert "pip install headscope[bench]" in why_none


def test_a_model_that_it_does_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def boot(*_: object, **__: object) -> None:
        raise AttributeError("no 'bert'")

    stand_in(monkeypatch, boot)
    assert transformer_lens(models.build("bert")) == ({}, "TransformerLens does not take BertModel: no 'bert'")


def test_it_runs_a_copy_and_gets_what_the_model_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    calls: list[tuple[torch.Tensor, dict[str, object]]] = []

    def boot(name: str, hf_model: object, tokenizer: object) -> SimpleNamespace:
        assert name == type(model).__name__
        assert hf_model is not model
        assert tokenizer is None
        return SimpleNamespace(run_with_cache=lambda ids, **rest: calls.append((ids, rest)))

    stand_in(monkeypatch, boot)
    peers, why_none = transformer_lens(model)
    assert why_none == ""
    table = bench_watching(model, batches, "tiny", 1, peers).set_index("arm")
    assert set(peers) < set(table.index)
    assert len(calls) == 2 * 2 * len(batches)  # two peers, a round that counts and one that does not
    ids, rest = calls[0]
    torch.testing.assert_close(ids, batches[0]["input_ids"])
    assert "document" not in rest
    assert rest["names_filter"] is None
    heads = calls[len(batches)][1]["names_filter"]
    assert heads("blocks.3.attn.hook_z")  # type: ignore[operator]
    assert not heads("blocks.3.hook_resid_pre")  # type: ignore[operator]
