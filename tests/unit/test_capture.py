"""Capture, against the model's own maps, hooks by hand on the projections, and an unwatched twin."""

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from headscope.ablation import ablate
from headscope.anatomy import discover
from headscope.errors import AnatomyError, UnknownNameError
from headscope.heads import Anatomy, Site
from headscope.observation import Captured, Seen, capture
from headscope.watching import TENSORS, output_weights
from tests.families import FURTHER, HandWritten, build_further, build_fused_nano
from tests.models import FACTORIES, build, make_batches

ALL = ("q", "k", "v", "pattern", "z", "bias", "gated_z", "contribution")
NAMES = [*FACTORIES, "fused nanogpt"]
MASKED = [name for name in FACTORIES if name != "nanogpt"]
HUGGING_FACE = ["gpt2", "llama", "bert", "gemma3"]


def _build(name: str) -> nn.Module:
    return build_fused_nano(build) if name == "fused nanogpt" else build(name)


def _inputs(name: str, side: str = "right") -> dict[str, Tensor]:
    batch = make_batches(name.split()[-1], 1, padded=side != "none")[0]
    batch.pop("document")
    if side == "left" and "attention_mask" in batch:
        batch["attention_mask"] = batch["attention_mask"].flip(1)
    return batch


def _rows(inputs: dict[str, Tensor]) -> Tensor:
    """Which positions count, (batch, position)."""
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()


class _Hooks:
    """What enters and leaves each site's output projection, by hooks of our own, in order of the calls."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.entered: dict[str, list[Tensor]] = {}
        self.left: dict[str, list[Tensor]] = {}
        self._handles = []
        for name in {site.output.module for site in anatomy.sites if site.output is not None}:
            self._handles.append(model.get_submodule(name).register_forward_hook(self._note(name)))

    def _note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.entered.setdefault(name, []).append(args[0].detach().clone())
            self.left.setdefault(name, []).append(out.detach().clone())

        return hook

    def of(self, site: Site) -> tuple[Tensor, Tensor]:
        assert site.output is not None
        return self.entered[site.output.module][site.call], self.left[site.output.module][site.call]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _watched(
    model: nn.Module, inputs: dict[str, Tensor], want: tuple[str, ...] = ALL
) -> tuple[Anatomy, Seen, _Hooks, Tensor]:
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]} if not hasattr(model, "config") else None)
    hooks = _Hooks(model, anatomy)
    with torch.no_grad(), capture(model, want, anatomy=anatomy) as seen:
        out = model(**inputs)
    hooks.close()
    return anatomy, seen, hooks, out if isinstance(out, Tensor) else out[0]


def _spread(site: Site, tensors: Tensor) -> Tensor:
    """Key heads repeated for the query heads that read them."""
    return tensors[:, list(site.kv_of_query)]


def _close(got: Tensor, want: Tensor, rows: Tensor | None = None, tolerance: float = 1e-5) -> None:
    """Equal to 1e-5; of (batch, head, position, …) only at the positions that count."""
    if rows is not None:
        got, want = got.transpose(1, 2)[rows], want.transpose(1, 2)[rows]
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_the_map_is_the_models_own_softmax(name: str, side: str) -> None:
    model, inputs = _build(name), _inputs(name, side)
    anatomy, seen, _, _ = _watched(model, inputs, ("pattern",))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        own = eager(**inputs, output_attentions=True).attentions
    rows = _rows(inputs)
    for site, want in zip(anatomy.sites, own, strict=True):
        _close(seen[site.layer].pattern, want, rows)
        assert want.transpose(1, 2)[rows].max() > 0.3  # not uniform


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["encoder", "causal"])
def test_the_map_is_the_references_own_softmax(name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, own = _build(name), _inputs(name, side), []
    kind = type(model.blocks[0].attention)
    weigh = kind.weigh

    def noting(self: nn.Module, *args: Tensor) -> Tensor:
        own.append(weigh(self, *args))
        return own[-1]

    anatomy, seen, _, _ = _watched(model, inputs)
    monkeypatch.setattr(kind, "weigh", noting)
    with torch.no_grad():
        model(**inputs)
    for site, want in zip(anatomy.sites, own, strict=True):
        _close(seen[site.layer].pattern, want)


def _nano_by_hand(attention: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A causal attention with fused q, k, v in float64, from its input."""
    weight, bias, x = attention.c_attn.weight.double(), attention.c_attn.bias.double(), x.double()
    parts = (x @ weight.T + bias).split(x.shape[-1], dim=-1)
    q, k, v = (part.unflatten(-1, (attention.n_head, -1)).transpose(1, 2) for part in parts)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    pattern = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    return {"q": q, "k": k, "v": v, "pattern": pattern, "z": pattern @ v}


@pytest.mark.parametrize("name", ["nanogpt", "fused nanogpt"])
def test_every_tensor_of_a_hand_written_model_is_the_one_worked_out_by_hand(name: str) -> None:
    model, inputs, entered = _build(name), _inputs(name), []
    handles = [block.attn.register_forward_pre_hook(lambda _, args: entered.append(args[0])) for block in model.h]
    _, seen, _, _ = _watched(model, inputs)
    for handle in handles:
        handle.remove()
    for layer, x in enumerate(entered[-2:]):
        for tensor, want in _nano_by_hand(model.h[layer].attn, x).items():
            _close(seen[layer].tensors[tensor].double(), want)


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_the_parts_make_the_whole(name: str, side: str) -> None:
    model, inputs = _build(name), _inputs(name, side)
    anatomy, seen, hooks, _ = _watched(model, inputs)
    rows = _rows(inputs)
    assert list(seen) == [site.layer for site in anatomy.sites]
    for site in anatomy.sites:
        one = seen[site.layer]
        entered, left = hooks.of(site)
        batch, positions = inputs["input_ids"].shape
        assert one.q.shape == (batch, site.n_heads, positions, site.head_dim)
        assert one.k.shape == (batch, site.n_kv_heads, positions, site.head_dim)
        assert one.v.shape == (batch, site.n_value_heads, positions, site.value_dim)
        assert one.pattern.shape == (batch, site.n_heads, positions, positions)
        # softmax(q·kᵀ·scaling + bias) = pattern; pattern·v = z; rows sum to 1
        _close((one.q @ _spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern, rows)
        _close(one.pattern @ _spread(site, one.v), one.z, rows)
        sums = one.pattern.sum(-1).transpose(1, 2)[rows]
        _close(sums, torch.ones_like(sums))
        # z is what enters the projection, and the contributions are what leaves it
        assert torch.equal(one.gated_z.transpose(1, 2).flatten(2), entered)
        assert torch.equal(one.z, one.gated_z)
        assert one.contribution.shape == (batch, site.n_heads, positions, left.shape[-1])
        bias = getattr(model.get_submodule(site.output.module), "bias", None)
        _close(one.contribution.sum(1) + (0 if bias is None else bias), left)


@pytest.mark.parametrize("name", [*FURTHER])
def test_the_parts_make_the_whole_in_stranger_layouts(name: str) -> None:
    model = build_further(name)
    inputs = {"input_ids": torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][1, 6:] = 0
    if name in ("t5", "bart"):
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    anatomy, seen, hooks, _ = _watched(model, inputs)
    assert len(seen) == len(anatomy.sites)
    for site in anatomy.sites:
        one = seen[site.layer]
        entered, left = hooks.of(site)
        decoder = site.kind in ("causal", "cross") and "decoder_input_ids" in inputs
        rows = torch.ones(2, 5, dtype=torch.bool) if decoder else _rows(inputs)
        _close(one.pattern @ _spread(site, one.v), one.z, rows)
        assert torch.equal(one.z.transpose(1, 2).flatten(2), entered)
        bias = getattr(model.get_submodule(site.output.module), "bias", None)
        _close(one.contribution.sum(1) + (0 if bias is None else bias), left)
        sums = one.pattern.sum(-1).transpose(1, 2)[rows]
        if name == "gpt_oss":  # its sink takes a share that goes to no token
            assert sums.max() < 0.999
            continue
        _close(sums, torch.ones_like(sums))
        _close((one.q @ _spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern, rows)


@pytest.mark.parametrize(("name", "n_kv_heads"), [("llama", 2), ("gemma3", 1), ("gpt2", 4)])
def test_keys_and_values_have_an_axis_of_key_heads(name: str, n_kv_heads: int) -> None:
    _, seen, _, _ = _watched(_build(name), _inputs(name), ("k", "v"))
    assert seen[1].k.shape[1] == seen[1].v.shape[1] == n_kv_heads


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_keys_that_the_model_repeated_are_folded_back(n_kv_heads: int) -> None:
    torch.manual_seed(0)
    model = HandWritten(n_kv_heads=n_kv_heads).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad(), capture(model, ("k", "v"), example={"x": x}) as seen:
        model(x)
        want = model._heads(model.k(x)), model._heads(model.v(x))
    assert torch.equal(seen[0].k, want[0])
    assert torch.equal(seen[0].v, want[1])


def test_a_gate_stands_between_z_and_the_contribution() -> None:
    torch.manual_seed(0)
    model = HandWritten("gated").eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad(), capture(model, ALL, example={"x": x}) as seen:
        out = model(x)
    one = seen[0]
    gate = torch.sigmoid(model.gate(x)).unflatten(-1, (4, 4)).transpose(1, 2)
    _close(one.pattern @ one.v, one.z)
    _close(one.z * gate, one.gated_z)
    _close(one.contribution.sum(1) + model.o.bias, out)


@pytest.mark.parametrize("way", ["normed", "sequence first"])
def test_contributions_are_refused_where_heads_cannot_be_told_apart(way: str) -> None:
    torch.manual_seed(0)
    model, x = HandWritten(way).eval(), torch.randn(2, 5, 16)
    for want in ("contribution", "gated_z"):
        with (
            pytest.raises(AnatomyError, match=rf"layer 0 .* cannot tell {want} by head"),
            capture(model, (want,), example={"x": x}),
        ):
            pass
    with torch.no_grad(), capture(model, ("z", "pattern", "v"), example={"x": x}) as seen:
        model(x)
    _close(seen[0].pattern @ seen[0].v, seen[0].z)


def test_output_weights_are_those_that_make_the_contributions() -> None:
    for name in ("gpt2", "llama"):
        model = _build(name)
        anatomy, seen, _, _ = _watched(model, _inputs(name))
        weights = output_weights(model, anatomy)
        for site in anatomy.sites:
            for head, weight in enumerate(weights[site.layer]):
                assert weight.dtype == torch.float64
                _close(seen[site.layer].z[:, head].double() @ weight.T, seen[site.layer].contribution[:, head].double())


# --- nothing is changed


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
    model, inputs = _build(name), _inputs(name, side)
    state = copy.deepcopy(model.state_dict())
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    with torch.no_grad():
        want = model(**inputs)
    _, _, _, got = _watched(model, inputs)
    assert torch.equal(got, want if isinstance(want, Tensor) else want[0])
    assert _traces(model) == []
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == implementation
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()


@pytest.mark.parametrize("name", ["llama", "nanogpt", "fused nanogpt"])
def test_gradients_of_the_watched_model_are_the_same_bits(name: str) -> None:
    model, inputs = _build(name), _inputs(name)
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
    model, inputs = _with_dropout(name), _inputs(name, "none")
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(implementation)
    torch.manual_seed(3)
    want = model(**inputs)[0]
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]})
    assert model.training
    hooks = _Hooks(model, anatomy)
    torch.manual_seed(3)
    with capture(model, ALL, anatomy=anatomy) as seen:
        got = model(**inputs)[0]
    hooks.close()
    assert torch.equal(got, want)
    for site in anatomy.sites:
        one = seen[site.layer]
        sums = one.pattern.sum(-1)
        _close(sums, torch.ones_like(sums))  # the map before dropout
        assert torch.equal(one.z.transpose(1, 2).flatten(2), hooks.of(site)[0])  # z after it, as the model used it
        assert (one.pattern @ _spread(site, one.v) - one.z).abs().max() > 1e-2
        _close((one.q @ _spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("name", ["llama", "nanogpt"])
def test_any_gradient_mode_will_do(name: str, around: Callable[[], AbstractContextManager[None]]) -> None:
    model, inputs = _build(name), _inputs(name)
    example = {"input_ids": inputs["input_ids"][:2, :7]}
    with torch.no_grad(), capture(model, ALL, example=example) as want:
        model(**inputs)
    with around(), capture(model, ALL, example={"input_ids": example["input_ids"].clone()}) as seen:
        model(**inputs)
    for layer in want:
        for tensor in ALL:
            assert torch.equal(seen[layer].tensors[tensor], want[layer].tensors[tensor])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_generation_with_a_cache_is_watched_token_by_token(name: str) -> None:
    model, inputs = _build(name), _inputs(name, "left")
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
        _close(one.pattern @ _spread(site, one.v), one.z)
        _close((one.q @ _spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern)
    assert _traces(model) == []


@pytest.mark.parametrize("name", ["llama", "nanogpt", "causal"])
@pytest.mark.parametrize("where", ["in the model", "in the body", "on entering"])
def test_no_trace_is_left_when_something_raises(name: str, where: str) -> None:
    model, inputs = _build(name), _inputs(name)
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
    model, inputs = _build(name), _inputs(name)
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
    model = _build(name)
    batches = [_inputs(name), {**_inputs(name), "input_ids": _inputs(name)["input_ids"].flip(0)}]
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


@pytest.mark.parametrize("first", ["capture", "ablate"])
def test_what_enters_the_projection_is_seen_whichever_context_was_opened_first(first: str) -> None:
    model, inputs = _build("llama"), _inputs("llama")
    anatomy = discover(model)
    contexts = {
        "capture": capture(model, ALL, anatomy=anatomy),
        "ablate": ablate(model, ["L0H1"], anatomy=anatomy),
    }
    hooks = _Hooks(model, anatomy)
    with ExitStack() as stack, torch.no_grad():
        entered = {name: stack.enter_context(contexts[name]) for name in (first, *(set(contexts) - {first}))}
        model(**inputs)
    hooks.close()
    one = entered["capture"][0]
    assert one.contribution[:, 1].abs().max() == 0
    assert one.z[:, 1].abs().max() > 0
    _close(one.contribution.sum(1), hooks.left[anatomy.sites[0].output.module][0])


def test_a_part_of_the_model_may_be_run_on_its_own_again_and_again() -> None:
    model, inputs = _build("llama"), _inputs("llama")
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    with torch.no_grad(), capture(model, ("z",)) as want:
        model(**other)
    with torch.no_grad(), capture(model, ("z",)) as seen:
        model.model(**inputs)
        model.model(**other)
    assert torch.equal(seen[1].z, want[1].z)


# --- what is asked for, and what is said


def test_only_what_was_asked_for_is_held() -> None:
    model, inputs = _build("bert"), _inputs("bert")
    with torch.no_grad(), capture(model, ("pattern", "v"), layers=[1]) as seen:
        model(**inputs)
    assert list(seen) == [1]
    assert set(seen[1].tensors) == {"pattern", "v"}
    assert seen[1].site.layer == 1
    assert 0 not in seen
    assert seen.get(0) is None
    with pytest.raises(UnknownNameError, match="layer 0 was not captured; captured: 1"):
        seen[0]
    with pytest.raises(
        AttributeError, match="'q' was not captured at layer 1; captured: v, pattern; ask for it with want="
    ):
        _ = seen[1].q
    with pytest.raises(AttributeError, match="there is no tensor named 'attention'; there are: q, k, v, pattern"):
        _ = seen[1].attention
    assert not hasattr(seen[1], "z")


@pytest.mark.parametrize("tensor", TENSORS)
def test_every_tensor_can_be_asked_for_alone(tensor: str) -> None:
    model, inputs = _build("llama"), _inputs("llama")
    with torch.no_grad(), capture(model, ALL) as together:
        model(**inputs)
    with torch.no_grad(), capture(model, (tensor,)) as alone:
        model(**inputs)
    assert set(alone[0].tensors) == {tensor}
    assert torch.equal(alone[1].tensors[tensor], together[1].tensors[tensor])


def test_unknown_tensors_and_layers_are_named_with_those_that_exist() -> None:
    model = _build("bert")
    with (
        pytest.raises(UnknownNameError, match="no tensor named 'patterns'; there are: q, k, v, pattern, z"),
        capture(model, ("z", "patterns")),
    ):
        pass
    with (
        pytest.raises(UnknownNameError, match="no layer 2 in BertModel; attention layers: 0, 1"),
        capture(model, layers=[0, 2]),
    ):
        pass
    with (
        capture(model) as seen,
        pytest.raises(UnknownNameError, match="none: the model has not run inside the context"),
    ):
        seen[0]


def test_each_forward_replaces_what_was_seen() -> None:
    model, inputs = _build("bert"), _inputs("bert")
    with torch.no_grad(), capture(model, ("z",)) as seen:
        model(**inputs)
        first = seen[0]
        model(**{**inputs, "input_ids": inputs["input_ids"].flip(0)})
    assert isinstance(first, Captured)
    assert not torch.equal(first.z, seen[0].z)
    assert torch.equal(copy.deepcopy(first).z, first.z)


def test_no_layer_at_all_is_nothing_seen() -> None:
    model, inputs = _build("bert"), _inputs("bert")
    with torch.no_grad(), capture(model, layers=[]) as seen:
        model(**inputs)
    assert len(seen) == 0
    assert _traces(model) == []
