"""Cuts of PyTorch's own attention: narrower, the same function as with the heads' columns zeroed by hand."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.surgery import load, prune, save
from headscope.watching.observation import capture

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.tensor:UserWarning")

_WIDTH, _HEADS, _DIM = 24, 4, 6


class _Attends(nn.Module):
    """One call of nn.MultiheadAttention, as its arguments say."""

    def __init__(self, settings: dict[str, object], call: dict[str, object]) -> None:
        super().__init__()
        self.attention, self.call = nn.MultiheadAttention(_WIDTH, _HEADS, **settings), call
        self.out = nn.Linear(_WIDTH, 5)

    def forward(self, x: Tensor, other: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        other = x if other is None else other
        if not self.attention.batch_first:
            x, other = x.transpose(0, 1), other.transpose(0, 1)
        width = self.attention.vdim if not self.attention._qkv_same_embed_dim else _WIDTH
        y = self.attention(x, other, other[..., : width or _WIDTH], key_padding_mask=padding, **self.call)[0]
        return self.out(y if self.attention.batch_first else y.transpose(0, 1))


_PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
_LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)
_MINUS = torch.zeros(5, 5, dtype=torch.float64).masked_fill(_LATER, -torch.inf)
_CASES: dict[str, tuple[dict[str, object], dict[str, object], dict[str, Tensor]]] = {
    "fused": ({"batch_first": True}, {"need_weights": False}, {}),
    "with weights": ({"batch_first": True}, {}, {}),
    "a map a head": ({"batch_first": True}, {"average_attn_weights": False}, {}),
    "sequence first": ({}, {"attn_mask": _LATER}, {}),
    "padded": ({"batch_first": True}, {"need_weights": False}, {"padding": _PADDING}),
    "both masks": ({"batch_first": True}, {"attn_mask": _LATER, "is_causal": True}, {"padding": _PADDING}),
    "float mask": ({"batch_first": True}, {"attn_mask": _MINUS}, {}),
    "a mask a head": ({"batch_first": True}, {"attn_mask": _LATER.repeat(2 * _HEADS, 1, 1)}, {}),
    "no bias": ({"batch_first": True, "bias": False}, {"need_weights": False}, {}),
    "more keys": ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, {"need_weights": False}, {}),
    "more keys, masked": ({"batch_first": True, "add_bias_kv": True}, {"attn_mask": _LATER}, {"padding": _PADDING}),
    "other widths": ({"batch_first": True, "kdim": _WIDTH, "vdim": 10}, {"need_weights": False}, {}),
    "cross": ({"batch_first": True}, {}, {"other": torch.linspace(-1, 1, 2 * 7 * _WIDTH).reshape(2, 7, _WIDTH).sin()}),
}  # fmt: skip


def _build(case: str) -> tuple[_Attends, dict[str, Tensor]]:
    """In float64, where nothing but a wrong cut makes outputs differ."""
    settings, call, more = _CASES[case]
    torch.manual_seed(0)
    model = _Attends(settings, call).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    given = {"x": torch.randn(2, 5, _WIDTH)} | more
    return model, {name: one.double() if one.is_floating_point() else one for name, one in given.items()}


def _zeroed(model: _Attends, heads: list[int]) -> _Attends:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for head in heads:
            twin.attention.out_proj.weight[:, head * _DIM : (head + 1) * _DIM] = 0
    return twin


@pytest.mark.parametrize("case", _CASES)
def test_a_cut_is_the_model_without_the_heads(case: str) -> None:
    model, batch = _build(case)
    smaller = prune(model, ["L0H1", "L0H2"], batches=[batch])
    with torch.no_grad():
        want, whole = _zeroed(model, [1, 2])(**batch), model(**batch)
        torch.testing.assert_close(smaller(**batch), want, rtol=0, atol=1e-12)
        assert (want - whole).abs().max() > 0.05
    again = discover(smaller, batch)
    assert again.sites[0].head_ids == (0, 3)
    twice = prune(smaller, ["L0H0"], batches=[batch])
    with torch.no_grad():
        torch.testing.assert_close(twice(**batch), _zeroed(model, [0, 1, 2])(**batch), rtol=0, atol=1e-12)
    assert smaller.attention.out_proj.weight.shape == (_WIDTH, 2 * _DIM)


@pytest.mark.parametrize("heads", [[1, 2], [0, 1, 2, 3]], ids=["some", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_cut_on_inputs_in_half_precision(dtype: torch.dtype, heads: list[int]) -> None:
    model, batch = _build("with weights")
    model, batch = model.to(dtype), {name: one.to(dtype) for name, one in batch.items()}
    smaller = prune(model, [(0, head) for head in heads], batches=[batch])
    with torch.no_grad():
        want = _zeroed(model, heads).float()(batch["x"].float())
        torch.testing.assert_close(copy.deepcopy(smaller).float()(batch["x"].float()), want, rtol=0, atol=1e-5)
    assert {one.dtype for one in smaller.parameters()} == {dtype}


@pytest.mark.parametrize("case", _CASES)
def test_it_is_watched_as_it_runs(case: str) -> None:
    """Σ contributions + bias is what the projection gave; map · v is z; the output is that of the fast path."""
    model, batch = _build(case)
    anatomy = discover(model, batch)
    (site,) = anatomy.sites
    assert (site.n_heads, site.head_dim, site.kind) == (_HEADS, _DIM, site.kind)
    with torch.no_grad():
        want = model(**batch)
        with capture(model, anatomy=anatomy) as seen:
            torch.testing.assert_close(model(**batch), want, rtol=0, atol=1e-6)
        settled = seen[0].contribution.sum(1) + (0 if (b := model.attention.out_proj.bias) is None else b)
        torch.testing.assert_close(model.out(settled), want, rtol=0, atol=1e-5)
        torch.testing.assert_close(seen[0].pattern @ seen[0].v, seen[0].z, rtol=0, atol=1e-5)


def test_a_layer_that_loses_all_its_heads_gives_its_bias() -> None:
    model, batch = _build("fused")
    smaller = prune(model, [f"L0H{head}" for head in range(_HEADS)], batches=[batch])
    with torch.no_grad():
        torch.testing.assert_close(smaller(**batch), _zeroed(model, [0, 1, 2, 3])(**batch), rtol=0, atol=1e-6)


class _Encodes(nn.Module):
    def __init__(self, **settings: object) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 32, batch_first=True, **settings)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(_WIDTH))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding).mean(1)  # the padding counts, as it is


@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"activation": "gelu"}])
def test_zeros_that_the_fast_path_leaves_in_the_padding_stay(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, batch = _Encodes(**settings).eval(), {"x": torch.randn(2, 5, _WIDTH), "padding": _PADDING}
    heads = ["L0H1", "L1H3"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder.layers[0].self_attn.out_proj.weight[:, _DIM : 2 * _DIM] = 0
        twin.encoder.layers[1].self_attn.out_proj.weight[:, 3 * _DIM :] = 0
        want, whole = twin(**batch), model(**batch)
        with capture(model, ("z",), example=batch):
            torch.testing.assert_close(model(**batch), whole, rtol=0, atol=1e-6)
        smaller = prune(model, heads, batches=[batch])
        torch.testing.assert_close(smaller(**batch), want, rtol=0, atol=2e-6)
        with capture(smaller, ("z",), example=batch):
            torch.testing.assert_close(smaller(**batch), want, rtol=0, atol=2e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_cut_encoder_is_saved_loaded_copied_and_trained(tmp_path: object) -> None:
    torch.manual_seed(0)
    model, batch = _Encodes().eval(), {"x": torch.randn(2, 5, _WIDTH), "padding": _PADDING}
    smaller = prune(model, ["L0H1", "L1H3"], batches=[batch])
    with torch.no_grad():
        want = smaller(**batch)
    save(smaller, tmp_path / "cut")
    for other in (load(tmp_path / "cut", model=_Encodes()).eval(), copy.deepcopy(smaller)):
        with torch.no_grad():
            torch.testing.assert_close(other(**batch), want, rtol=0, atol=0)
    smaller.train()(**batch).sum().backward()
    assert smaller.encoder.layers[0].self_attn.in_proj_weight.grad.abs().max() > 0


class _Bare(nn.Module):
    """Attention of parameters that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 8, 2, 4) * 0.3)
        self.o = nn.Parameter(torch.randn(2, 4, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btm,mhd->bthd", x, one) for one in self.w.unbind(0))
        pattern = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
        return torch.einsum("bthd,hdm->btm", torch.einsum("bhts,bshd->bthd", pattern, v), self.o)


def test_attention_of_bare_parameters_is_watched_and_cut() -> None:
    torch.manual_seed(0)
    model, batch = _Bare(), {"x": torch.randn(2, 5, 8)}
    with torch.no_grad(), capture(model, ("contribution",), example=batch) as seen:
        out = model(**batch)
    torch.testing.assert_close(seen[0].contribution.sum(1), out, rtol=0, atol=1e-5)
    pruned = prune(model, ["L0H0"], batches=[batch])
    torch.testing.assert_close(pruned(**batch), out - seen[0].contribution[:, 0], rtol=0, atol=1e-5)


class _Translates(nn.Module):
    """nn.Transformer whole: an encoder, a decoder with causal and cross attention, padding on both sides."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.whole = nn.Transformer(
            _WIDTH, _HEADS, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=32, batch_first=batch_first
        )

    def forward(self, source: Tensor, target: Tensor, padding: Tensor) -> Tensor:
        later = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        if not self.first:
            source, target = source.transpose(0, 1), target.transpose(0, 1)
        masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        out = self.whole(source, target, tgt_mask=later, tgt_is_causal=True, **masks)
        return out if self.first else out.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_whole_transformer_is_watched_and_cut(batch_first: bool) -> None:
    torch.manual_seed(0)
    model = _Translates(batch_first).eval()
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    batch = {"source": torch.randn(2, 6, _WIDTH), "target": torch.randn(2, 5, _WIDTH), "padding": padding}
    with torch.no_grad():
        alone = model(**batch)
    anatomy = discover(model, batch)
    assert [site.kind for site in anatomy.sites] == ["self", "self", "causal", "cross", "causal", "cross"]
    assert anatomy.remarks == ()
    with torch.no_grad(), capture(model, ("pattern", "v", "z"), anatomy=anatomy) as seen:
        torch.testing.assert_close(model(**batch), alone, rtol=0, atol=1e-6)
    for site in anatomy.sites:
        own = seen[site.layer]
        torch.testing.assert_close(own.pattern @ own.v, own.z, rtol=1e-4, atol=1e-6)
        if site.kind != "causal":
            assert own.pattern[1, :, :, 4:].abs().max() == 0  # padding is not looked at
    heads = ["L0H1", "L2H0", "L3H3"]
    smaller = prune(model, heads, anatomy=anatomy, batches=[batch])
    twin = copy.deepcopy(model)
    decoder = twin.whole.decoder.layers[0]
    cut = [(twin.whole.encoder.layers[0].self_attn, 1), (decoder.self_attn, 0), (decoder.multihead_attn, 3)]
    with torch.no_grad():
        for attention, head in cut:
            attention.out_proj.weight[:, head * _DIM : (head + 1) * _DIM] = 0
        torch.testing.assert_close(smaller(**batch), twin(**batch), rtol=0, atol=2e-6)


class _ByFunction(nn.Module):
    """Hands the weights of its layers to PyTorch's function, with a bias by head, and runs none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(_HEADS, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        turned, positions = x.transpose(0, 1), torch.arange(x.shape[1])
        apart = (positions[:, None] - positions).abs() * -self.bias.repeat(len(x), 1, 1)
        out, pattern = F.multi_head_attention_forward(
            turned, turned, turned, _WIDTH, _HEADS, torch.empty(0), torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            None, None, False, 0.0, self.o.weight, self.o.bias, training=False, attn_mask=apart,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )  # fmt: skip
        return out.transpose(0, 1), pattern


@pytest.mark.parametrize("gone", [[1], [0, 3], list(range(_HEADS))])
def test_weights_that_are_handed_to_pytorchs_function_are_cut(gone: list[int]) -> None:
    torch.manual_seed(0)
    model, x = _ByFunction().eval(), torch.randn(3, 6, _WIDTH)
    masked, dim = copy.deepcopy(model), _WIDTH // _HEADS
    with torch.no_grad():
        for head in gone:
            masked.o.weight[:, head * dim : (head + 1) * dim] = 0
    pruned = prune(model, [(0, head) for head in gone], example={"x": x})
    torch.testing.assert_close(pruned(x)[0], masked(x)[0], rtol=0, atol=1e-5)
    assert pruned.q.weight.shape[0] == pruned.o.weight.shape[1] == _WIDTH - dim * len(gone)
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other(x)[0], pruned(x)[0])
    if len(gone) < _HEADS:
        again = discover(pruned, {"x": x}).sites[0]
        assert again.head_ids == tuple(head for head in range(_HEADS) if head not in gone)
