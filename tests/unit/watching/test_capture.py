"""Capture, against the model's own maps and hooks by hand on the projections."""

import copy

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy.weights import output_weights
from headscope.errors import AnatomyError, UnknownNameError
from headscope.watching.hooks import TENSORS
from headscope.watching.observation import Captured, capture
from tests.families import FURTHER, HandWritten, build_any, build_further
from tests.spellings import WIDTH, Spelled
from tests.watched import ALL, HUGGING_FACE, NAMES, close, counted, make_inputs, spread, watched


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_the_map_is_the_models_own_softmax(name: str, side: str) -> None:
    model, inputs = build_any(name), make_inputs(name, side)
    anatomy, seen, _, _ = watched(model, inputs, ("pattern",))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        own = eager(**inputs, output_attentions=True).attentions
    rows = counted(inputs)
    for site, want in zip(anatomy.sites, own, strict=True):
        close(seen[site.layer].pattern, want, rows)
        assert want.transpose(1, 2)[rows].max() > 0.3  # not uniform


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["encoder", "causal"])
def test_the_map_is_the_references_own_softmax(name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, own = build_any(name), make_inputs(name, side), []
    kind = type(model.blocks[0].attention)
    weigh = kind.weigh

    def noting(self: nn.Module, *args: Tensor) -> Tensor:
        own.append(weigh(self, *args))
        return own[-1]

    anatomy, seen, _, _ = watched(model, inputs)
    monkeypatch.setattr(kind, "weigh", noting)
    with torch.no_grad():
        model(**inputs)
    for site, want in zip(anatomy.sites, own, strict=True):
        close(seen[site.layer].pattern, want)


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
    model, inputs, entered = build_any(name), make_inputs(name), []
    handles = [block.attn.register_forward_pre_hook(lambda _, args: entered.append(args[0])) for block in model.h]
    _, seen, _, _ = watched(model, inputs)
    for handle in handles:
        handle.remove()
    for layer, x in enumerate(entered[-2:]):
        for tensor, want in _nano_by_hand(model.h[layer].attn, x).items():
            close(seen[layer].tensors[tensor].double(), want)


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_the_parts_make_the_whole(name: str, side: str) -> None:
    model, inputs = build_any(name), make_inputs(name, side)
    anatomy, seen, hooks, _ = watched(model, inputs)
    rows = counted(inputs)
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
        close((one.q @ spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern, rows)
        close(one.pattern @ spread(site, one.v), one.z, rows)
        sums = one.pattern.sum(-1).transpose(1, 2)[rows]
        close(sums, torch.ones_like(sums))
        # z is what enters the projection, and the contributions are what leaves it
        assert torch.equal(one.gated_z.transpose(1, 2).flatten(2), entered)
        assert torch.equal(one.z, one.gated_z)
        assert one.contribution.shape == (batch, site.n_heads, positions, left.shape[-1])
        bias = getattr(model.get_submodule(site.output.module), "bias", None)
        close(one.contribution.sum(1) + (0 if bias is None else bias), left)


@pytest.mark.parametrize("name", [*FURTHER])
def test_the_parts_make_the_whole_in_stranger_layouts(name: str) -> None:
    model = build_further(name)
    inputs = {"input_ids": torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][1, 6:] = 0
    if name in ("t5", "bart"):
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    anatomy, seen, hooks, _ = watched(model, inputs)
    assert len(seen) == len(anatomy.sites)
    for site in anatomy.sites:
        one = seen[site.layer]
        entered, left = hooks.of(site)
        decoder = site.kind in ("causal", "cross") and "decoder_input_ids" in inputs
        rows = torch.ones(2, 5, dtype=torch.bool) if decoder else counted(inputs)
        close(one.pattern @ spread(site, one.v), one.z, rows)
        assert torch.equal(one.z.transpose(1, 2).flatten(2), entered)
        bias = getattr(model.get_submodule(site.output.module), "bias", None)
        close(one.contribution.sum(1) + (0 if bias is None else bias), left)
        sums = one.pattern.sum(-1).transpose(1, 2)[rows]
        if name == "gpt_oss":  # its sink takes a share that goes to no token
            assert sums.max() < 0.999
            continue
        close(sums, torch.ones_like(sums))
        close((one.q @ spread(site, one.k).mT * site.scaling + one.bias).softmax(-1), one.pattern, rows)


@pytest.mark.parametrize(("name", "n_kv_heads"), [("llama", 2), ("gemma3", 1), ("gpt2", 4)])
def test_keys_and_values_have_an_axis_of_key_heads(name: str, n_kv_heads: int) -> None:
    _, seen, _, _ = watched(build_any(name), make_inputs(name), ("k", "v"))
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
    close(one.pattern @ one.v, one.z)
    close(one.z * gate, one.gated_z)
    close(one.contribution.sum(1) + model.o.bias, out)


def test_contributions_of_a_sequence_that_comes_first_are_in_order() -> None:
    torch.manual_seed(0)
    model, x = HandWritten("sequence first").eval(), torch.randn(2, 5, 16)
    with torch.no_grad(), capture(model, ("contribution",), example={"x": x}) as seen:
        out = model(x)
    close(seen[0].contribution.sum(1) + model.o.bias, out)


def test_contributions_are_refused_where_heads_cannot_be_told_apart() -> None:
    torch.manual_seed(0)
    model, x = HandWritten("normed").eval(), torch.randn(2, 5, 16)
    for want in ("contribution", "gated_z"):
        with (
            pytest.raises(AnatomyError, match=rf"layer 0 .* cannot tell {want} by head"),
            capture(model, (want,), example={"x": x}),
        ):
            pass
    with torch.no_grad(), capture(model, ("z", "pattern", "v"), example={"x": x}) as seen:
        model(x)
    close(seen[0].pattern @ seen[0].v, seen[0].z)


def test_output_weights_are_those_that_make_the_contributions() -> None:
    for name in ("gpt2", "llama"):
        model = build_any(name)
        anatomy, seen, _, _ = watched(model, make_inputs(name))
        weights = output_weights(model, anatomy)
        for site in anatomy.sites:
            for head, weight in enumerate(weights[site.layer]):
                assert weight.dtype == torch.float64
                close(seen[site.layer].z[:, head].double() @ weight.T, seen[site.layer].contribution[:, head].double())


# --- what is asked for, and what is said


def test_only_what_was_asked_for_is_held() -> None:
    model, inputs = build_any("bert"), make_inputs("bert")
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
    model, inputs = build_any("llama"), make_inputs("llama")
    with torch.no_grad(), capture(model, ALL) as together:
        model(**inputs)
    with torch.no_grad(), capture(model, (tensor,)) as alone:
        model(**inputs)
    assert set(alone[0].tensors) == {tensor}
    assert torch.equal(alone[1].tensors[tensor], together[1].tensors[tensor])


def test_unknown_tensors_and_layers_are_named_with_those_that_exist() -> None:
    model = build_any("bert")
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
    model, inputs = build_any("bert"), make_inputs("bert")
    with torch.no_grad(), capture(model, ("z",)) as seen:
        model(**inputs)
        first = seen[0]
        model(**{**inputs, "input_ids": inputs["input_ids"].flip(0)})
    assert isinstance(first, Captured)
    assert not torch.equal(first.z, seen[0].z)
    assert torch.equal(copy.deepcopy(first).z, first.z)


def test_no_layer_at_all_is_nothing_seen() -> None:
    model, inputs = build_any("bert"), make_inputs("bert")
    with torch.no_grad(), capture(model, layers=[]) as seen:
        model(**inputs)
    assert len(seen) == 0


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_gradients_by_map_and_z_are_those_of_the_models_own_maps(name: str, kernel: str) -> None:
    model, inputs = build_any(name), make_inputs(name)
    model.set_attn_implementation("eager")
    out = model(**inputs, output_attentions=True)
    direction = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(0))
    want = torch.autograd.grad((out[0] * direction).sum(), out.attentions)
    model.set_attn_implementation(kernel)
    bits = model(**inputs)[0]
    with capture(model, ("pattern", "z", "v"), gradients=True) as seen:
        out = model(**inputs)
    assert torch.equal(out[0], bits)
    maps, zs = [seen[layer].pattern for layer in seen], [seen[layer].z for layer in seen]
    made = torch.autograd.grad((out[0] * direction).sum(), [*maps, *zs])
    for own, other in zip(want, made[: len(want)], strict=True):
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-5 * float(own.abs().max()))
    # a map's gradient is that of z times the values: z = map · v
    for gradient, z, layer in zip(made[: len(want)], made[len(want) :], seen, strict=True):
        v = seen[layer].v.repeat_interleave(z.shape[1] // seen[layer].v.shape[1], 1)
        torch.testing.assert_close(z @ v.mT, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("way", ["bmm", "einsum heads last", "sequence first", "fused with merged heads"])
def test_gradients_go_through_hand_written_maps_too(way: str) -> None:
    torch.manual_seed(0)
    model, x = Spelled(way).eval(), torch.randn(3, 6, WIDTH)
    bits = model(x)
    want = torch.autograd.grad(bits.square().sum(), list(model.parameters()), allow_unused=True)
    with capture(model, ("pattern", "z"), example={"x": x}, gradients=True) as seen:
        out = model(x)
    assert torch.equal(out, bits)
    made = torch.autograd.grad(out.square().sum(), [seen[0].pattern, seen[0].z, *model.parameters()], allow_unused=True)
    assert all(part is not None and part.abs().max() > 0 for part in made[:2])
    for own, other in zip(want, made[2:], strict=True):
        if own is not None:
            torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-5)
