"""Attention that is described: right where the description is, refused with what moves where it is not."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import Description, describe, discover
from headscope.anatomy.descriptions import described_in, read_descriptions
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError, InputError
from headscope.scoring.rating import importance
from headscope.sites import Anatomy
from headscope.surgery import load, prune, save
from headscope.watching.observation import capture
from tests.models import build

WIDTH, HEADS, DIM = 32, 4, 8
NAMES = {"query": "q", "key": "k", "value": "v", "output": "o"}


class _Numpy(torch.autograd.Function):
    """A kernel of somebody's own: no operation of PyTorch, no gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: np.ndarray) -> Tensor:
        a, b, c = (one.detach().double().numpy() for one in (q, k, v))
        scores = np.where(hidden, -1e30, np.einsum("bhqd,bhkd->bhqk", a, b) / math.sqrt(DIM))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return torch.tensor((weights / weights.sum(-1, keepdims=True)) @ c).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("this kernel has no gradient")


class Opaque(nn.Module):
    """Attention whose kernel nothing sees into.

    Args:
        kv_heads: heads of k and v.
        kind: "plain"; "causal"; "rotary"; "normed" over all heads; "gated" after the attention.
        fused: q, k and v in one layer: "blocks", or "interleaved" by head; "" for a layer each.
    """

    def __init__(self, kv_heads: int = HEADS, kind: str = "plain", fused: str = "") -> None:
        super().__init__()
        self.heads, self.kv_heads, self.kind, self.fused = HEADS, kv_heads, kind, fused
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, kv_heads * DIM) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * kv_heads * DIM)
        self.norm, self.gate = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k, v = self._projected(x)
        each = self.heads // self.kv_heads
        if self.kind == "rotary":
            q, k = _rotated(q), _rotated(k)
        shade = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        shade = shade if self.kind == "causal" else torch.zeros_like(shade)
        shade = shade if hidden is None else shade | hidden[:, None, None]
        z = _Numpy.apply(q, k.repeat_interleave(each, 1), v.repeat_interleave(each, 1), shade.numpy())
        z = z.transpose(1, 2).flatten(2)
        return self.o(z * self.gate(x).sigmoid() if self.kind == "gated" else z)

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.fused == "interleaved":
            parts = self.qkv(x).unflatten(-1, (self.heads, 3, DIM)).unbind(-2)
            return tuple(part.transpose(1, 2) for part in parts)
        if self.fused:
            sizes = [count * DIM for count in (self.heads, self.kv_heads, self.kv_heads)]
            q, k, v = self.qkv(x).split(sizes, -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q = self.norm(q) if self.kind == "normed" else q
        return tuple(one.unflatten(-1, (-1, DIM)).transpose(1, 2) for one in (q, k, v))


def _rotated(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[-2])[:, None] * torch.exp(-torch.arange(DIM // 2))
    first, second = x.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1)


class Model(nn.Module):
    """Two such layers over tokens."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(50, WIDTH)
        self.blocks = nn.ModuleList(Opaque(**settings) for _ in range(2))

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        x: Tensor = self.tokens(ids)
        for block in self.blocks:
            x = x + block(x, hidden)
        return x


IDS = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
EXAMPLE = {"ids": IDS}


def _described(model: nn.Module, heads: int = HEADS, **more: Any) -> Anatomy:
    describe(model, Description(**({"module": "blocks.*", "heads": heads} | NAMES | more)))
    return discover(model, EXAMPLE)


def _by_hand(block: Opaque, x: Tensor) -> dict[str, np.ndarray]:
    """q, k, v, the map and each head's contribution, head by head in float64; of "plain" and "causal"."""
    weight = {name: one.detach().double().numpy() for name, one in block.state_dict().items()}
    x_ = x.detach().double().numpy()
    q, k, v = (x_ @ weight[f"{n}.weight"].T + weight[f"{n}.bias"] for n in "qkv")
    maps, shares, each = [], [], HEADS // block.kv_heads
    for head in range(HEADS):
        own, of_kv = slice(head * DIM, (head + 1) * DIM), slice(head // each * DIM, (head // each + 1) * DIM)
        scores = q[..., own] @ np.swapaxes(k[..., of_kv], -1, -2) / math.sqrt(DIM)
        if block.kind == "causal":
            scores = np.where(np.triu(np.ones(scores.shape[-2:]), 1) > 0, -np.inf, scores)
        maps.append(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True))
        shares.append(maps[-1] @ v[..., of_kv] @ weight["o.weight"][:, own].T)
    return {"pattern": np.stack(maps, 1), "contribution": np.stack(shares, 1)}


@pytest.mark.parametrize("kind", ["plain", "causal"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_kernel_that_nothing_sees_into_is_read_as_it_is_described(kind: str, kv_heads: int) -> None:
    model = Model(kv_heads=kv_heads, kind=kind)
    with pytest.raises(AnatomyError, match=r"tell which modules make q, k and v.*headscope\.describe"):
        discover(model, EXAMPLE)
    anatomy = _described(model, kv_heads=kv_heads)
    assert [(site.n_heads, site.n_kv_heads, site.entangled, site.refused) for site in anatomy.sites] == [
        (4, kv_heads, (), {})
    ] * 2
    assert {site.kind for site in anatomy.sites} == {"self" if kind == "plain" else "causal"}
    assert anatomy.remarks == ()
    with capture(model, ("pattern", "contribution"), anatomy=anatomy) as seen:
        model(IDS)
    x: Tensor = model.tokens(IDS)
    want = _by_hand(model.blocks[0], x)  # type: ignore[arg-type]
    for name in ("pattern", "contribution"):
        np.testing.assert_allclose(getattr(seen[0], name).detach().numpy(), want[name], atol=2e-6)


@pytest.mark.parametrize(("heads", "moves", "should"), [(8, "0–7", "0–3"), (2, "0–7", "0–15"), (1, "0–7", "0–31")])
@pytest.mark.parametrize("kind", ["plain", "rotary", "gated"])
def test_another_number_of_heads_is_refused_with_what_moves(kind: str, heads: int, moves: str, should: str) -> None:
    with pytest.raises(AnatomyError, match=f"query head 0 moves columns {moves} of what o reads.*should move {should}"):
        _described(Model(kind=kind), heads)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key": "v", "value": "k"}, "the first feature of key head 0 moves columns 0 of"),
        ({"query": "gate"}, "gate, told to make its query, did not run"),
        (
            {"kv_heads": 2},
            "comes out of k: no 2 heads laid out as 'b t \\(h d\\)' \\(16 numbers a head, and 8 in its query",
        ),
        ({"layouts": {"query": "b t (d h)"}}, "query head 1 moves columns 0–7 of what o reads"),
        ({"layouts": {"output": "b t (d h)"}}, "should move"),
        ({"layouts": {"query": "b h t d"}}, "comes out of q: no 4 heads laid out as 'b h t d'"),
        ({"output": "q"}, "q, told to be its output, read nothing after q, k and v were made"),
    ],
)
def test_other_modules_or_layouts_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AnatomyError, match=message):
        _described(Model(), **wrong)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_where_something_comes_between_map_q_and_k_are_refused_and_heads_stay_right(kv_heads: int) -> None:
    model = Model(kv_heads=kv_heads, kind="rotary")
    anatomy = _described(model, kv_heads=kv_heads)
    assert all(set(site.refused) == {"pattern", "bias", "q", "k"} for site in anatomy.sites)
    assert all(math.isnan(site.scaling) for site in anatomy.sites)
    assert "name a module that makes it as `pattern`" in anatomy.remarks[0]
    with pytest.raises(AnatomyError, match="pattern cannot be had"), capture(model, ("pattern",), anatomy=anatomy):
        pass
    with ablate(model, ["L1H2"], anatomy=anatomy):
        without = model(IDS)
    with torch.no_grad():  # the same by hand
        twin = copy.deepcopy(model)
        twin.blocks[1].o.weight[:, 16:24] = 0  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(without, twin(IDS))


def test_values_that_something_changes_after_the_attention_are_refused() -> None:
    for site in _described(Model(kind="gated")).sites:
        assert set(site.refused) == {"pattern", "bias", "q", "k", "v"}


def test_a_norm_over_all_heads_needs_a_map() -> None:
    with pytest.raises(
        AnatomyError, match=r"each query head moves all of what o reads.*a norm over all of them.*name a module"
    ):
        _described(Model(kind="normed"))


@pytest.mark.parametrize(("fused", "kv_heads"), [("blocks", 4), ("blocks", 2), ("interleaved", 4)])
def test_one_layer_may_make_all_three(fused: str, kv_heads: int) -> None:
    order = dict.fromkeys(("query", "key", "value"), "b t (h n d)") if fused == "interleaved" else {}
    names = {"query": "qkv", "key": "qkv", "value": "qkv", "kv_heads": kv_heads}
    (site, _) = _described(Model(fused=fused, kv_heads=kv_heads), **names, layouts=order).sites
    assert (site.refused, site.entangled) == ({}, ())
    first = {"q": 0, "k": 8, "v": 16} if fused == "interleaved" else {"q": 0, "k": 32, "v": 32 + 8 * kv_heads}
    for part, start in first.items():
        (slices,) = {"q": site.query, "k": site.key, "v": site.value}[part]
        assert slices.heads[0] == tuple(range(start, start + DIM))
    if fused == "interleaved":
        with pytest.raises(AnatomyError, match="moves columns"):
            _described(Model(fused=fused), **names)


@pytest.mark.parametrize("kind", ["plain", "rotary"])
def test_a_described_model_is_cut_saved_and_read_back(kind: str, tmp_path: Path) -> None:
    model = Model(kind=kind)
    anatomy = _described(model)
    smaller = prune(model, ["L0H1", "L1H3"], example=EXAMPLE, anatomy=anatomy)
    assert [site.head_ids for site in discover(smaller, EXAMPLE).sites] == [(0, 2, 3), (0, 1, 2)]
    again = prune(smaller, ["L0H3"], example=EXAMPLE)
    assert [site.head_ids for site in discover(again, EXAMPLE).sites] == [(0, 2), (0, 1, 2)]
    with ablate(model, ["L0H1", "L1H3", "L0H3"], anatomy=anatomy):
        want = model(IDS)
    torch.testing.assert_close(again(IDS), want)
    save(again, tmp_path / "cut")
    back = load(tmp_path / "cut", model=Model(kind=kind))
    torch.testing.assert_close(back(IDS), want)
    assert [site.head_ids for site in discover(back, EXAMPLE).sites] == [(0, 2), (0, 1, 2)]


def test_a_mask_that_the_probe_did_not_have_is_refused_when_the_map_is_asked_for() -> None:
    model = Model()
    anatomy = _described(model)
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[0, 5:] = True
    with capture(model, ("z", "q"), anatomy=anatomy) as seen:
        model(IDS, hidden)
    assert seen[0].z.shape == (2, 4, 7, 8)
    with (
        pytest.raises(AnatomyError, match=r"map · v is .* away from what o reads: this input has a mask"),
        capture(model, ("pattern",), anatomy=anatomy),
    ):
        model(IDS, hidden)


class Named(nn.Module):
    """A layer that makes its map in a module, which scores of two kinds go into."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o, self.r = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.drop, self.norm = nn.Dropout(0.5), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k, v = self.norm(self.q(x)), self.k(x), self.v(x)
        q, k, v, r = (one.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for one in (q, k, v, self.r(x)))
        weights = self.drop((q @ k.mT + r.cumsum(2) @ k.mT).softmax(-1))
        mixed = _Mixed.apply(weights, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor) -> Tensor:
        return torch.tensor(weights.detach().numpy() @ v.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("no gradient")


def test_a_module_that_makes_the_map_is_the_map() -> None:
    model = Model()
    model.blocks = nn.ModuleList([Named()])
    anatomy = _described(model.eval(), pattern="drop")
    (site,) = anatomy.sites
    assert set(site.refused) == {"q", "k", "bias"}
    assert site.entangled == ("q",)
    with capture(model, ("pattern", "v", "z"), anatomy=anatomy) as seen:
        model(IDS)
    torch.testing.assert_close(seen[0].pattern @ seen[0].v, seen[0].z)
    assert importance(model, [EXAMPLE], score="norm", anatomy=anatomy).to_frame()["score"].notna().all()
    with pytest.raises(AnatomyError, match=r"each query head moves all.*map · v is .* of its size away"):
        _described(model, pattern="drop", value="r")


def test_a_description_gives_what_recognition_gives() -> None:
    model = build("bert")
    found = discover(model)
    inside = {"query": "self.query", "key": "self.key", "value": "self.value", "output": "output.dense"}
    describe(model, Description(module="encoder.layer.*.attention", heads=found.sites[0].n_heads, **inside))
    told = discover(model)
    assert {site.route for site in told.sites} == {"described"}
    assert len(told.sites) == len(found.sites)
    for one, other in zip(found.sites, told.sites, strict=True):
        for name in ("kind", "n_heads", "n_kv_heads", "scaling", "kv_of_query", "query", "key", "value", "output"):
            assert getattr(one, name) == getattr(other, name)
    describe(model)
    assert discover(model) == found


def test_a_copy_and_a_wrapper_know_of_it_and_a_layer_that_does_not_run_is_a_remark() -> None:
    model = Model()
    model.spare = Opaque()
    describe(model, *(Description(module=name, heads=HEADS, **NAMES) for name in ("blocks.*", "spare")))
    names = [one.module for _, one in described_in(copy.deepcopy(model))]
    assert names == ["blocks.0", "blocks.1", "spare"]
    anatomy = discover(nn.DataParallel(model), EXAMPLE)
    assert len(anatomy.sites) == 2
    assert any("spare" in remark and "nothing of it ran on the example" in remark for remark in anatomy.remarks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module": "layers.*"}, r"no module of Model is named 'layers\.\*'; it has .*blocks\.\*"),
        (
            {"query": "queries"},
            r"blocks\.0 \(Opaque\) has no module 'queries', which was told to be its query; it has ",
        ),
        ({"heads": 0}, "heads of a description is a whole number from 1 on, and here 0"),
        ({"kv_heads": 3}, "4 heads cannot share 3 KV heads evenly"),
        ({"layouts": {"z": "b t (h d)"}}, "not of z"),
        ({"key": None}, "key of a description is the name of a module, and here None"),
    ],
)
def test_names_and_numbers_that_cannot_be_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _described(Model(), **({"heads": HEADS} | settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no description"),
        ("- 3", "holds no description"),
        ("module: [", "cannot be read as YAML"),
        ("- {module: a, heads: 2}", "description 1: a description needs query, key, value, output too"),
        ("{module: a, heads: 2, query: q, key: k, value: v, output: o, dim: 3}", "has no 'dim'; it has: module, heads"),
    ],
)
def test_a_file_that_holds_no_description_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "attention.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_descriptions(file)


def test_a_file_holds_one_description_or_several(tmp_path: Path) -> None:
    file = tmp_path / "attention.yaml"
    one = "{module: blocks.*, heads: 4, query: q, key: k, value: v, output: o}"
    want = Description(module="blocks.*", heads=4, **NAMES)
    file.write_text(one)
    assert read_descriptions(file) == (want,)
    file.write_text(f"- {one}\n- {one}")
    assert read_descriptions(file) == (want, want)
    with pytest.raises(InputError, match="cannot be read"):
        read_descriptions(tmp_path / "none.yaml")
