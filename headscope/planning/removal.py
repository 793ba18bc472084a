"""What removing heads costs: the heads in the order of their own effects, and the first so many gone together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from headscope._support.formatting import interval, quantity
from headscope._support.shown import Shown
from headscope._support.tabular import read_table, write_table
from headscope.effects.sweep import Effects
from headscope.errors import PlanError
from headscope.heads import HeadId
from headscope.planning.rises import Rise
from headscope.uncertainty.intervals import mean_spread

__all__ = ["Cost", "Removal", "ladder"]

Floats = npt.NDArray[np.float64]

_EVERY = 24  # heads up to which every number of them is measured
_CHOSEN, _JUDGED = ("chosen_cost", "chosen_low", "chosen_high"), ("cost", "low", "high")


class Cost(NamedTuple):
    """What removing some heads together costs, with its 95% interval over documents, in the metric's unit.

    Attributes:
        value, low, high: the mean effect and the ends of its interval.
        interpolated: read off between two numbers of heads that were measured.
    """

    value: float
    low: float
    high: float
    interpolated: bool


def ladder(n_heads: int) -> list[int]:
    """Numbers of heads at which a removal is measured: all of them up to 24, beyond that powers of √2, and all heads.

    >>> ladder(3), ladder(72)
    ([1, 2, 3], [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 72])
    """
    if n_heads <= _EVERY:
        return list(range(1, n_heads + 1))
    rungs = (round(2 ** (step / 2)) for step in range(2 * n_heads.bit_length()))
    return sorted({n_heads, *(rung for rung in rungs if rung < n_heads)} - {0})


@dataclass(frozen=True, eq=False, repr=False)
class Removal(Shown):
    """One order of heads, and what it costs to remove the first so many of them, all together.

    Attributes:
        order: every head that can be cut and has an effect, the cheapest by itself first.
        costs: a row for each number of heads that was measured: heads; chosen_cost, chosen_low, chosen_high on the
            documents that made the order; cost, low, high on others, which chose nothing (NaN until they are judged).
        metric, unit, is_distance: of the costs.
        intact: the metric of the intact model, where heads were ordered.
        facts: what it was measured on; JSON values only.
        budget: what the chosen heads were allowed to cost together, in the metric's unit; None where none was set.
    """

    order: tuple[HeadId, ...]
    costs: pd.DataFrame
    metric: str
    unit: str
    is_distance: bool
    intact: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None

    @property
    def chosen(self) -> tuple[HeadId, ...]:
        """The heads that go: the first of the order, as many as the budget allows; none without a budget."""
        return () if self.budget is None else self.first(self.within(self.budget))

    @property
    def sizes(self) -> list[int]:
        """Numbers of heads that were measured, ascending."""
        return [int(size) for size in self.costs["heads"]]

    def first(self, size: int) -> tuple[HeadId, ...]:
        """The first heads of the order."""
        return self.order[:size]

    def allowed(self, rise: float | str | Rise) -> float:
        """A budget in the metric's unit: a number, or a share of the intact model's value like "1%".

        Raises:
            InputError: it is neither, or below 0.
        """
        return Rise.read(rise).above(self.intact, self.is_distance)

    def within(self, most: float) -> int:
        """The largest number of heads whose joint cost, by the upper end of its interval, is at most `most`.

        It is judged on the documents that made the order, as a choice has to be; between the numbers that were measured
        the upper end is interpolated.

        Args:
            most: allowed cost, in the metric's unit.
        """
        sizes = np.arange(1, len(self.order) + 1)
        fits = np.flatnonzero(self._read("chosen_high", sizes) <= most)
        return int(sizes[fits[-1]]) if len(fits) else 0

    def cost(self, size: int) -> Cost:
        """What the first heads of the order cost together, on documents that chose nothing.

        Args:
            size: how many of them.

        Raises:
            PlanError: there are fewer.
        """
        if not 0 <= size <= len(self.order):
            raise PlanError(f"there are {len(self.order)} heads that can be removed, not {size}")
        value, low, high = (float(self._read(name, np.array([size]))[0]) for name in _JUDGED)
        return Cost(value, low, high, size not in {0, *self.sizes})

    def _read(self, column: str, sizes: npt.NDArray[np.int64]) -> Floats:
        """A column at any number of heads; removing none costs nothing."""
        known = np.append(0.0, self.costs["heads"].to_numpy(np.float64))
        values = np.append(0.0, self.costs[column].to_numpy(np.float64))
        return np.asarray(np.interp(sizes, known, values), dtype=np.float64)

    def with_costs(self, effects: Effects) -> Self:
        """With what was measured for more numbers of heads, where the order was made.

        Args:
            effects: of groups that are each the first heads of the order.
        """
        rows = _rows(effects, _CHOSEN, self.costs.columns)
        rows = rows if self.costs.empty else pd.concat([self.costs, rows])
        return replace(self, costs=rows.sort_values("heads").reset_index(drop=True))

    def judged(self, effects: Effects) -> Self:
        """With what the same numbers of heads cost on other documents.

        Args:
            effects: of the groups `first(size)`, size by size.
        """
        own = _rows(effects, _JUDGED, _JUDGED)
        facts = {"documents": effects.n_documents, "tokens": effects.n_tokens}
        return replace(self, costs=self.costs.assign(**own), facts={**self.facts, **facts})

    @classmethod
    def ordered_by(cls, effects: Effects) -> Self:
        """The order of single heads by their measured effects, lowest first; nothing is measured together yet.

        Args:
            effects: of single heads.
        """
        means = effects.values.mean(axis=1)
        ranked = sorted((mean, head) for mean, head in zip(means.tolist(), effects.heads, strict=True) if mean == mean)
        empty = pd.DataFrame({name: pd.Series(dtype=np.float64) for name in ("heads", *_CHOSEN, *_JUDGED)})
        facts = {"chosen_documents": effects.n_documents, "chosen_tokens": effects.n_tokens, "mode": effects.mode}
        return cls(
            tuple(head for _, head in ranked), empty.astype({"heads": int}), effects.metric, effects.unit,
            effects.is_distance, float(effects.intact.mean()), facts,
        )  # fmt: skip

    def _said(self) -> list[str]:
        if self.budget is None:
            return []
        n, allowed = len(self.chosen), f"{quantity(self.budget, self.unit)} allowed"
        if not n:
            return [f"No head is sure to stay within the {allowed}."]
        cost = self.cost(n)
        ends = f" (95% interval {span})" if (span := interval(cost.low, cost.high)) else ""
        which, costs = (f"{n} heads can go together", "they cost") if n > 1 else (f"{self.order[0]} can go", "it costs")
        told = f"{quantity(cost.value, self.unit)}{ends}"
        return [f"Within the {allowed} {which}; on documents that chose nothing {costs} {told}."]

    def _tables(self) -> dict[str, pd.DataFrame]:
        rise = f"rise in {self.metric}{f', {self.unit}' if self.unit else ''}"
        return {f"cost of removing the first heads together: {rise}": self.costs[["heads", *_JUDGED, "chosen_cost"]]}

    def _more(self) -> list[str]:
        return [
            "chosen_cost: on the documents that made the order; its interval: run.removal.costs",
            "as a curve: hs.plot(run.removal); of any number of heads: run.removal.cost(n)",
        ]

    def save(self, folder: str | Path) -> None:
        """Write removal.csv, removal.parquet and removal.json into an existing folder."""
        about = {name: getattr(self, name) for name in ("metric", "unit", "is_distance", "intact", "budget")}
        order = [str(head) for head in self.order]
        write_table(Path(folder), "removal", self.costs, {**about, "order": order, "facts": dict(self.facts)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        costs, about = read_table(Path(folder), "removal", {"heads", *_CHOSEN, *_JUDGED})
        order = tuple(map(HeadId.parse, about.pop("order")))
        return cls(order, costs.astype({"heads": int}), **about)


def _rows(effects: Effects, names: Sequence[str], columns: Iterable[str]) -> pd.DataFrame:
    spread = mean_spread(effects.values, effects.block)
    sizes = [len(group) for group in effects.groups]
    own = dict(zip(names, (spread.centre, *spread.interval()), strict=True))
    return pd.DataFrame({"heads": sizes} | own).reindex(columns=list(columns))
