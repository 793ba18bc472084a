"""Attention that is computed for each picture of a batch, and read at once: one site, however many there are."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DiffLlamaConfig, DiffLlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import importance
from headscope.surgery import prune
from headscope.watching.hooks import joined
from headscope.watching.observation import capture

_WIDTH, _HEADS, _DIM = 12, 3, 4


class _Layer(nn.Module):
    """As towers of vision–language models have it: the attention function is called once for each picture."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.gate, self.gated = nn.Linear(_WIDTH, _WIDTH), gated
        self.qkv, self.proj = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.num_heads, self.is_causal, self.num_key_value_groups = _HEADS, False, 1

    def forward(self, x: Tensor, sizes: list[int]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, _DIM)).permute(1, 2, 0, 3)[:, None].unbind(0)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        parts = zip(*(tensor.split(sizes, dim=2) for tensor in (q, k, v)), strict=True)
        out = [attend(self, *part, None, scaling=_DIM**-0.5)[0] for part in parts]
        z = torch.cat(out, dim=1)[0].flatten(1)
        return self.proj(z * self.gate(x).sigmoid() if self.gated else z)


class _Tower(nn.Module):
    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(_Layer(gated) for _ in range(2))

    def forward(self, patches: Tensor, sizes: Tensor) -> Tensor:
        for layer in self.layers:
            patches = patches + layer(patches, sizes.tolist())
        return patches


def _batch(*sizes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return {"patches": torch.randn(sum(sizes), _WIDTH, generator=generator), "sizes": torch.tensor(sizes)}


def _by_hand(layer: _Layer, x: Tensor, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The map, (head, query, key), and what each head adds, (head, query, width), in float64."""
    weight = {name: one.detach().double().numpy() for name, one in layer.state_dict().items()}
    rows = x.detach().double().numpy() @ weight["qkv.weight"].T + weight["qkv.bias"]
    q, k, v = rows.reshape(len(x), 3, _HEADS, _DIM).transpose(1, 2, 0, 3)
    picture = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.where(picture[:, None] == picture, q @ k.transpose(0, 2, 1) / 2, -np.inf)
    maps = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    columns = weight["proj.weight"].reshape(_WIDTH, _HEADS, _DIM).transpose(1, 2, 0)
    return maps, maps @ v @ columns


@pytest.mark.parametrize("probe", [(6,), (4, 5), (3, 3, 4)])
@pytest.mark.parametrize("seen_on", [(7,), (4, 6), (5, 5, 5, 5)])
def test_one_site_a_layer_whatever_the_pictures(probe: tuple[int, ...], seen_on: tuple[int, ...]) -> None:
    model, batch = _Tower().eval(), _batch(*seen_on)
    anatomy = discover(model, _batch(*probe))
    assert [(site.module_name, site.call, site.refused, site.entangled) for site in anatomy.sites] == [
        (f"layers.{number}", 0, {}, ()) for number in range(2)
    ]
    with (
        torch.no_grad(),
        capture(model, ("q", "k", "v", "pattern", "z", "bias", "contribution"), anatomy=anatomy) as seen,
    ):
        model(**batch)
    want, adds = _by_hand(model.layers[0], batch["patches"], seen_on)
    own = seen[0]
    np.testing.assert_allclose(own.pattern[0], want, atol=1e-6)
    np.testing.assert_allclose(own.contribution[0], adds, atol=1e-6)
    torch.testing.assert_close(own.pattern @ own.v, own.z)
    torch.testing.assert_close((own.q @ own.k.mT / 2 + own.bias).softmax(-1), own.pattern)
    score = importance(model, [batch], score="norm", anatomy=anatomy).score[:_HEADS]
    np.testing.assert_allclose(score, np.sqrt(np.square(adds).sum(-1).mean(-1)), rtol=1e-5)


@pytest.mark.parametrize("probe", [(6,), (4, 5)])
def test_a_gate_before_the_projection_counts_for_each_picture(probe: tuple[int, ...]) -> None:
    model, batch = _Tower(gated=True).eval(), _batch(4, 6)
    anatomy = discover(model, _batch(*probe))
    assert {site.gated for site in anatomy.sites} == {True}
    with torch.no_grad(), capture(model, ("contribution",), anatomy=anatomy) as seen:
        model(**batch)
        out = model.layers[0](batch["patches"], [4, 6])
    total = seen[0].contribution.sum(1)[0] + model.layers[0].proj.bias  # type: ignore[union-attr, operator]
    torch.testing.assert_close(total, out)


def test_heads_of_all_pictures_are_switched_off_and_cut() -> None:
    model, batch = _Tower().eval(), _batch(4, 6)
    anatomy = discover(model, _batch(6))
    with torch.no_grad(), ablate(model, ["L0H1"], anatomy=anatomy):
        out = model(**batch)
    smaller = prune(model, ["L0H1"], anatomy=anatomy, batches=[batch])
    with torch.no_grad():
        model.layers[0].proj.weight[:, _DIM : 2 * _DIM] = 0  # type: ignore[union-attr, index, operator]
        torch.testing.assert_close(out, model(**batch))
        torch.testing.assert_close(smaller(**batch), model(**batch))


def test_a_projection_that_reads_other_rows_is_an_error() -> None:
    model = _Tower().eval()
    first = model.layers[0]
    assert isinstance(first, _Layer)
    proj = first.proj
    first.proj = nn.Sequential(nn.Identity(), proj)  # type: ignore[assignment]
    inner = discover(model, _batch(6))
    assert inner.sites[0].output is not None
    halves = model.layers[0].proj[0]  # type: ignore[union-attr, index]
    halves.forward = lambda x: x[: len(x) // 2]
    with (
        pytest.raises(AnatomyError, match="reads 3 rows where attention made 6"),
        torch.no_grad(),
        capture(model, ("contribution",), anatomy=inner, layers=[0]),
    ):
        first(_batch(6)["patches"], [6])


def test_maps_of_several_calls_stand_apart() -> None:
    calls = [{"pattern": torch.ones(1, 2, n, n + 1), "z": torch.ones(1, 2, n, 3)} for n in (1, 2)]
    whole = joined(calls)
    assert whole["z"].shape == (1, 2, 3, 3)
    assert whole["pattern"][0, 0].tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert joined(calls[:1]) is calls[0]


def test_two_attentions_that_are_read_at_once_stay_two() -> None:
    """DiffLlama's layer calls its attention twice, and its projection reads the difference."""
    torch.manual_seed(0)
    config = DiffLlamaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    model = DiffLlamaModel(config).eval()
    ids = torch.randint(3, 60, (2, 7))
    anatomy = discover(model, {"input_ids": ids})
    assert [(site.block, site.call) for site in anatomy.sites] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with torch.no_grad(), capture(model, ("z", "pattern"), anatomy=anatomy) as seen:
        model(input_ids=ids)
    assert not torch.equal(seen[0].z, seen[1].z)
    for layer in range(4):
        assert seen[layer].z.shape[2] == 7
        with torch.no_grad(), capture(model, ("z",), [layer], anatomy=anatomy) as alone:
            model(input_ids=ids)
        assert torch.equal(alone[layer].z, seen[layer].z)
    frame = similarity(model, [{"input_ids": ids}], "pattern_cosine", anatomy=anatomy).to_frame()
    assert len(frame) == 4 * 6
