"""Pages of claims: one for each claim and one over all, in Markdown, with figures; made from results alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headscope.folders import new_file
from headscope.formatting import MISSING, count, interval, markdown_table, number
from headscope.reporting.figures import styling
from headscope.studies.claims import CLAIMS, CostClaim, claim_named, in_order
from headscope.studies.headcount.results import Sweep
from headscope.studies.rulings import Ruling, Rulings

__all__ = ["index_page", "index_page_ja", "page", "write_pages"]

_INTRODUCTION = (
    "What the paper on multi-head attention says, claim by claim, and what came of measuring it. Each verdict follows "
    "from the numbers by a rule that was set before measuring; the pages say which, how far it reaches, and the "
    "command that makes it again."
)
_LEGEND = (
    "In brackets: the number that stands for the claim, and its interval. Supported: it came out as the paper says; "
    "not supported: it did not. Depends: on task, kernel or model, or met in part, or the interval is too wide to "
    "tell. –: not asked of this one."
)
_SEEDS = (
    "Over several training seeds: of their mean, 95% over the seeds, to which the half-width of a single model's "
    "interval is added as independent errors are, by the root of squares."
)
_INTRODUCTION_JA = (
    "マルチヘッドアテンションの論文が述べる主張を一つずつ測定し、その結果をまとめた表です。"
    "判定は、測定前に決めた基準に数値を当てはめて導きます。括弧内は代表的な数値とその区間(多くは95%信頼区間)です。"
    "測定方法、適用範囲、再現コマンドは各主張のページ(英語)にあります。"
)
_LEGEND_JA = (
    "「支持される」は論文の記述どおりの結果が得られたこと、「支持されない」は得られなかったことを表します。"
    "「条件による」は、条件(タスク・カーネル・モデルなど)によって結果が異なるか、基準の一部しか満たさないこと、"
    "または区間が広く判定できないことを表します。「–」はその対象では測定していないことを表します。"
)
_REMARKS_JA = {
    "C14": "C14について:小さくなるのは射影後のQ・K・Vの次元で、入力の埋め込み自体は分割されません。どのヘッドも"
    "埋め込みの全次元を読み、その中から自分の方向を選びます。「分割」という説明は、連結前の出力についてなら正確です。",
    "C16": "C16について:双方向のエンコーダでは論文のとおりです。言語モデルは因果マスクにより未来のトークンを参照しない"
    "ため、許される組は約半分です。",
}
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
    several = any(ruling.over.endswith("seeds") for _, ruling in _rulings(name, made)) and claim.of_a_model
    parts = [
        f"# {name}: {claim.about}",
        f"> {claim.says}\n>\n> {claim.says_ja}\n>\n> — the paper, abridged, under 「{claim.where_ja}」",
        f"## How it is measured\n\n{claim.measured}",
        f"In the table: {claim.unit}. What counts was settled beforehand: {claim.rule}.",
        "## What came out",
        markdown_table(("asked of", "verdict", "number", "interval", "over"), rows),
        *([f"Interval: {claim.interval}.{' ' + _SEEDS if several else ''}"] if claim.interval else []),
    ]
    for one, ruling in _rulings(name, made):
        parts.append(f"### {one.subject}\n\n{ruling.sentence}")
        if not ruling.table.empty:
            parts.append(f"![{name}, {one.subject}](figures/{_figure(name, one)})\n\n*{claim.drawn}*")
        parts.append(f"```sh\n{_lines(ruling.command)}\n```\n\n{_made(one, timed=issubclass(type(claim), CostClaim))}")
    if figures:
        parts += ["### Trained with few heads and with many", *([beside] if beside else [])]
        parts += [f"![{name}, {title}](figures/{name}-{title}.png)" for title in figures]
        parts.append("*Lines: means over training seeds; bands: their 95% intervals.*")
        parts.append(
            f"```sh\nheadscope headcount --out heads\nheadscope claims --sweep heads --claim {name} --out claims\n```"
        )
    return "\n\n".join([*parts, f"## How far it reaches\n\n{claim.limits}"]) + "\n"


def index_page(made: Sequence[Rulings]) -> str:
    """All claims in one table, a column for each subject."""
    rows = []
    for name in _names(made):
        claim = claim_named(name)
        verdicts = [_brief(one[name]) if name in one else MISSING for one in made]
        rows.append((f"[{name}]({name}.md)", claim.about, claim.says, claim.unit, *verdicts))
    head = ("claim", "about", "the paper says", "number", *(one.subject for one in made))
    parts = ["# The paper's claims, measured", _INTRODUCTION, markdown_table(head, rows), _LEGEND]
    return "\n\n".join([*parts, *(f"**{one.subject}**: {_made(one)}" for one in made)]) + "\n"


def index_page_ja(made: Sequence[Rulings]) -> str:
    """The same in Japanese."""
    rows = []
    for name in _names(made):
        claim = claim_named(name)
        verdicts = [_brief(one[name], _VERDICTS_JA) if name in one else MISSING for one in made]
        rows.append((f"[{name}]({name}.md)", claim.about_ja, claim.says_ja, claim.unit_ja, *verdicts))
    head = ("主張", "内容", "論文の記述(要約)", "数値", *(_subject_ja(one.subject) for one in made))
    parts = ["# 論文の主張を測る", _INTRODUCTION_JA, markdown_table(head, rows), _LEGEND_JA]
    parts += [remark for name, remark in _REMARKS_JA.items() if name in _names(made)]
    return "\n\n".join([*parts, *(_made_ja(one) for one in made)]) + "\n"


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
    ends = "" if _ends(ruling) == MISSING else f", {_ends(ruling)}"
    return f"**{verdict}** ({number(ruling.effect)}{ends if words is None else ends.replace(' to ', '〜')})"


def _ends(ruling: Ruling) -> str:
    return interval(ruling.low, ruling.high) or MISSING


def _lines(command: str) -> str:
    """A command a line."""
    return command.replace(" && ", "\n")


def _made(one: Rulings, *, timed: bool = True) -> str:
    """What was asked, and where the numbers come from, in a few lines."""
    facts: dict[str, Any] = dict(one.facts)
    timing = f" Timed on {facts['machine']}." if timed and ("costs" in facts or "documents" in facts) else ""
    taste = " A quick look: fewer seeds, less text." if facts.get("quick") else ""
    return f"{_asked(facts)}Made on {facts['date']} with {_versions(facts)}.{timing}{taste}"


def _made_ja(one: Rulings) -> str:
    return f"**{_subject_ja(one.subject)}**:測定日 {one.facts['date']}、{_versions(one.facts)}。"


def _asked(facts: Mapping[str, Any]) -> str:
    subject = facts.get("subject", facts)
    if "documents" not in subject:  # layers of many sizes, or a sweep
        return ""
    unit = f" ({subject['unit']})" if subject["unit"] else ""
    documents = count(subject["documents"], "document")
    return f"{subject['about']}; {documents}, judged by {subject['metric']}{unit}, seed {subject['seed']}. "


def _versions(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts["versions"].items())


def _subject_ja(subject: str) -> str:
    return f"参照モデル{subject.removeprefix('reference')}" if subject.startswith("reference") else subject
