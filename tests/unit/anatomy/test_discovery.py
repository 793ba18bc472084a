"""Discovery: the rows and columns of each head, against layouts written down by hand and against perturbed weights."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from headscope._support.running import evaluating, run_model
from headscope.anatomy import discover
from headscope.anatomy.linear import stores_transposed
from headscope.errors import AnatomyError, ModelError, NumericalError
from headscope.models.reference import MultiHeadAttention
from headscope.plans import Record
from headscope.sites import Anatomy, Site, Slices
from headscope.surgery import prune
from headscope.watching.observation import capture
from tests.families import FURTHER, HandWritten, build_any, probe_input
from tests.models import FACTORIES, VOCABULARY, build

Rows = tuple[tuple[int, ...], ...]


def _discover(name: str) -> tuple[nn.Module, Anatomy]:
    """A model of one's own, and its anatomy."""
    return build_any(name), _known(name)


@functools.cache
def _known(name: str) -> Anatomy:
    return discover(build_any(name), probe_input(name))


def _blocks(n: int, width: int, start: int = 0, step: int | None = None) -> Rows:
    """n runs of `width` rows, the first at `start`, the others `step` further each."""
    step = width if step is None else step
    return tuple(tuple(range(start + step * head, start + step * head + width)) for head in range(n))


# name: modules of q, k, v and o in block 1, and the rows or columns of each of their heads
LAYOUTS: dict[str, dict[str, tuple[str, Rows]]] = {
    "gpt2": {  # one layer: all queries, then all keys, then all values
        "query": ("transformer.h.1.attn.c_attn", _blocks(4, 8)),
        "key": ("transformer.h.1.attn.c_attn", _blocks(4, 8, start=32)),
        "value": ("transformer.h.1.attn.c_attn", _blocks(4, 8, start=64)),
        "output": ("transformer.h.1.attn.c_proj", _blocks(4, 8)),
    },
    "nanogpt": {
        "query": ("h.1.attn.c_attn", _blocks(4, 8)),
        "key": ("h.1.attn.c_attn", _blocks(4, 8, start=32)),
        "value": ("h.1.attn.c_attn", _blocks(4, 8, start=64)),
        "output": ("h.1.attn.c_proj", _blocks(4, 8)),
    },
    "llama": {  # 8 query heads, 2 key and value heads
        "query": ("model.layers.1.self_attn.q_proj", _blocks(8, 8)),
        "key": ("model.layers.1.self_attn.k_proj", _blocks(2, 8)),
        "value": ("model.layers.1.self_attn.v_proj", _blocks(2, 8)),
        "output": ("model.layers.1.self_attn.o_proj", _blocks(8, 8)),
    },
    "bert": {
        "query": ("encoder.layer.1.attention.self.query", _blocks(4, 8)),
        "key": ("encoder.layer.1.attention.self.key", _blocks(4, 8)),
        "value": ("encoder.layer.1.attention.self.value", _blocks(4, 8)),
        "output": ("encoder.layer.1.attention.output.dense", _blocks(4, 8)),
    },
    "gemma3": {  # one key head; norms per head on q and k
        "query": ("model.layers.1.self_attn.q_proj", _blocks(4, 16)),
        "key": ("model.layers.1.self_attn.k_proj", _blocks(1, 16)),
        "value": ("model.layers.1.self_attn.v_proj", _blocks(1, 16)),
        "output": ("model.layers.1.self_attn.o_proj", _blocks(4, 16)),
    },
    "gpt_neox": {  # interleaved: q, k, v of head 0, then of head 1, …
        "query": ("gpt_neox.layers.1.attention.query_key_value", _blocks(4, 8, step=24)),
        "key": ("gpt_neox.layers.1.attention.query_key_value", _blocks(4, 8, start=8, step=24)),
        "value": ("gpt_neox.layers.1.attention.query_key_value", _blocks(4, 8, start=16, step=24)),
        "output": ("gpt_neox.layers.1.attention.dense", _blocks(4, 8)),
    },
    "gpt_oss": {
        "query": ("model.layers.1.self_attn.q_proj", _blocks(4, 8)),
        "key": ("model.layers.1.self_attn.k_proj", _blocks(2, 8)),
        "value": ("model.layers.1.self_attn.v_proj", _blocks(2, 8)),
        "output": ("model.layers.1.self_attn.o_proj", _blocks(4, 8)),
    },
    "causal": {
        "query": ("blocks.1.attention.query", _blocks(4, 8)),
        "key": ("blocks.1.attention.key", _blocks(4, 8)),
        "value": ("blocks.1.attention.value", _blocks(4, 8)),
        "output": ("blocks.1.attention.output", _blocks(4, 8)),
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_and_columns_are_those_of_the_layout(name: str) -> None:
    anatomy = _known(name)
    (site,) = (site for site in anatomy.sites if site.block == 1)
    want = LAYOUTS[name]
    for part in ("query", "key", "value"):
        assert getattr(site, part) == (Slices(*want[part]),), part
    assert site.output == Slices(*want["output"])
    assert site.entangled == ()
    assert site.prunable
    assert not site.gated


def _perturbed(model: nn.Module, slices: Slices, head: int) -> nn.Module:
    """A copy in which the rows of one head are other numbers."""
    other = copy.deepcopy(model)
    layer, rows = other.get_submodule(slices.module), list(slices.heads[head])
    with torch.no_grad():
        weight = layer.weight.T if stores_transposed(layer) else layer.weight
        weight[rows] += torch.randn(weight[rows].shape, generator=torch.Generator().manual_seed(1))
    return other


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma3", "nanogpt", "encoder", "gpt_neox", "gpt_oss", "t5"])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_other_numbers_in_a_heads_rows_change_that_head_and_no_other(name: str, part: str) -> None:
    model, anatomy = _discover(name)
    example = probe_input(name) or {"input_ids": torch.arange(14).reshape(2, 7) + 3}
    example |= {"decoder_input_ids": torch.arange(10).reshape(2, 5) + 3} if name == "t5" else {}
    want = part[0]

    def heads(of: nn.Module) -> Tensor:
        with torch.no_grad(), capture(of, (want,), [0], anatomy=anatomy) as seen:
            run_model(of, example)
        return seen[0].tensors[want]

    (slices,) = getattr(anatomy.sites[0], part)
    before = heads(model)
    assert before.shape[1] == len(slices.heads)
    for head in range(before.shape[1]):
        changed = (heads(_perturbed(model, slices, head)) - before).abs().amax((0, 2, 3)) > 1e-4
        assert changed.nonzero().flatten().tolist() == [head]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma3", "nanogpt", "causal", "gpt_neox", "gpt_oss"])
def test_the_counts_of_a_site(name: str) -> None:
    anatomy = _known(name)
    n_heads, n_kv, dim = {"llama": (8, 2, 8), "gemma3": (4, 1, 16), "gpt_oss": (4, 2, 8)}.get(name, (4, 4, 8))
    assert [site.layer for site in anatomy.sites] == [0, 1] == [site.block for site in anatomy.sites]
    for site in anatomy.sites:
        assert (site.n_heads, site.n_kv_heads, site.n_value_heads) == (n_heads, n_kv, n_kv)
        assert (site.head_dim, site.value_dim) == (dim, dim)
        assert site.head_ids == tuple(range(n_heads))
        assert site.kv_of_query == tuple(head * n_kv // n_heads for head in range(n_heads))
        assert site.kind == ("self" if name == "bert" else "causal")
        assert site.route == ("handwritten" if name in ("nanogpt", "causal") else "registry")
        # Gemma scales by a constant of its config, 256 by default, and not by the width of its heads
        assert site.scaling == pytest.approx((256 if name == "gemma3" else dim) ** -0.5, rel=1e-6)
        assert site.shares_module_with == ()
    assert anatomy.remarks == ()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("t5", ["self"] * 2 + ["causal", "cross"] * 2), ("bart", ["self", "causal", "cross"]), ("encoder", ["self"] * 2)],
)
def test_kinds_in_execution_order(name: str, kinds: list[str]) -> None:
    anatomy = _known(name)
    assert [site.kind for site in anatomy.sites] == kinds
    for site in anatomy.sites:
        if site.kind == "cross":
            assert (
                "cross" in site.module_name.lower()
                or "EncDec" in site.module_name
                or "encoder_attn" in site.module_name
            )
        if site.kind == "self":
            assert "encoder" in site.module_name or name == "encoder"


def test_a_shared_module_is_a_site_for_each_of_its_calls() -> None:
    anatomy = _known("albert")
    assert [site.layer for site in anatomy.sites] == [0, 1, 2]
    assert [site.call for site in anatomy.sites] == [0, 1, 2]
    assert len({site.module_name for site in anatomy.sites}) == 1
    assert [site.shares_module_with for site in anatomy.sites] == [(1, 2), (0, 2), (0, 1)]
    assert anatomy.n_heads == 12


def test_queries_and_keys_behind_a_joint_norm_are_entangled() -> None:
    anatomy = _known("olmo2")
    for site in anatomy.sites:
        assert site.entangled == ("q", "k")
        assert site.query == site.key == ()
        assert site.value[0].heads == _blocks(4, 8)
        assert site.output is not None
        assert site.output.heads == _blocks(4, 8)
        assert site.apart
        assert site.prunable
    assert "heads cannot be told apart in q and k, which a cut leaves whole" in anatomy.remarks[0]


def _site(way: str, **settings: object) -> Site:
    torch.manual_seed(0)
    model = HandWritten(way, **settings).eval()  # type: ignore[arg-type]
    return discover(model, {"x": torch.randn(2, 5, 16)}).sites[0]


def test_a_gate_is_seen_and_heads_stay_apart() -> None:
    site = _site("gated")
    assert site.gated
    assert site.prunable
    assert site.output == Slices("o", _blocks(4, 4))


def test_what_mixes_heads_before_the_projection_is_refused() -> None:
    site = _site("normed")
    assert "o" in site.entangled
    assert not site.prunable


def test_the_sequence_may_come_first() -> None:
    site = _site("sequence first")
    assert (site.rows, site.entangled, site.prunable, site.gated) == ("t b", (), True, False)


class _PartlyShared(nn.Module):
    """Keys of three dimensions of a head's own and one that all heads share, out of one layer, as MLA has them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 8), nn.Linear(8, 7), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        own, shared = self.k(x).split([6, 1], dim=-1)
        own = own.unflatten(-1, (2, 3)).transpose(1, 2)
        k = torch.cat([own, shared[:, None].expand(-1, 2, -1, -1)], dim=-1)
        return self.o(((q @ k.mT).softmax(-1) @ k).transpose(1, 2).flatten(2))


def test_rows_that_all_heads_share_belong_to_none() -> None:
    (site,) = discover(_PartlyShared(), {"x": torch.randn(2, 5, 8)}).sites
    assert site.key == site.value == (Slices("k", ((0, 1, 2), (3, 4, 5))),)
    assert site.entangled == ()


class _Bare(nn.Module):
    """Attention whose output no layer reads."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.q = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        z = (q @ q.mT).softmax(-1) @ q
        return z.transpose(1, 2).flatten(2) if self.joined else z


def test_attention_that_nothing_reads_tells_no_heads() -> None:
    with pytest.raises(AnatomyError, match="no layer reads what it makes"):
        discover(_Bare(joined=False), {"x": torch.randn(2, 5, 8)})


def test_attention_without_a_projection_is_found_and_cannot_be_cut() -> None:
    anatomy = discover(_Bare(joined=True), {"x": torch.randn(2, 5, 8)})
    (site,) = anatomy.sites
    assert site.output is None
    assert not site.prunable
    assert site.scaling == 1.0
    assert "heads cannot be cut: no linear layer was found that reads the heads' outputs" in anatomy.remarks[0]
    assert Anatomy.from_json(anatomy.to_json()) == anatomy


def test_the_unit_holds_all_that_belongs_to_the_attention() -> None:
    for name, unit in [("bert", "encoder.layer.1.attention"), ("llama", "model.layers.1.self_attn"),
                       ("gpt2", "transformer.h.1.attn"), ("causal", "blocks.1.attention")]:  # fmt: skip
        anatomy = _known(name)
        assert anatomy.sites[1].unit == unit


class Mlp(nn.Module):
    """No attention, by name or by deed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LinearAttention(Mlp):
    """Attention by name only."""


def test_a_model_without_a_head_left_is_told_from_one_that_is_not_recognised() -> None:
    whole, batch = build("causal"), probe_input("causal")
    none = prune(whole, discover(whole, batch).heads, batches=[batch])
    with pytest.raises(AnatomyError, match="all heads of Transformer were cut, and none is left"):
        discover(none, batch)


def test_no_attention_is_a_clear_error() -> None:
    with pytest.raises(AnatomyError, match="no attention was found in Mlp, and no module's name looks like it"):
        discover(Mlp(), {"x": torch.ones(2, 4)})
    with pytest.raises(
        AnatomyError, match=r"these modules look like it: 0 \(LinearAttention\), 1 .* and 2 more.*any other, tell which"
    ):
        discover(nn.Sequential(*(LinearAttention() for _ in range(5))), {"input": torch.ones(2, 4)})


def test_a_model_that_does_not_say_what_it_takes_needs_anprobe_input() -> None:
    with pytest.raises(AnatomyError, match="NanoGPT does not say what it takes; pass example="):
        discover(build("nanogpt"))


def test_a_failing_forward_says_on_what_and_keeps_the_cause() -> None:
    with pytest.raises(
        ModelError, match=r"NanoGPT on \{'input_ids': \(2, 9\)\} failed with .*the model's own"
    ) as caught:
        discover(build("nanogpt"), {"input_ids": torch.full((2, 9), VOCABULARY)})
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["llama", "bert", "nanogpt"])
def test_broken_weights_are_named(name: str) -> None:
    model = build(name)
    layers = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear) and "1" in layer]
    broken = next(layer for layer in layers if any(key in layer for key in ("q_proj", "query", "c_attn")))
    with torch.no_grad():
        model.get_submodule(broken).weight[3, 2] = torch.nan
    with pytest.raises(NumericalError, match=f"^{broken}.weight of {type(model).__name__} holds NaN"):
        discover(model, probe_input(name))


@pytest.mark.parametrize("name", ["gpt2", "llama", "nanogpt"])
def test_the_fingerprint_knows_the_model_in_another_precision_and_no_other_model(name: str) -> None:
    model, anatomy = _discover(name)
    for dtype in (torch.float64, torch.bfloat16):
        again = discover(copy.deepcopy(model).to(dtype), probe_input(name))
        assert again.fingerprint == anatomy.fingerprint
    assert discover(build(name, seed=1), probe_input(name)).fingerprint != anatomy.fingerprint
    output = anatomy.sites[1].output
    assert output is not None
    with torch.no_grad():
        model.get_submodule(output.module).weight[0, 0] += 1
    assert discover(model, probe_input(name)).fingerprint != anatomy.fingerprint


@pytest.mark.parametrize("name", [*FACTORIES, *FURTHER])
def test_an_anatomy_comes_back_from_json(name: str) -> None:
    anatomy = _known(name)
    assert Anatomy.from_json(anatomy.to_json()) == anatomy


def test_a_pruned_model_keeps_its_original_numbers() -> None:
    model, anatomy = _discover("causal")
    removed = (*anatomy.site(0).heads, anatomy.site(1).heads[2])
    for layer, kept in ((0, []), (1, [0, 1, 3])):
        attention = model.blocks[layer].attention
        rows = [row for head in kept for row in range(8 * head, 8 * head + 8)]
        for part in (attention.query, attention.key, attention.value):
            part.weight, part.bias = nn.Parameter(part.weight[rows]), nn.Parameter(part.bias[rows])
        attention.output.weight = nn.Parameter(attention.output.weight[:, rows])
    model.__dict__["_headscope"] = Record(anatomy, removed, ())
    (site,) = discover(model, probe_input("causal")).sites
    assert (site.layer, site.head_ids) == (1, (0, 1, 3))
    assert [str(head) for head in site.heads] == ["L1H0", "L1H1", "L1H3"]


def test_a_layer_without_any_head_is_no_site() -> None:
    attention = MultiHeadAttention(16, 4)
    for part in (attention.query, attention.key, attention.value):
        part.weight, part.bias = nn.Parameter(part.weight[:0]), nn.Parameter(part.bias[:0])
    attention.output.weight = nn.Parameter(attention.output.weight[:, :0])
    model = nn.Sequential(attention, MultiHeadAttention(16, 4))
    assert [site.module_name for site in discover(model, {"input": torch.randn(2, 5, 16)}).sites] == ["1"]


def test_columns_are_where_the_projection_reads_z() -> None:
    """Against the projection's own input, by a hook, in a layout where heads alternate."""

    class Alternating(MultiHeadAttention):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            query, key, value = self.project(x)
            z = self.weigh(query, key) @ value
            return self.output(z.permute(0, 2, 3, 1).flatten(2))  # dimension 0 of each head, then dimension 1, …

    model = Alternating(12, 3).eval()
    with evaluating(model):
        (site,) = discover(model, {"x": torch.randn(2, 5, 12)}).sites
    assert site.output is not None
    assert site.output.heads == ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11))
    assert not site.gated
