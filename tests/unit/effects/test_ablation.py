"""Ablation against a pre-hook written by hand, and against what contributions say the output must become."""

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import MODES, ablate, fill_values, transform_outputs
from headscope.errors import AnatomyError, InputError, UnknownNameError
from headscope.heads import HeadId
from headscope.watching.observation import capture
from tests.families import HandWritten, build_further
from tests.models import FACTORIES, build, make_batches

# columns that belong to a head in the input of its output projection, as the families' code lays them out
PROJECTIONS = {
    "gpt2": ("transformer.h.{}.attn.c_proj", 8),
    "llama": ("model.layers.{}.self_attn.o_proj", 8),
    "bert": ("encoder.layer.{}.attention.output.dense", 8),
    "gemma3": ("model.layers.{}.self_attn.o_proj", 16),
    "encoder": ("blocks.{}.attention.output", 8),
    "causal": ("blocks.{}.attention.output", 8),
    "nanogpt": ("h.{}.attn.c_proj", 8),
}
REMOVED = [(0, 1), (1, 0), (1, 3)]


def _inputs(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in make_batches(name, 1)[0].items() if key != "document"}


def _example(name: str) -> dict[str, Tensor]:
    return {"input_ids": _inputs(name)["input_ids"][:2, :7]}


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out = model(**inputs)
    return out if isinstance(out, Tensor) else out[0]


def _by_hand(
    name: str, model: nn.Module, inputs: dict[str, Tensor], fills: dict[tuple[int, int], Tensor] | None = None
) -> Tensor:
    """The model without REMOVED, their columns overwritten in a hook that knows the layout."""
    path, dim = PROJECTIONS[name]
    handles = []
    for layer, head in REMOVED:

        def hook(_: nn.Module, args: tuple[Tensor], layer: int = layer, head: int = head) -> tuple[Tensor]:
            entering = args[0].clone()
            entering[:, :, dim * head : dim * (head + 1)] = 0.0 if fills is None else fills[layer, head]
            return (entering,)

        handles.append(model.get_submodule(path.format(layer)).register_forward_pre_hook(hook))
    out = _run(model, inputs)
    for handle in handles:
        handle.remove()
    return out


def _means_by_hand(name: str, model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[tuple[int, int], Tensor]:
    """Mean over kept positions of what enters each projection, float64."""
    path, dim = PROJECTIONS[name]
    rows: dict[int, list[Tensor]] = {0: [], 1: []}
    for batch in batches:
        kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        handles = [
            model.get_submodule(path.format(layer)).register_forward_pre_hook(
                lambda _, args, layer=layer, kept=kept: rows[layer].append(args[0][kept].double())
            )
            for layer in rows
        ]
        _run(model, {key: value for key, value in batch.items() if key != "document"})
        for handle in handles:
            handle.remove()
    means = {layer: torch.cat(parts).mean(0).float() for layer, parts in rows.items()}
    return {(layer, head): means[layer][dim * head : dim * (head + 1)] for layer, head in REMOVED}


def _clean(model: nn.Module) -> bool:
    return not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", FACTORIES)
def test_zero_equals_a_hook_by_hand(name: str) -> None:
    model, inputs = build(name), _inputs(name)
    intact, want = _run(model, inputs), _by_hand(name, model, inputs)
    with ablate(model, REMOVED, example=_example(name)):
        got = _run(model, inputs)
    assert torch.equal(got, want)
    assert (got - intact).abs().max() > 1e-2
    assert torch.equal(_run(model, inputs), intact)
    assert _clean(model)


@pytest.mark.parametrize("name", FACTORIES)
def test_mean_equals_a_hook_by_hand(name: str) -> None:
    model, inputs, batches = build(name), _inputs(name), make_batches(name, seed=5)
    want = _by_hand(name, model, inputs, _means_by_hand(name, model, batches))
    with ablate(model, REMOVED, "mean", batches, example=_example(name)):
        got = _run(model, inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert (got - _by_hand(name, model, inputs)).abs().max() > 1e-3  # the mean is not zero


@pytest.mark.parametrize("name", FACTORIES)
def test_without_a_head_the_projection_gives_that_much_less(name: str) -> None:
    """The sum rule, where nothing nonlinear follows: output without = output - contribution."""
    model, inputs = build(name), _inputs(name)
    anatomy = discover(model, _example(name))
    site, left = anatomy.sites[0], []
    with torch.no_grad(), capture(model, ("contribution",), [0], anatomy=anatomy) as seen:
        _run(model, inputs)
        contribution = seen[0].contribution
    projection = model.get_submodule(site.output.module)
    handle = projection.register_forward_hook(lambda _, __, out: left.append(out))
    _run(model, inputs)
    for head in range(site.n_heads):
        with ablate(model, [(0, head)], anatomy=anatomy):
            _run(model, inputs)
        torch.testing.assert_close(left[0] - left[-1], contribution[:, head], rtol=0, atol=1e-5)
    with ablate(model, site.heads, anatomy=anatomy):
        _run(model, inputs)
    bias = getattr(projection, "bias", None)
    want = torch.zeros_like(left[0]) + (0 if bias is None else bias)
    torch.testing.assert_close(left[-1], want, rtol=0, atol=1e-6)
    handle.remove()


def test_heads_are_told_apart_in_a_module_that_runs_three_times() -> None:
    model = build_further("albert")
    ids = torch.arange(14).reshape(2, 7)
    anatomy, entered = discover(model), []
    dense = model.get_submodule(anatomy.sites[0].output.module)

    def note(_: nn.Module, args: tuple[Tensor]) -> None:
        entered.append(args[0].clone())

    with ablate(model, ["L1H2"], anatomy=anatomy):
        handle = dense.register_forward_pre_hook(note)
        for _ in range(2):  # the second forward starts counting anew
            _run(model, {"input_ids": ids})
    handle.remove()
    assert [bool((one[..., 16:24] == 0).all()) for one in entered] == [False, True, False] * 2
    assert all((one[..., :16] != 0).all() for one in entered)

    with ablate(model, ["L1H2"], anatomy=anatomy):
        broken = dense.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _run(model, {"input_ids": ids})
        broken.remove()
        handle = dense.register_forward_pre_hook(note)
        _run(model, {"input_ids": ids})  # after a forward that broke off at the first of three
    handle.remove()
    assert [bool((one[..., 16:24] == 0).all()) for one in entered[-3:]] == [False, True, False]


def test_a_gate_does_not_bring_a_head_back() -> None:
    torch.manual_seed(0)
    model, x = HandWritten("gated").eval(), torch.randn(2, 5, 16)
    with torch.no_grad(), ablate(model, model_heads := [(0, head) for head in range(4)], example={"x": x}):
        out = model(x)
    assert len(model_heads) == 4
    torch.testing.assert_close(out, model.o.bias.expand_as(out))


@pytest.mark.parametrize("spelling", [["L1H3"], [(1, 3)], [HeadId(1, 3)], [[1, 3]], iter(["L1H3"]), ["L1H3", (1, 3)]])
def test_heads_may_be_spelled_in_any_way(spelling: list[object]) -> None:
    model, inputs = build("gpt2"), _inputs("gpt2")
    with ablate(model, [HeadId(1, 3)]):
        want = _run(model, inputs)
    with ablate(model, spelling):
        assert torch.equal(_run(model, inputs), want)


def test_no_head_is_no_change_and_contexts_add_up() -> None:
    model, inputs = build("llama"), _inputs("llama")
    intact = _run(model, inputs)
    with ablate(model, []):
        assert torch.equal(_run(model, inputs), intact)
    with ablate(model, ["L0H1", "L1H5"]):
        want = _run(model, inputs)
    with ablate(model, ["L0H1"]):
        with ablate(model, ["L1H5"]):
            assert torch.equal(_run(model, inputs), want)
        assert not torch.equal(_run(model, inputs), want)


def test_generation_is_without_the_head_at_every_step() -> None:
    model, inputs = build("llama"), _inputs("llama")
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    removed = [(0, head) for head in range(8)] + [(1, 2)]
    with ablate(model, removed):
        with_cache = model.generate(**inputs, **settings)
        without = model.generate(**inputs, **settings, use_cache=False)
    assert torch.equal(with_cache, without)
    assert not torch.equal(with_cache, model.generate(**inputs, **settings))


def test_gradients_flow_around_the_head() -> None:
    model, inputs = build("gpt2"), _inputs("gpt2")
    with ablate(model, [(1, head) for head in range(4)]):
        model(**inputs).logits.square().mean().backward()
    assert model.transformer.h[1].attn.c_attn.weight.grad.abs().max() == 0
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().max() > 0


def test_what_does_not_exist_is_named() -> None:
    model = build("llama")
    with pytest.raises(UnknownNameError, match="L1H8 does not exist: layer 1 has 8 heads"), ablate(model, ["L1H8"]):
        pass
    with pytest.raises(UnknownNameError, match="no layer 4 in LlamaForCausalLM"), ablate(model, ["L4H0"]):
        pass
    with pytest.raises(UnknownNameError, match="'H7' is not a head"), ablate(model, ["H7"]):
        pass
    with (
        pytest.raises(UnknownNameError, match="no ablation mode 'median'; there are: zero, mean"),
        ablate(model, ["L0H0"], "median"),
    ):
        pass
    with pytest.raises(InputError, match="needs batches="), ablate(model, ["L0H0"], "mean"):
        pass
    with pytest.raises(InputError, match="no batch"), ablate(model, ["L0H0"], "mean", []):
        pass
    assert _clean(model)


def test_heads_that_are_mixed_are_refused_and_others_beside_them_are_not() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(HandWritten("normed"), HandWritten("plain")).eval(), torch.randn(2, 5, 16)
    anatomy = discover(model, {"input": x})
    with (
        pytest.raises(AnatomyError, match=r"heads of layer 0 \(0\) cannot be switched off one by one"),
        ablate(model, ["L0H0"], anatomy=anatomy),
    ):
        pass
    with torch.no_grad():
        intact = model(x)
        for mode in MODES:
            with ablate(model, ["L1H0"], mode, [{"input": x}], anatomy=anatomy):
                assert (model(x) - intact).abs().max() > 1e-3
    assert _clean(model)


def test_the_context_leaves_no_hook_when_the_forward_raises() -> None:
    model, inputs = build("bert"), _inputs("bert")
    anatomy = discover(model)
    handle = model.encoder.layer[1].attention.output.dense.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), ablate(model, REMOVED, anatomy=anatomy):
        _run(model, inputs)
    handle.remove()
    assert _clean(model)


def test_fills_are_the_means_by_head() -> None:
    model, batches = build("llama"), make_batches("llama")
    anatomy = discover(model)
    assert fill_values(model, "zero", None, anatomy) is None
    fills = fill_values(model, "mean", batches, anatomy)
    assert fills is not None
    assert {layer: tuple(fill.shape) for layer, fill in fills.items()} == {0: (8, 8), 1: (8, 8)}
    for (layer, head), want in _means_by_hand("llama", model, batches).items():
        torch.testing.assert_close(fills[layer][head].float(), want, rtol=0, atol=1e-6)


def test_transforms_get_what_enters_and_their_result_goes_in() -> None:
    model, inputs = build("gpt2"), _inputs("gpt2")
    anatomy, seen = discover(model), []

    def double(entering: Tensor) -> Tensor:
        seen.append(entering)
        return 2 * entering

    projection, entered = model.transformer.h[1].attn.c_proj, []
    with transform_outputs(model, anatomy, {1: double}):
        handle = projection.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        _run(model, inputs)
    handle.remove()
    assert len(seen) == 1
    assert torch.equal(entered[0], 2 * seen[0])
