"""Settings of the documentation site, and the parts of it that are made from the registries of measures and scores.

python -m sphinx -W --keep-going -q -b html docs docs/_build
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
exclude_patterns = ["_build", "_generated", "changes"]  # measures.md and scores.md include what is generated
html_theme = "furo"
html_title = "headscope"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # signatures carry shapes; the text says what they mean
autodoc_member_order = "bysource"
napoleon_use_ivar = True

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


def sections(kind: str, entries: Mapping[str, type]) -> str:
    """A table of all entries, and a section for each, out of their cards.

    Raises:
        TypeError: an entry has no card, or one with an empty field; the build fails with it.
    """
    cards = {name: _card(kind, name, entry) for name, entry in entries.items()}
    parts = [f"| {kind} | what it is | unit | values |", "|---|---|---|---|"]
    for name, entry in entries.items():
        unit, values = _plain(cards[name].unit), _plain(cards[name].span.split(";")[0].rstrip("."))
        parts.append(f"| [`{name}`](#{_label(name)}) | {_summary(entry)} | {unit} | {values} |")
    for name, entry in entries.items():
        parts += ["", f"({_label(name)})=", f"## `{name}`", "", _summary(entry), ""]
        if hasattr(entry, "sources"):
            parts += ["Compares", f": {', '.join(entry.sources)}", ""]
        for field in fields(Card):
            parts += [_TITLES[field.name], f": {_plain(getattr(cards[name], field.name))}", ""]
    return "\n".join(parts) + "\n"


def _card(kind: str, name: str, entry: type) -> Card:
    card = getattr(entry, "card", None)
    missing = [field.name for field in fields(Card) if not getattr(card, field.name, "").strip()]
    if missing:
        raise TypeError(f"the {kind} {name!r} has no card, or one that lacks {', '.join(missing)}: see docs/extend.md")
    return card


def _label(name: str) -> str:
    return name.replace("_", "-")


def _summary(entry: type) -> str:
    return _plain((entry.__doc__ or "").split("\n\n")[0].replace("\n", " ").split("; see")[0].rstrip(".") + ".")


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    for mark in ("\\", "*", "_", "|", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def write_sections(folder: Path) -> None:
    """Write measures.md and scores.md into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "measures.md").write_text(sections("measure", MEASURES), encoding="utf-8")
    (folder / "scores.md").write_text(sections("score", SCORES), encoding="utf-8")


write_sections(Path(__file__).parent / "_generated")
