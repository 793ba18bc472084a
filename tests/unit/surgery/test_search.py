import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError, SurgeryError
from headscope.surgery import prune
from headscope.surgery.edits.attributes import SetAttribute
from headscope.surgery.search import _numbers
from headscope.watching.observation import capture
from tests.families import build_further
from tests.unit.surgery.test_change import Attention, change

EXAMPLE = {"x": torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))}


def numbers(**attributes):
    tried = _numbers(Attention(**attributes), "h.3", [change((0, 3), n_kv=6)], ())
    return [tuple(edit.name for edit in edits) for edits in tried]


def test_numbers_of_heads_come_first_then_nothing_then_widths_one_by_one():
    got = numbers(n_head=6, split=24, embed=24)
    assert got[:5] == [("n_head",), (), ("n_head", "split"), ("n_head", "embed"), ("n_head", "split", "embed")]
    assert got[5:] == [("split",), ("embed",)]


def test_without_any_integer_nothing_is_set():
    assert numbers() == [()]


def test_at_most_48_sets_of_numbers():
    assert len(numbers(n_head=6, **{f"width_{letter}": 24 for letter in "abcdefghijkl"})) == 48


def test_groups_settled_elsewhere_are_left_alone():
    fixed = [SetAttribute("h.3", "num_key_value_groups", 2, 3)]
    assert _numbers(Attention(num_key_value_groups=3), "h.3", [change((0, 3))], fixed) == [()]


class Heads(nn.Module):
    """Attention by hand whose shapes are worked out as a subclass likes."""

    def __init__(self):
        super().__init__()
        self.heads, self.wide = 4, 24
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.o = nn.Linear(24, 24)

    def split(self, x):
        raise NotImplementedError

    def forward(self, x):
        q, k, v = (self.split(part(x)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1) @ v
        return self.o(z.transpose(1, 2).flatten(2))


class ByCount(Heads):
    def split(self, x):
        return x.view(*x.shape[:2], self.heads, 6)


class ByWidth(Heads):
    def split(self, x):
        return x.view(*x.shape[:2], self.wide // 6, 6)


class ByLiteral(Heads):
    def split(self, x):
        return x.reshape(x.size(0), x.size(1), 4, 6)


class ByDivision(Heads):
    def split(self, x):
        return x.unflatten(-1, (4, 6))


class ByTable(Heads):
    """A row of its own for each head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, 6) + self.table


class ByNorms(Heads):
    """A norm of its own for each head, in a list."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(4))
        for place, norm in enumerate(self.norms):
            nn.init.normal_(norm.weight, mean=place)

    def split(self, x):
        parts = x.view(*x.shape[:2], self.heads, 6).unbind(2)
        return torch.stack([norm(part) for norm, part in zip(self.norms, parts, strict=True)], 2)


class ByHeart(Heads):
    """Knows its sizes by heart, and says so."""

    def split(self, x):
        assert x.shape[-1] == 24
        return x.unflatten(-1, (4, 6))


class Bare(ByHeart):
    """The same with an output projection that is no layer of its own."""

    def __init__(self):
        super().__init__()
        del self.o
        self.bare = nn.Parameter(torch.randn(24, 24) / 5)

    def o(self, x):
        assert x.shape[-1] == 24
        return functional.linear(x, self.bare)


class BareQueries(ByHeart):
    """The same with queries that no layer makes: they stay whole."""

    def __init__(self):
        super().__init__()
        del self.q
        self.bare = nn.Parameter(torch.randn(24, 24) / 5)

    def q(self, x):
        return functional.linear(x, self.bare)


@pytest.mark.parametrize(
    ("kind", "edits"),
    [
        (ByCount, ["heads"]),
        (ByWidth, ["heads", "wide"]),
        (ByLiteral, ["heads", "repair"]),
        (ByDivision, ["heads", "repair"]),
        (ByTable, ["table", "heads"]),
        (ByNorms, ["drop_items", "heads"]),
        (ByHeart, ["pad_output", "pad_output", "pad_output", "pick_input", "keep_heads"]),
        (BareQueries, ["pad_output", "pad_output", "pick_input", "keep_heads"]),
    ],
)
def test_each_rung_is_reached_by_a_model_that_needs_it(kind, edits):
    torch.manual_seed(0)
    pruned = prune(kind(), ["L0H1"], example=EXAMPLE)
    made = [edit for edit in pruned._headscope.edits if edit["edit"] not in ("slice_output", "slice_input")]
    told = {"set_attribute": "name", "slice_parameter": "name"}
    assert [edit[told.get(edit["edit"], "edit")].replace("_sizes", "") for edit in made] == edits
    site = discover(pruned, EXAMPLE).sites[0]
    assert (site.head_ids, site.n_heads) == ((0, 2, 3), 3)


def test_what_no_trial_gets_right_is_refused_with_everything_one_needs_to_know():
    torch.manual_seed(0)
    model = Bare()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SurgeryError) as caught:
        prune(model, ["L0H1", "L0H2"], example=EXAMPLE)
    text = str(caught.value)
    for part in ("L0H1, L0H2", "Bare", "up to 1e-05", "layer 0", "route handwritten", "entangled nothing"):
        assert part in text
    assert "headscope.ablate" in text
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.heads == 4


class Grouped(Heads):
    """Six query heads on two key heads, repeated by hand: there is no way to share them unevenly."""

    def __init__(self):
        super().__init__()
        self.n_rep = 3
        self.q, self.o = nn.Linear(24, 36), nn.Linear(36, 24)
        self.k, self.v = nn.Linear(24, 12), nn.Linear(24, 12)

    def split(self, x):
        x = x.view(*x.shape[:2], x.shape[-1] // 6, 6)
        return x if x.shape[2] > 2 else x.repeat_interleave(self.n_rep, 2)


def test_uneven_groups_by_hand_keep_their_sizes():
    torch.manual_seed(0)
    model = Grouped()
    assert discover(model, EXAMPLE).sites[0].kv_of_query == (0, 0, 0, 1, 1, 1)
    uneven = prune(model, ["L0H1"], example=EXAMPLE)
    assert (uneven.n_rep, uneven.q.weight.shape, uneven.o.weight.shape) == (3, (30, 24), (24, 30))
    found = discover(uneven, EXAMPLE).sites[0]
    assert (found.head_ids, found.n_kv_heads, found.kv_of_query) == ((0, 2, 3, 4, 5), 2, (0, 0, 1, 1, 1))
    even = prune(model, ["L0H1", "L0H3"], example=EXAMPLE)
    assert even.n_rep == 2
    assert discover(even, EXAMPLE).sites[0].head_ids == (0, 2, 4, 5)


class Residual(ByCount):
    def forward(self, x):
        return x + super().forward(x)


class Weird(ByCount):
    def forward(self, x):
        return super().forward(x), x.shape


@pytest.mark.parametrize("kind", [ByCount, Residual, Weird])
def test_a_layer_may_lose_all_its_heads_whatever_else_it_does(kind):
    torch.manual_seed(0)
    pruned = prune(kind(), [f"L0H{head}" for head in range(4)], example=EXAMPLE)
    assert [pruned.q.weight.numel(), pruned.k.weight.numel(), pruned.v.weight.numel(), pruned.o.weight.numel()] == [
        0
    ] * 4


class ByMatrices(nn.Module):
    """Weights by head, which no layer holds, and biases before and behind the heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(4, 24, 6) / 5) for _ in range(4))
        self.to_q, self.behind = nn.Parameter(torch.randn(4, 1, 6)), nn.Parameter(torch.randn(24))

    def forward(self, x):
        q, k, v = (torch.einsum("btm,hmd->bhtd", x, own) for own in (self.q, self.k, self.v))
        z = ((q + self.to_q) @ k.mT / 6**0.5).softmax(-1) @ v
        return torch.einsum("bhtd,hmd->btm", z, self.o) + self.behind


def test_a_layer_without_layers_may_lose_all_its_heads():
    torch.manual_seed(0)
    model = ByMatrices()
    pruned = prune(model, [f"L0H{head}" for head in range(4)], example=EXAMPLE)
    assert sum(own.numel() for own in pruned.parameters()) == model.behind.numel()
    torch.testing.assert_close(pruned(EXAMPLE["x"]), model.behind.expand(2, 5, 24), rtol=0, atol=0)


class Telling(ByCount):
    """Returns its queries by head beside its output."""

    def forward(self, x):
        return super().forward(x), self.split(self.q(x)).transpose(1, 2)


class Around(nn.Module):
    """What stands around it reads these, or does not."""

    def __init__(self, reads):
        super().__init__()
        self.inner, self.reads = Telling(), reads

    def forward(self, x):
        out, queries = self.inner(x)
        return out + queries.square().sum() if self.reads else out


@pytest.mark.parametrize("reads", [False, True])
def test_what_a_layer_tells_by_head_beside_its_output_may_be_of_fewer_if_nothing_reads_it(reads):
    torch.manual_seed(0)
    model = Around(reads)
    pruned = prune(model, ["L0H1"], example=EXAMPLE)
    assert bool(pruned._headscope.ways) == reads
    assert pruned(EXAMPLE["x"]).shape == (2, 5, 24)
    with torch.no_grad():
        model.inner.o.weight[:, 6:12] = 0
        torch.testing.assert_close(pruned(EXAMPLE["x"]), model(EXAMPLE["x"]), rtol=0, atol=1e-4)


class ByFunctions(ByHeart):
    """Hands weights of its layers to PyTorch's function, some with a bias that it puts together itself."""

    def __init__(self):
        super().__init__()
        self.k, self.v = (nn.Linear(24, 24, bias=False) for _ in range(2))
        self.bias = nn.Parameter(torch.randn(20))

    def split(self, x):
        return super().split(x + 0)

    def forward(self, x):
        q = functional.linear(x, self.q.weight, self.q.bias)
        bias = torch.cat([self.bias, self.bias[:4]])
        k, v = (functional.linear(x, one.weight, bias=bias) for one in (self.k, self.v))
        q, k, v = (self.split(part).transpose(1, 2) for part in (q, k, v))
        z = ((q @ k.mT) / 6**0.5).softmax(-1) @ v
        return functional.linear(z.transpose(1, 2).flatten(2), self.o.weight) + self.o.bias


def test_functions_that_get_the_weights_of_layers_go_on_as_these_do():
    torch.manual_seed(0)
    model, x = ByFunctions(), EXAMPLE["x"]
    pruned = prune(model, ["L0H1"], example=EXAMPLE)
    assert [part.weight.shape for part in (pruned.q, pruned.v, pruned.o)] == [(18, 24), (18, 24), (24, 18)]
    with torch.no_grad():
        model.o.weight[:, 6:12] = 0
        torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=1e-6)


class Again(ByLiteral):
    """Computes its middle again for the gradients, outside of its forward."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("kind", [ByLiteral, Again])
def test_what_is_cut_has_gradients_as_before(kind):
    torch.manual_seed(0)
    model = kind()
    pruned = prune(model, ["L0H1"], example=EXAMPLE)
    kept = [*range(6), *range(12, 24)]
    with torch.no_grad():
        model.o.weight[:, 6:12] = 0
    for one in (model, pruned):
        one.train()(EXAMPLE["x"]).square().sum().backward()
    torch.testing.assert_close(pruned.v.weight.grad, model.v.weight.grad[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [ByHeart, ByCount])
def test_what_is_seen_of_a_cut_layer_is_of_the_heads_that_are_left(kind):
    """Where zeros stand for heads that are gone, as where they are not there at all."""
    torch.manual_seed(0)
    model, x = kind().eval(), EXAMPLE["x"]
    pruned = prune(model, ["L0H1"], example=EXAMPLE)
    names = ["q", "k", "v", "z", "pattern", "contribution"]
    with torch.no_grad(), capture(model, names, example=EXAMPLE) as whole:
        model(x)
    with torch.no_grad(), capture(pruned, names, example=EXAMPLE) as cut:
        pruned(x)
    for name in names:
        seen, want = getattr(cut[0], name), getattr(whole[0], name)[:, [0, 2, 3]]
        torch.testing.assert_close(seen, want, atol=1e-5, rtol=0, msg=f"{kind.__name__}: {name}")
    with ablate(pruned, ["L0H2"], example=EXAMPLE), torch.no_grad():
        left = pruned(x)
    torch.testing.assert_close(left, prune(pruned, ["L0H2"], example=EXAMPLE)(x), atol=1e-5, rtol=0)


def test_how_a_layer_was_cut_is_told():
    torch.manual_seed(0)
    plain, framed = (prune(kind(), ["L0H1"], example=EXAMPLE) for kind in (ByCount, ByHeart))
    assert plain._headscope.ways == {}
    told = "zeros stand where its heads were, so it is smaller and no faster"
    assert framed._headscope.ways == {0: told}
    assert any(told in remark for remark in discover(framed, EXAMPLE).remarks)
    assert not any("cut" in remark for remark in discover(plain, EXAMPLE).remarks)
    mixed = prune(build_further("olmo2"), ["L1H1"])
    assert mixed._headscope.ways == {1: "q and k stay whole"}


class Twice(nn.Module):
    """Two attentions in one forward; the second reads the values of the first."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o, self.more_q, self.more_o = (nn.Linear(24, 24) for _ in range(6))

    def forward(self, x):
        q, k, v, more = (
            part(x).unflatten(-1, (4, 6)).transpose(1, 2) for part in (self.q, self.k, self.v, self.more_q)
        )
        for query, out in ((q, self.o), (more, self.more_o)):
            x = x + out((query @ k.mT).div(6**0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        return x


def test_each_attention_of_a_module_says_which_of_its_heads_are_left():
    torch.manual_seed(0)
    model, x = Twice().eval(), EXAMPLE["x"]
    anatomy = discover(model, EXAMPLE)
    pruned = prune(model, ["L0H1", "L1H0", "L1H3"], example=EXAMPLE)
    assert set(pruned._headscope.ways) == {0, 1}
    left = discover(pruned, EXAMPLE)
    assert [site.head_ids for site in left.sites] == [(0, 2, 3), (1, 2)]
    with torch.no_grad(), capture(pruned, ["z"], anatomy=left) as cut:
        pruned(x)
    with ablate(model, ["L0H1", "L1H0", "L1H3"], anatomy=anatomy), capture(model, ["z"], anatomy=anatomy) as whole:
        model(x)
    for site in left.sites:
        want = whole[site.layer].z[:, list(site.head_ids)]
        torch.testing.assert_close(cut[site.layer].z, want, atol=1e-5, rtol=0)


def test_a_cut_model_that_was_changed_since_is_refused():
    torch.manual_seed(0)
    pruned = prune(ByHeart(), ["L0H1"], example=EXAMPLE)
    vars(pruned).pop("_headscope_left")
    with pytest.raises(AnatomyError, match="shows 4 heads, and 3 of its 4 were left when it was cut"):
        discover(pruned, EXAMPLE)
