"""What pages hold that is made from the code and from results: python docs/pages.py writes it anew.

Each piece stands in its page between two marks; what is around it is written by hand. A test compares the two.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import docstrings
import families
import pandas as pd
import typer

import headscope
import headscope.errors
from headscope import Card
from headscope._support.registry import Registry
from headscope.cli import app
from headscope.likeness.measures import MEASURES, Measure
from headscope.reporting import figures
from headscope.scoring.scores import SCORES
from headscope.studies.claims import claim_named
from headscope.studies.provenance import subject_name
from headscope.studies.rulings import Rulings

__all__ = [
    "PIECES",
    "cards",
    "changes",
    "commands",
    "coverage",
    "filled",
    "ratios",
    "reference",
    "rules",
    "write_pages",
]

HERE = Path(__file__).parent
_BEGIN, _END = "<!-- made by: python docs/pages.py -->", "<!-- up to here -->"
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
_KINDS = {"feature": "New", "change": "Changed", "fix": "Mended", "removal": "Gone"}


def filled(page: str, piece: str) -> str:
    """A page with the piece between its marks.

    Args:
        page: the page's text.
        piece: what is to stand there.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no line {_BEGIN!r} with {_END!r} after it")
    return f"{before}{_BEGIN}\n\n{piece.strip()}\n\n{_END}{after}"


def write_pages(folder: Path) -> None:
    """Make every piece and put it into its page.

    Args:
        folder: of the pages.
    """
    for name, make in PIECES.items():
        path = folder / f"{name}.md"
        path.write_text(filled(path.read_text(encoding="utf-8"), make()), encoding="utf-8")


def cards(registry: Registry[Any]) -> str:
    """A table of all entries, and a section each.

    Args:
        registry: of measures or scores.

    Raises:
        ValueError: an entry has no card, or one with an empty line.
    """
    rows = [_row(name, entry) for name, entry in registry.items()]
    columns = list(rows[0])
    table = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    table += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    sections = [line for name, entry in registry.items() for line in _section(registry.kind, name, entry)]
    return "\n".join([*table, "", *sections])


def _row(name: str, entry: type) -> dict[str, str]:
    card = _card(name, entry)
    row = {_kind(entry): f"[`{name}`](#{name})", "what it tells": _about(entry)}
    if issubclass(entry, Measure):
        least, greatest = entry.bounds
        sides = "yes" if entry.symmetric else "no"
        values = f"{least:g} to {greatest:g}".replace("inf", "∞")
        return row | {"of": ", ".join(entry.sources), "symmetric": sides, "values": values}
    return row | {"unit": _plain(card.unit), "cost": _plain(card.cost)}


def _section(kind: str, name: str, entry: Any) -> Iterator[str]:
    card = _card(name, entry)
    yield from (f"## {name}", "", _about(entry), "")
    if issubclass(entry, Measure):
        yield f"- **Compares**: {', '.join(entry.sources)}"
    for field in fields(Card):
        linked = field.name in ("cost", "use", "source")
        words = _plain(getattr(card, field.name))
        yield f"- **{_TITLES[field.name]}**: {_linked(words, name) if linked else words}"
    if settings := ", ".join(f"{field.name}={field.default!r}" for field in fields(entry)):
        yield f"- **Settings**: `{entry.__name__}({settings})`"
    yield from (f"- **In code**: `{entry.__module__}.{entry.__name__}`, the {kind} `{name!r}`", "")


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
    told = line.split(": ", 1)[-1]
    return _plain(told[:1].upper() + told[1:])


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    return re.sub(r"([\\*_|<\[$])", r"\\\1", " ".join(text.split()))


def _linked(text: str, own: str) -> str:
    """Papers as links, and other measures and scores where they are pointed at."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)

    def link(match: re.Match[str]) -> str:
        name = match[2].replace("\\", "")
        page = next((page for page, known in (("measures", MEASURES), ("scores", SCORES)) if name in known), None)
        here = "measures" if own in MEASURES else "scores"
        if page is None or name == own:
            return match[0]
        return f"{match[1]} [{match[2]}]({'' if page == here else f'{page}.md'}#{name})"

    return re.sub(r"\b([Ss]ee|see the score|take|[Aa]s|than|in|of) ([a-z\\_]+)\b", link, text)


def commands() -> str:
    """Each command with what it takes, in the order of the work."""
    group: Any = typer.main.get_command(app)
    return "\n".join(line for name in group.list_commands(None) for line in _command(name, group.commands[name]))


def _command(name: str, command: Any) -> Iterator[str]:
    told, *more = command.help.split("\n\n")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["headscope", name, *(parameter.name.upper() for parameter in arguments)])
    yield from (f"## {name}", "", _plain(told), "")
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
    nothing = option.default is None or option.default is False or option.default == ""  # and not 0
    return "" if nothing else f"`{option.default}`"


def coverage(path: Path = HERE / "coverage.csv") -> str:
    """How often intervals held the truth, in percent: a row for each amount of text, a column for each number.

    Args:
        path: of the result.
    """
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


def ratios(path: Path = HERE / "benchmark.csv") -> str:
    """What watching and comparing cost, a table for each piece of work.

    Args:
        path: of the result.
    """
    if not path.exists():
        return f"No result is committed; `python analyses/benchmark.py --out benchmark` makes {path.name}.\n"
    table = pd.read_csv(path, keep_default_na=False)
    lines = []
    for work, own in table.groupby("work", sort=False):
        lines += ["", f"**{_plain(work[0].upper() + work[1:])}**", "", "| | | ratio | goal |", "|---|---|---:|---|"]
        lines += [f"| {row.case} | {_plain(row.arm)} | {row.ratio:.2f} | {row.goal} |" for row in own.itertuples()]
    run = f"Run with {', then '.join(table['machine'].unique())}; as a table: [{path.name}]({path.name})."
    return "\n".join([*lines, "", run, ""])


def rules(path: Path = HERE / "rules.csv", results: Path = HERE / "claims") -> str:
    """For each claim the first rule and the present one, both verdicts, and why it changed.

    Args:
        path: of the first rules, first verdicts and reasons.
        results: of the claims, by subject.
    """
    made = [Rulings.load(folder) for folder in sorted(results.iterdir()) if (folder / "claims.json").exists()]
    lines = ["", "| claim | first rule and verdict | present rule and verdict | why it changed |", "|---|---|---|---|"]
    for row in pd.read_csv(path, keep_default_na=False).itertuples():
        told: dict[str, list[str]] = {}
        for one in made:
            if row.claim in one:
                subject = subject_name(one.subject, claim_named(row.claim)).en
                told.setdefault(one[row.claim].verdict.told(), []).append(subject)
        verdicts = "; ".join(f"**{verdict}**: {', '.join(subjects)}" for verdict, subjects in told.items())
        first = f"{row.first_rule}. **{row.first_verdict}**"
        present = f"{claim_named(row.claim).rule.en}. {verdicts}"
        page = f"[{row.claim}](claims/{row.claim}.md)"
        lines.append(f"| {page} | {_cell(first)} | {_cell(present)} | {_cell(row.why or 'It did not.')} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return (text[:1].upper() + text[1:]).replace("|", "\\|")


def reference() -> str:
    """Every public name, in the groups of the contents page, with its signature and what it says of itself."""
    lines = []
    for group, names in _groups():
        lines += [f"## {group}", ""]
        for name in names:
            lines += [f"### {name}", "", _told(name), ""]
    lines += ["## Errors", "", "In `headscope.errors`; each is a `HeadscopeError`, and the builtin that fits.", ""]
    for name in headscope.errors.__all__:
        lines.append(f"- `{name}`: {docstrings.about(getattr(headscope.errors, name))}")
    lines += [
        "",
        "## Figures",
        "",
        "In `headscope.reporting.figures`; those that draw take tables and, if wished, the axes to ",
    ]
    lines[-1] += "draw on, and return the axes."
    for name in figures.__all__:
        lines += ["", f"### {name}", "", docstrings.described(name, getattr(figures, name))]
    return "\n".join(lines)


def _groups() -> Iterator[tuple[str, list[str]]]:
    """The groups of headscope/__init__.py, and the names in each."""
    title, names = "", []
    source = Path(headscope.__file__).read_text(encoding="utf-8")
    for line in source[source.index("if TYPE_CHECKING:") : source.index("_PLACES = ")].splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            if names:
                yield title, names
            title, names = comment[1][0].upper() + comment[1][1:], []
        names += [name for name in re.findall(r"(\w+) as \1\b", line) if name in headscope.__all__]
    yield title, names


def _told(name: str) -> str:
    thing = getattr(headscope, name)
    if isinstance(thing, Registry):
        entries = "\n".join(f"- `{entry}`: {docstrings.about(inspect.getmodule(thing[entry]))}" for entry in thing)
        return f"The registry of each {thing.kind}: a read-only mapping from names to classes.\n\n{entries}"
    if inspect.isfunction(thing) or inspect.isclass(thing):
        return docstrings.described(name, thing)
    return _alias(name)


def _alias(name: str) -> str:
    """A type that is an assignment, with the string beneath it."""
    place = headscope._PLACE_OF[name].removeprefix("headscope.").replace(".", "/")
    tree = ast.parse((Path(headscope.__file__).parent / f"{place}.py").read_text(encoding="utf-8"))
    at = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.Assign) and node.targets[0].id == name)
    told = tree.body[at + 1].value.value
    return f"```python\n{ast.unparse(tree.body[at])}\n```\n\n{' '.join(told.split())}"


def changes(folder: Path = HERE / "changes") -> str:
    """What changed since the last release, by kind.

    Args:
        folder: of the fragments.
    """
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for path in sorted(folder.glob("*.*.md")):
        found[path.name.split(".")[1]].append(" ".join(path.read_text(encoding="utf-8").split()))
    lines = [f"## {headscope.__version__}, not yet released", ""]
    for kind, texts in found.items():
        if texts:
            lines += [f"### {_KINDS[kind]}", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


PIECES = {
    "measures": lambda: cards(MEASURES),
    "scores": lambda: cards(SCORES),
    "commands": commands,
    "coverage": coverage,
    "benchmark": ratios,
    "families": families.families,
    "reference": reference,
    "studies": rules,
    "changelog": changes,
}


if __name__ == "__main__":
    write_pages(HERE)
