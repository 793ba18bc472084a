"""Planners: from a table of scores to the heads that go. A new planner is one new file in this folder."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

from headscope._support.formatting import interval, quantity
from headscope._support.registry import Registry
from headscope.errors import PlanError
from headscope.heads import HeadId, Heads
from headscope.planning.removal import Removal
from headscope.planning.rises import Rise
from headscope.plans import Plan
from headscope.sites import Anatomy
from headscope.tables import HeadTable

__all__ = ["PLANNERS", "Measured", "Planner", "plan"]

_HIGH_MEANS_REPLACEABLE = "replaceability"


@dataclass(frozen=True, kw_only=True)
class Planner(ABC):
    """One way to choose heads from a table of scores, higher = more needed.

    Attributes:
        share: share of all heads to remove, in [0, 1).
        uniform: as many heads from each layer as from any other.
        keep_per_layer: heads that stay in each layer at least; 0 lets a layer lose all.

    Raises:
        PlanError: a setting out of its range.
    """

    share: float = 0.3
    uniform: bool = False
    keep_per_layer: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            counted = "; for a number of heads, divide it by how many there are" if self.share >= 1 else ""
            raise PlanError(
                f"share is the part of all heads to remove, at least 0 and less than 1; got {self.share}{counted}"
            )
        if type(self.keep_per_layer) is not int or self.keep_per_layer < 0:
            raise PlanError(f"keep_per_layer is a number of heads, at least 0; got {self.keep_per_layer!r}")

    @abstractmethod
    def choose(self, scores: HeadTable) -> tuple[HeadId, ...]:
        """The heads to remove: floor(share × heads + 0.5) of them, none without a score.

        Raises:
            PlanError: the settings leave fewer heads to choose from than are to go.
        """


PLANNERS: Registry[Planner] = Registry("planner", "headscope.planning")


class Measured(Protocol):
    """What heads cost together, measured; `headscope.Analysis` is one."""

    @property
    def removal(self) -> Removal: ...
    @property
    def anatomy(self) -> Anatomy: ...
    @property
    def budget(self) -> float: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    def refused(self, heads: Heads) -> str: ...


def plan(
    source: HeadTable | Measured,
    share: float | None = None,
    uniform: bool = False,
    keep_per_layer: int = 1,
    planner: str = "share",
    *,
    max_loss_rise: float | str | None = None,
    heads: int | None = None,
) -> Plan:
    """Choose the heads to remove: by their own scores, or by what they were measured to cost together.

    From a table of scores so large a share goes, whatever it costs. From an analysis the heads go in the order of their
    measured effects: as many as `max_loss_rise` allows, `heads` of them, or that share; with none of these, as many as
    the analysis' own budget allows. The plan then says what they cost on documents that chose nothing.

    Args:
        source: a table with one score per head, higher = more needed, whose heads without a score (NaN) stay; or an
            analysis.
        share: share of all heads to remove, in [0, 1): floor(share × heads + 0.5) of them; 0.3 for a table.
        uniform: from a table: as many heads from each layer as from any other.
        keep_per_layer: from a table: heads that stay in each layer at least; 0 lets a layer lose all.
        planner: from a table: name of the planner.
        max_loss_rise: from an analysis: what the heads may cost together, in the metric's unit or as "1%" of the intact
            model's; see `headscope.planning.removal.Removal.within`.
        heads: from an analysis: how many go.

    Returns:
        The plan, with what it was made from; if that names its model's fingerprint, so does the plan, and it then fits
        that model only. Where it is known that these heads cannot be cut, `facts["refused"]` and the reason say why.

    Raises:
        PlanError: neither a table nor an analysis; a setting out of range or of the other source; two settings of how
            many; a share that cannot be reached (the largest possible is named); a table of replaceability, where high
            means that a head can go.
        InputError: a budget that is no number.
        UnknownNameError: no such planner.
    """
    if isinstance(source, HeadTable):
        if max_loss_rise is not None or heads is not None:
            raise PlanError(
                "a table of scores does not know what heads cost together; give share=, or plan from an analysis "
                "(headscope.analyze), which does"
            )
        settings = {"share": 0.3 if share is None else share, "uniform": uniform, "keep_per_layer": keep_per_layer}
        return _by_scores(source, planner, settings)
    if not isinstance(getattr(source, "removal", None), Removal):
        raise PlanError(
            "a plan is made from an analysis (hs.analyze, or hs.Analysis.load(folder)) or from a table of scores "
            f"(hs.importance), and this is {source!r:.60}"
        )
    if uniform or keep_per_layer != 1 or planner != "share":
        raise PlanError(
            "uniform, keep_per_layer and planner are for tables of scores: plan(analysis.importance, …); an analysis "
            "removes heads in the one order whose costs it measured"
        )
    return _by_costs(source, share, max_loss_rise, heads)


def _by_scores(scores: HeadTable, planner: str, settings: dict[str, Any]) -> Plan:
    if scores.name == _HIGH_MEANS_REPLACEABLE:
        raise PlanError(
            "a high replaceability means that a head can go, so its lowest values are no candidates; plan by "
            "'ablation', or by 'needed' if the cut is repaired"
        )
    chosen = PLANNERS[planner](**settings).choose(scores)
    measured = dict(scores.facts)
    return Plan(
        heads=chosen,
        model=measured.pop("fingerprint", None),
        model_class=measured.pop("model_class", ""),
        score=scores.name,
        reason=f"{len(chosen)} of {len(scores.heads)} heads, those with the lowest {scores.name}",
        facts={"planner": planner, **settings, "unit": scores.unit, "measured": measured},
    )


def _by_costs(source: Measured, share: float | None, max_loss_rise: float | str | None, heads: int | None) -> Plan:
    given = {"share": share, "max_loss_rise": max_loss_rise, "heads": heads}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) > 1:
        raise PlanError(f"{' and '.join(asked)} each say how many heads go; give one of them")
    removal, anatomy = source.removal, source.anatomy
    most = source.budget if max_loss_rise is None else _allowed(removal, Rise.read(max_loss_rise))
    if heads is not None:
        size = _checked(heads, removal)
    else:
        size = removal.within(most) if share is None else _checked(_rounded(share, anatomy.n_heads), removal)
    cost = removal.cost(size)
    unit, ends = removal.unit, interval(cost.low, cost.high)
    said = f"{quantity(cost.value, unit)}{f' (95% interval {ends})' if ends else ''} of {removal.metric}"
    between = ", interpolated between numbers of heads that were measured" if cost.interpolated else ""
    first = removal.first(size)
    refused = source.refused(first) if size else ""
    reason = f"none of {anatomy.n_heads} heads"
    if size:
        reason = f"{size} of {anatomy.n_heads} heads, the cheapest by themselves; together they cost {said}{between}"
    if refused:
        reason += f"; they can be switched off, but not cut; refused: {refused}"
    return Plan(
        heads=first,
        model=anatomy.fingerprint,
        model_class=anatomy.model_class,
        score="ablation",
        reason=reason,
        facts={
            **(asked or {"max_loss_rise": most}), "metric": removal.metric, "unit": unit, "cost": _json(cost.value),
            "low": _json(cost.low), "high": _json(cost.high), "interpolated": cost.interpolated,
            "measured": dict(removal.facts), **({"warnings": list(source.warnings)} if source.warnings else {}),
            **({"refused": refused} if refused else {}),
        },
    )  # fmt: skip


def _allowed(removal: Removal, rise: Rise) -> float:
    if rise.relative and rise.amount and removal.intact == 0 and not removal.is_distance:
        raise PlanError(f"the untouched model's {removal.metric} is 0, and {rise} of it allows nothing; give a number")
    return removal.allowed(rise)


def _checked(size: int, removal: Removal) -> int:
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 0:
        raise PlanError(f"heads is how many heads go, a whole number of at least 0; got {size!r}")
    if size > len(removal.order):
        raise PlanError(f"{size} heads cannot go: {len(removal.order)} have an effect and can be cut")
    return int(size)


def _rounded(share: float, n_heads: int) -> int:
    if not isinstance(share, Real) or not 0 <= share < 1:
        raise PlanError(
            f"share is the part of all heads to remove, a number of at least 0 and less than 1; got {share!r}"
        )
    return math.floor(share * n_heads + 0.5)


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
