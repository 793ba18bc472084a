"""The verdict: one sentence of numbers that were measured where nothing was chosen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from headscope._support.formatting import brief_list, count, fixed, interval, number, quantity
from headscope._support.shown import Shown
from headscope.heads import HeadId
from headscope.planning.quadrants import Lines

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRIC_WORDS", "Finding", "Verdict"]

_TWINS = 0.9  # from this CKA on two heads are called nearly interchangeable
_MOST, _BEYOND = 1.005, " [more than all cannot be: there is too little text]"
_ENOUGH_SETS = 19  # random sets from which p can be 0.05
METRIC_WORDS: Mapping[str, str] = {
    "loss": "next-token loss", "mlm": "masked-token loss", "kl": "KL divergence",
    "drift": "drift (1 − cosine to the intact embedding)", "error": "error rate", "cross_entropy": "cross-entropy",
}  # fmt: skip
"""What metrics are called in sentences."""


@dataclass(frozen=True)
class Finding:
    """One number about one head (and another one), measured on documents that were not used to choose it.

    Attributes:
        head: the head.
        value, low, high: the number and its 95% interval over documents; NaN where there is none.
        other: the other head, where there is one.
    """

    head: HeadId
    value: float
    low: float
    high: float
    other: HeadId | None = None


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """What was found, all of it measured on held-out documents.

    Attributes:
        model, n_heads, n_layers: what was analysed.
        chosen: the heads that go: those of lowest measured effect, as many as `max_loss_rise` allows; see
            `headscope.planning.removal`.
        max_loss_rise: what they were allowed to cost together where they were chosen, in the metric's unit.
        joint, joint_low, joint_high: effect of removing them all together, with its 95% interval over documents.
        random: effect of removing other sets with as many heads of each layer, one number a set.
        stability: share of the chosen that stay chosen when a tenth of the documents is left out of the effects that
            they were chosen by, in the mean over the tenths; NaN where none is chosen.
        cheapest: the head of lowest effect where heads were chosen, with its effect here.
        most_needed: the head of highest effect there, with its effect here.
        most_replaceable: the head of which the others gave most of what varies there, with that share here, and the
            head that alone gives most of it.
        its_constant: the share of what that head writes that a constant gives, here; NaN without such a head.
        twins: the two heads of one layer that were most alike there, with their CKA here.
        lines: of the quadrants.
        metric, unit, intact: the metric, its unit, and its value for the intact model here.
        n_documents, n_tokens: what everything here was measured on.
        text_unit: what a document is: "documents", "passages" or "rows".
        too_little: what cannot be told from so little text, in words, and how much more would tell it.
        refused: why the chosen heads cannot be cut, as it was tried; "" where they can.
    """

    model: str
    n_heads: int
    n_layers: int
    chosen: tuple[HeadId, ...]
    max_loss_rise: float
    joint: float
    joint_low: float
    joint_high: float
    random: tuple[float, ...]
    stability: float
    cheapest: Finding
    most_needed: Finding | None
    most_replaceable: Finding | None
    its_constant: float
    twins: Finding | None
    lines: Lines
    metric: str
    unit: str
    intact: float
    n_documents: int
    n_tokens: int
    text_unit: str
    too_little: tuple[str, ...] = ()
    refused: str = ""

    @property
    def p_value(self) -> float:
        """(1 + k) / (1 + n): k of n random sets cost no more than the chosen heads; 1 where there is no other set."""
        return (1 + sum(cost <= self.joint for cost in self.random)) / (1 + len(self.random))

    @property
    def sentence(self) -> str:
        """What cannot be told from so little text, that a cut is refused, and the finding."""
        return " ".join([*self.first, self.found])

    @property
    def first(self) -> tuple[str, ...]:
        """What must be known before the finding: sentences, none where there is nothing."""
        uncut = f"The chosen heads can be switched off, but not cut; refused: {self.refused}."
        return (*self.too_little, *([uncut] if self.refused else []))

    @property
    def found(self) -> str:
        """The finding in one sentence; a clause that no head satisfies is left out."""
        heads = count(self.n_heads, "attention head") if self.n_heads != 1 else "one attention head"
        clauses = (self._cut(), self._chance(), self._needed(), self._replaced(), self._twins())
        return f"Of the {heads} of {self.model}, {'; '.join(clause for clause in clauses if clause)}."

    def _cut(self) -> str:
        allowed = quantity(self.max_loss_rise, self.unit)
        if not self.chosen:
            cost = self._cost(self.cheapest.value, self.cheapest.low, self.cheapest.high)
            return (
                f"none is sure to stay within the {allowed} allowed: the cheapest, {self.cheapest.head}, costs {cost}"
            )
        several = len(self.chosen) > 1
        which = f"{len(self.chosen)}" if several else str(self.chosen[0])
        cost = self._cost(self.joint, self.joint_low, self.joint_high)
        if self.joint <= self.max_loss_rise:
            beyond = (
                f", though the interval ends above the {allowed} allowed"
                if self.joint_high > self.max_loss_rise
                else ""
            )
            go = "be switched off" if self.refused else "go"
            return f"{which} can {go}{' together' if several else ''} at a cost of {cost}{beyond}"
        costs = f"{which} cost{'' if several else 's'} {cost} when removed{' together' if several else ''}"
        return f"{costs}, more than the {allowed} that {'they were' if several else 'it was'} chosen to cost at most"

    def _chance(self) -> str:
        if not self.chosen:
            return ""
        n = len(self.random)
        if not n:
            return "no other set has as many heads of the same layers"
        found = f"{count(n, 'random set')} from the same layers cost{'s' if n == 1 else ''} {self._spanned()}"
        few = f"; {n} are too few to show less than {number(1 / (n + 1), 2)}" if n < _ENOUGH_SETS else ""
        return f"{found} (p = {number(self.p_value, 2)}{few})"

    def _spanned(self) -> str:
        low, high = (number(end) for end in (min(self.random), max(self.random)))
        return (
            low
            if low == high
            else f"{number(median(self.random))} in the median, the cheapest {low}, the dearest {high}"
        )

    def _needed(self) -> str:
        found = self.most_needed
        if found is None or not found.value > 0:
            return ""
        alone = f"{_with_interval(found, number)} by itself"
        if found.low <= 0:
            return f"{found.head}, which came out as needed most, is not told from zero ({alone})"
        return f"{found.head} is needed most ({alone})"

    def _replaced(self) -> str:
        found = self.most_replaceable
        if found is None or not found.value >= self.lines.replaceability:
            return ""
        helper = f", {found.other} foremost" if found.other is not None else ""
        ends = f" ({_whole(found.low)} to {_whole(found.high)})" if found.low == found.low else ""
        ends += _BEYOND if found.high > _MOST else ""
        return (
            f"the rest of its layer gives {_whole(found.value)}{ends} of what varies in {found.head}{helper} "
            f"(a constant gives {_whole(max(self.its_constant, 0.0))} of all that it writes)"
        )

    def _twins(self) -> str:
        found = self.twins
        if found is None or not found.value >= _TWINS:
            return ""
        alike = _with_interval(found, lambda value: fixed(value, 2))
        beyond = _BEYOND if found.high > _MOST else ""
        return f"{found.head} and {found.other} are nearly interchangeable (CKA {alike}){beyond}"

    def _cost(self, value: float, low: float, high: float) -> str:
        words = METRIC_WORDS.get(self.metric, self.metric)
        if self.metric == "loss" and not self.unit:
            words = "its own loss"
        unit = f" {self.unit}" if self.unit else ""
        ends = f" (95% interval {span})" if (span := interval(low, high)) else ""
        base = f" ({number(self.intact)} with all heads)" if self.intact else ""
        return f"{number(value)}{unit}{ends} of {words}{base}"

    def _said(self) -> list[str]:
        return [*self.too_little, self.found]

    def _tables(self) -> "dict[str, pd.DataFrame]":
        import pandas as pd

        found = {
            "costs least alone": self.cheapest, "needed most": self.most_needed,
            "others give most of": self.most_replaceable, "most alike": self.twins,
        }  # fmt: skip
        rows: list[tuple[Any, ...]] = [
            (what, " ".join(map(str, filter(None, (one.head, one.other)))), one.value, one.low, one.high)
            for what, one in found.items()
            if one is not None
        ]
        if self.chosen:
            joint = (self.joint, self.joint_low, self.joint_high)
            rows.insert(0, ("chosen, together", brief_list([*map(str, self.chosen)]), *joint))
        title = f"measured on {count(self.n_documents)} {self.text_unit} that chose nothing"
        return {title: pd.DataFrame(rows, columns=["what", "heads", "value", "low", "high"])}

    def to_json(self) -> dict[str, Any]:
        """Plain values, heads as text, what is not defined as None."""
        data = {name: _plain(value) for name, value in vars(self).items()}
        return data | {"lines": asdict(self.lines)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_json` gave."""
        own: dict[str, Any] = {name: math.nan if value is None else value for name, value in data.items()}
        found = {name: None if data[name] is None else _finding(data[name]) for name in _FINDINGS}
        chosen = tuple(HeadId.parse(head) for head in data["chosen"])
        lists = {name: tuple(data[name]) for name in ("random", "too_little")}
        return cls(**{**own, **found, **lists, "chosen": chosen, "lines": Lines(**data["lines"])})


_FINDINGS = ("cheapest", "most_needed", "most_replaceable", "twins")


def _plain(value: Any) -> Any:
    if isinstance(value, Finding):
        return {name: _plain(own) for name, own in vars(value).items()}
    if isinstance(value, HeadId):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return None if value != value else value


def _finding(data: Mapping[str, Any]) -> Finding:
    value, low, high = (math.nan if data[name] is None else data[name] for name in ("value", "low", "high"))
    other = None if data["other"] is None else HeadId.parse(data["other"])
    return Finding(HeadId.parse(data["head"]), value, low, high, other)


def _with_interval(found: Finding, write: Callable[[float], str]) -> str:
    ends = "" if math.isnan(found.low) else f", {write(found.low)} to {write(found.high)}"
    return f"{write(found.value)}{ends}"


def _whole(share: float) -> str:
    return f"{share:.0%}".replace("-", "−")
