"""Claims of the paper on multi-head attention, each made into a measurement. A new claim is one new file.

The paper explains multi-head attention and warns of too many heads. Every claim here says what the paper says, what is
measured for it, and when that counts as support; the numbers decide.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.registry import Registry
from headscope.studies.headcount.results import Sweep
from headscope.studies.subjects import Subject

__all__ = [
    "CLAIMS",
    "CURVES_DRAWN",
    "EXACT",
    "ROUNDING",
    "SEEDS_DRAWN",
    "UNDECIDED",
    "VERDICTS",
    "Claim",
    "CostClaim",
    "Measured",
    "ModelClaim",
    "SweepClaim",
    "claim_named",
]

SUPPORTED, NOT_SUPPORTED, DEPENDS, UNDECIDED = "supported", "not supported", "depends", "not decided here"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, DEPENDS, UNDECIDED)
EXACT = "exact"  # what a number is over that repeats to the last bit
ROUNDING = 1e-3  # what is the same but for rounding differs by less, of the largest
SEEDS_DRAWN = "Faint marks: training seeds, where there are several; large marks: their mean."
CURVES_DRAWN = (
    "Error against the number of heads, a panel a task: on what was held out, of maps on the maps themselves. The "
    "dotted line is chance, where it is near. Lines: means over training seeds; bands: their 95% intervals."
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured for a claim.

    Attributes:
        effect: the number that stands for the claim in tables.
        over: what it was measured on, as "40 documents", "5 seeds", "exact".
        numbers: further numbers of the sentence, by name.
        table: what the numbers come from, as it is drawn.
        low, high: ends of the effect's interval; NaN where there is none.
    """

    effect: float
    over: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    low: float = nan
    high: float = nan

    @property
    def words(self) -> dict[str, float]:
        """Every number by name, the effect and its ends too."""
        return {**self.numbers, "effect": self.effect, "low": self.low, "high": self.high}


class Claim(ABC):
    """One statement of the paper, and the experiment that it is put to.

    Class facts, each tested:
        about, about_ja: what it is about, in a few words, in English and in Japanese.
        says, says_ja: what the paper says, abridged; in [brackets] what follows from it without being said.
        where_ja: heading of the paper that it stands under; several with 」と「 between.
        measured: how it is measured, with the source of each measure.
        unit, unit_ja: what the effect is.
        interval: what the ends of the effect's interval mean; "" where the effect is a count or a largest difference,
            which has none.
        rule: when the numbers support the claim, in words.
        drawn: what the figure shows: its marks, lines and bars.
        limits: how far the answer reaches.
        remark, remark_ja: what nobody should read the verdict without, beneath the table of all; "" for most.
        bounds: least and greatest value of the effect; intervals end there.
        of_a_model: whether it can be asked of one trained model.
        brief: whether that takes seconds, so that every analysis asks it.
    """

    about: ClassVar[str]
    about_ja: ClassVar[str]
    says: ClassVar[str]
    says_ja: ClassVar[str]
    where_ja: ClassVar[str]
    measured: ClassVar[str]
    unit: ClassVar[str]
    unit_ja: ClassVar[str]
    interval: ClassVar[str] = ""
    rule: ClassVar[str]
    drawn: ClassVar[str]
    limits: ClassVar[str]
    remark: ClassVar[str] = ""
    remark_ja: ClassVar[str] = ""
    bounds: ClassVar[tuple[float, float]] = (-inf, inf)
    of_a_model: ClassVar[bool] = False
    brief: ClassVar[bool] = False

    @abstractmethod
    def decide(self, words: Mapping[str, float]) -> str:
        """The verdict, from the numbers alone.

        Args:
            words: of `Measured`.
        """

    @abstractmethod
    def say(self, words: Mapping[str, float]) -> str:
        """What was found, in a sentence with its numbers."""

    @abstractmethod
    def draw(self, table: pd.DataFrame) -> Figure:
        """The figure of the claim's page, from the saved table alone."""

    def beside(self, sweep: Sweep) -> tuple[str, Mapping[str, Figure]]:
        """What training with few heads and many has to add: Markdown, and figures by name; nothing by default.

        Args:
            sweep: finished runs.
        """
        return "", {}


class ModelClaim(Claim):
    """A claim that can be asked of one trained model."""

    of_a_model: ClassVar[bool] = True
    brief: ClassVar[bool] = True

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Measure it.

        Args:
            subject: the model, its text, and what several claims need of both.

        Raises:
            HeadscopeError: this model cannot be asked; the message says why.
        """


class SweepClaim(Claim):
    """A claim about how many heads a model should be trained with: asked of many training runs."""

    @abstractmethod
    def measure(self, sweep: Sweep) -> Measured:
        """Measure it.

        Args:
            sweep: finished runs with few heads and many.
        """


class CostClaim(Claim):
    """A claim about what attention costs: asked of timings."""

    @abstractmethod
    def measure(self, costs: pd.DataFrame) -> Measured:
        """Measure it.

        Args:
            costs: see `headscope.studies.scaling.scale_costs`.
        """


CLAIMS: Registry[Claim] = Registry("claim", "headscope.studies.claims")


def claim_named(name: str) -> Claim:
    """A claim by its name, "C7", in capitals or not.

    Raises:
        UnknownNameError: there is none; the message lists those there are.
    """
    return CLAIMS[name.strip().upper()]()
