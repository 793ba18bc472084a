"""Planners: from a table of scores to the heads that go. A new planner is one new file in this folder."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from headscope._support.registry import Registry
from headscope.errors import PlanError
from headscope.heads import HeadId
from headscope.plans import Plan
from headscope.tables import HeadTable

__all__ = ["PLANNERS", "Planner", "plan"]

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


def plan(
    scores: HeadTable,
    share: float = 0.3,
    uniform: bool = False,
    keep_per_layer: int = 1,
    planner: str = "share",
) -> Plan:
    """Choose the heads to remove from a table of scores.

    Args:
        scores: one score per head, higher = more needed; heads whose score is NaN stay.
        share: share of all heads to remove, in [0, 1): floor(share × heads + 0.5) of them.
        uniform: as many heads from each layer as from any other.
        keep_per_layer: heads that stay in each layer at least; 0 lets a layer lose all.
        planner: name of the planner.

    Returns:
        The plan, with the score's name and what it was measured on; if the table names its model's fingerprint, so
        does the plan, and it then fits that model only.

    Raises:
        PlanError: a setting out of range; a share that cannot be reached (the largest possible is named); a table of
            replaceability, where high means that a head can go.
        UnknownNameError: no such planner.
    """
    if scores.name == _HIGH_MEANS_REPLACEABLE:
        raise PlanError(
            "a high replaceability means that a head can go, so its lowest values are no candidates; plan by 'needed' "
            "(importance × what nothing can replace), or by 'ablation'"
        )
    chosen = PLANNERS[planner](share=share, uniform=uniform, keep_per_layer=keep_per_layer).choose(scores)
    measured = dict(scores.facts)
    settings = {"planner": planner, "share": share, "uniform": uniform, "keep_per_layer": keep_per_layer}
    return Plan(
        heads=chosen,
        model=measured.pop("fingerprint", None),
        model_class=measured.pop("model_class", ""),
        score=scores.name,
        reason=f"{len(chosen)} of {len(scores.heads)} heads, those with the lowest {scores.name}",
        facts=settings | {"unit": scores.unit, "measured": measured},
    )
