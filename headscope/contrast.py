"""What changed between two models, head by head: of two saved analyses, or of two models on the same text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t as student
from torch import Tensor, nn

from headscope._support.folders import new_folder
from headscope._support.formatting import brief_list, count, fixed, number
from headscope._support.progress import Progress, part_of
from headscope._support.running import check_takes
from headscope._support.shown import Shown
from headscope._support.tabular import read_table, write_table
from headscope.analysis import Analysis
from headscope.anatomy import discover
from headscope.effects.metrics import Metric
from headscope.effects.resolving import resolve_metric
from headscope.errors import InputError
from headscope.heads import HeadId
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import Rated, by_metric, rate_heads
from headscope.tables import HeadTable, PairTable, token_counts
from headscope.text.batches import Batch
from headscope.text.feeding import feed
from headscope.uncertainty.intervals import LEVEL, Spread
from headscope.uncertainty.significance import false_discovery, sign_flip

__all__ = ["Contrast", "compare"]

Floats = npt.NDArray[np.float64]

_FALSE = 0.05  # share of false discoveries that is allowed among the heads called changed
_CAUTION = "errors taken as independent, which is cautious: both saw the same text; two models at once test finer"
_ROUNDING = 1e-5  # of the largest score: what float32 may make of a change that is none


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Shown):
    """Two models, head by head; the second minus the first.

    Attributes:
        names: what the two are called.
        frame: a row for each score and head: score, layer, head, in ("both", "first", "second"), first, second,
            change, low, high (95% interval of the change; NaN for a head that only one of them has), p_value and
            q_value where the two were measured on the same rows.
        alike: for two models, how alike their heads are, layer by layer; a PairTable of unbiased CKA. See `itself`.
        facts: what it was measured on.
    """

    names: tuple[str, str]
    frame: pd.DataFrame
    alike: PairTable | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> pd.DataFrame:
        """The heads whose change is told from zero at 5% false discoveries, those told best first."""
        told = self.frame[self.frame["q_value"] <= _FALSE]
        strength = told["change"].abs() / (told["high"] - told["low"])
        return told.reindex(strength.sort_values(ascending=False, kind="stable").index)

    @property
    def changes(self) -> dict[str, HeadTable]:
        """The change of each head by each score, as a table that `headscope.plot` draws; NaN for a head of one only."""
        tables = {}
        for score, own in self.frame.groupby("score", sort=False):
            heads = tuple(HeadId(layer, head) for layer, head in own[["layer", "head"]].itertuples(index=False))
            change, low, high = (own[column].to_numpy(np.float64) for column in ("change", "low", "high"))
            unit = self.facts.get("units", {}).get(score, "")
            tables[str(score)] = HeadTable(f"change of {score}", unit, heads, change, low, high, self.facts)
        return tables

    @property
    def itself(self) -> pd.DataFrame:
        """How alike each head is to itself in the other model: layer, head, cka, low, high, the least alike first.

        Only the heads that both have, those without a CKA, which are constant in one of the two, before the others; no
        row for two analyses, which hold no such thing.
        """
        alike = self.alike
        heads = [] if alike is None else [head for head in alike.heads if head in alike.column_heads]
        rows: dict[str, Any] = {"layer": [head.layer for head in heads], "head": [head.head for head in heads]}
        if alike is not None:
            places = [alike.heads.index(head) for head in heads], [alike.column_heads.index(head) for head in heads]
            rows |= {"cka": alike.matrix[places], "low": alike.low[places], "high": alike.high[places]}
        frame = pd.DataFrame(rows, columns=["layer", "head", "cka", "low", "high"])
        return frame.sort_values("cka", kind="stable", na_position="first", ignore_index=True)

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        heads = self.frame.drop_duplicates(["layer", "head"])
        gone, new = (int((heads["in"] == side).sum()) for side in ("first", "second"))
        parts = [f"{self.names[0]} and {self.names[1]} share {count(int((heads['in'] == 'both').sum()), 'head')}"]
        if gone:
            parts.append(f"{count(gone, 'head')} of the first {'is' if gone == 1 else 'are'} gone")
        if new:
            parts.append(f"{count(new, 'head')} of the second {'is' if new == 1 else 'are'} new")
        changed = self.changed
        if len(changed):
            top = changed.iloc[0]
            before, after = number(top["first"]), number(top["second"])
            told = f"{before} → {after}" if before != after else f"{before}, by {number(top['change'])}"
            parts.append(
                f"{count(len(changed.drop_duplicates(['layer', 'head'])), 'head')} changed, most clearly "
                f"L{top['layer']}H{top['head']} ({top['score']} {told})"
            )
        elif self.frame["p_value"].notna().any():
            parts.append("no change is told from chance")
        itself = self.itself
        alone = itself["cka"].isna()
        if alone.any():
            names = [f"L{layer}H{head}" for layer, head in itself.loc[alone, ["layer", "head"]].itertuples(index=False)]
            parts.append(f"nothing to compare in {brief_list(names)}, constant in one of the two")
        for least in itself[~alone].head(1).to_dict("records"):
            if (cka := fixed(least["cka"])) != fixed(1.0):
                parts.append(f"least like itself: L{least['layer']}H{least['head']} (CKA {cka})")
        parts += [self.facts[why] for why in ("why_no_interval", "why_no_test", "caution") if why in self.facts]
        return "; ".join(parts) + "."

    def _said(self) -> list[str]:
        return [self.sentence]

    def _tables(self) -> dict[str, pd.DataFrame]:
        itself = {"least like themselves": self.itself} if self.alike is not None else {}
        changed = self.changed
        return {**({"told from no change": changed} if len(changed) else {}), **itself}

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write heads.csv, heads.parquet, heads.json and, for two models, the CKA of each pair into a new folder.

        Raises:
            StorageError: the folder has other content and `force` is off.
        """
        about = {
            "names": self.names, "sentence": self.sentence, "facts": dict(self.facts),
            "alike": None if self.alike is None else self.alike.name,
        }  # fmt: skip
        with new_folder(folder, force=force) as new:
            write_table(new, "heads", self.frame, about)
            if self.alike is not None:
                self.alike.save(new)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        folder = Path(folder)
        frame, about = read_table(folder, "heads", {"score", "layer", "head", "change", "q_value"}, {"score", "in"})
        alike = None if about["alike"] is None else PairTable.load(folder, about["alike"])
        first, second = about["names"]
        return cls((first, second), frame, alike, about["facts"])


def compare(
    first: Analysis | nn.Module,
    second: Analysis | nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    scores: str | Sequence[str] = ("ablation", "norm"),
    metric: str | Metric | Callable[..., Tensor] = "auto",
    names: tuple[str, str] = ("first", "second"),
    sample: Iterable[Batch] | None = None,
    skip_first: int = 0,
    progress: Progress | None = None,
) -> Contrast:
    """What changed between two models, head by head.

    Two analyses are compared by their tables: the error of a change is that of two independent numbers, which is
    cautious where they saw the same text, with Welch's degrees of freedom. Two models are run on the same batches, and
    every change is taken on the same documents: the jackknife is one of the difference. p-values are of a sign-flip
    test over documents for ablation, else of Student's t; q-values control false discoveries over the heads of a score.
    Each head is compared with itself in the other model. A change of less than 1e-5 of the largest score is one of
    rounding, of which float32 alone makes as much, and has p-value 1, however steady it is.

    Args:
        first, second: two analyses, or two models.
        batches: what two models are measured on.
        scores: for two models, which scores; of two analyses all that both hold.
        metric: what the effects of two models are measured by; each against its own intact self.
        names: what the two are called; those of the analyses by default.
        sample: what scores by a metric are measured on, as ablation is, which runs a model once for each head; all of
            `batches` without it.
        skip_first: positions at the start of each row that do not count; a metric counts every position, so scores that
            are measured by one, as ablation is, cannot leave any out.
        progress: told of each step; see `headscope.Progress`.

    Returns:
        A row for each score and head, and for two models how alike each head is to itself.

    Raises:
        InputError: one analysis and one model; no batches or scores for two models, or batches that one of them does
            not take; skip_first with a score by metric; analyses of different text or metric.
    """
    if isinstance(first, Analysis) and isinstance(second, Analysis):
        return _of_analyses(first, second, names)
    if not (isinstance(first, nn.Module) and isinstance(second, nn.Module)):
        given = " and ".join(type(side).__name__ for side in (first, second))
        raise InputError(f"compare takes two analyses or two models, of hs.load_model or your own; got {given}")
    kept: Sequence[Batch] = feed(first, batches) if batches is not None else []
    if not kept or not scores:
        raise InputError("two models are compared on text, by at least one score: pass batches and scores")
    check_takes(second, kept[0])
    anatomies = tuple(discover(model, kept[0]) for model in (first, second))
    judge = resolve_metric(metric, first, anatomies[0], kept[0])
    frames: list[pd.DataFrame] = []
    facts: dict[str, Any] = {"of": "models", "metric": judge.name, "skip_first": skip_first, "units": {}}
    both, some = part_of(progress, parts=2), kept if sample is None else list(sample)
    for score in dict.fromkeys([scores] if isinstance(scores, str) else scores):
        text = some if by_metric(score) else kept
        sides = [
            rate_heads(model, text, score, judge, anatomy=anatomy, skip_first=skip_first, progress=both)
            for model, anatomy in zip((first, second), anatomies, strict=True)
        ]
        frames.append(_on_the_same_text(sides))
        facts["units"][sides[0].table.name] = sides[0].table.unit
        if sides[0].rating.spread is None or sides[1].rating.spread is None:
            facts["why_no_test"] = _untested(sides[0].table.name)
        facts |= {k: v for k, v in sides[0].table.facts.items() if k == "why_no_interval"}
    alike = similarity(first, kept, "cka", other=second, anatomy=anatomies[0], skip_first=skip_first, progress=progress)
    facts |= {k: v for k, v in alike.facts.items() if k in ("documents", "tokens", "layer_tokens", "sides")}
    return Contrast(names, pd.concat(frames, ignore_index=True), alike, facts)


def _untested(*names: str) -> str:
    verb, own = ("has an interval", "its") if len(names) == 1 else ("have intervals", "their")
    return f"{' and '.join(names)} {verb} but no error of {own} own, so {own} changes are not tested"


def _of_analyses(first: Analysis, second: Analysis, names: tuple[str, str]) -> Contrast:
    for fact, word in (("text_sha256", "text"), ("metric", "metric"), ("window_length", "window length")):
        a, b = first.facts.get(fact), second.facts.get(fact)
        if a != b:
            which = "" if fact == "text_sha256" else f" ({a} and {b})"
            raise InputError(
                f"the two analyses were made with a different {word}{which}, so their numbers cannot be set against "
                "each other; analyze both on the same text, with the same settings"
            )
    if names == ("first", "second"):
        names = (str(first.facts.get("model", "first")), str(second.facts.get("model", "second")))
    both = [name for name in first.scores if name in second.scores]
    frame = pd.concat([_independent(first.scores[name], second.scores[name]) for name in both], ignore_index=True)
    facts = {k: v for k, v in first.importance.facts.items() if k in ("documents", "tokens", "why_no_interval")}
    facts |= {"of": "analyses", "caution": _CAUTION, "units": {name: first.scores[name].unit for name in both}}
    untested = [name for name in both if not _have_errors(first.scores[name], second.scores[name])]
    if untested and "why_no_interval" not in facts:
        facts["why_no_test"] = _untested(*untested)
    return Contrast(names, frame, None, facts)


def _on_the_same_text(sides: Sequence[Rated]) -> pd.DataFrame:
    """One score of two models: the change of each head that both have, on the same documents."""
    a, b = sides
    heads = [head for head in a.heads if head in b.heads]
    places = [[side.heads.index(head) for head in heads] for side in sides]
    if a.rating.spread is None or b.rating.spread is None:
        return _frame(a.table, b.table, {})
    change = b.rating.spread.take(places[1]).minus(a.rating.spread.take(places[0]))
    p = change.p_value()
    if a.effects is not None and b.effects is not None:
        p = sign_flip(b.effects.values[places[1]] - a.effects.values[places[0]], a.effects.document)
    low, high = change.interval()
    return _frame(a.table, b.table, dict(zip(heads, zip(low, high, p, strict=True), strict=True)))


def _independent(first: HeadTable, second: HeadTable) -> pd.DataFrame:
    """One score of two analyses: the error of a change is that of two independent numbers."""
    if not _have_errors(first, second):
        return _frame(first, second, {})
    heads = [head for head in first.heads if head in second.heads]
    a, b = (np.array([table.heads.index(head) for head in heads], dtype=int) for table in (first, second))
    (one, freedom), (two, other) = (_error(table, own) for table, own in ((first, a), (second, b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        welch = np.fmax((one**2 + two**2) ** 2 / (one**4 / freedom + two**4 / other), 1)
    change = Spread(second.score[b] - first.score[a], np.hypot(one, two), welch)
    low, high = change.interval()
    return _frame(first, second, dict(zip(heads, zip(low, high, change.p_value(), strict=True), strict=True)))


def _have_errors(*tables: HeadTable) -> bool:
    """Whether the intervals of these tables are made of errors, of which the tables tell the degrees of freedom."""
    return all("freedom" in table.facts for table in tables)


def _error(table: HeadTable, rows: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Standard errors of some rows, from their intervals, and the degrees of freedom of these errors."""
    freedom = np.broadcast_to(np.array(table.facts["freedom"], np.float64), table.score.shape)[rows]
    return (table.high - table.low)[rows] / 2 / student.ppf((1 + LEVEL) / 2, freedom), freedom


def _frame(first: HeadTable, second: HeadTable, changes: Mapping[HeadId, tuple[float, float, float]]) -> pd.DataFrame:
    """A row for every head of either; changes: (low, high, p) of those that both have."""
    heads = sorted({*first.heads, *second.heads})
    nothing = (np.nan, np.nan, np.nan)
    low, high, p = np.array([changes.get(head, nothing) for head in heads], dtype=np.float64).reshape(-1, 3).T
    a, b = (np.array([table[head] if head in table.heads else np.nan for head in heads]) for table in (first, second))
    rounding = np.abs(b - a) <= _ROUNDING * np.nanmax(np.abs([a, b]), initial=0.0)
    p = np.where(rounding & ~np.isnan(p), 1.0, p)
    sides = [("first" if head in first.heads else "") + ("second" if head in second.heads else "") for head in heads]
    return pd.DataFrame(
        {
            "score": first.name,
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "in": ["both" if side == "firstsecond" else side for side in sides],
            "first": a,
            "second": b,
            "change": b - a,
            "low": low,
            "high": high,
            "p_value": p,
            "q_value": false_discovery(p),
            "n_documents": first.facts.get("documents"),
            "n_tokens": token_counts(first.facts, [head.layer for head in heads]),
        }
    )
