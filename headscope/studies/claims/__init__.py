"""Claims of the paper on multi-head attention, each made into a measurement. A new claim is one new file.

The paper explains multi-head attention and warns of too many heads. Every claim here says what the paper says, what is
measured for it, and when that counts as support; the numbers decide.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.registry import Registry
from headscope.studies.bilingual import NOTHING, Both, Language, first_sentence
from headscope.studies.headcount.results import Sweep
from headscope.studies.subjects import Subject

__all__ = [
    "CLAIMS",
    "CURVES_DRAWN",
    "EXACT",
    "FAILS",
    "HOLDS",
    "KINDS",
    "ROUNDING",
    "SEEDS_DRAWN",
    "VERDICTS",
    "WORKED",
    "Claim",
    "CostClaim",
    "Measured",
    "ModelClaim",
    "SweepClaim",
    "Verdict",
    "claim_named",
    "in_layers",
    "in_part",
    "undecided",
]

VERDICTS: Mapping[str, Both] = {
    "holds": Both("holds", "成り立つ"),
    "holds in part": Both("holds in part", "一部で成り立つ"),
    "does not hold": Both("does not hold", "成り立たない"),
    "not decided": Both("not decided", "未判定"),
}
KINDS: Mapping[str, Both] = {
    "definition": Both(
        "definition: true by construction, shown on numbers", "定義(構成から必ず成り立ち、数値で確かめる)"
    ),
    "architecture": Both("architecture: a fact of this model", "構造(モデルごとに決まっている事実)"),
    "experiment": Both("experiment: only measuring tells", "実験(測らなければ分からない)"),
}
ROUNDING = 1e-3  # counts and ranks that are the same but for rounding differ by less, as a share
EXACT = "exact"  # what a number is over that repeats to the last bit
SEEDS_DRAWN = Both(
    "Faint marks: training seeds, where there are several; large marks: their mean.",
    "薄い印は学習シードごとの値(複数あるとき)、大きい印はその平均。",
)
WORKED = Both(
    "The documentation works the paper's own example out, line by line (docs/worked.md).",
    "論文の例を一行ずつ計算したページが、このプロジェクトの文書にあります(docs/worked.ja.md)。",
)
CURVES_DRAWN = Both(
    "Error against the number of heads, a panel a task: on what was held out, of maps on the maps themselves. The "
    "dotted line is chance, where it is near. Lines: means over training seeds; bands: their 95% intervals.",
    "ヘッド数に対する誤差(タスクごと)。学習に使っていないデータで測り、マップのタスクだけは学習したマップ自体で測る。"
    "点線は偶然の水準(図の範囲に入るとき)。線は学習シードの平均、帯は95%区間。",
)


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to.

    Attributes:
        word: one of VERDICTS.
        where: of "holds in part" where it does, of "not decided" what it would take, in a few words; else nothing.
    """

    word: str
    where: Both = NOTHING

    def told(self, language: Language = "en") -> str:
        """In words, as "holds in part (encoders only)"."""
        word, where = VERDICTS[self.word].of(language), self.where.of(language)
        if not where:
            return word
        return f"{word} ({where})" if language == "en" else f"{word}({where})"


HOLDS, FAILS = Verdict("holds"), Verdict("does not hold")


def in_part(where: Both) -> Verdict:
    """The verdict that a claim holds in part.

    Args:
        where: where it does, in a few words.

    Returns:
        See `Verdict`.
    """
    return Verdict("holds in part", where)


def in_layers(kept: float, layers: float) -> Verdict:
    """It holds if it does in every layer, in part if in some, and does not if in none.

    Args:
        kept: layers that it holds in; over training seeds their mean.
        layers: all that were asked.
    """
    if kept == layers:
        return HOLDS
    return in_part(Both(f"{kept:.3g} of {layers:g} layers", f"{layers:g}層中{kept:.3g}層")) if kept else FAILS


def undecided(takes: Both) -> Verdict:
    """The verdict that a claim is not decided.

    Args:
        takes: what deciding it would take, in a few words.

    Returns:
        See `Verdict`.
    """
    return Verdict("not decided", takes)


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
    """One statement of the paper, and what it is put to.

    Class facts, each tested; all words in English and Japanese:
        kind: one of KINDS.
        about: what it is about, in a few words.
        says: what the paper says, abridged.
        where_ja: heading of the paper that it stands under; several with 」と「 between.
        means: what is asked and what an answer would mean, in two or three sentences that a student understands.
        measured: how it is measured, with the source of each measure.
        unit: what the effect is.
        interval: what the ends of the effect's interval mean; nothing where the effect is a count or a largest
            difference, which has none.
        rule: when the claim holds, in words.
        drawn: what the figure shows: its marks, lines and bars.
        follows: what readers infer from the claim without its being said; nothing where they infer no more.
        drawn_with: claims of which one figure is drawn, itself among them; nothing where it has its own.
        limits: how far the answer reaches.
        bounds: least and greatest value of the effect; intervals end there.
        of_a_model: whether it can be asked of one trained model.
        brief: whether that takes seconds, so that every analysis asks it.
        beside_untrained: whether it is held against untrained copies of the model.
    """

    kind: ClassVar[str]
    about: ClassVar[Both]
    says: ClassVar[Both]
    where_ja: ClassVar[str]
    means: ClassVar[Both]
    measured: ClassVar[Both]
    unit: ClassVar[Both]
    interval: ClassVar[Both] = NOTHING
    rule: ClassVar[Both]
    drawn: ClassVar[Both]
    follows: ClassVar[Both] = NOTHING
    drawn_with: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Both]
    bounds: ClassVar[tuple[float, float]] = (-inf, inf)
    of_a_model: ClassVar[bool] = False
    brief: ClassVar[bool] = False
    beside_untrained: ClassVar[bool] = False

    @abstractmethod
    def decide(self, words: Mapping[str, float]) -> Verdict:
        """The verdict, from the numbers alone.

        Args:
            words: of `Measured`.
        """

    @abstractmethod
    def say(self, words: Mapping[str, float]) -> Both:
        """What was found, in a sentence with its numbers."""

    def headline(self, words: Mapping[str, float]) -> Both:
        """What was found, in one sentence that a student understands: the first of `say` by default."""
        return first_sentence(self.say(words))

    def side_by_side(self, words: Sequence[Mapping[str, float]]) -> Both:
        """What the numbers of several subjects tell together, that none of them tells alone; nothing by default.

        Args:
            words: of each subject, see `Measured`.
        """
        return NOTHING

    def follow(self, words: Mapping[str, float]) -> Both:
        """What was found of what readers infer; nothing by default."""
        return NOTHING

    @abstractmethod
    def draw(self, table: pd.DataFrame) -> Figure:
        """The figure of the claim's page, from the saved table alone."""

    def tabled(self, table: pd.DataFrame) -> Both:
        """The numbers behind the sentence as a table in Markdown, from the saved table alone; nothing by default."""
        return NOTHING

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        """What training with few heads and many has to add: Markdown, and figures by name; nothing by default.

        Args:
            sweep: finished runs.
        """
        return NOTHING, {}


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
