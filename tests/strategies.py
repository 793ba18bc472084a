"""Made-up text as statistics see it (per-head tensors, padding, documents), and hypothesis strategies over it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

from headscope.effects.sweep import Effects
from headscope.heads import HeadId
from headscope.sites import Site
from headscope.uncertainty.blocks import N_BLOCKS

__all__ = ["Batch", "Stream", "feed", "make_effects", "make_site", "make_stream", "streams", "weights_for"]


def make_site(layer=0, n_heads=3, dim=4, kind="causal"):
    """A site whose tensors are made by hand."""
    return Site(
        layer=layer,
        kind=kind,
        block=layer,
        module_name=f"layers.{layer}.attention",
        call=0,
        unit=f"layers.{layer}",
        route="none",
        n_heads=n_heads,
        n_kv_heads=n_heads,
        n_value_heads=n_heads,
        head_dim=dim,
        value_dim=dim,
        scaling=1.0,
        head_ids=tuple(range(n_heads)),
        kv_of_query=tuple(range(n_heads)),
        query=(),
        key=(),
        value=(),
        output=None,
    )


@dataclass(frozen=True)
class Batch:
    """One batch: by layer, each tensor by name; which positions count; the block of each row's document; tokens."""

    tensors: dict[int, dict[str, torch.Tensor]]
    kept: torch.Tensor
    block: torch.Tensor
    ids: torch.Tensor

    @property
    def inputs(self):
        """What a model would be given."""
        return {"input_ids": self.ids, "attention_mask": self.kept.long()}


@dataclass(frozen=True)
class Stream:
    """A text, and what every site showed on it."""

    sites: tuple[Site, ...]
    batches: tuple[Batch, ...]

    def rows(self, layer=0, name="gated_z"):
        """(token, head, dim) NumPy: the positions that count, in order."""
        parts = [b.tensors[layer][name].transpose(1, 2)[b.kept] for b in self.batches]
        return torch.cat(parts).double().numpy()

    def blocks(self):
        """(token,) NumPy: the block of documents of each position that counts."""
        return torch.cat([b.block.repeat_interleave(b.kept.sum(1)) for b in self.batches]).numpy()

    def change(self, alter):
        """A stream whose "gated_z" and "z" are alter(tensor, layer)."""
        batches = []
        for batch in self.batches:
            tensors = {
                layer: own | {name: alter(own[name], layer) for name in ("z", "gated_z")}
                for layer, own in batch.tensors.items()
            }
            batches.append(replace(batch, tensors=tensors))
        return replace(self, batches=tuple(batches))

    def pad(self, extra, fill=torch.nan):
        """The same text with more padding, which holds `fill`."""
        batches = []
        for batch in self.batches:
            tensors = {
                layer: {name: _widen(name, tensor, extra, fill) for name, tensor in own.items()}
                for layer, own in batch.tensors.items()
            }
            kept, ids = (torch.nn.functional.pad(own, (0, extra)) for own in (batch.kept, batch.ids))
            batches.append(Batch(tensors, kept, batch.block, ids))
        return replace(self, batches=tuple(batches))


def _widen(name, tensor, extra, fill):
    if name in ("pattern", "bias"):  # no model looks at a padded key: its rows hold nothing of it
        tensor = torch.nn.functional.pad(tensor, (0, extra), value=0.0 if name == "pattern" else -torch.inf)
    return torch.nn.functional.pad(tensor, (0, 0, 0, extra), value=fill)


def make_stream(
    seed=0, *, n_layers=2, n_heads=3, dim=4, lengths=((5, 9), (7, 3), (6, 8)), offset=0.0, width=6, kinds=None
):
    """Random tensors for documents of the given lengths, a row each, batch by batch.

    Heads share a common part, so that they are neither alike nor independent. Padding holds large numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = tuple(make_site(i, n_heads, dim, kinds[i] if kinds else "causal") for i in range(n_layers))
    batches, number = [], 0
    for rows in lengths:
        kept = torch.arange(max(rows)) < torch.tensor(rows)[:, None]
        tensors = {
            site.layer: _tensors(generator, kept, n_heads, dim, offset * (1 + site.layer), width) for site in sites
        }
        block = torch.arange(number, number + len(rows)) % N_BLOCKS
        ids = torch.randint(3, 8, kept.shape, generator=torch.Generator().manual_seed(seed + number))
        batches.append(Batch(tensors, kept, block, ids * kept))
        number += len(rows)
    return Stream(sites, tuple(batches))


def _tensors(generator, kept, n_heads, dim, offset, width):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_rows, n_positions = kept.shape
    made = {}
    for name in ("q", "k", "v", "z"):
        common = draw(n_rows, 1, n_positions, dim)
        made[name] = common + 0.7 * draw(n_rows, n_heads, n_positions, dim) + offset
    scores = draw(n_rows, n_heads, n_positions, n_positions).masked_fill(~kept[:, None, None, :], -torch.inf)
    made["bias"] = torch.zeros(n_rows, 1, n_positions, n_positions, dtype=torch.float64)
    made["pattern"] = scores.softmax(-1)
    made["gated_z"] = made["z"]
    made["contribution"] = draw(n_rows, n_heads, n_positions, width)
    unkept = ~kept[:, None, :, None]
    return {name: tensor.masked_fill(unkept, 1e6) for name, tensor in made.items()}


def feed(statistic, stream, batches: Sequence[int] | None = None, backwards=False):
    """Run a statistic over (some batches of) a stream, as `observe` does; sites in either order."""
    for number in range(len(stream.batches)) if batches is None else batches:
        batch = stream.batches[number]
        statistic.begin_batch(batch.inputs)
        for site in reversed(stream.sites) if backwards else stream.sites:
            given = {name: batch.tensors[site.layer][name] for name in statistic.needs}
            statistic.update(site, given, batch.kept, batch.block)
        statistic.end_batch()
    return statistic


def make_effects(values, block):
    """Effects of taking out single heads: (head, row), and the block of each row, a document each."""
    return Effects(
        groups=tuple((HeadId(0, head),) for head in range(len(values))),
        values=values,
        intact=np.ones(len(block)),
        document=np.array(block),
        block=np.array(block),
        metric="loss",
        unit="nats/token",
        is_distance=False,
        mode="zero",
        n_tokens=100,
    )


def weights_for(seed, n_heads, dim, width=6):
    """W_O of each head: (width, dim) float64."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((width, dim))) for _ in range(n_heads)]


@st.composite
def streams(draw, n_layers=1):
    """Streams of a few heads: unequal documents, padding, offsets up to 1e4, dimensions below and above the tokens."""
    documents = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=2, max_size=4))
    documents[0][0] += 4  # at least five tokens, or unbiased HSIC does not exist
    return make_stream(
        draw(st.integers(0, 2**16)),
        n_layers=n_layers,
        n_heads=draw(st.integers(1, 4)),
        dim=draw(st.integers(1, 12)),
        lengths=tuple(map(tuple, documents)),
        offset=draw(st.sampled_from([0.0, 3.0, 1e4])),
    )
