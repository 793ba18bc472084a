"""Wrappers of other libraries around a whole or a cut model: numbers of heads, effects, saving, loading."""

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError, InputError, StorageError, SurgeryError
from headscope.models.demo import demo_model
from headscope.scoring.rating import importance
from headscope.surgery import load, prune, save
from headscope.watching.observation import capture

_IDS = torch.randint(3, 99, (2, 6), generator=torch.Generator().manual_seed(0))
_BATCH = {"input_ids": _IDS, "attention_mask": torch.ones_like(_IDS)}
_TEXTS = ["The cat sits.", "Dogs run in the park and bark.", "Numbers add up."]


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _adapted(model: nn.Module) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules="all-linear", r=4)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero when it is new
            nn.init.normal_(parameter, std=0.3)
    return adapted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cut", [[], ["L0H0", "L0H1", "L1H2", "L1H3"]])
def test_adapters_count_and_heads_keep_their_numbers(cut: list[str], tmp_path: Path) -> None:
    base = prune(_llama(), cut)
    adapted = _adapted(base)
    merged = copy.deepcopy(adapted).merge_and_unload()
    anatomy = discover(adapted)
    assert [site.head_ids for site in anatomy.sites] == [site.head_ids for site in discover(base).sites]
    for score in ("ablation", "norm", "gradient"):
        one, other = (importance(model, [_BATCH], score=score) for model in (adapted, merged))
        assert one.heads == other.heads
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
    with pytest.raises(
        SurgeryError, match="it is more than its weight, as adapters are; merge them into plain layers first"
    ):
        prune(adapted, [anatomy.heads[0]])
    if cut:
        with pytest.raises(StorageError, match="was cut and wrapped since, as adapters do"):
            save(adapted, tmp_path / "wrapped")
    save(base, tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapters")
    again = pytest.importorskip("peft").PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapters")
    assert torch.equal(again.eval()(**_BATCH).logits, adapted(**_BATCH).logits)


@pytest.mark.filterwarnings("ignore")
def test_rows_under_adapters_of_their_own_are_refused_where_weights_are_read() -> None:
    peft, adapted = pytest.importorskip("peft"), _adapted(_llama())
    adapted.add_adapter("other", peft.LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False))
    adapted.eval()
    names = [["default", "other"][row % 2] for row in range(len(_BATCH["input_ids"]))]
    with pytest.raises(InputError, match=r"'adapter_names': heads are told for one adapter at a time.*set_adapter"):
        importance(adapted, [{**_BATCH, "adapter_names": names}], score="norm")
    with pytest.raises(AnatomyError, match=r"rows ran under adapters of their own \(adapter_names\)"), capture(adapted):
        adapted(**_BATCH, adapter_names=names)
    with pytest.raises(AnatomyError, match="rows ran under adapters"), capture(adapted) as seen:
        adapted(**_BATCH, adapter_names=names)
        seen[0].contribution.sum()
    with capture(adapted, want=("z", "gated_z", "pattern")) as seen:
        adapted(**_BATCH, adapter_names=names)
    torch.testing.assert_close(seen[1].gated_z, seen[1].z)
    rows = []
    for row, name in enumerate(names):  # what each row gives by itself
        adapted.set_adapter(name)
        with capture(adapted) as alone:
            adapted(**{key: value[row : row + 1] for key, value in _BATCH.items()})
        rows.append(alone[1].z)
    torch.testing.assert_close(seen[1].z, torch.cat(rows), atol=1e-5, rtol=1e-4)


def _sentences() -> Any:
    library = pytest.importorskip("sentence_transformers")
    parts = importlib.import_module("sentence_transformers.models")
    modules = [parts.Transformer(str(demo_model("minilm"))), parts.Pooling(384, "mean")]
    return library.SentenceTransformer(modules=modules, device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_encoder_is_watched_cut_and_saved_like_any_other(tmp_path: Path) -> None:
    model = _sentences()
    example = {"input": model.preprocess(_TEXTS)}
    anatomy = discover(model, example)
    assert (anatomy.n_heads, anatomy.remarks) == (72, ())
    with capture(model, ("pattern",), anatomy=anatomy) as seen:
        model.encode(_TEXTS)
    assert len(seen) == 6
    heads = ["L0H1", "L3H2"]
    with ablate(model, heads, anatomy=anatomy):
        want = model.encode(_TEXTS)
    cut = prune(model, heads, anatomy=anatomy, example=example)
    np.testing.assert_allclose(cut.encode(_TEXTS), want, atol=1e-5)
    save(cut, tmp_path / "cut")
    np.testing.assert_array_equal(load(tmp_path / "cut", model=model).encode(_TEXTS), cut.encode(_TEXTS))
    # or a model that was cut by itself, put inside
    other = _sentences()
    other[0].model = prune(other[0].model, heads)
    np.testing.assert_allclose(other.encode(_TEXTS), want, atol=1e-5)
    again = prune(other, ["L0H2"], example=example)
    assert discover(again, example).sites[0].head_ids == (0, *range(3, 12))
