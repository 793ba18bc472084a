"""The verdict: one sentence of numbers that were measured where nothing was chosen."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from headscope._support.formatting import number
from headscope.heads import HeadId
from headscope.planning.quadrants import Lines

__all__ = ["Finding", "Verdict"]

_TWINS = 0.9  # from this CKA on two heads are called nearly interchangeable
_METRIC_WORDS = {"loss": "next-token loss", "mlm": "masked-token loss", "kl": "KL divergence", "drift": "drift"}


@dataclass(frozen=True)
class Finding:
    """One number about one head (and another one), measured on documents that were not used to choose it."""

    head: HeadId
    value: float
    other: HeadId | None = None


@dataclass(frozen=True)
class Verdict:
    """What was found, all of it measured on held-out documents.

    Attributes:
        model, n_heads, n_layers: what was analysed.
        chosen: redundant heads that can go together within `max_loss_rise`; see `headscope.planning.choosing`.
        max_loss_rise: what they were allowed to cost together where they were chosen, in the metric's unit.
        joint, joint_low, joint_high: effect of removing them all together, with its 95% interval over documents.
        random: effect of removing as many heads drawn at random, one number a draw.
        most_needed: the head that was most important where heads were chosen, with its effect here.
        most_replaceable: the head that its layer restored best there, with the share restored here, and the head
            that alone restores most of it.
        twins: the two heads of one layer that were most alike there, with their CKA here.
        lines: of the quadrants.
        metric, unit, intact: the metric, its unit, and its value for the intact model here.
        n_documents, n_tokens: what everything here was measured on.
        text_unit: what a document is: "documents", "passages" or "rows".
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
    most_needed: Finding | None
    most_replaceable: Finding | None
    twins: Finding | None
    lines: Lines
    metric: str
    unit: str
    intact: float
    n_documents: int
    n_tokens: int
    text_unit: str

    @property
    def sentence(self) -> str:
        """The finding in one sentence; a clause that no head satisfies is left out."""
        heads = f"{self.n_heads} attention heads" if self.n_heads != 1 else "one attention head"
        clauses = [clause for clause in (self._cut(), self._needed(), self._replaced(), self._twins()) if clause]
        start = f"Of the {heads} of {self.model}, "
        if not clauses:
            return f"{start}none can be called redundant on this text."
        return start + "; ".join(clauses) + "."

    def _cut(self) -> str:
        if not self.chosen:
            return ""
        several = len(self.chosen) > 1
        which = f"{len(self.chosen)}" if several else str(self.chosen[0])
        cost = self._cost(self.joint)
        if self.joint <= self.max_loss_rise:
            said = f"{which} can go{' together' if several else ''} at a cost of {cost}"
        else:
            allowed = number(self.max_loss_rise)
            costs = f"{which} cost{'' if several else 's'} {cost} when removed{' together' if several else ''}"
            said = f"{costs} (allowed: {allowed})"
        low, high = (number(end) for end in (min(self.random), max(self.random)))
        span = low if low == high else f"{low} to {high}"
        if self.joint < min(self.random):
            return f"{said}, where as many drawn at random cost {span}"
        return f"{said}, no better than as many drawn at random ({span})"

    def _needed(self) -> str:
        if self.most_needed is None or not self.most_needed.value > 0:
            return ""
        return f"{self.most_needed.head} is needed most ({number(self.most_needed.value)} by itself)"

    def _replaced(self) -> str:
        found = self.most_replaceable
        if found is None or not found.value >= self.lines.replaceability:
            return ""
        helper = f", {found.other} foremost" if found.other is not None else ""
        return f"{found.value:.0%} of what {found.head} writes can be rebuilt from the rest of its layer{helper}"

    def _twins(self) -> str:
        if self.twins is None or not self.twins.value >= _TWINS:
            return ""
        return f"{self.twins.head} and {self.twins.other} are nearly interchangeable (CKA {self.twins.value:.2f})"

    def _cost(self, value: float) -> str:
        words = _METRIC_WORDS.get(self.metric, self.metric)
        unit = f" {self.unit}" if self.unit else ""
        base = f" above {number(self.intact)}" if self.intact else ""
        return f"{number(value)}{unit} of {words}{base}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, heads as text."""
        data = asdict(self)
        data["chosen"] = [str(head) for head in self.chosen]
        for name in ("most_needed", "most_replaceable", "twins"):
            found: Finding | None = getattr(self, name)
            if found is not None:
                other = None if found.other is None else str(found.other)
                data[name] = {"head": str(found.head), "value": found.value, "other": other}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_json` gave."""
        fields = dict(data)
        fields["chosen"] = tuple(HeadId.parse(head) for head in data["chosen"])
        fields["random"] = tuple(data["random"])
        fields["lines"] = Lines(**data["lines"])
        for name in ("most_needed", "most_replaceable", "twins"):
            if data[name] is not None:
                other = data[name]["other"]
                fields[name] = Finding(
                    HeadId.parse(data[name]["head"]),
                    data[name]["value"],
                    None if other is None else HeadId.parse(other),
                )
        return cls(**fields)
