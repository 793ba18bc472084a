"""Capture beside an unwatched twin: nothing changes, nothing stays, and contexts do not disturb each other."""

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import UnknownNameError
from headscope.watching.observation import capture
from tests.families import build_any, build_further
from tests.models import build
from tests.watched import ALL, NAMES, Hooks, close, make_inputs, spread, watched


def _traces(model: nn.Module) -> list[str]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    left = [f"{name}.{kind}" for name, module in model.named_modules() for kind in hooks if getattr(module, kind)]
    left += [f"{name}.forward" for name, module in model.named_modules() if "forward" in module.__dict__]
    # an installed wrapper would be a function of ours
    if AttentionInterface.get_interface.__code__.co_filename.find("headscope") >= 0:
        left.append("get_interface")
    return left


def _gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    out = model(**inputs)
    (out if isinstance(out, Tensor) else out[0]).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("side", ["right", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_the_watched_model_gives_the_same_bits_and_is_the_same_afterwards(name: str, side: str) -> None:
    model, inputs = build_any(name), make_inputs(name, side)
    state = copy.deepcopy(model.state_dict())
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    with torch.no_grad():
        want = model(**inputs)
    _, _, _, got = watched(model, inputs)
    assert torch.equal(got, want if isinstance(want, Tensor) else want[0])
    assert _traces(model) == []
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == implementation
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()


@pytest.mark.parametrize("name", ["llama", "nanogpt", "fused nanogpt"])
def test_gradients_of_the_watched_model_are_the_same_bits(name: str) -> None:
    model, inputs = build_any(name), make_inputs(name)
    want = _gradients(model, inputs)
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]})
    with capture(model, ALL, anatomy=anatomy) as seen:
        got = _gradients(model, inputs)
    assert len(got) == len(want) > 10
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert seen[0].z.requires_grad  # and one can differentiate by what was seen


def _with_dropout(name: str) -> nn.Module:
    model = build(name)
    if hasattr(model, "config"):
        for field in ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(model.config, field):
                setattr(model.config, field, 0.3)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3 if isinstance(module.attention_dropout, float) else nn.Dropout(0.3)
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    return model.train()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "encoder"])
def test_in_training_dropout_stays_the_models_own_business(name: str, implementation: str) -> None:
    model, inputs = _with_dropout(name), make_inputs(name, "none")
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(implementation)
    torch.manual_seed(3)
    want = model(**inputs)[0]
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]})
    assert model.training
    hooks = Hooks(model, anatomy)
    torch.manual_seed(3)
    with capture(model, ALL, anatomy=anatomy) as seen:
        got = model(**inputs)[0]
    hooks.close()
    assert torch.equal(got, want)
    for site in anatomy.sites:
        one = seen[site.layer]
        sums = one.pattern.sum(-1)
        close(sums, torch.ones_like(sums))  # the map before dropout
        assert torch.equal(one.z.transpose(1, 2).flatten(2), hooks.of(site)[0])  # z after it, as the model used it
        assert (one.pattern @ spread(site, one.v) - one.z).abs().max() > 1e-2
        close((one.q @ spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("name", ["llama", "nanogpt"])
def test_any_gradient_mode_will_do(name: str, around: Callable[[], AbstractContextManager[None]]) -> None:
    model, inputs = build_any(name), make_inputs(name)
    example = {"input_ids": inputs["input_ids"][:2, :7]}
    with torch.no_grad(), capture(model, ALL, example=example) as want:
        model(**inputs)
    with around(), capture(model, ALL, example={"input_ids": example["input_ids"].clone()}) as seen:
        model(**inputs)
    for layer in want:
        for tensor in ALL:
            assert torch.equal(seen[layer].tensors[tensor], want[layer].tensors[tensor])


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_generation_with_a_cache_is_watched_token_by_token(name: str, side: str) -> None:
    model, inputs = build_any(name), make_inputs(name, side)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(**inputs, **settings)
    anatomy = discover(model)
    shapes = []
    with capture(model, ALL, anatomy=anatomy) as seen:
        handle = model.register_forward_hook(lambda *_: shapes.append(tuple(seen[1].pattern.shape[-2:])))
        got = model.generate(**inputs, **settings)
        handle.remove()
    assert torch.equal(got, want)
    length = inputs["input_ids"].shape[1]
    assert shapes[0] == (length, length)
    assert [shape[0] for shape in shapes[1:]] == [1] * 4
    assert shapes[-1][1] == length + 4
    for site in anatomy.sites:
        one = seen[site.layer]
        assert one.q.shape[2] == one.contribution.shape[2] == 1
        assert one.k.shape[2] == one.pattern.shape[-1] > 1
        close(one.pattern @ spread(site, one.v), one.z)
        close((one.q @ spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern)
    assert _traces(model) == []


@pytest.mark.parametrize("name", ["llama", "nanogpt", "causal"])
@pytest.mark.parametrize("where", ["in the model", "in the body", "on entering"])
def test_no_trace_is_left_when_something_raises(name: str, where: str) -> None:
    model, inputs = build_any(name), make_inputs(name)
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]})
    if where == "in the model":
        last = model.get_submodule(anatomy.sites[-1].output.module)
        handle = last.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), capture(model, ALL, anatomy=anatomy) as seen:
            model(**inputs)
        handle.remove()
        assert list(seen) == [0, 1]  # the last site was complete when its projection ran
        with torch.no_grad(), capture(model, ALL, anatomy=anatomy) as again:
            model(**inputs)
        assert list(again) == [0, 1]
    elif where == "in the body":
        with pytest.raises(ZeroDivisionError), capture(model, ALL, anatomy=anatomy):
            _ = 1 / 0
    else:
        with pytest.raises(UnknownNameError), capture(model, ("patern",), anatomy=anatomy):
            pass
    assert _traces(model) == []


def test_a_failed_forward_does_not_shift_the_next_one() -> None:
    """A module that is run three times is told apart by its turn, which must start anew."""
    model = build_further("albert")
    anatomy, inputs = discover(model), {"input_ids": torch.arange(14).reshape(2, 7)}
    with torch.no_grad(), capture(model, ("z", "contribution"), anatomy=anatomy) as want:
        model(**inputs)
    dense = model.get_submodule(anatomy.sites[0].output.module)
    with torch.no_grad(), capture(model, ("z", "contribution"), anatomy=anatomy) as seen:
        handle = dense.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        handle.remove()
        model(**inputs)
    assert len({float(want[layer].z.sum()) for layer in want}) == 3
    for layer in want:
        assert torch.equal(seen[layer].z, want[layer].z)
        assert torch.equal(seen[layer].contribution, want[layer].contribution)


# --- contexts beside each other


@pytest.mark.parametrize("name", ["llama", "nanogpt", "fused nanogpt"])
def test_captures_nest_and_close_in_any_order(name: str) -> None:
    model, inputs = build_any(name), make_inputs(name)
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]})
    outer, inner = ExitStack(), ExitStack()
    first = outer.enter_context(capture(model, ("z", "contribution"), anatomy=anatomy))
    second = inner.enter_context(capture(model, ("q", "gated_z"), [1], anatomy=anatomy))
    with torch.no_grad():
        model(**inputs)
        assert list(first) == [0, 1]
        assert list(second) == [1]
        assert torch.equal(first[1].z, second[1].gated_z)
        kept = first[1].z
        outer.close()
        model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)})
        assert torch.equal(first[1].z, kept)
        assert not torch.equal(second[1].gated_z, kept)
        inner.close()
    assert _traces(model) == []


@pytest.mark.parametrize("name", ["llama", "nanogpt", "fused nanogpt"])
def test_threads_that_share_a_model_see_their_own_forward(name: str) -> None:
    model = build_any(name)
    batches = [make_inputs(name), {**make_inputs(name), "input_ids": make_inputs(name)["input_ids"].flip(0)}]
    anatomy = discover(model, {"input_ids": batches[0]["input_ids"][:2, :7]})
    wanted = []
    for batch in batches:
        with torch.no_grad(), capture(model, ALL, anatomy=anatomy) as seen:
            model(**batch)
        wanted.append({layer: seen[layer].tensors for layer in seen})
    barrier, wrong = threading.Barrier(2, timeout=30), []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                barrier.wait()
                with torch.no_grad(), capture(model, ALL, anatomy=anatomy) as own:
                    barrier.wait()
                    model(**batches[number])
                    for layer, tensors in wanted[number].items():
                        assert all(torch.equal(own[layer].tensors[key], value) for key, value in tensors.items())
        except BaseException as error:
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    assert _traces(model) == []


@pytest.mark.parametrize("name", ["llama", "nanogpt"])
def test_another_threads_forward_in_the_middle_of_ones_own_is_not_seen(name: str) -> None:
    model, inputs = build_any(name), make_inputs(name)
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    anatomy, _, _, _ = watched(model, inputs)
    with torch.no_grad(), capture(model, ALL, anatomy=anatomy) as want:
        model(**inputs)

    def run_other(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: model(**other))
            thread.start()
            thread.join()

    # between the attention and its projection, where a site is half told
    handle = model.get_submodule(anatomy.sites[1].output.module).register_forward_pre_hook(run_other, prepend=True)
    with torch.no_grad(), capture(model, ALL, anatomy=anatomy) as seen:
        model(**inputs)
    handle.remove()
    assert list(seen) == [0, 1]
    for layer in want:
        assert all(torch.equal(seen[layer].tensors[key], value) for key, value in want[layer].tensors.items())


@pytest.mark.parametrize("first", ["capture", "ablate"])
def test_what_enters_the_projection_is_seen_whichever_context_was_opened_first(first: str) -> None:
    model, inputs = build_any("llama"), make_inputs("llama")
    anatomy = discover(model)
    contexts = {
        "capture": capture(model, ALL, anatomy=anatomy),
        "ablate": ablate(model, ["L0H1"], anatomy=anatomy),
    }
    hooks = Hooks(model, anatomy)
    with ExitStack() as stack, torch.no_grad():
        entered = {name: stack.enter_context(contexts[name]) for name in (first, *(set(contexts) - {first}))}
        model(**inputs)
    hooks.close()
    one = entered["capture"][0]
    assert one.contribution[:, 1].abs().max() == 0
    assert one.z[:, 1].abs().max() > 0
    close(one.contribution.sum(1), hooks.left[anatomy.sites[0].output.module][0])


def test_a_part_of_the_model_may_be_run_on_its_own_again_and_again() -> None:
    model, inputs = build_any("llama"), make_inputs("llama")
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    with torch.no_grad(), capture(model, ("z",)) as want:
        model(**other)
    with torch.no_grad(), capture(model, ("z",)) as seen:
        model.model(**inputs)
        model.model(**other)
    assert torch.equal(seen[1].z, want[1].z)
