"""What belongs to single heads beside their q, k, v and o, told by gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.surgery import prune
from headscope.surgery.belongings import belongings
from headscope.surgery.change import SiteChange
from headscope.surgery.verification import output_of, recording

HEADS, DIM, WIDTH = 4, 3, 12


class Attention(nn.Module):
    """Four heads of three dimensions (as many as there are heads in none of them), and one thing by head beside."""

    def __init__(self, has: str) -> None:
        super().__init__()
        self.has = has
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)
        if has == "gate":
            self.q = nn.Linear(WIDTH, 2 * WIDTH)  # of each head: its query, then its gate
        if has == "gate of its own":
            self.gate = nn.Linear(WIDTH, HEADS)
        if has == "sinks":
            self.sinks = nn.Parameter(torch.randn(HEADS))
        if has == "table":
            self.table = nn.Embedding(9, HEADS)
        if has == "slopes":
            self.register_buffer("slopes", torch.rand(HEADS) + 0.1)
        if has == "temperature":
            self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
        if has == "shared norm":
            self.norm = nn.LayerNorm(DIM)
        if has == "square":
            self.mix = nn.Parameter(
                torch.randn(HEADS, HEADS)
            )  # as many rows as heads, and all of them are read by each
        if has == "norms":
            self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(HEADS))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        (q, gate), k, v = self._query(x), self._by_head(self.k(x)), self._by_head(self.v(x))
        if self.has == "norms":
            k = torch.stack([norm(part) for norm, part in zip(self.norms, k.unbind(1), strict=True)], 1)
        if self.has == "shared norm":
            k = self.norm(k)
        scores = q @ k.mT / math.sqrt(DIM)
        if self.has == "temperature":
            scores = scores * self.scale
        scores = scores + self._bias(x.shape[1]) if bias is None else scores + bias.view(-1, HEADS, 1, bias.shape[-1])
        if self.has == "sinks":
            sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            z = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v
        else:
            z = scores.softmax(-1) @ v
        z = z if gate is None else z * gate.sigmoid()
        if self.has == "square":
            z = z * (1 + self.mix.mean())
        return self.o(z.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, DIM)).transpose(1, 2)

    def _query(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        q = self.q(x)
        if self.has == "gate":
            both = q.unflatten(-1, (HEADS, 2 * DIM)).transpose(1, 2)
            return both[..., :DIM], both[..., DIM:]
        gate = self.gate(x).transpose(1, 2)[..., None] if self.has == "gate of its own" else None
        return self._by_head(q), gate

    def _bias(self, length: int) -> Tensor:
        apart = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        if self.has == "table":
            return self.table(apart).permute(2, 0, 1)
        return self.slopes.view(-1, 1, 1) * -apart.float() if self.has == "slopes" else apart * 0.0


class Model(nn.Module):
    def __init__(self, has: str) -> None:
        super().__init__()
        self.attention = Attention(has)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x + self.attention(x, bias)


def told(has, gone=(1,), **more):
    torch.manual_seed(0)
    model = Model(has).eval()
    batch = {"x": torch.randn(2, 5, WIDTH)} | more
    site = discover(model, batch).sites[0]
    with recording(model, {"attention"}) as seen:
        output_of(model, batch)
    found = belongings(model.attention, "attention", SiteChange(site, gone, site), seen["attention"])
    assert not any(p.grad is not None for p in model.parameters())
    return found


def own(*places):
    return tuple(map(frozenset, places))


ONE_EACH = own({0}, {1}, {2}, {3})


@pytest.mark.parametrize(
    ("has", "parameters"),
    [
        ("sinks", {"sinks": (0, 4, ONE_EACH)}),
        ("table", {"table.weight": (1, 4, ONE_EACH)}),
        ("slopes", {"slopes": (0, 4, ONE_EACH)}),
        ("temperature", {"scale": (0, 4, ONE_EACH)}),
        ("nothing", {}),
        ("shared norm", {}),
        ("square", {}),
    ],
)
def test_parameters_and_buffers_by_head_and_no_others(has, parameters):
    found = told(has)
    assert found.parameters == parameters
    assert (found.rows, found.lists, found.arguments) == ({}, {}, ())


def test_gates_in_the_rows_of_another_layer_and_of_their_own():
    found = told("gate")
    assert found.rows == {"q": tuple(frozenset(range(6 * head, 6 * head + 6)) for head in range(4))}
    assert list(found.slices()) == [("attention.q", "output", frozenset(range(6, 12)))]
    assert told("gate of its own").rows == {"gate": ONE_EACH}


def test_lists_with_an_item_for_each_head():
    found = told("norms", gone=(0, 2))
    assert found.lists == {"norms": (4, ONE_EACH)}
    assert [(edit.module, edit.keep) for edit in found.edits()] == [("attention.norms", (1, 3))]


def test_what_is_handed_in_by_head_whatever_shares_its_axis():
    merged = told("nothing", bias=torch.randn(8, 1, 5))
    assert merged.arguments == (("bias", 0, False),)
    assert [(edit.module, edit.keep, edit.heads) for edit in merged.taking] == [("attention", (0, 2, 3), 4)]
    assert told("nothing", bias=torch.randn(1, 4, 1, 5)).arguments == (("bias", 1, False),)
    assert told("nothing").taking == ()


class Grouped(nn.Module):
    """Four query heads on two key heads, each of which has a norm's scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6)
        self.scale = nn.Parameter(torch.rand(2, DIM) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, DIM)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k = k * self.scale[:, None]
        k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("gone", "kept"), [((0,), ((0, 2),)), ((0, 1), ((1, 2),))])
def test_what_belongs_to_a_key_head_goes_with_its_last_query_head(gone, kept):
    torch.manual_seed(0)
    model, batch = Grouped(), {"x": torch.randn(2, 5, WIDTH)}
    site = discover(model, batch).sites[0]
    with recording(model, {""}) as seen:
        output_of(model, batch)
    found = belongings(model, "", SiteChange(site, gone, site), seen[""])
    assert [edit.keep for edit in found.edits()] == [kept]


class BiasedKeys(nn.Module):
    """Biases that lie apart from their layers; that of keys moves no softmax, and is a buffer of zeros besides."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        q, k, v = nn.functional.linear(x, self.qkv.weight, bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, DIM)).transpose(1, 2) for part in (q, k, v))
        return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("head", range(HEADS))
def test_what_moves_nothing_goes_with_what_it_is_as_long_as(head):
    torch.manual_seed(0)
    model, batch = BiasedKeys().eval(), {"x": torch.randn(2, 5, WIDTH)}
    site = discover(model, batch).sites[0]
    with recording(model, {""}) as seen:
        output_of(model, batch)
    found = belongings(model, "", SiteChange(site, (head,), site), seen[""])
    places = tuple(frozenset(range(DIM * one, DIM * one + DIM)) for one in range(HEADS))
    both = found.parameters | found.guessed
    assert both == dict.fromkeys(("q_bias", "k_bias", "v_bias"), (0, WIDTH, places))
    assert found.guessing().parameters == both
    pruned = prune(model, [(0, head)], example=batch)
    assert (pruned.qkv.weight.shape, pruned.k_bias.shape) == ((27, WIDTH), (9,))
    with torch.no_grad():
        model.o.weight[:, sorted(places[head])] = 0
        torch.testing.assert_close(pruned(batch["x"]), model(batch["x"]), rtol=0, atol=1e-5)


class UnderMask(nn.Module):
    """A number by head that is read where a mask is given alone, and one by position that is never."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.more, self.never = nn.Parameter(torch.randn(HEADS)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, DIM)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = q @ k.mT
        if mask is not None:
            scores = scores + self.more[: q.shape[1], None, None] * mask[:, None, None]
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_what_nothing_reads_and_is_as_long_as_there_are_heads_goes_with_them_and_is_told():
    torch.manual_seed(0)
    model, x, mask = UnderMask().eval(), torch.randn(2, 5, WIDTH), torch.rand(2, 5)
    pruned = prune(model, ["L0H0"], example={"x": x})
    told = "more: not read when the cut was proven, and taken to be by head"
    assert pruned._headscope.ways == {0: told}
    assert any(told in remark for remark in discover(pruned, {"x": x}).remarks)
    assert (len(pruned.more), len(pruned.never)) == (3, 5)
    seen = prune(model, ["L0H0"], example={"x": x, "mask": mask})
    assert (seen._headscope.ways, len(seen.more)) == ({}, 3)
    with torch.no_grad():
        model.o.weight[:, :DIM] = 0
        for one in (pruned, seen):
            torch.testing.assert_close(one(x, mask), model(x, mask), rtol=0, atol=1e-5)
