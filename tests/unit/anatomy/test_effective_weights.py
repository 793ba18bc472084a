"""What an output projection does is read off it, whatever it is made of: against the plain twin, the same function."""

import copy

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.anatomy.linear import is_linear, is_plain, linear_layers, matrix
from headscope.anatomy.weights import output_weights
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError, SurgeryError
from headscope.scoring.rating import importance
from headscope.surgery import prune
from headscope.watching.observation import capture
from tests.models import build, make_batches
from tests.spellings import WIDTH, Spelled

SCORES = ("norm", "ablation", "gradient", "replaceability")


class Adapted(nn.Module):
    """A low-rank adapter around a layer, as PEFT has it; or a scale, or a rotation of what enters."""

    def __init__(self, base: nn.Linear, kind: str) -> None:
        super().__init__()
        self.base_layer, self.kind = base, kind
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down, self.up = nn.Linear(base.in_features, 3, bias=False), nn.Linear(3, base.out_features, bias=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, base.out_features))
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(base.in_features, base.in_features))[0])

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "low rank":
            return self.base_layer(x) + 2 * self.up(self.down(x))
        if self.kind == "scaled":
            return self.base_layer(x) * self.scale
        return self.base_layer(x @ self.turn)

    def merged(self) -> Tensor:
        weight = self.base_layer.weight
        if self.kind == "low rank":
            return weight + 2 * self.up.weight @ self.down.weight
        return weight * self.scale[:, None] if self.kind == "scaled" else weight @ self.turn.T


class Quantised(nn.Module):
    """Eight-bit codes and scales, and no weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        scales = base.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (base.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes * self.scales)

    def merged(self) -> Tensor:
        return self.codes * self.scales


def _replaced(kind: str) -> tuple[nn.Module, nn.Module]:
    """A Llama whose projections are made so, and the plain one that is the same function."""
    torch.manual_seed(0)
    model = build("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        names = ("o_proj",) if kind in ("scaled", "turned") else ("q_proj", "k_proj", "v_proj", "o_proj")
        for name in names:
            base = getattr(attention, name)
            made = Quantised(base) if kind == "quantised" else Adapted(base, kind)
            setattr(attention, name, made)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer in twin.model.layers:
            for name, made in list(layer.self_attn.named_children()):
                if isinstance(made, Adapted | Quantised):
                    plain = nn.Linear(made.in_features, made.out_features, bias=False)
                    plain.weight.copy_(made.merged())
                    setattr(layer.self_attn, name, plain)
    return model.eval(), twin.eval()


KINDS = ("low rank", "scaled", "turned", "quantised")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_plain_twin(kind: str) -> None:
    model, twin = _replaced(kind)
    batches = make_batches("llama")
    batch = {name: value for name, value in batches[0].items() if name != "document"}
    with torch.no_grad():
        want = twin(**batch).logits
        assert (model(**batch).logits - want).abs().max() < 1e-5
        with ablate(model, ["L0H1"]), ablate(twin, ["L0H1"]):
            assert (model(**batch).logits - twin(**batch).logits).abs().max() < 1e-5
            assert (twin(**batch).logits - want).abs().max() > 1e-3
    for score in SCORES:
        made, wanted = (importance(one, batches, score=score).score for one in (model, twin))
        torch.testing.assert_close(torch.tensor(made), torch.tensor(wanted), rtol=1e-3, atol=1e-6)
    ours, theirs = (output_weights(one, discover(one)) for one in (model, twin))
    for layer, heads in ours.items():
        torch.testing.assert_close(torch.stack(heads), torch.stack(theirs[layer]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_what_the_whole_layer_gives(kind: str) -> None:
    model, _ = _replaced(kind)
    batch = {"input_ids": make_batches("llama")[0]["input_ids"]}
    given: list[Tensor] = []
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _, __, out: given.append(out))
    with torch.no_grad(), capture(model, ("contribution",), example=batch) as seen:
        given.clear()
        model(**batch)
    torch.testing.assert_close(seen[1].contribution.sum(1), given[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_refused_with_what_to_do(kind: str) -> None:
    model, _ = _replaced(kind)
    with pytest.raises(
        SurgeryError, match=r"cannot be sliced: .*(merge them into plain layers|dequantise the model) first"
    ):
        prune(model, ["L0H0", "L0H1", "L0H2", "L0H3"], batches=make_batches("llama"))


def test_weights_that_are_computed_anew_each_time_are_read_as_they_are_used() -> None:
    from torch.nn.utils import parametrizations
    from torch.nn.utils import prune as masks

    torch.manual_seed(0)
    masked, normed, plain = (nn.Linear(6, 4) for _ in range(3))
    masks.random_unstructured(masked, "weight", 0.5)
    parametrizations.weight_norm(normed)
    assert is_plain(plain)
    for layer in (masked, normed):
        assert is_linear(layer)
        assert not is_plain(layer)
        x = torch.randn(5, 6)
        torch.testing.assert_close(x @ matrix(layer).T + layer.bias, layer(x), rtol=0, atol=1e-6)


def test_a_layer_inside_a_layer_is_part_of_it() -> None:
    adapted = Adapted(nn.Linear(4, 4), "low rank")
    model = nn.Sequential(adapted, nn.ReLU(), nn.Linear(4, 2))
    assert linear_layers(model) == [adapted, model[2]]


class Bent(nn.Module):
    """It says how many features it takes and gives, and is no linear map."""

    in_features = out_features = 4

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def test_what_only_looks_like_a_layer_is_refused_by_name() -> None:
    with pytest.raises(AnatomyError, match=r"blocks\.0 \(Bent\) is taken for a linear layer and is none"):
        matrix(Bent(), "blocks.0")


def test_a_projection_that_is_no_linear_map_has_no_contributions_and_it_is_said() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.o = nn.Linear(8, 24), _Bending()

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    class _Bending(nn.Module):
        in_features = out_features = 8

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight).sin()

    torch.manual_seed(0)
    anatomy = discover(Attends(), {"x": torch.randn(2, 5, 8)})
    assert not anatomy.sites[0].prunable
    assert any("no plain linear map" in remark for remark in anatomy.remarks)


class Rounding(nn.Module):
    """It rounds what enters, row by row, as dynamic quantisation does: nearly a linear map."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 63
        return self.base((x / step).round() * step)


def test_a_projection_that_rounds_what_enters_is_read_and_it_is_said() -> None:
    torch.manual_seed(0)
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj = Rounding(layer.self_attn.o_proj)
    anatomy = discover(model)
    assert all(site.prunable for site in anatomy.sites)
    assert "o_proj rounds what enters it: its weights are read to" in anatomy.remarks[0]
    table = importance(model, make_batches("llama"), score="norm")
    assert "rounds what enters it" in table.facts["remarks"][0]


class _Beside(nn.Module):
    """A low-rank change beside a layer, in a module that does not say that it is one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, 2)
        self.up = nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class _Codes(nn.Module):
    """Codes in a buffer that is called weight, and no sizes."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        scales = base.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (base.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scales, self.bias)


def test_layers_beside_a_projection_are_said_and_refused() -> None:
    torch.manual_seed(0)
    layer = Spelled("einsum")
    layer.o = _Beside(layer.o)  # type: ignore[assignment]
    anatomy = discover(layer, {"x": torch.randn(2, 5, WIDTH)})
    assert (
        "more than one layer reads what its heads make (o.base, and o.down); if these are adapters, merge them"
        in anatomy.remarks[0]
    )
    with pytest.raises(AnatomyError, match="cannot be switched off"), ablate(layer, ["L0H0"], anatomy=anatomy):
        pass
    with pytest.raises(SurgeryError):
        prune(layer, ["L0H0"], anatomy=anatomy, example={"x": torch.randn(2, 5, WIDTH)})


def test_codes_that_are_called_weight_are_read_as_they_run() -> None:
    torch.manual_seed(0)
    layer, x = Spelled("einsum"), torch.randn(2, 5, WIDTH)
    layer.o = _Codes(layer.o)  # type: ignore[assignment]
    anatomy = discover(layer, {"x": x})
    with torch.no_grad(), capture(layer, ("contribution",), anatomy=anatomy) as seen:
        out = layer(x)
    torch.testing.assert_close(seen[0].contribution.sum(1) + layer.o.bias, out, atol=1e-5, rtol=1e-4)


def test_a_hook_of_others_on_a_projection_is_said() -> None:
    layer, x = Spelled("einsum"), torch.randn(2, 5, WIDTH)
    layer.o.register_forward_hook(lambda module, args, out: 3 * out)
    assert discover(layer, {"x": x}).remarks == ("hooks of others stand on o: what they change there is not seen",)
