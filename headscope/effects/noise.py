"""Noise: what a push of a head's length in a random direction does, to hold against what removing the head does."""

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

    At every position a random vector is added to the head's contribution, among those that the head can write, as long
    as the contribution itself. A head whose removal costs no more than that is needed for its size, and not for what it
    says.

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
    """While open, noise is added to what one head hands to the output projection; the same each time it is opened.

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

    def replace(entering: Tensor) -> Tensor:
        entering = entering.clone()
        own = entering[..., columns]
        drawn = torch.randn(own.shape, generator=generator).to(own.device, torch.float32)
        out = weights.to(own.device, torch.float32)
        length = (own.float() @ out.T).norm(dim=-1, keepdim=True)
        reach = (drawn @ out.T).norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        entering[..., columns] = own + (drawn * (length / reach)).to(own.dtype)
        return entering

    with transform_outputs(model, anatomy, {head.layer: replace}):
        yield
