"""The page of model types: counts, the well-known families, reasons, and the whole list, from the committed table."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from headscope.studies.families import WELL_KNOWN, FamilyTable, Result
from headscope.studies.families.outcomes import OUTCOMES, grouped_reasons, heading, outcome

__all__ = ["families"]

HERE = Path(__file__).parent
_COLUMNS = {
    "built": "Not built",
    "forward": "Not run",
    "found": "Not read, or not all of it",
    "captured": "Not captured, or not all of it",
    "cut": "Not cut, or not every way",
    "saved": "Not saved",
    "trained": "Not trained a step",
    "generated": "No text generated",
    "copied": "Not copied",
    "exported": "Not exported",
}
_WAYS = {"head": "single heads", "query": "single heads of a group", "group": "whole groups"}


def families(path: Path = HERE / "families.csv") -> str:
    """Counts in a line, a table of well-known families, reasons by heading, and every type by what comes out.

    Args:
        path: of the result.
    """
    if not path.exists():
        return f"No result is committed; `headscope families --all --out docs/{path.name}` makes it.\n"
    table = FamilyTable.read(path)
    return "\n".join([*_counted(table), *_well_known(table), *_reasons(table), *_whole_list(table)])


def _counted(table: FamilyTable) -> Iterator[str]:
    many, made = table.counts(), table.facts
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    yield (
        f"Of {many['types']} model types **{many['built']}** are built, **{many['run']}** of these run, and in "
        f"**{many['attention found']}** attention is found ({many['dispatch']} call it through transformers' "
        f"registry). All that looks like attention is read in {many['all of it']}. Captures are exact in "
        f"{many.get('captured exact', 0)}, and all cuts in **{many.get('cut exact', 0)}**; "
        f"{many.get('captured wrong', 0) + many.get('cut wrong', 0) or 'none'} is wrong. "
        f"Run on {made['date']} with {versions}."
    )
    yield ""


def _well_known(table: FamilyTable) -> Iterator[str]:
    yield from ("## Well-known families", "", "| family | attention | read | captured | cut |", "|---|---|---|---|---|")
    known = {row.model_type: row for row in table.rows}
    for model_type, name in WELL_KNOWN.items():
        if model_type in known:
            row = known[model_type]
            kinds = ", ".join(row.kinds) or "–"
            yield f"| {name} (`{model_type}`) | {kinds} | {row.found or '–'} | {row.captured or '–'} | {_cut(row)} |"
    yield ""


def _cut(row: Result) -> str:
    """What can be cut, and else why not."""
    exact = list(dict.fromkeys(_WAYS[cut.what] for cut in row.cuts if cut.status == "exact"))
    ways = [way for way in row.ways if way != "whole"]
    told = " and ".join(exact) + (f" ({', '.join(ways)})" if ways else "")
    if row.cut == "exact":
        return told
    why = heading("cut", row.why["cut"]) if "cut" in row.why else "–"
    return f"{told}; else refused: {why}" if exact else f"{row.cut or 'not tried'}: {why}"


def _reasons(table: FamilyTable) -> Iterator[str]:
    yield from ("## Every no, by its reason", "")
    for column, title in _COLUMNS.items():
        rows = [row for row in table.rows if getattr(row, column) not in ("yes", "exact", "all")]
        if groups := grouped_reasons(rows, column):
            yield from (f"**{title}**", "")
            yield from (f"- {_plain(why)} ({len(names)}): {_listed(names)}" for why, names in groups.items())
            yield ""
    alone = [row for row in table.rows if row.cut == "exact" and "cut" in row.why]
    if groups := grouped_reasons(alone, "cut"):
        yield from ("**Cut exactly, and proven on what a layer gives by itself**", "")
        yield from (f"- {_plain(why)} ({len(names)}): {_listed(names)}" for why, names in groups.items())
        yield ""


def _whole_list(table: FamilyTable) -> Iterator[str]:
    yield from ("## Every model type", "")
    for word in OUTCOMES:
        names = [row.model_type for row in table.rows if outcome(row) == word]
        if names:
            yield from (f"**{word[0].upper()}{word[1:]}** ({len(names)}): {_listed(names)}", "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    return "".join(f"\\{one}" if one in "\\*_|<[$`" else one for one in text)
