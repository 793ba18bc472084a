"""Pages that are made while the site is built: cards of measures and scores, commands with their options, coverage,
ratios.

Each function gives a piece of Markdown; the pages beside this file include it.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from headscope._support.cards import Card
from headscope._support.registry import Registry
from headscope.cli import app
from headscope.likeness.measures import MEASURES, Measure
from headscope.scoring.scores import SCORES

__all__ = ["cards", "commands", "coverage", "ratios", "write_pages"]

_TITLES = {
    "formula": "Formula",
    "unit": "Unit",
    "span": "Values",
    "undefined": "Undefined",
    "invariance": "Does not change with",
    "cost": "Cost",
    "use": "When to use it",
    "source": "Source",
}
_WISHED = (0.90, 0.98)  # what coverage should lie between, where 95% are promised


def write_pages(folder: Path, coverage_file: Path, benchmark_file: Path) -> None:
    """Write every piece into a folder; those that are as they were are left alone, so that nothing is built twice."""
    folder.mkdir(exist_ok=True)
    pieces = {
        "measures": cards(MEASURES),
        "scores": cards(SCORES),
        "commands": commands(),
        "coverage": coverage(coverage_file),
        "benchmark": ratios(benchmark_file),
    }
    for name, piece in pieces.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != piece:
            path.write_text(piece, encoding="utf-8")


def cards(registry: Registry[Any]) -> str:
    """A table of all entries, and a section each.

    Raises:
        ValueError: an entry has no card, or one with an empty line.
    """
    rows = [_row(name, entry) for name, entry in registry.items()]
    columns = list(rows[0])
    table = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    table += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    sections = [section for name, entry in registry.items() for section in _section(registry.kind, name, entry)]
    return "\n".join([*table, "", *sections])


def _row(name: str, entry: type) -> dict[str, str]:
    card = _card(name, entry)
    row = {_kind(entry): f"[`{name}`](#{_anchor(name)})", "what it tells": _about(entry)}
    if issubclass(entry, Measure):
        least, greatest = entry.bounds
        sides = "yes" if entry.symmetric else "no"
        values = f"{least:g} to {greatest:g}".replace("inf", "∞")
        return row | {"of": ", ".join(entry.sources), "symmetric": sides, "values": values}
    return row | {"unit": _plain(card.unit), "cost": _plain(card.cost)}


def _section(kind: str, name: str, entry: Any) -> Iterator[str]:
    card = _card(name, entry)
    yield from (f"({_anchor(name)})=", f"## {name}", "", _about(entry), "", ":::{container} card")
    if issubclass(entry, Measure):
        yield from ("Compares", f": {', '.join(entry.sources)}", "")
    for field in fields(Card):
        linked = field.name in ("cost", "use", "source")
        words = _plain(getattr(card, field.name))
        yield from (_TITLES[field.name], f": {_linked(words, name) if linked else words}", "")
    if settings := ", ".join(f"{field.name}={field.default!r}" for field in fields(entry)):
        yield from ("Settings", f": `{entry.__name__}({settings})`", "")
    yield from ("In code", f": `{entry.__module__}.{entry.__name__}`, the {kind} `{name!r}`", ":::", "")


def _kind(entry: type) -> str:
    return "measure" if issubclass(entry, Measure) else "score"


def _card(name: str, entry: Any) -> Card:
    card = getattr(entry, "card", None)
    if not isinstance(card, Card) or not all(getattr(card, field.name).strip() for field in fields(Card)):
        raise ValueError(f"{name} ({entry.__module__}) has no whole card; fill in {', '.join(_TITLES)}")
    return card


def _about(entry: type) -> str:
    """The first line of the module, without the name before the colon."""
    line = (inspect.getmodule(entry).__doc__ or "").split("\n")[0]  # type: ignore[union-attr]
    about = line.split(": ", 1)[-1]
    return _plain(about[:1].upper() + about[1:])


def _anchor(name: str) -> str:
    return f"about-{name.replace('_', '-')}"


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    return re.sub(r"([\\*_|<\[$])", r"\\\1", " ".join(text.split()))


def _linked(text: str, own: str) -> str:
    """Papers as links, and other measures and scores where they are pointed at."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)

    def link(match: re.Match[str]) -> str:
        name = match[2].replace("\\", "")
        known = name in MEASURES or name in SCORES
        return f"{match[1]} [{match[2]}](#{_anchor(name)})" if known and name != own else match[0]

    return re.sub(r"\b([Ss]ee|see the score|take|[Aa]s|than|in|of) ([a-z\\_]+)\b", link, text)


def commands() -> str:
    """Each command with what it takes, in the order of the work."""
    group: Any = typer.main.get_command(app)
    names = group.list_commands(None)
    return "\n".join(line for name in names for line in _command(name, group.commands[name]))


def _command(name: str, command: Any) -> Iterator[str]:
    about, *more = command.help.split("\n\n")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["headscope", name, *(parameter.name.upper() for parameter in arguments)])
    yield from (f"## {name}", "", _plain(about), "")
    example = [part.removeprefix("Example: ") for part in more if part.startswith("Example: ")]
    yield from (_plain(part) + "\n" for part in more if not part.startswith("Example: "))
    yield from ("```sh", *example, "```", "")
    yield from (f"`{usage} [options]`", "", "| | | default |", "|---|---|---|")
    for argument in arguments:
        yield f"| `{argument.name.upper()}` | {_plain(argument.help or '')} | |"
    for option in options:
        yield f"| `{option.opts[0]}` | {_plain(option.help or '')} | {_default(option)} |"
    yield ""


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return _plain(option.show_default)
    if option.required:
        return "needed"
    nothing = option.default is None or option.default is False
    return "" if nothing else f"`{option.default}`"


def coverage(path: Path) -> str:
    """How often intervals held the truth, in percent: a row for each amount of text, a column for each number."""
    if not path.exists():
        return f"No result is committed; `python analyses/interval_coverage.py --out coverage` makes {path.name}.\n"
    table = pd.read_csv(path)
    names = sorted(table["name"].unique())
    found = table.set_index(["tokens_per_dimension", "documents", "name", "lengths"])["coverage"].to_dict()
    lines = ["| tokens a dimension | documents | " + " | ".join(map(_plain, names)) + " |"]
    lines.append("|---:" * (2 + len(names)) + "|")
    for per, documents in sorted({case[:2] for case in found}):
        cells = [
            " · ".join(
                _percent(found[case]) if (case := (per, documents, name, kind)) in found else "–"
                for kind in ("equal", "unequal")
            )
            for name in names
        ]
        lines.append(f"| {per} | {documents} | " + " | ".join(cells) + " |")
    inside, values = table["coverage"].between(*_WISHED), table["coverage"]
    sentences = (
        "In each cell: documents of equal length · of unequal length. "
        f"{inside.sum()} of {len(table)} lie within 90 and 98% (the others are bold); "
        f"the lowest is {values.min():.1%}, the highest {values.max():.1%}. "
        f"The standard error of one is at most {100 * table['error'].max():.1f} points."
    )
    return "\n".join([*lines, "", sentences, ""])


def _percent(share: float) -> str:
    words = f"{100 * share:.1f}"
    return words if _WISHED[0] <= share <= _WISHED[1] else f"**{words}**"


def ratios(path: Path) -> str:
    """What watching and comparing cost, a table for each piece of work."""
    if not path.exists():
        return f"No result is committed; `python analyses/benchmark.py --out benchmark` makes {path.name}.\n"
    table = pd.read_csv(path, keep_default_na=False)
    lines = []
    for work, own in table.groupby("work", sort=False):
        lines += ["", f"**{_plain(work[0].upper() + work[1:])}**", "", "| | | ratio | goal |", "|---|---|---:|---|"]
        lines += [f"| {row.case} | {_plain(row.arm)} | {row.ratio:.2f} | {row.goal} |" for row in own.itertuples()]
    run = f"Run with {', then '.join(table['machine'].unique())}; as a table: [{path.name}]({path.name})."
    return "\n".join([*lines, "", run, ""])
