"""The sweep: what switching heads off does to a metric, measured by running the model without them."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headscope._support.progress import Progress, n_steps
from headscope._support.running import evaluating, run_model
from headscope.anatomy.masks import with_kept
from headscope.effects.ablation import Fills, fill_values, silence
from headscope.effects.metrics import Metric
from headscope.effects.steady import Steady
from headscope.effects.units import unit_of
from headscope.errors import InputError, NumericalError
from headscope.heads import HeadId
from headscope.sites import Anatomy
from headscope.text.batches import Batch, document_ids, row_lengths
from headscope.uncertainty.blocks import Blocks

__all__ = ["Changes", "Effects", "Rows", "change_effects", "group_effects", "head_effects", "place_rows"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that something was measured on: their documents, blocks of documents, and positions in all."""

    document: Integers
    block: Integers
    n_tokens: int

    @property
    def n_documents(self) -> int:
        return len(np.unique(self.document))


@dataclass(frozen=True, eq=False)
class Effects:
    """The effect of removing each group of heads: metric(without) - metric(intact), positive = needed.

    Attributes:
        groups: the heads removed together; single heads for `head_effects`.
        values: (group, row) float64, in the metric's unit.
        intact: (row,) the metric of the intact model (0 for a distance).
        document, block: (row,) the document of each row, and the block that it was dealt to.
        metric, unit, is_distance: of the metric.
        mode: "zero" or "mean": what the heads were replaced by; or what else was done to them.
        n_tokens: positions that counted, over all rows.
    """

    groups: tuple[tuple[HeadId, ...], ...]
    values: Floats
    intact: Floats
    document: Integers
    block: Integers
    metric: str
    unit: str
    is_distance: bool
    mode: str
    n_tokens: int

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The single heads, where each group is one."""
        return tuple(group[0] for group in self.groups)

    @property
    def n_documents(self) -> int:
        return len(np.unique(self.document))

    def only(self, places: Iterable[int]) -> "Effects":
        """The effects of some of the groups, in the order given."""
        kept = list(places)
        return replace(self, groups=tuple(self.groups[place] for place in kept), values=self.values[kept])


def head_effects(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: Metric,
    anatomy: Anatomy,
    mode: str = "zero",
    calibration: Iterable[Batch] | None = None,
    progress: Progress | None = None,
) -> Effects:
    """The exact effect of every head alone, by one forward pass per head and batch.

    Args:
        model: run in evaluation mode, left as it was.
        batches: what the effects are measured on.
        metric: lower is better.
        anatomy: the heads; those of sites that are not prunable are left out.
        mode: "zero" or "mean".
        calibration: text that the mean is taken over; `batches` by default.
        progress: told of each forward pass without heads.
    """
    groups = [(head,) for site in anatomy.sites if site.apart for head in site.heads]
    fills = fill_values(model, mode, batches if calibration is None else calibration, anatomy)
    return group_effects(model, batches, metric, anatomy, groups, fills, progress)


def group_effects(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: Metric,
    anatomy: Anatomy,
    groups: Sequence[Sequence[HeadId]],
    fills: Fills | None = None,
    progress: Progress | None = None,
) -> Effects:
    """The effect of removing each group of heads together; see `head_effects`.

    Args:
        model, batches, metric, anatomy, progress: as there.
        groups: which heads go together.
        fills: what replaces each head, by layer; None for nothing.

    Raises:
        NumericalError: the metric is NaN or infinite for the intact model.
    """
    silent = [partial(silence, model, anatomy, anatomy.find(group), fills) for group in groups]
    told = tuple(tuple(group) for group in groups)
    changes = Changes(told, silent, "zero" if fills is None else "mean", fills)
    return change_effects(model, batches, metric, anatomy, changes, progress)


@dataclass(frozen=True, eq=False)
class Changes:
    """What is done to heads, group by group, while the model runs.

    Attributes:
        groups: the heads of each change.
        contexts: makes a context for each; while it is open, the change is made.
        mode: what they are called together.
        about: what they depend on beside the heads, so that effects of others are not taken for theirs.
    """

    groups: tuple[tuple[HeadId, ...], ...]
    contexts: Sequence[Callable[[], AbstractContextManager[None]]]
    mode: str
    about: Any = None


def change_effects(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: Metric,
    anatomy: Anatomy,
    changes: Changes,
    progress: Progress | None = None,
) -> Effects:
    """The effect of each change on the metric, one forward pass a change and batch; see `head_effects`.

    Args:
        model, batches, metric, anatomy, progress: as there.
        changes: what is done.

    Raises:
        NumericalError: the metric is NaN or infinite for the intact model.
    """
    contexts = changes.contexts
    about = [metric, [list(map(str, group)) for group in changes.groups], changes.about]
    step = partial(_told, progress, len(contexts) * n_steps(batches))
    run = Steady(model)
    intact_rows, effect_rows, documents, tokens = [], [], [], []
    with evaluating(model), torch.no_grad():
        for given, ids in document_ids(metric.parts(batches)):
            batch = with_kept(model, anatomy, given)
            inputs = metric.inputs(model, batch)
            with unit_of(about, batch) as unit:
                step(len(unit.without))
                if len(unit.without) < len(contexts) or unit.intact is None:
                    intact = run(inputs)
                    unit.intact = _values(metric, intact, batch, intact)
                    _check_finite(unit.intact, metric, model, inputs)
                    for change in contexts[len(unit.without) :]:
                        with change():
                            unit.without.append(_values(metric, run(inputs), batch, intact) - unit.intact)
                        step(1)
            intact_rows.append(unit.intact)
            effect_rows.append(np.stack(unit.without) if unit.without else np.empty((0, len(unit.intact))))
            documents.append(ids)
            tokens.append(row_lengths(batch))
    rows = place_rows(documents, tokens)
    return Effects(
        groups=changes.groups,
        values=np.concatenate(effect_rows, axis=1),
        intact=np.concatenate(intact_rows),
        document=rows.document,
        block=rows.block,
        metric=metric.name,
        unit=metric.unit,
        is_distance=metric.is_distance,
        mode=changes.mode,
        n_tokens=rows.n_tokens,
    )


def _told(progress: Progress | None, total: int, n: int) -> None:
    if progress is not None and n:
        progress("ablation", n, total)


def _check_finite(intact: Floats, metric: Metric, model: nn.Module, inputs: Batch) -> None:
    """Refuse to set anything against a number that is none."""
    if not bool(np.isfinite(intact).all()):
        row = int(np.flatnonzero(~np.isfinite(intact))[0])
        raise NumericalError(
            f"the metric {metric.name!r} of the intact {type(model).__name__} is NaN or infinite on row {row} of a "
            f"batch; {_where_it_begins(model, inputs)}"
        )


def _where_it_begins(model: nn.Module, inputs: Batch) -> str:
    """The first module whose output holds NaN or infinity, in words."""
    found: list[str] = []

    def look(name: str, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) and out else out
        if isinstance(out, Tensor) and out.is_floating_point() and not bool(torch.isfinite(out).all()):
            found.append(name)

    handles = [
        module.register_forward_hook(lambda _module, _args, out, name=name: look(name, out))
        for name, module in model.named_modules()
        if name
    ]
    try:
        run_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return f"it begins in the output of {found[0]}" if found else "the model's outputs are finite: look at the metric"


def _values(metric: Metric, output: Any, batch: Batch, intact: Any) -> Floats:
    values: Floats = metric.measure(output, batch, intact).detach().double().cpu().numpy()
    return values


def place_rows(documents: list[Tensor], tokens: list[Tensor]) -> Rows:
    """Deal the rows of batches into blocks of documents.

    Args:
        documents, tokens: per batch, (batch,): the document of each row, and how many positions of it count.

    Raises:
        InputError: no batch at all.
    """
    if not documents:
        raise InputError("there is no batch to measure on; a generator that was used up gives none, a list does")
    blocks = Blocks()
    placed = [blocks.place(ids, counts) for ids, counts in zip(documents, tokens, strict=True)]
    n_tokens = int(sum(int(counts.sum()) for counts in tokens))
    return Rows(torch.cat(documents).numpy(), torch.cat(placed).numpy(), n_tokens)
