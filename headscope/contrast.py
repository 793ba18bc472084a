"""What changed between two models, head by head: of two saved analyses, or of two models on the same text."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor, nn

from headscope.analysis import Analysis
from headscope.anatomy import discover
from headscope.batches import Batch, probe_example
from headscope.comparing import similarity
from headscope.errors import InputError
from headscope.folders import new_folder
from headscope.formatting import count, number
from headscope.heads import Anatomy, HeadId
from headscope.intervals import mean_spread
from headscope.metrics import Metric, resolve_metric
from headscope.scoring import importance
from headscope.significance import false_discovery, sign_flip
from headscope.sweep import Effects, head_effects
from headscope.tables import HeadTable, PairTable

__all__ = ["Contrast", "compare"]

Floats = npt.NDArray[np.float64]

_FALSE = 0.05  # share of false discoveries that is allowed among the heads called changed


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two models, head by head; the second minus the first.

    Attributes:
        names: what the two are called.
        frame: a row for each score and head: score, layer, head, in ("both", "first", "second"), first, second,
            change, low, high (95% interval of the change; NaN for a head that only one of them has), p_value and
            q_value where the two were measured on the same rows.
        alike: for two models, how alike each head is to itself in the other one; a PairTable of unbiased CKA.
        facts: what it was measured on.
    """

    names: tuple[str, str]
    frame: pd.DataFrame
    alike: PairTable | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> pd.DataFrame:
        """The heads whose change is told from zero, largest first.

        Where there is a q-value, at 5% false discoveries; else where the interval does not hold zero.
        """
        frame = self.frame
        apart = (frame["low"] > 0) | (frame["high"] < 0)
        told = (
            apart
            if frame["q_value"].isna().all()
            else frame["q_value"].le(_FALSE).where(frame["q_value"].notna(), apart)
        )
        shown = frame[told.astype(bool)]
        return shown.reindex(shown["change"].abs().sort_values(ascending=False, kind="stable").index)

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
            parts.append(
                f"{count(len(changed.drop_duplicates(['layer', 'head'])), 'head')} changed, most of all "
                f"L{top['layer']}H{top['head']} ({top['score']} {number(top['first'])} → {number(top['second'])})"
            )
        else:
            parts.append("no change is told from chance")
        return "; ".join(parts) + "."

    def _repr_html_(self) -> str:
        return f"<p><strong>{escape(self.sentence)}</strong></p>" + self.changed.head(20).to_html(index=False)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write heads.csv, heads.parquet, contrast.json and, for two models, the CKA of each pair into a new folder.

        Raises:
            StorageError: the folder has other content and `force` is off.
        """
        with new_folder(folder, force=force) as new:
            self.frame.to_csv(new / "heads.csv", index=False)
            pq.write_table(pa.Table.from_pandas(self.frame, preserve_index=False), new / "heads.parquet")
            if self.alike is not None:
                self.alike.save(new)
            about = {
                "names": self.names, "sentence": self.sentence, "facts": dict(self.facts),
                "alike": None if self.alike is None else self.alike.name,
            }  # fmt: skip
            (new / "contrast.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote."""
        folder = Path(folder)
        about = json.loads((folder / "contrast.json").read_text(encoding="utf-8"))
        alike = None if about["alike"] is None else PairTable.load(folder, about["alike"])
        frame = pq.read_table(folder / "heads.parquet").to_pandas()
        first, second = about["names"]
        return cls((first, second), frame, alike, about["facts"])


def compare(
    first: Analysis | nn.Module,
    second: Analysis | nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    scores: Sequence[str] = ("ablation", "norm"),
    metric: str | Metric | Callable[..., Tensor] = "auto",
    names: tuple[str, str] = ("first", "second"),
    progress: Callable[[int], None] | None = None,
) -> Contrast:
    """What changed between two models, head by head.

    Two analyses are compared by their tables; the interval of a change takes the two as independent, which is cautious
    where they saw the same text. Two models are run on the same batches: effects of ablation are compared row by row,
    with a sign-flip test over documents and control of false discoveries over heads, and each head is compared with
    itself in the other model.

    Args:
        first, second: two analyses, or two models.
        batches: what two models are measured on.
        scores: for two models, which scores; of two analyses all that both hold.
        metric: what the effects of two models are measured by; each against its own intact self.
        names: what the two are called; those of the analyses by default.
        progress: called with 1 after each forward pass of a sweep.

    Returns:
        A row for each score and head, and for two models how alike each head is to itself.

    Raises:
        InputError: one analysis and one model; no batches for two models; analyses of different text or metric.
    """
    if isinstance(first, Analysis) and isinstance(second, Analysis):
        return _of_analyses(first, second, names)
    if isinstance(first, Analysis) or isinstance(second, Analysis):
        raise InputError("compare takes two analyses or two models, not one of each")
    kept = list(batches) if batches is not None else []
    if not kept:
        raise InputError("two models are compared on text: pass batches")
    return _of_models(first, second, kept, scores, metric, names, progress)


def _of_analyses(first: Analysis, second: Analysis, names: tuple[str, str]) -> Contrast:
    for fact, word in (("text_sha256", "text"), ("metric", "metric"), ("window_length", "window length")):
        a, b = first.facts.get(fact), second.facts.get(fact)
        if a != b:
            raise InputError(
                f"the two analyses were made with a different {word} ({a} and {b}), so their numbers cannot be set "
                "against each other; analyze both on the same text, with the same settings"
            )
    if names == ("first", "second"):
        names = (str(first.facts.get("model", "first")), str(second.facts.get("model", "second")))
    both = [name for name in first.scores if name in second.scores]
    frame = pd.concat([_by_head(first.scores[name], second.scores[name]) for name in both], ignore_index=True)
    return Contrast(names, frame, None, {"documents": first.facts.get("documents"), "of": "analyses"})


def _of_models(
    first: nn.Module,
    second: nn.Module,
    batches: Sequence[Batch],
    scores: Sequence[str],
    metric: str | Metric | Callable[..., Tensor],
    names: tuple[str, str],
    progress: Callable[[int], None] | None,
) -> Contrast:
    anatomies = [discover(model, probe_example(model, batches[0])) for model in (first, second)]
    frames = []
    for name in scores:
        if name == "ablation":
            judge = resolve_metric(metric, first, anatomies[0], batches[0])
            effects = [
                head_effects(model, batches, judge, anatomy, progress=progress)
                for model, anatomy in zip((first, second), anatomies, strict=True)
            ]
            frames.append(_by_row(effects, anatomies))
        else:
            tables = [
                importance(model, batches, name, metric, anatomy=anatomy, progress=progress)
                for model, anatomy in zip((first, second), anatomies, strict=True)
            ]
            frames.append(_by_head(*tables))
    alike = similarity(first, batches, "cka", other=second, anatomy=anatomies[0])
    facts = {"of": "models", "documents": alike.facts["documents"], "tokens": alike.facts["tokens"]}
    return Contrast(names, pd.concat(frames, ignore_index=True), alike, facts)


def _by_head(first: HeadTable, second: HeadTable) -> pd.DataFrame:
    """Two tables set side by side; the error of a change is that of two independent numbers."""
    a, b = (table.to_frame().set_index(["layer", "head"]) for table in (first, second))
    heads = a.index.union(b.index)
    a, b = a.reindex(heads), b.reindex(heads)
    change = b["score"] - a["score"]
    half = np.hypot((a["high"] - a["low"]) / 2, (b["high"] - b["low"]) / 2)
    # the middle of an interval need not be the score: the change of the middles is what the interval is about
    middle = (b["high"] + b["low"] - a["high"] - a["low"]) / 2
    return _frame(first.name, heads, (a["score"], b["score"]), change, middle - half, middle + half)


def _by_row(effects: Sequence[Effects], anatomies: Sequence[Anatomy]) -> pd.DataFrame:
    """Effects of two models on the same rows: what they differ by in each row is what is averaged and tested."""
    a, b = effects
    heads = [head for head in a.heads if head in b.heads]
    rows_a, rows_b = ([own.heads.index(head) for head in heads] for own in (a, b))
    apart = b.values[rows_b] - a.values[rows_a]
    low, high = mean_spread(apart, a.block).interval()
    p = np.asarray(sign_flip(apart, a.document))
    index = pd.MultiIndex.from_tuples([(head.layer, head.head) for head in heads], names=["layer", "head"])
    paired = pd.DataFrame({"change": apart.mean(1), "low": low, "high": high, "p_value": p}, index=index)
    paired["q_value"] = false_discovery(p)
    means = [
        pd.Series(own.values.mean(1), index=pd.MultiIndex.from_tuples([(h.layer, h.head) for h in own.heads]))
        for own in effects
    ]
    known = [pd.MultiIndex.from_tuples(_pairs(anatomy.heads), names=["layer", "head"]) for anatomy in anatomies]
    every = known[0].union(known[1])
    paired = paired.reindex(every)
    frame = _frame(
        "ablation", every, (means[0].reindex(every), means[1].reindex(every)), paired["change"], paired["low"],
        paired["high"],
    )  # fmt: skip
    frame["p_value"], frame["q_value"] = paired["p_value"].to_numpy(), paired["q_value"].to_numpy()
    frame["in"] = _where(every, *known)
    return frame


def _pairs(heads: Iterable[HeadId]) -> list[tuple[int, int]]:
    return [(head.layer, head.head) for head in heads]


def _where(every: pd.MultiIndex, first: pd.MultiIndex, second: pd.MultiIndex) -> npt.NDArray[np.str_]:
    a, b = every.isin(first), every.isin(second)
    return np.where(a & b, "both", np.where(a, "first", "second"))


def _frame(
    name: str, heads: pd.MultiIndex, values: tuple[pd.Series, pd.Series], change: pd.Series, low: Any, high: Any
) -> pd.DataFrame:
    a, b = values
    return pd.DataFrame(
        {
            "score": name,
            "layer": heads.get_level_values(0),
            "head": heads.get_level_values(1),
            "in": np.where(a.notna() & b.notna(), "both", np.where(a.notna(), "first", "second")),
            "first": a.to_numpy(),
            "second": b.to_numpy(),
            "change": change.to_numpy(),
            "low": np.asarray(low),
            "high": np.asarray(high),
            "p_value": np.nan,
            "q_value": np.nan,
        }
    )
