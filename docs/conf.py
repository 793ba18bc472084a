"""Settings of the documentation site, and the pages that are made from the registries of measures and scores.

python -m sphinx -W -b html docs docs/_build
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from headscope import __version__
from headscope.cards import Card
from headscope.measures import MEASURES
from headscope.scores import SCORES

project = "headscope"
author = "the headscope developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "changes"]
html_theme = "furo"
html_title = "headscope"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # signatures carry shapes; the text says what they mean
autodoc_member_order = "bysource"
napoleon_use_ivar = True
suppress_warnings = ["config.cache"]

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


def page(title: str, kind: str, entries: Mapping[str, type]) -> str:
    """A page of cards: a table of all, and a section each. An entry without a card fails the build."""
    rows = [f"| [{name}](#{name.replace('_', '-')}) | {_summary(entry)} |" for name, entry in entries.items()]
    parts = [f"# {title}", "", f"| {kind} | what it is |", "|---|---|", *rows, ""]
    for name, entry in entries.items():
        card: Card = entry.card
        compares = f"\n\nCompares: {', '.join(entry.sources)}." if hasattr(entry, "sources") else ""
        parts += [f"({name.replace('_', '-')})=", f"## `{name}`", "", _summary(entry) + compares, ""]
        for field in fields(Card):
            parts += [_TITLES[field.name], f": {_plain(getattr(card, field.name))}", ""]
    return "\n".join(parts)


def _summary(entry: type) -> str:
    return _plain((entry.__doc__ or "").split("\n\n")[0].replace("\n", " ").split("; see")[0].rstrip(".") + ".")


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    for mark in ("\\", "*", "_", "|", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def write_pages(folder: Path) -> None:
    """Write measures.md and scores.md into a folder."""
    folder.mkdir(exist_ok=True)
    measures = page("Measures: how alike two heads are", "measure", MEASURES)
    scores = page("Scores: what one head is worth", "score", SCORES)
    (folder / "measures.md").write_text(measures, encoding="utf-8")
    (folder / "scores.md").write_text(scores, encoding="utf-8")


write_pages(Path(__file__).parent / "generated")
