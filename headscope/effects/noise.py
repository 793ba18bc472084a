"""Noise: what a push of a head's length in another direction does, to hold against what removing the head does."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from headscope._support.progress import Progress
from headscope.anatomy.weights import output_weights
from headscope.effects.ablation import transform_outputs
from headscope.effects.metrics import Metric
from headscope.effects.sweep import Changes, Effects, change_effects
from headscope.heads import HeadId
from headscope.sites import Anatomy
from headscope.text.batches import Batch

__all__ = ["noise_effects", "with_noise"]


def noise_effects(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: Metric,
    anatomy: Anatomy,
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """The effect of noise in place of a removal: each head's contribution moved as far as removing it would move it.

    The contribution, turned by a right angle in random planes of the directions that the head can write, is added to
    it: at every position as long as the contribution itself, and by the same turn at all of them, so that pushes add up
    over positions as removals do. A head whose removal costs no more than that may be needed for its size alone.

    Args:
        model, batches, metric, anatomy, progress: see `headscope.effects.sweep.head_effects`.
        seed: of the draws.
    """
    weights = output_weights(model, anatomy.apart)
    heads = [(head, place) for site in anatomy.apart.sites for place, head in enumerate(site.heads)]
    contexts = [partial(with_noise, model, anatomy, head, weights[head.layer][place], seed) for head, place in heads]
    changes = Changes(tuple((head,) for head, _ in heads), contexts, "noise", ["noise", seed])
    return change_effects(model, batches, metric, anatomy, changes, progress)


@contextmanager
def with_noise(
    model: nn.Module, anatomy: Anatomy, head: HeadId, weights: Float64[Tensor, "width value_dim"], seed: int
) -> Iterator[None]:
    """While open, noise is added to what one head hands to the output projection; the same turn each time.

    Args:
        model, anatomy: see `noise_effects`.
        head: which.
        weights: its W_O.
        seed: of the draws, which differ from head to head.
    """
    site = anatomy.site(head.layer)
    assert site.output is not None
    columns: Sequence[int] = site.output.heads[site.heads.index(head)]
    generator = torch.Generator().manual_seed(hash((seed, head.layer, head.head)) % 2**63)
    lengths = torch.linalg.qr(weights.double())[1]  # of z, as long as the contribution is
    turned = torch.linalg.pinv(lengths) @ _right_angle(len(lengths), generator) @ lengths

    def replace(entering: Tensor) -> Tensor:
        entering = entering.clone()
        own = entering[..., columns]
        entering[..., columns] = own + (own.float() @ turned.T.to(own.device, torch.float32)).to(own.dtype)
        return entering

    with transform_outputs(model, anatomy, {head.layer: replace}):
        yield


def _right_angle(size: int, generator: torch.Generator) -> Float64[Tensor, "size size"]:
    """A map that turns every vector by a right angle, but for one direction where their number is odd."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    turn = torch.eye(size, dtype=torch.float64)
    for first in range(0, size - 1, 2):
        turn[first : first + 2, first : first + 2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return basis @ turn @ basis.T
