"""Pages of claims: one for each claim and one over all, in Markdown, with figures; made from results alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headscope._support.folders import new_file
from headscope._support.formatting import MISSING, count, interval, markdown_table, number
from headscope.models.demo import DEMO_MODELS, how_to_install
from headscope.reporting.figures import styling
from headscope.studies.asking import REFERENCE
from headscope.studies.claims import CLAIMS, Claim, CostClaim, ModelClaim, SweepClaim, claim_named
from headscope.studies.headcount.results import Sweep
from headscope.studies.rulings import Ruling, Rulings

__all__ = ["index_page", "index_page_ja", "page", "write_pages"]

_INTRODUCTION = (
    "What the paper says, claim by claim, and what came of measuring it ([日本語](index.ja.md)). The paper is the "
    "Japanese text on multi-head attention that this project began with and quotes in its documentation; it is not "
    "Vaswani et al. 2017 ([arXiv:1706.03762](https://arxiv.org/abs/1706.03762)), who introduced it. Each verdict "
    "follows from the numbers by a rule; the pages say which, how far it reaches, and the command that makes it again. "
    "When the rules were written, and what was changed later, stands in the documentation of the studies."
)
_LEGEND = (
    "In brackets: the number that stands for the claim, and its interval. Supported: it came out as the paper says; "
    "not supported: it did not. Depends: on task, kernel or model, or met in part, or the interval is too wide to "
    "tell. –: not asked of this one."
)
_WORDS = (
    "z is a head's output before the output projection, head_dim its dimensions; a map, a head's weights for all "
    "pairs of tokens. Kernels: eager writes every map out, sdpa never does. Loss is in nats (natural logarithms); drift"
    " is 1 − the cosine of the model's pooled output with its own before heads were removed."
)
_SEEDS = (
    "Over several training seeds: of their mean; its half-width is √(a² + b²), with a that of 95% over the seeds and b "
    "that of a single model's interval."
)
_INTRODUCTION_JA = (
    "論文が述べる主張を一つずつ測定し、その結果をまとめた表です。ここでいう論文とは、マルチヘッドアテンションを解説した"
    "日本語の文章で、このプロジェクトの出発点です(原文はこのプロジェクトの文書に引用しています)。マルチヘッドアテンションを提案した"
    "Vaswaniら(2017、[arXiv:1706.03762](https://arxiv.org/abs/1706.03762))とは別の文章です。"
    "判定は、各ページに記した基準に数値を当てはめて導きます(基準の変更の経緯は調査スクリプトの説明にあります)。"
    "括弧内は代表的な数値とその区間(多くは95%信頼区間)です。"
    "測定方法、適用範囲、再現コマンドは各主張のページ(英語)にあります。"
)
_LEGEND_JA = (
    "「支持される」は論文の記述どおりの結果が得られたこと、「支持されない」は得られなかったことを表します。"
    "「条件による」は、条件(タスク・カーネル・モデルなど)によって結果が異なるか、基準の一部しか満たさないこと、"
    "または区間が広く判定できないことを表します。「–」はその対象では測定していないことを表します。"
)
_WORDS_JA = (
    "用語:zは出力射影を通す前の各ヘッドの出力、マップは全トークンの組に対するヘッドの重みです。eagerはマップをすべてメモリに"
    "書き出す計算方式(カーネル)、sdpaは書き出さない方式です。有効ランクは、データが実質いくつの方向に広がるかを表します。"
    "「学習できた量」は、偶然の水準と最良のヘッド数との誤差の差です。"
)
_REFERENCE_JA = "このツールが学習させる小さな因果Transformer。Pythonの文書で次のバイトを予測します"
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
        f"In the table: {claim.unit}. The rule: {claim.rule}.",
        "## What came out",
        markdown_table(("model", "verdict", "number", "interval", "measured on"), rows),
        *([f"Interval: {claim.interval}.{' ' + _SEEDS if several else ''}"] if claim.interval else []),
    ]
    for one, ruling in _rulings(name, made):
        parts.append(f"### {one.subject}\n\n{ruling.sentence}")
        if not ruling.table.empty:
            parts.append(f"![{name}, {one.subject}](figures/{_figure(name, one)})\n\n*{claim.drawn}*")
        parts.append(f"```sh\n{_lines(ruling.command)}\n```\n\n{_made(one, [claim])}")
    if figures:
        parts += ["### Trained with few heads and with many", *([beside] if beside else [])]
        parts += [f"![{name}, {title}](figures/{name}-{title}.png)" for title in figures]
        parts.append("*Lines: means over training seeds; bands: their 95% intervals.*")
        parts.append(
            f"```sh\nheadscope headcount --out heads\nheadscope claims --sweep heads --claim {name} --out "
            f"claims-{name}-heads\n```"
        )
    return "\n\n".join([*parts, f"## How far it reaches\n\n{claim.limits}", "[All claims](index.md)"]) + "\n"


def index_page(made: Sequence[Rulings]) -> str:
    """All claims in one table, a column for each subject."""
    rows = []
    for name in _names(made):
        claim = claim_named(name)
        verdicts = [_brief(one[name]) if name in one else MISSING for one in made]
        rows.append((f"[{name}]({name}.md)", claim.about, claim.says, claim.unit, *verdicts))
    head = ("claim", "about", "the paper says", "number", *(one.subject for one in made))
    parts = ["# The paper's claims, measured", _INTRODUCTION, markdown_table(head, rows), _LEGEND, _WORDS]
    named = {name: claim_named(name) for name in _names(made)}
    parts += [f"On {name}: {claim.remark}" for name, claim in named.items() if claim.remark]
    each = (f"**{one.subject}**: {_made(one, [named[ruling.claim] for ruling in one.rulings])}" for one in made)
    return "\n\n".join([*parts, *each]) + "\n"


def index_page_ja(made: Sequence[Rulings]) -> str:
    """The same in Japanese."""
    rows = []
    for name in _names(made):
        claim = claim_named(name)
        verdicts = [_brief(one[name], _VERDICTS_JA) if name in one else MISSING for one in made]
        rows.append((f"[{name}]({name}.md)", claim.about_ja, claim.says_ja, claim.unit_ja, *verdicts))
    head = ("主張", "内容", "論文の記述(要約)", "数値", *(_subject_ja(one.subject) for one in made))
    parts = ["# 論文の主張を測る", "[English](index.md)", _INTRODUCTION_JA, markdown_table(head, rows), _LEGEND_JA]
    named = {name: claim_named(name) for name in _names(made)}
    parts += [_WORDS_JA, *(f"{name}について:{claim.remark_ja}" for name, claim in named.items() if claim.remark_ja)]
    return "\n\n".join([*parts, *(_made_ja(one) for one in made)]) + "\n"


def _names(made: Iterable[Rulings]) -> list[str]:
    found = {ruling.claim for one in made for ruling in one.rulings}
    return [name for name in CLAIMS if name in found]


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


def _made(one: Rulings, claims: Iterable[Claim]) -> str:
    """What claims were asked of, and where the numbers come from, in a few lines.

    Args:
        one: the results.
        claims: those that it is told for.
    """
    facts: dict[str, Any] = dict(one.facts)
    kinds = {kind for claim in claims for kind in (ModelClaim, SweepClaim, CostClaim) if isinstance(claim, kind)}
    subject, parts = facts.get("subject", facts), []
    timed = CostClaim in kinds and "costs" not in facts  # a named model, not layers of many sizes
    if "documents" in subject and (ModelClaim in kinds or timed):
        parts.append(_subject(subject))
    if CostClaim in kinds and "costs" in facts:
        parts.append(_layers(facts["costs"]))
    if SweepClaim in kinds and "sweep" in facts:
        parts.append(_trained(facts["sweep"]))
    parts.append(f"Made on {facts['date']} with {_versions(facts)}.")
    if CostClaim in kinds:
        parts.append(f"Timed on {facts['machine']}.")
    if facts.get("quick"):
        parts.append("A quick look: fewer seeds, less text.")
    return " ".join(parts)


def _subject(facts: Mapping[str, Any]) -> str:
    """A trained model and its text."""
    unit = f" ({facts['unit']})" if facts["unit"] else ""
    text = f"a text of {count(facts['documents'], 'document')} {facts.get('text', '')}".rstrip()
    install = f" (installed with `{how_to_install(facts['model'])}`)" if facts["model"] in DEMO_MODELS else ""
    return f"{facts['about']}{install}; {text}; metric {facts['metric']}{unit}; seed {facts['seed']}."


def _layers(facts: Mapping[str, Any]) -> str:
    """What was timed."""
    width, heads = facts["width"], facts["heads"]
    fixed = facts["head_dim"] or width // heads
    return (
        f"One layer without a mask, {width} wide: against length with {heads} heads of {width // heads} dimensions, "
        f"against heads at {facts['length']} tokens, with {fixed} dimensions a head where they are fixed; "
        f"{facts['rounds']} rounds."
    )


def _trained(facts: Mapping[str, Any]) -> str:
    """The runs of a sweep."""
    own = facts["settings"]
    return (
        f"Small transformers, each trained for it: {len(own['tasks'])} tasks ({', '.join(own['tasks'])}), "
        f"{own['heads'][0]} to {own['heads'][-1]} heads, at fixed width and with {own['head_dim']} dimensions a head, "
        f"{own['seeds']} seeds; trained by {facts['date']} with {_versions(facts)}."
    )


def _made_ja(one: Rulings) -> str:
    """The same for the index in Japanese, in brief."""
    facts: dict[str, Any] = dict(one.facts)
    subject = facts.get("subject", facts)
    parts = []
    if "documents" in subject:
        about = _REFERENCE_JA if one.subject == REFERENCE else subject["about"]
        parts.append(f"{about}(評価文書{subject['documents']}件、シード{str(subject['seed']).replace(' to ', '〜')})。")
    if "costs" in facts:
        parts.append(f"C5・C8:幅{facts['costs']['width']}の1層を計時({facts['machine'].replace(', ', '、')})。")
    if "sweep" in facts:
        own = facts["sweep"]["settings"]
        counts = f"{own['heads'][0]}〜{own['heads'][-1]}ヘッド"
        parts.append(f"C7・C10・C11:{len(own['tasks'])}タスクを{counts}、シード{own['seeds']}個で学習。")
    parts.append(f"測定日 {facts['date']}、{_versions(facts).replace(', ', '、')}。")
    return f"**{_subject_ja(one.subject)}**:{''.join(parts)}"


def _versions(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts["versions"].items())


def _subject_ja(subject: str) -> str:
    """In Japanese, "reference on H100" is 参照モデル(H100)."""
    if not subject.startswith(REFERENCE):
        return subject
    place = subject.removeprefix(REFERENCE).strip().removeprefix("on ")
    return f"参照モデル({place})" if place else "参照モデル"
