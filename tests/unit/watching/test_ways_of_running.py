"""Models as people run them: with a cache, packed, offloaded, under inference mode: right, or refused."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3Model,
    LlamaConfig,
    LlamaForCausalLM,
    XLNetConfig,
    XLNetModel,
)

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError, ModelError, StorageError, SurgeryError
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import importance
from headscope.surgery import prune, save
from headscope.watching.observation import capture
from tests.models import NanoGPT

IDS = torch.randint(3, 99, (2, 6), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[0, :2] = 0  # on the left, as for generation
TENSORS = ("q", "k", "v", "pattern", "z", "contribution")
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _bloom() -> BloomForCausalLM:
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4, **tokens)).eval()


@pytest.mark.parametrize("make", [_llama, _bloom])
def test_generation_with_a_cache_is_seen_as_the_whole_text_is(make: Any) -> None:
    model = make()
    with capture(model, TENSORS) as seen:
        out = model.generate(input_ids=IDS, attention_mask=PADDED, **GREEDY)
    mask = torch.cat([PADDED, torch.ones(2, 4, dtype=torch.long)], 1)
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if make is _llama else {}
    with capture(model, TENSORS) as whole:
        model(input_ids=out[:, :-1], attention_mask=mask, **positions)
    for layer in seen:
        assert seen[layer].q.shape[2] == 1
        for name in ("q", "pattern", "z", "contribution"):
            last = getattr(whole[layer], name)[:, :, -1:]
            torch.testing.assert_close(getattr(seen[layer], name), last, atol=1e-6, rtol=1e-5)
        for name in ("k", "v"):
            kept = (
                [getattr(one[layer], name)[1] for one in (seen, whole)],
                [getattr(one[layer], name)[0, :, 2:] for one in (seen, whole)],
            )  # what stands where the padding is, nobody reads
            for own, want in kept:
                torch.testing.assert_close(own, want, atol=1e-6, rtol=1e-5)


def test_labels_in_the_batch_as_trainers_have_them_change_nothing() -> None:
    model, plain = _llama(), {"input_ids": IDS, "attention_mask": PADDED}
    labelled = {**plain, "labels": IDS.masked_fill(PADDED == 0, -100)}
    assert discover(model, labelled) == discover(model, plain)
    for score in ("ablation", "gradient", "norm"):
        own, want = (importance(model, [batch], score=score, metric="loss").score for batch in (labelled, plain))
        np.testing.assert_allclose(own, want, rtol=1e-6)
    own, want = (similarity(model, [batch], measure="cka").matrix for batch in (labelled, plain))
    np.testing.assert_array_equal(own, want)
    cuts = [prune(model, ["L1H0"], batches=[batch]) for batch in (labelled, plain)]
    assert torch.equal(cuts[0](**plain).logits, cuts[1](**plain).logits)


def _mla() -> nn.Module:
    """Queries and keys each through a bottleneck of their own."""
    torch.manual_seed(0)
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    return DeepseekV3Model(DeepseekV3Config(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=32, moe_intermediate_size=16, first_k_dense_replace=1, **sizes, **experts,
    )).eval()  # fmt: skip


@pytest.mark.parametrize("make", [_llama, _bloom, _mla])
@pytest.mark.parametrize("padded", ["left", "right", "both rows", "not"])
def test_a_causal_layer_is_one_wherever_the_padding_is_and_however_q_and_k_are_made(make: Any, padded: str) -> None:
    both = PADDED.clone()
    both[1, :1] = 0
    mask = {"left": PADDED, "right": PADDED.flip(1), "both rows": both}.get(padded, torch.ones_like(IDS))
    assert {site.kind for site in discover(make(), {"input_ids": IDS, "attention_mask": mask}).sites} == {"causal"}


class _Fusion(nn.Module):
    """Two streams look at each other by one product of queries and keys, as Grounding DINO has it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.w, self.o, self.p = (nn.Linear(16, 16) for _ in range(6))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        q, v = (layer(one).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.v))
        k, w = (layer(other).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.k, self.w))
        scores = q @ k.mT
        there, back = scores.softmax(-1) @ w, scores.mT.softmax(-1) @ v
        return one + self.o(there.transpose(1, 2).flatten(2)), other + self.p(back.transpose(1, 2).flatten(2))


class _Streams(nn.Module):
    """Two streams that look at each other, layer by layer, and at nothing of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(_Fusion() for _ in range(2))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        for layer in self.layers:
            one, other = layer(one, other)
        return torch.cat([one, other], 1)


def test_streams_that_have_looked_at_each_other_still_cross() -> None:
    anatomy = discover(_Streams().eval(), {"one": torch.randn(2, 5, 16), "other": torch.randn(2, 7, 16)})
    assert [site.kind for site in anatomy.sites] == ["cross"] * 4


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("heads", [["L0H1"], ["L0H0", "L0H1"], ["L1H0", "L1H1", "L1H2", "L1H3"]])
def test_a_cut_model_generates_as_the_masked_one_whatever_its_cache(heads: list[str], cache: str) -> None:
    model = _llama()
    smaller: Any = prune(model, heads)
    text = {"input_ids": IDS, "attention_mask": PADDED} | GREEDY
    with ablate(model, heads):
        want = model.generate(**text, use_cache=False)
    assert torch.equal(smaller.generate(**text, cache_implementation=cache), want)


def test_texts_packed_in_one_row_do_not_see_each_other() -> None:
    model = _llama()
    packed = {"input_ids": IDS.reshape(1, -1), "position_ids": torch.arange(6).repeat(2)[None]}
    anatomy = discover(model, packed)
    assert anatomy.fingerprint == discover(model).fingerprint
    assert not any(site.refused for site in anatomy.sites)
    # with a cache transformers does not look for texts in one row, and they see each other
    assert "with a cache, which it makes unless told use_cache=False, its outputs differ by" in anatomy.remarks[0]
    assert discover(model, packed | {"use_cache": False}).remarks == ()
    with capture(model, TENSORS, anatomy=anatomy) as seen:
        model(**packed, use_cache=False)
    with capture(model, TENSORS, anatomy=anatomy) as alone:
        model(input_ids=IDS[1:])
    for layer in seen:
        torch.testing.assert_close(seen[layer].z[:, :, 6:], alone[layer].z)
        torch.testing.assert_close(seen[layer].pattern[:, :, 6:, 6:], alone[layer].pattern)
        assert seen[layer].pattern[:, :, 6:, :6].abs().max() == 0


def test_batches_made_under_inference_mode_take_gradients() -> None:
    model = _llama()
    with torch.inference_mode():
        batch = {"input_ids": IDS.clone(), "attention_mask": PADDED.clone()}
    for score in ("gradient", "ablation", "norm"):
        want = (
            importance(model, [{"input_ids": IDS, "attention_mask": PADDED}], score=score)
            .to_frame()["score"]
            .to_numpy()
        )
        assert (importance(model, [batch], score=score).to_frame()["score"].to_numpy() == want).all()
        with torch.inference_mode():
            assert (importance(model, [batch], score=score).to_frame()["score"].to_numpy() == want).all()


def test_weights_made_under_inference_mode_are_refused_with_the_way_out() -> None:
    with torch.inference_mode():
        model = _llama()
    with pytest.raises(ModelError, match=r"was made under torch\.inference_mode\(\).*copy\.deepcopy"):
        discover(model)
    assert discover(copy.deepcopy(model)).n_heads == 12


def test_a_kernel_that_does_not_run_here_is_named() -> None:
    model = _llama()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ModelError, match=r"its attention is 'flex_attention'.*set_attn_implementation\('sdpa'\)"):
        discover(model)
    with pytest.raises(ModelError, match="flex_attention"):
        prune(model, ["L0H0"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    _llama().save_pretrained(folder)
    return folder


def _offloaded(whole: Path, tmp_path: Path, resident: bool) -> nn.Module:
    """A model whose last two layers, or all of it, are read from disk when they run."""
    near = "cpu" if resident else "disk"
    parts = {"model.embed_tokens": near, "model.layers.0": near, "model.norm": near, "lm_head": near}
    parts |= {"model.rotary_emb": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    model: nn.Module = AutoModelForCausalLM.from_pretrained(whole, device_map=parts, offload_folder=tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    return model.eval()


@pytest.mark.parametrize("resident", [True, False])
def test_an_offloaded_model_gives_what_the_whole_one_gives(whole: Path, tmp_path: Path, resident: bool) -> None:
    model, plain = _offloaded(whole, tmp_path, resident), _llama()
    batch = {"input_ids": IDS, "attention_mask": PADDED}
    anatomy = discover(model)
    assert anatomy == discover(plain)
    with capture(model, TENSORS, anatomy=anatomy) as seen:
        model(**batch)
    with capture(plain, TENSORS, anatomy=anatomy) as want:
        plain(**batch)
    for layer in seen:
        for name in TENSORS:
            assert torch.equal(getattr(seen[layer], name), getattr(want[layer], name))
    for score in ("ablation", "gradient", "norm"):
        pair = [
            importance(one, [batch], score=score, anatomy=anatomy).to_frame()["score"].to_numpy()
            for one in (model, plain)
        ]
        assert (pair[0] == pair[1]).all()
    for measure in ("weights_qk", "weights_ov"):
        same = [similarity(one, [batch], measure=measure, anatomy=anatomy).matrix for one in (model, plain)]
        np.testing.assert_array_equal(same[0], same[1])
    with pytest.raises(SurgeryError, match=r"its weight is offloaded \(device_map\); load the model whole to cut it"):
        prune(model, ["L1H0"], anatomy=anatomy)
    with pytest.raises(StorageError, match=r"is offloaded \(device_map\) and cannot be saved"):
        save(model, tmp_path / "saved")
    if resident:  # what is there can be cut
        cut, without = prune(model, ["L0H0"], anatomy=anatomy), prune(plain, ["L0H0"], anatomy=anatomy)
        assert torch.equal(cut(**batch).logits, without(**batch).logits)


class _Checkpointed(NanoGPT):
    """Its blocks run with activation checkpointing, in evaluation mode too."""

    reentrant = True

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.wte(input_ids) + self.wpe(torch.arange(input_ids.size(1)))
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        out: Tensor = self.lm_head(self.ln_f(x))
        return out


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, where the model runs alone
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_give_what_plain_ones_give(reentrant: bool) -> None:
    torch.manual_seed(0)
    plain, model = NanoGPT().eval(), _Checkpointed().eval()
    model.load_state_dict(plain.state_dict())
    model.reentrant = reentrant
    batches = [{"input_ids": IDS % 60}]
    anatomies = [discover(one, batches[0]) for one in (plain, model)]
    assert anatomies[0].sites == anatomies[1].sites
    seen = []
    for one, anatomy in zip((plain, model), anatomies, strict=True):
        with torch.no_grad(), capture(one, TENSORS, anatomy=anatomy) as kept:
            one(**batches[0])
        seen.append([getattr(kept[layer], name) for layer in kept for name in TENSORS])
        seen.append([torch.from_numpy(importance(one, batches, score=s).score) for s in ("gradient", "ablation")])
        out = one(**batches[0])  # checkpoints are back, and gradients pass them as ever
        out.square().sum().backward()
        gradient = one.h[1].attn.c_attn.weight.grad
        assert gradient is not None
        seen.append([prune(one, ["L1H2"], batches=batches)(**batches[0]), gradient])
    for own, want in zip(seen[3:], seen[:3], strict=True):
        for mine, theirs in zip(own, want, strict=True):
            assert torch.equal(mine, theirs)


def test_a_forward_that_goes_another_way_than_in_the_probe_is_refused_not_left_whole() -> None:
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=48)
    model: Any = XLNetModel(config).eval()
    anatomy = discover(model, {"input_ids": IDS})
    plain = copy.deepcopy(model)
    plain.layer[0].rel_attn.o.data[:, 1] = 0
    with torch.no_grad(), ablate(model, ["L0H1"], anatomy=anatomy):
        torch.testing.assert_close(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)
        # asked for its maps, it contracts once more
        with pytest.raises(
            AnatomyError, match=r"layer\.0\.rel_attn\.o is not read here where it was read in the probe"
        ):
            model(IDS, output_attentions=True)
    with torch.no_grad(), ablate(model, ["L0H1"], anatomy=anatomy):  # nothing is left of that
        torch.testing.assert_close(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)


def test_under_autocast_the_contract_is_held_to_the_coarser_numbers() -> None:
    model = _llama()
    batch = {"input_ids": IDS, "attention_mask": PADDED}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        anatomy = discover(model, batch)
        assert all(not site.refused for site in anatomy.sites)
        with torch.no_grad(), capture(model, TENSORS, anatomy=anatomy) as seen:
            model(**batch)
    with torch.no_grad(), capture(model, TENSORS) as want:
        model(**batch)
    for layer in want:
        for name in TENSORS:
            own, theirs = (getattr(one[layer], name).float()[1] for one in (seen, want))
            torch.testing.assert_close(own, theirs, atol=5e-2, rtol=5e-2)
