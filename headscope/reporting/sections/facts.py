"""The facts of the run: enough to repeat it, and to know how far its numbers reach."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pandas as pd

from headscope._support.formatting import MISSING, count, duration, number, quantity
from headscope._support.shown import reasons
from headscope.reporting.blocks import Block, Column, Table
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section
from headscope.surgery.timing import told_of_cut
from headscope.tables import HeadTable, PairTable

__all__ = ["Facts"]

# what is said of which facts, row by row; a piece whose fact is missing is left out, a fact named nowhere comes last
_ROWS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Model": (
        ("model", "{}"), ("model_class", "{}"), ("n_parameters", "{} parameters"), ("source", "loaded from {}"),
        ("loaded_by", "by {}"),
    ),
    "Heads": (("n_heads", "{}"), ("n_layers", "{}")),
    "Remarks": (("remarks", "{}"),),
    "Left out": (("left_out", "{}"),),
    "Without the chosen heads": (("cut", "{}"),),
    "Text": (("text", "{}"), ("text_sha256", "SHA-256 {}"), ("sides", "{}"), ("withheld", "for the metric alone: {}")),
    "Amount": (
        ("documents", "{} {documents}"), ("tokens", "{} tokens"), ("windows", "{} windows"),
        ("window_length", "at most {} tokens a window"),
    ),
    "Split": (("documents_watched", "watched on {} {documents}"), ("documents_chosen_on", "chosen on {} of them"),
        ("documents_judged_on", "judged on {} others"),
    ),
    "Metric": (("metric", "{}"), ("unit", "in {}"), ("ablation_tokens", "ablation on {} tokens")),
    "Budget": (("allowed", "the chosen heads may cost {} together"), ("max_loss_rise", "asked for as {}")),
    "Machine": (("device", "{}"), ("dtype", "{}"), ("peak_memory_mb", "peak memory {} MB"), ("seed", "seed {}")),
    "Time": (
        ("seconds", "{}"), ("resumed", "without that of {} effects measured before it was stopped, and went on from"),
        ("date", "on {}"),
    ),
    "Versions": (("versions", "{}"),),
}  # fmt: skip
_NOUNS = {"n_heads": "head", "n_layers": "attention layer"}
_SCORES = {
    "ablation": "importance (ablation)", "gradient": "importance (gradient)", "norm": "norm of what the head writes",
    "replaceability": "replaceability", "needed": "needed: importance × what a repair would not restore",
    "cka": "similarity (CKA)", "cosine": "similarity (cosine)",
}  # fmt: skip


@SECTIONS.register("facts")
class Facts(Section):
    """What was run on what, and what was measured on how much."""

    title: ClassVar[str] = "Facts of the run"
    order: ClassVar[int] = 40

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        yield _measured(analysis)
        # a share of a distance, which is 0 for the untouched model, is a number: 1% of drift is 0.01
        allowed, given = analysis.verdict.max_loss_rise, analysis.facts.get("max_loss_rise")
        budget = {
            "allowed": quantity(allowed, analysis.verdict.unit),
            "max_loss_rise": given if given != allowed else "",
        }
        yield _facts({**analysis.facts, **budget})


def _measured(analysis: Reportable) -> Table:
    rows = []
    tables: dict[str, HeadTable | PairTable] = {**analysis.scores, **analysis.pairs}
    for name, table in tables.items():
        rows.append(
            {
                "name": name,
                "unit": getattr(table, "unit", ""),
                "documents": table.facts.get("documents"),
                "tokens": table.facts.get("tokens"),
                "notes": "; ".join(reasons(table.facts)),
            }
        )
    noun = str(analysis.facts.get("text_unit", "documents"))
    columns = (
        Column("What", lambda row: _SCORES.get(row.name, row.name), strong=True),
        Column("Unit", lambda row: row.unit or "none"),
        Column(noun.capitalize(), lambda row: _whole(row.documents), numeric=True),
        Column("Tokens", lambda row: _whole(row.tokens), numeric=True),
        Column("Notes", lambda row: row.notes or MISSING, long=True),
    )
    frame = pd.DataFrame(rows, columns=["name", "unit", "documents", "tokens", "notes"])
    return Table("measured", "What was measured on how much text", frame, columns)


def _whole(value: Any) -> str:
    return MISSING if pd.isna(value) else count(int(value))


def _facts(facts: Mapping[str, Any]) -> Table:
    noun = str(facts.get("text_unit", "documents"))
    said = {}
    for label, pieces in _ROWS.items():
        words = [
            template.format(_in_words(key, facts[key]), documents=noun)
            for key, template in pieces
            if facts.get(key) not in (None, "")
        ]
        if words:
            said[label] = ", ".join(words)
    known = {key for pieces in _ROWS.values() for key, _ in pieces} | {"text_unit"}
    said |= {key.replace("_", " ").capitalize(): _in_words(key, facts[key]) for key in facts if key not in known}
    rows = pd.DataFrame({"fact": list(said), "value": list(said.values())})
    columns = (Column("Fact", lambda row: row.fact, strong=True), Column("Value", lambda row: row.value, long=True))
    return Table("facts", "How it was run", rows, columns)


def _in_words(fact: str, value: Any) -> str:
    """A fact as text: whole numbers with their thousands apart, a mapping as a list, stages with their total."""
    if fact == "seconds":
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in value.items())
        return f"{duration(sum(value.values()))} ({stages})"
    if fact in _NOUNS:
        return count(value, _NOUNS[fact])
    if fact == "cut":
        return "; ".join(told_of_cut(value))
    if fact == "date":
        return str(value).replace("T", " ").replace("+00:00", " UTC")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if fact == "seed" else count(value) if isinstance(value, int) else number(value)
