"""Gate gradients: how a metric answers when heads are turned down a little; all heads in one backward."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headscope._support.progress import Progress, n_steps
from headscope._support.running import device_of, evaluating
from headscope.anatomy.differentiable import differentiable
from headscope.anatomy.masks import with_kept
from headscope.anatomy.operations import tensors_in
from headscope.effects.ablation import transform_outputs
from headscope.effects.metrics import Metric
from headscope.effects.steady import Steady
from headscope.effects.sweep import place_rows
from headscope.errors import MetricError
from headscope.heads import HeadId
from headscope.sites import Anatomy, Site
from headscope.text.batches import Batch, document_ids, n_rows, row_lengths

__all__ = ["GateGradients", "gate_gradients", "tells_rows"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GateGradients:
    """Derivatives by ξ, a gate on each head's output that is 1 in the model as it stands.

    Source: Michel et al. 2019 (arXiv:1905.10650), section 4.1.

    Attributes:
        heads: the heads, in the order of the rows below.
        values: (head, row) ∂metric/∂ξ of each row; for a distance, whose first derivative is zero at the intact
            model, the second-order term ½E(∂⟨r, y⟩/∂ξ)² over random directions r of the compared vector y.
        document, block: (row,) the document of each row, and the block that it was dealt to.
        metric, unit, is_distance: of the metric.
        n_tokens: positions that counted, over all rows.
        gap: how far, on the first batch, derivatives along a random direction are from a finite difference, of their
            size: near 0 where all of the way has gradients; NaN where rounding hides it.
    """

    heads: tuple[HeadId, ...]
    values: Floats
    document: Integers
    block: Integers
    metric: str
    unit: str
    is_distance: bool
    n_tokens: int
    gap: float = float("nan")

    @property
    def n_documents(self) -> int:
        return len(np.unique(self.document))


def gate_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: Metric,
    anatomy: Anatomy,
    directions: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> GateGradients:
    """Differentiate a metric by every head's gate, row by row, in one backward pass per batch.

    Args:
        model: run in evaluation mode, left as it was.
        batches: what the metric is measured on.
        metric: a differentiable one.
        anatomy: the heads; those of sites that are not prunable are left out, and those whose rows cannot be told
            are NaN.
        directions: for a distance, how many random directions are averaged.
        seed: of the directions.
        progress: told of each batch.

    Raises:
        MetricError: the metric has no gradient.
    """
    every = [site for site in anatomy.sites if site.apart]
    sites = [site for site in every if tells_rows(site)]
    if every and not sites:
        raise MetricError(f"no layer of {anatomy.model_class} tells its gradients by row: {'; '.join(anatomy.remarks)}")
    generator = torch.Generator().manual_seed(seed)
    values: list[Floats] = []
    documents, tokens, run, gap = [], [], Steady(model), float("nan")
    with evaluating(model), differentiable():
        for given, ids in document_ids(metric.parts(batches)):
            batch = with_kept(model, anatomy, given)
            gates = _gates(model, sites, n_rows(batch))
            gated = functools.partial(_run_gated, run, model, anatomy, sites, metric.inputs(model, batch))
            output = gated(gates)
            if not values:
                number = _number_of(metric, output, batch)
                gap = _gap_to_difference(number, output, gates, gated, _coarseness(model))
            values.append(_derivatives(metric, output, batch, list(gates.values()), directions, generator))
            documents.append(ids)
            tokens.append(row_lengths(batch))
            if progress is not None:
                progress("gradients", 1, n_steps(batches))
    rows = place_rows(documents, tokens)
    heads = tuple(head for site in every for head in site.heads)
    told = np.array([tells_rows(site) for site in every for _ in site.heads])
    derivatives = np.full((len(heads), len(rows.document)), np.nan)
    derivatives[told] = np.concatenate(values, axis=1)
    return GateGradients(
        heads=heads,
        values=derivatives,
        document=rows.document,
        block=rows.block,
        metric=metric.name,
        unit=metric.unit,
        is_distance=metric.is_distance,
        n_tokens=rows.n_tokens,
        gap=gap,
    )


def _run_gated(
    run: Steady, model: nn.Module, anatomy: Anatomy, sites: list[Site], inputs: dict[str, Any], gates: dict[int, Tensor]
) -> Any:
    with transform_outputs(model, anatomy, {site.layer: _gated(site, gates[site.layer]) for site in sites}):
        return run(inputs)


_STEP = 1e-2  # by which gates are moved to see what their gradients say
_TRIES = 4  # moves, where each gives one number in all


def _gap_to_difference(
    number: Callable[[Any], Tensor],
    output: Any,
    gates: dict[int, Tensor],
    gated: Callable[[dict[int, Tensor]], Any],
    coarseness: float,
) -> float:
    """How far gradients by the gates are from a difference: all gates a little up and down, at random; see the class.

    Row by row, since one number may agree by chance; where rows are set against each other, in all, by several moves.

    Args:
        number: made of an output, of each row or in all.
        output: with the gates as they are.
        gates: by layer.
        gated: runs the model with other gates.
        coarseness: of the model's numbers.
    """
    own = number(output)
    if not own.requires_grad:
        return float("nan")
    by_row = _is_by_row(own, list(gates.values()))
    found = torch.autograd.grad(own.sum(), list(gates.values()), retain_graph=True, allow_unused=True)
    slopes = {layer: slope for layer, slope in zip(gates, found, strict=True) if slope is not None}
    generator = torch.Generator().manual_seed(0)
    alongs, differences, most = [], [], 0.0
    for _ in range(1 if by_row else _TRIES):
        steps = {layer: torch.randn(gate.shape, generator=generator).to(gate.device) for layer, gate in gates.items()}
        along = torch.zeros(len(next(iter(gates.values())))).double()
        for layer, slope in slopes.items():
            along += (slope * steps[layer]).double().sum(1).cpu()
        alongs.append(along if by_row else along.sum().reshape(1))
        with torch.no_grad():
            up, down = (
                number(gated({layer: gate + size * steps[layer] for layer, gate in gates.items()}))
                .detach()
                .double()
                .cpu()
                for size in (_STEP, -_STEP)
            )
        differences.append((up - down if by_row else (up - down).sum().reshape(1)) / (2 * _STEP))
        most = max(most, float(up.norm()))
    along, difference = torch.cat(alongs), torch.cat(differences)
    size = len(alongs) * sum(float(slope.double().square().sum()) for slope in slopes.values())
    rounding = 10 * coarseness * most * len(alongs) ** 0.5 / (2 * _STEP)
    larger = max(size**0.5, float(difference.norm()))
    return float((difference - along).norm()) / larger if rounding < 0.02 * larger else float("nan")


def _is_by_row(own: Tensor, gates: list[Tensor]) -> bool:
    """Whether each number belongs to one row, and the gates of others do not move it."""
    if len(own) != len(gates[0]):
        return False
    slopes = torch.autograd.grad(own[0], gates, retain_graph=True, allow_unused=True)
    return not any(bool(slope[1:].any()) for slope in slopes if slope is not None)


def _coarseness(model: nn.Module) -> float:
    """The step between neighbouring numbers at 1, of the coarsest of a model's weights."""
    return max((torch.finfo(one.dtype).eps for one in model.parameters() if one.is_floating_point()), default=1.2e-7)


def _number_of(metric: Metric, output: Any, batch: Batch) -> Callable[[Any], Tensor]:
    """What gradients are tried on: the metric; for a distance, flat there, a random sum over what comes out."""
    if not metric.is_distance:
        return lambda out: metric.measure(out, batch)
    place = next((n for n, one in enumerate(tensors_in(output)) if one.requires_grad), 0)
    towards = torch.randn(tensors_in(output)[place].shape, generator=torch.Generator().manual_seed(1))

    def number(out: Any) -> Tensor:
        one = tensors_in(out)[place]
        weighed = one * towards.to(one.device, one.dtype)
        return weighed.flatten(1).sum(1) if weighed.ndim > 1 else weighed.sum().reshape(1)  # a loss has no rows

    return number


def tells_rows(site: Site) -> bool:
    """Whether what enters a site's output projection is known to come row by row of the batch."""
    return (site.rows, site.batch) in {("b t", "b"), ("b t", "b w"), ("t b", "b")}


def _gates(model: nn.Module, sites: list[Site], rows: int) -> dict[int, Tensor]:
    """A gate for every row and head: one backward then gives each row's own derivative."""
    device = device_of(model)
    return {site.layer: torch.ones(rows, site.n_heads, device=device, requires_grad=True) for site in sites}


def _gated(site: Site, gate: Tensor) -> Callable[[Tensor], Tensor]:
    assert site.output is not None
    owner = {column: head for head, own in enumerate(site.output.heads) for column in own}

    def apply(entering: Tensor) -> Tensor:
        columns = list(owner)
        factors = torch.ones(len(gate), entering.shape[-1], device=entering.device, dtype=entering.dtype)
        factors[:, columns] = gate.to(entering.dtype)[:, [owner[column] for column in columns]]
        if site.rows == "t b":
            return (entering.reshape(-1, *factors.shape) * factors).reshape(entering.shape)
        rows = entering.reshape(len(gate), -1, entering.shape[-1])
        return (rows * factors[:, None]).reshape(entering.shape)

    return apply


def _derivatives(
    metric: Metric, output: Any, batch: Batch, gates: list[Tensor], directions: int, generator: torch.Generator
) -> Floats:
    if not metric.is_distance:
        return _gradient(metric, metric.measure(output, batch), gates, last=True)
    total = np.zeros((sum(gate.shape[1] for gate in gates), len(gates[0])))
    for index in range(directions):
        scalar = metric.direction(output, batch, generator)
        total += 0.5 * _gradient(metric, scalar, gates, last=index == directions - 1) ** 2
    return total / directions


def _gradient(metric: Metric, rows: Tensor, gates: list[Tensor], *, last: bool) -> Floats:
    if not rows.requires_grad:
        raise MetricError(f"the metric {metric.name!r} has no gradient; use a score that needs none, such as ablation")
    parts = torch.autograd.grad(rows.sum(), gates, retain_graph=not last, allow_unused=True)
    filled = [torch.zeros_like(gate) if part is None else part for gate, part in zip(gates, parts, strict=True)]
    gradient: Floats = torch.cat(filled, dim=1).T.double().cpu().numpy()
    return gradient
