"""Pages of claims: one for each claim and one over all, in Markdown, with figures; made from results alone."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headscope.folders import new_file
from headscope.formatting import MISSING, interval, number
from headscope.reporting.figures import styling
from headscope.studies.claims import CLAIMS, claim_named, in_order
from headscope.studies.headcount.results import Sweep
from headscope.studies.rulings import Ruling, Rulings

__all__ = ["index_page", "index_page_ja", "page", "write_pages"]

_INTRODUCTION = (
    "What the paper on multi-head attention says, claim by claim, and what came of measuring it. Each verdict follows "
    "from one number and a rule that was set before; the pages say which, how far it reaches, and the command that "
    "makes it again."
)
_INTRODUCTION_JA = (
    "マルチヘッドアテンションの論文が述べる主張を一つずつ測定し、その結果をまとめた表です。"
    "判定は、あらかじめ決めた一つの数値と基準だけから導きます。括弧内はその数値と95%区間です。"
    "測定方法、適用範囲、再現コマンドは各主張のページ(英語)にあります。"
)
_WORDS_JA = (
    "「支持される」は論文の記述どおりの結果が得られたこと、「支持されない」は得られなかったこと、"
    "「条件による」は条件(課題・カーネル・モデルなど)によって結果が変わることを表します。"
)
_VERDICTS_JA = {
    "supported": "支持される",
    "not supported": "支持されない",
    "depends": "条件による",
    "not decided here": "ここでは判定しない",
}
_DPI = 110


def write_pages(made: Sequence[Rulings], folder: Path, sweep: Sweep | None = None) -> None:
    """Write C1.md …, index.md, index.ja.md and figures/ into an existing folder.

    Args:
        made: results of one subject or of several, side by side.
        folder: where.
        sweep: runs with few heads and many, for what they add.
    """
    names = _names(made)
    (folder / "figures").mkdir(exist_ok=True)
    for name in names:
        claim = claim_named(name)
        for one in made:
            if name in one and not one[name].table.empty:
                with styling():
                    claim.draw(one[name].table).savefig(folder / "figures" / _figure(name, one), dpi=_DPI)
        sentence, further = ("", {}) if sweep is None else claim.beside(sweep)
        for title, figure in further.items():
            with styling():
                figure.savefig(folder / "figures" / f"{name}-{title}.png", dpi=_DPI)
        new_file(folder / f"{name}.md", page(name, made, sentence, list(further)), force=True)
    new_file(folder / "index.md", index_page(made), force=True)
    new_file(folder / "index.ja.md", index_page_ja(made), force=True)


def page(name: str, made: Sequence[Rulings], beside: str = "", figures: Sequence[str] = ()) -> str:
    """One claim's page: what the paper says, how it is measured, what came out of whom, limits, commands.

    Args:
        name: "C7".
        made: results; those of subjects that the claim was not put to are left out.
        beside, figures: what training with few heads and many adds, and the names of its figures.
    """
    claim = claim_named(name)
    rows = [
        (one.subject, f"**{ruling.verdict}**", number(ruling.effect), _ends(ruling), ruling.over or MISSING)
        for one, ruling in _rulings(name, made)
    ]
    parts = [
        f"# {name}: {claim.about}",
        f"> {claim.says}\n>\n> {claim.says_ja}",
        f"## How it is measured\n\n{claim.measured}",
        f"The number that decides: {claim.unit}. It was settled beforehand what counts: {claim.rule}.",
        "## What came out",
        _table(("asked of", "verdict", "effect", "95% interval", "over"), rows),
    ]
    for one, ruling in _rulings(name, made):
        parts.append(f"### {one.subject}\n\n{ruling.sentence}")
        if not ruling.table.empty:
            parts.append(f"![{name}, {one.subject}](figures/{_figure(name, one)})")
        parts.append(f"```sh\n{ruling.command}\n```\n\n{_made(one)}")
    if figures:
        parts += ["### trained with few heads and with many", *([beside] if beside else [])]
        parts += [f"![{name}, {title}](figures/{name}-{title}.png)" for title in figures]
        parts.append("```sh\nheadscope headcount --out heads\n```")
    return "\n\n".join([*parts, f"## How far it reaches\n\n{claim.limits}"]) + "\n"


def index_page(made: Sequence[Rulings]) -> str:
    """All claims in one table, a column for each subject."""
    rows = []
    for name in _names(made):
        claim = claim_named(name)
        verdicts = [_brief(one[name]) if name in one else MISSING for one in made]
        rows.append((f"[{name}]({name}.md)", claim.about, claim.says, *verdicts))
    head = ("claim", "about", "the paper says", *(one.subject for one in made))
    parts = ["# The paper's claims, measured", _INTRODUCTION, _table(head, rows)]
    return "\n\n".join([*parts, *(f"{one.subject}: {_made(one)}" for one in made)]) + "\n"


def index_page_ja(made: Sequence[Rulings]) -> str:
    """The same in Japanese."""
    rows = []
    for name in _names(made):
        claim = claim_named(name)
        verdicts = [_brief(one[name], _VERDICTS_JA) if name in one else MISSING for one in made]
        rows.append((f"[{name}]({name}.md)", claim.about_ja, claim.says_ja, *verdicts))
    head = ("主張", "内容", "論文の記述", *(_subject_ja(one.subject) for one in made))
    return "\n\n".join(["# 論文の主張を測る", _INTRODUCTION_JA, _table(head, rows), _WORDS_JA]) + "\n"


def _names(made: Iterable[Rulings]) -> list[str]:
    found = {ruling.claim for one in made for ruling in one.rulings}
    return in_order(found & set(CLAIMS))


def _rulings(name: str, made: Iterable[Rulings]) -> Iterator[tuple[Rulings, Ruling]]:
    return ((one, one[name]) for one in made if name in one)


def _figure(name: str, one: Rulings) -> str:
    return f"{name}-{one.slug}.png"


def _brief(ruling: Ruling, words: dict[str, str] | None = None) -> str:
    verdict = ruling.verdict if words is None else words[ruling.verdict]
    if ruling.effect != ruling.effect:
        return verdict
    ends = "" if ruling.low == ruling.high or ruling.low != ruling.low else f", {_ends(ruling)}"
    return f"**{verdict}** ({number(ruling.effect)}{ends if words is None else ends.replace(' to ', '〜')})"


def _ends(ruling: Ruling) -> str:
    return MISSING if ruling.low == ruling.high else interval(ruling.low, ruling.high)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _made(one: Rulings) -> str:
    """Where the numbers come from, in a line."""
    facts: dict[str, Any] = dict(one.facts)
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    taste = " A quick look: fewer seeds, less text." if facts.get("quick") else ""
    timed = f" Timed on {facts['machine']}." if "costs" in facts else ""
    return f"Made on {facts['date']} with {versions}.{timed}{taste}"


def _subject_ja(subject: str) -> str:
    return "参照モデル" if subject == "reference" else subject
