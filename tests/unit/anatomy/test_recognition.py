"""Recognition: every spelling gives the tensors that are computed by hand, at sizes that the probe never saw."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.errors import AnatomyError, HeadscopeError
from headscope.sites import Anatomy
from headscope.surgery import prune
from headscope.watching.observation import capture
from tests.spellings import DIM, HEADS, REFUSED, WAYS, WIDTH, Spelled, by_hand

# sizes in which equal numbers would mislead whoever went by them: as many rows as heads, as many tokens as dimensions
SIZES = [(2, 5), (HEADS, 5), (2, DIM), (HEADS, DIM), (2, 2), (5, 2)]


def _build(way: str) -> Spelled:
    torch.manual_seed(0)
    model = Spelled(way).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def _x(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("way", WAYS)
def test_tensors_are_those_computed_by_hand(way: str) -> None:
    model = _build(way)
    for rows, length in SIZES:
        anatomy = discover(model, {"x": _x(rows, length)})
        (site,) = anatomy.sites
        assert (site.n_heads, site.n_kv_heads, site.head_dim, site.kind) == (HEADS, HEADS, DIM, "self")
        assert (site.entangled, site.refused, anatomy.remarks) == ((), {}, ())
        for other in ((4, 7), (1, 3), (HEADS, HEADS)):
            x = _x(*other, seed=1)
            want = by_hand(model, x)
            with torch.no_grad(), capture(model, anatomy=anatomy) as seen:
                out = model(x)
            torch.testing.assert_close(out.double(), want["output"], rtol=0, atol=1e-5)
            scaled = seen[0].q.double() @ seen[0].k.double().mT * site.scaling
            torch.testing.assert_close(scaled.softmax(-1), want["pattern"], rtol=0, atol=1e-5)
            for name in ("v", "pattern", "z"):
                torch.testing.assert_close(getattr(seen[0], name).double(), want[name], rtol=0, atol=1e-5)
            settled = seen[0].contribution.double().sum(1) + model.o.bias.double()
            torch.testing.assert_close(settled, want["output"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_each_head_are_its_own(way: str) -> None:
    (site,) = discover(_build(way), {"x": _x(2, 5)}).sites
    own = tuple(tuple(range(h * DIM, (h + 1) * DIM)) for h in range(HEADS))
    for parts, name in ((site.query, "q"), (site.key, "k"), (site.value, "v")):
        assert [(part.module, part.heads) for part in parts] == [(name, own)]
    assert site.output is not None
    assert (site.output.module, site.output.heads) == ("o", own)


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("functional", "baddbmm")])
def test_heads_are_cut(way: str) -> None:
    model, x = _build(way), _x(4, 7, seed=1)
    smaller = prune(model, ["L0H1"], batches=[{"x": _x(2, 5)}])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.o.weight[:, DIM : 2 * DIM] = 0
        torch.testing.assert_close(smaller(x), twin(x), rtol=0, atol=1e-5)
    assert discover(smaller, {"x": x}).sites[0].head_ids == (0, 2)


def test_an_anatomy_written_down_and_read_again_is_the_same_and_watches_the_same() -> None:
    model = _build("sequence first")
    anatomy = discover(model, {"x": _x(2, 5)})
    again = Anatomy.from_json(anatomy.to_json())
    assert again == anatomy
    with torch.no_grad(), capture(model, ("pattern",), anatomy=again) as seen:
        model(_x(3, 4))
    assert seen[0].pattern.shape == (3, HEADS, 4, 4)


@pytest.mark.parametrize("way", REFUSED)
@pytest.mark.parametrize(("rows", "length"), [*SIZES, (1, 5)])
def test_what_is_no_attention_of_heads_is_refused(way: str, rows: int, length: int) -> None:
    with pytest.raises(AnatomyError, match=r"no attention was (found|recognised) in Spelled"):
        discover(_build(way), {"x": _x(rows, length)})


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("softmax over queries", "its values are not summed over the axis of its softmax"),
        ("softmax over heads", "its softmax does not run over the keys"),
        ("talking heads", "its map is mixed before it meets the values"),
    ],
)
def test_the_reason_is_told(way: str, reason: str) -> None:
    with pytest.raises(AnatomyError, match=reason):
        discover(_build(way), {"x": _x(2, 5)})


class _Beside(nn.Module):
    """A layer that is read, beside one that is not."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.read, self.other = _build("einsum"), _build(other)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.read(x))


@pytest.mark.parametrize("other", ["talking heads", "softmax over queries"])
def test_what_is_not_read_is_a_remark(other: str) -> None:
    anatomy = discover(_Beside(other), {"x": _x(2, 5)})
    assert [site.module_name for site in anatomy.sites] == ["read"]
    (remark,) = anatomy.remarks
    assert remark.startswith("not read: other (Spelled) looks like attention, but its ")
    assert anatomy.facts["remarks"] == [remark]


class _OddAttention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.odd, self.idle, self.store = (_build("einsum"), *(_OddAttention() for _ in range(3)))
        self.idle.weight = nn.Parameter(torch.ones(1))  # what is idle and has none may be called by its methods

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.read(x))


def test_what_bears_the_name_and_is_not_read_is_a_remark() -> None:
    remarks = discover(_Named(), {"x": _x(2, 5)}).remarks
    assert remarks == (
        "not read: odd (_OddAttention) looks like attention, but it is not read",
        "not read: idle (_OddAttention) looks like attention, but it did not run on the example",
    )


class _Fickle(nn.Module):
    """It goes another way without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = _build("einsum"), _build("bmm")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) if torch.is_grad_enabled() else self.other(x)


def test_a_site_that_does_not_run_without_gradients_is_refused() -> None:
    anatomy = discover(_Fickle(), {"x": _x(2, 5)})
    assert "it does not run so without gradients" in anatomy.remarks[-1]
    with pytest.raises(HeadscopeError, match="does not run so without gradients"), capture(_Fickle(), anatomy=anatomy):
        pass


class _Lost(nn.Module):
    """One layer as it should be, and one that sees a further key without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = _build("einsum"), _build("einsum")

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        q, k, v = self.other._split(x)
        scores = q @ k.mT / DIM**0.5
        if not torch.is_grad_enabled():
            scores, v = F.pad(scores, (0, 1)), F.pad(v, (0, 0, 0, 1))
        return self.other._join(scores.softmax(-1) @ v)


def test_a_site_that_cannot_be_followed_is_refused_and_the_others_stay() -> None:
    anatomy = discover(_Lost(), {"x": _x(2, 5)})
    assert [site.module_name for site in anatomy.sites] == ["one", ""]
    assert anatomy.sites[0].refused == {}
    assert "computed in another way" in anatomy.sites[1].refused["z"]
    with capture(_Lost(), ("z",), anatomy=anatomy.having("z")) as seen:
        assert list(seen) == []


class _Piecewise(nn.Module):
    """It attends for eight queries at a time."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.inner, self.fused = Spelled("einsum"), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner._split(x)
        made = [F.scaled_dot_product_attention(own, k, v) if self.fused else
                (own @ k.mT / DIM**0.5).softmax(-1) @ v for own in q.split(8, 2)]  # fmt: skip
        return self.inner._join(torch.cat(made, dim=2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("want", ["z", "pattern", "contribution"])
def test_a_text_that_is_gone_through_in_pieces_is_refused_and_not_seen_in_part(fused: bool, want: str) -> None:
    model = _Piecewise(fused)
    anatomy = discover(model, {"x": _x(2, 6)})
    with capture(model, (want,), anatomy=anatomy) as seen:
        model(_x(2, 8))
    assert getattr(seen[0], want).shape[2] == 8
    with pytest.raises(AnatomyError, match="runs more often here"), capture(model, (want,), anatomy=anatomy):
        model(_x(2, 20))


class _Thinned(nn.Module):
    """On longer text it drops small weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Spelled("einsum")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner._split(x)
        pattern = (q @ k.mT / DIM**0.5).softmax(-1)
        if x.shape[1] > 8:
            pattern = pattern * (pattern > 1 / x.shape[1])
        return self.inner._join(pattern @ v)


def test_a_map_that_is_changed_on_longer_text_is_an_error() -> None:
    model = _Thinned().eval()
    anatomy = discover(model, {"x": _x(2, 6)})
    with (
        pytest.raises(AnatomyError, match="weights of the map are dropped before they meet the values"),
        capture(model, ("pattern",), anatomy=anatomy),
    ):
        model(_x(2, 12))


class _Latent(nn.Module):
    """Learned queries, or learned keys and values, once for all rows."""

    def __init__(self, learned: str) -> None:
        super().__init__()
        self.inner, self.learned, self.rows = Spelled("einsum"), learned, nn.Parameter(torch.randn(1, 4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner._split(x)
        own = self.inner._split(self.rows)
        q = own[0] if self.learned == "queries" else q
        k, v = own[1:] if self.learned == "keys" else (k, v)
        return self.inner._join((q @ k.mT / DIM**0.5).softmax(-1) @ v)


@pytest.mark.parametrize("learned", ["queries", "keys"])
def test_what_is_learned_is_read_as_what_is_not(learned: str) -> None:
    torch.manual_seed(0)
    model, x = _Latent(learned).eval(), _x(3, 6)
    anatomy = discover(model, {"x": x})
    assert anatomy.sites[0].refused == {}
    with capture(model, ("q", "k", "v", "pattern", "z"), anatomy=anatomy) as seen:
        model(x)
    own = seen[0]
    # queries stand there for every row; where keys are the same for all rows, nothing tells rows from positions
    rows, positions = (3, 4) if learned == "queries" else (1, 18)
    assert own.q.shape == own.z.shape == (rows, HEADS, positions, DIM)
    assert bool(anatomy.remarks) == (learned == "keys")
    torch.testing.assert_close((DIM**-0.5 * own.q @ own.k.mT).softmax(-1), own.pattern)
    torch.testing.assert_close(own.pattern @ own.v, own.z)


class _ForShow(nn.Module):
    """Makes a map that nobody reads, and then attends."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Spelled("einsum")

    def forward(self, x: Tensor) -> Tensor:
        q, k, _ = self.inner._split(x)
        (q @ k.mT).softmax(-1)
        out: Tensor = self.inner(x)
        return out


def test_a_map_that_nobody_reads_is_no_attention() -> None:
    anatomy = discover(_ForShow(), {"x": torch.randn(2, 5, WIDTH)})
    assert (len(anatomy.sites), anatomy.remarks) == (1, ())


class _Router(nn.Module):
    """Attention without an output projection, whose result a router weighs: no scores are mixed there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.router = Spelled("einsum"), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner._split(x)
        x = x + ((q @ k.mT / DIM**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        gates = self.router(x).softmax(-1)
        out: Tensor = self.inner(x * gates[..., :1])
        return out


def test_a_router_behind_attention_is_no_attention() -> None:
    anatomy = discover(_Router(), {"x": torch.randn(2, 5, WIDTH)})
    assert not [remark for remark in anatomy.remarks if "mixed before the softmax" in remark]
    assert len(anatomy.sites) == 2


class _TalkingBefore(nn.Module):
    """Heads that talk to each other before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = Spelled("einsum"), nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner._split(x)
        scores = self.mix((q @ k.mT / DIM**0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.inner._join(scores.softmax(-1) @ v)


def test_heads_that_talk_before_the_softmax_are_refused_with_the_reason() -> None:
    with pytest.raises(AnatomyError, match="its scores are mixed before the softmax"):
        discover(_TalkingBefore(), {"x": torch.randn(2, 5, WIDTH)})


class _Streams(nn.Module):
    """Two streams attend together and have projections of their own, as in MMDiT."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"{part}_{of}": nn.Linear(24, 24) for part in "qkvo" for of in ("image", "text")})

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        both = {"text": text, "image": image}
        q, k, v = (
            torch.cat(
                [self.layers[f"{part}_{of}"](x).unflatten(-1, (4, 6)).transpose(1, 2) for of, x in both.items()], 2
            )
            for part in "qkv"
        )
        z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        of_text, of_image = z.split([text.shape[1], image.shape[1]], 1)
        return self.layers["o_image"](of_image), self.layers["o_text"](of_text)


def test_streams_with_projections_of_their_own_are_refused_by_name() -> None:
    torch.manual_seed(0)
    with pytest.raises(AnatomyError, match=r"each at some of the positions, as where two streams attend together"):
        discover(_Streams(), {"image": torch.randn(2, 9, 24), "text": torch.randn(2, 5, 24)})
