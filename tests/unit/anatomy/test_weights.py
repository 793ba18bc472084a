"""The two products of a head's weights, against the model's own matrices at full width."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import headscope as hs
from headscope.anatomy.weights import Factors, ov_factors, qk_factors
from headscope.errors import AnatomyError
from headscope.likeness.factors import factor_cosine
from tests import models
from tests.families import build_any
from tests.reference import similarity as reference

Arrays = list[np.ndarray]


def array(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().double().numpy()


def split(weight: np.ndarray, n_heads: int) -> Arrays:
    """(head · dim, width) by head."""
    return np.split(weight, n_heads)


def gpt2_parts(model: nn.Module, layer: int) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    attention = model.transformer.h[layer].attn
    q, k, v = np.split(array(attention.c_attn.weight).T, 3)  # a Conv1D holds (in, out)
    return split(q, 4), split(k, 4), split(v, 4), split(array(attention.c_proj.weight), 4)


def llama_parts(model: nn.Module, layer: int) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    own = model.model.layers[layer].self_attn
    q, k, v = (array(getattr(own, f"{name}_proj").weight) for name in "qkv")
    k, v = ([part for part in split(weight, 2) for _ in range(4)] for weight in (k, v))  # four query heads on each
    return split(q, 8), k, v, split(array(own.o_proj.weight).T, 8)


def bert_parts(model: nn.Module, layer: int) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    own = model.encoder.layer[layer].attention
    q, k, v = (split(array(getattr(own.self, name).weight), 4) for name in ("query", "key", "value"))
    return q, k, v, split(array(own.output.dense.weight).T, 4)


PARTS: dict[str, Callable[[nn.Module, int], tuple[Arrays, Arrays, Arrays, Arrays]]] = {
    "gpt2": gpt2_parts,
    "llama": llama_parts,
    "bert": bert_parts,
}


def products(model: nn.Module, name: str, measure: str) -> Arrays:
    """M of every head, (width, width)."""
    made = []
    for layer in range(models.N_LAYERS):
        q, k, v, o = PARTS[name](model, layer)
        left, right = (q, k) if measure == "weights_qk" else (o, v)
        made += [a.T @ b for a, b in zip(left, right, strict=True)]
    return made


@pytest.mark.parametrize("name", sorted(PARTS))
@pytest.mark.parametrize("measure", ["weights_qk", "weights_ov"])
def test_a_model_s_table_is_the_cosine_of_products_at_full_width(name: str, measure: str) -> None:
    model = models.build(name)
    want = reference.all_pairs(reference.cosine, products(model, name, measure))
    across = hs.similarity(model, measure=measure, scope="model")
    np.testing.assert_allclose(across.matrix, want, rtol=1e-9, atol=1e-9)
    within = hs.similarity(model, measure=measure)
    half = len(want) // 2
    for block in (slice(0, half), slice(half, None)):
        np.testing.assert_allclose(within.matrix[block, block], want[block, block], rtol=1e-9, atol=1e-9)
    assert np.isnan(within.matrix[:half, half:]).all()
    assert np.isnan(within.matrix[half:, :half]).all()


@pytest.mark.parametrize("name", sorted(PARTS))
def test_factors_are_low_rank_and_multiply_to_the_product(name: str) -> None:
    model = models.build(name)
    anatomy = hs.discover(model)
    for measure, make in (("weights_qk", qk_factors), ("weights_ov", ov_factors)):
        factors = [own for layer in make(model, anatomy).values() for own in layer]
        for own, want in zip(factors, products(model, name, measure), strict=True):
            assert own.left.shape[0] < own.left.shape[1]
            np.testing.assert_allclose((own.left.T @ own.right).numpy(), want, rtol=1e-9, atol=1e-9)


def test_inner_coordinates_do_not_count_but_a_change_of_one_factor_does() -> None:
    model, batches = models.build("bert").double(), models.make_batches("bert")
    before = {name: hs.similarity(model, measure=name, scope="model").matrix for name in ("weights_qk", "weights_ov")}
    maps = hs.similarity(model, batches, "pattern_cosine").matrix
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3 * torch.eye(8)
    own = model.encoder.layer[1].attention
    rows = slice(8, 16)  # head 1
    with torch.no_grad():
        for part, change in ((own.self.query, mix), (own.self.key, torch.linalg.inv(mix).T)):
            part.weight[rows] = change @ part.weight[rows]
            part.bias[rows] = change @ part.bias[rows]
        own.self.value.weight[rows] = mix @ own.self.value.weight[rows]
        own.output.dense.weight[:, rows] = own.output.dense.weight[:, rows] @ torch.linalg.inv(mix)
    for name, want in before.items():
        np.testing.assert_allclose(hs.similarity(model, measure=name, scope="model").matrix, want, rtol=1e-9, atol=1e-9)
    # the change is one that the model does not see either
    np.testing.assert_allclose(hs.similarity(model, batches, "pattern_cosine").matrix, maps, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        own.self.query.weight[rows] = mix @ own.self.query.weight[rows]
    after = hs.similarity(model, measure="weights_qk", scope="model").matrix
    assert np.abs(after - before["weights_qk"]).max() > 1e-3


def test_an_encoder_decoder_has_no_query_key_product_across_its_sides() -> None:
    model = build_any("t5")
    anatomy = hs.discover(model)
    cross = {site.layer for site in anatomy.sites if site.kind == "cross"}
    assert cross
    assert set(qk_factors(model, anatomy)) == {site.layer for site in anatomy.sites} - cross
    table = hs.similarity(model, measure="weights_qk", scope="model")
    asked = np.array([head.layer in cross for head in table.heads])
    assert np.isnan(table.matrix[asked]).all()
    assert np.isnan(table.matrix[:, asked]).all()
    # encoder and decoder have a residual stream each
    kind = np.array([anatomy.site(head.layer).kind for head in table.heads])[~asked]
    np.testing.assert_array_equal(np.isfinite(table.matrix[np.ix_(~asked, ~asked)]), kind[:, None] == kind)


class _Latents(nn.Module):
    """Queries and keys are made of latents of their own, as multi-head latent attention has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_a, self.k_a = nn.Linear(16, 8), nn.Linear(16, 8)
        self.q_b, self.k_b = nn.Linear(8, 16), nn.Linear(8, 16)
        self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.q_b(self.q_a(x)), self.k_b(self.k_a(x)), self.v(x)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)
        made: torch.Tensor = self.o(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return made


def test_latents_that_queries_and_keys_have_of_their_own_are_no_residual_stream() -> None:
    model = _Latents().eval()
    anatomy = hs.discover(model, {"x": torch.randn(4, 6, 16)})
    assert qk_factors(model, anatomy) == {}
    assert len(ov_factors(model, anatomy)[0]) == 2
    with pytest.raises(AnatomyError, match="weights_qk needs q, k or v as one linear map of the residual stream"):
        hs.similarity(model, measure="weights_qk", anatomy=anatomy)


class _Made(nn.Module):
    """Queries and values that are more than what a layer puts out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q = q + x if self.way == "q of x too" else q
        v = {"v of x too": v + x, "v bent": nn.functional.gelu(v)}.get(self.way, v)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (q, k, v))
        q = nn.functional.rms_norm(q, (8,)) if self.way == "normed" else q
        v = v.flip(-1) if self.way == "v turned over" else v
        made: torch.Tensor = self.o(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return made


@pytest.mark.parametrize("way", ["plain", "normed", "q of x too", "v of x too", "v bent", "v turned over"])
def test_weights_that_do_not_tell_a_head_are_not_compared(way: str) -> None:
    model = _Made(way).eval()
    anatomy = hs.discover(model, {"x": torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))})
    assert (qk_factors(model, anatomy) == {}) == way.startswith("q ")
    assert (ov_factors(model, anatomy) == {}) == way.startswith("v ")
    assert bool(anatomy.remarks) == (way not in ("plain", "normed"))


def test_a_zero_head_is_nan_in_row_and_column_and_nowhere_else() -> None:
    model = models.build("bert")
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight[:8] = 0
    table = hs.similarity(model, measure="weights_qk", scope="model")
    assert np.isnan(table.matrix[0]).all()
    assert np.isnan(table.matrix[:, 0]).all()
    assert np.isfinite(table.matrix[1:, 1:]).all()


def test_factors_of_different_inner_dimensions_are_compared() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((dim, 7)), rng.standard_normal((dim, 7))) for dim in (1, 3, 9)]  # 9: more than width
    factors = [Factors(*map(torch.from_numpy, pair)) for pair in pairs]
    want = reference.all_pairs(reference.cosine, [left.T @ right for left, right in pairs])
    np.testing.assert_allclose(factor_cosine(factors), want, rtol=1e-9, atol=1e-9)
