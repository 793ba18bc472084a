"""Pages of claims, in English and in Japanese: one for each claim and one over all; made from results alone."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from headscope._support.folders import new_file
from headscope._support.formatting import MISSING, interval, markdown_table, number
from headscope.reporting.figures import styling
from headscope.studies.bilingual import LANGUAGES, NOTHING, Both, Language, joined
from headscope.studies.claims import CLAIMS, KINDS, VERDICTS, Claim, Verdict, claim_named
from headscope.studies.headcount.results import Sweep
from headscope.studies.provenance import made_of, measured_on, subject_name
from headscope.studies.rulings import Ruling, Rulings

__all__ = ["index_page", "page", "write_pages"]

_TITLE = Both("The paper's claims, measured", "論文の主張を測る")
_INTRODUCTION = Both(
    "What the paper says, claim by claim, and what came of measuring it. The paper is the Japanese text on multi-head "
    "attention that this project began with and quotes in its documentation. It is not Vaswani et al. 2017 "
    "([arXiv:1706.03762](https://arxiv.org/abs/1706.03762)), who introduced multi-head attention. Each verdict "
    "follows from the numbers by a rule. A claim's page tells the rule, how far it reaches and the command that "
    "measures it again. The README's numbers of MiniLM differ a little from those here: they are of documents that "
    "heads were not chosen on. docs/studies.md tells how the rules changed.",
    "論文が述べる主張を一つずつ測定し、その結果をまとめました。ここでいう論文とは、"
    "マルチヘッドアテンションを解説した日本語の文章で、このプロジェクトの出発点です(原文はdocs/paper.ja.mdに"
    "引用しています)。マルチヘッドアテンションを提案したVaswaniら(2017、"
    "[arXiv:1706.03762](https://arxiv.org/abs/1706.03762))とは別の文章です。判定は、数値に基準を当てはめて導きます。"
    "基準、適用範囲、測り直すためのコマンドは各主張のページにあります。READMEにあるMiniLMの値は、"
    "ヘッドの選択に使っていない文書で測ったものなので、ここの値とは少し異なります。基準の変更の経緯は、"
    "文書の「Studies」(docs/studies.md、英語)にあります。",
)
_LEGEND = Both(
    "**Holds**: it came out as the paper says. **Holds in part**: the brackets say where. **Does not hold**: it came "
    "out otherwise. **Not decided**: the brackets say what it would take. What the paper says *can* happen holds once "
    "it has been shown clearly in trained models; its page says where it begins.",
    "**成り立つ**:論文の記述どおりの結果になりました。**一部で成り立つ**:どこで成り立つかを括弧内に示します。"
    "**成り立たない**:異なる結果になりました。**未判定**:判定に必要なものを括弧内に示します。「可能性がある」"
    "「場合がある」という記述は、学習済みモデルで明確に一度示せれば成り立つとし、"
    "どこから起きるかを各ページに示します。",
)
_WORDS = Both(
    "The width is that of the embedding. A mask hides pairs of tokens from a layer. In a causal layer a token sees "
    "itself and those before it, in an encoder layer all, in a windowed layer no more than a number of those near it. "
    "z is a head's output before the output projection, head_dim its dimensions. A head's contribution is what it adds "
    "to the layer's output, z through its part of the projection; the head writes it, as is also said. A map is a "
    "head's attention weights for all pairs of tokens. Two kernels compute attention: eager writes every map out, sdpa "
    "never does. Loss is in nats (natural logarithms). Drift is 1 − the cosine of the model's pooled output with its "
    "own before heads were removed: 0 is no change. An untrained copy is the same model with weights drawn anew. What "
    "is learnt, on a task, is how far below chance the best number of heads errs; the tasks are look-ups of 4 of 16 "
    "pairs (lookups), maps drawn at random, of 8 to 64 tokens (maps-8 to maps-64), the next byte of prose (language) "
    "and handwritten digits (digits). A training seed is that of the random numbers that a model's first weights are "
    "drawn with. An interval tells how far a number would move with other texts, other seeds or other rounds of "
    "timing: it is meant to hold the true value in at least 95 of 100, and docs/coverage.md counts how often intervals "
    "over documents did.",
    "幅は埋め込み次元のことです。マスクは、特定のトークンの組を計算結果から除く仕組みです。因果層では各トークンが自分とそれより前だけを、"
    "エンコーダ層ではすべてのトークンを、窓付き層では近くの決まった数のトークンだけを見ます。"
    "zは出力射影(論文のいう、連結された行列にかける線形変換)を通す前の各ヘッドの出力、head_dimはその次元数です。"
    "寄与は、1個のヘッドの出力をその線形変換に通したもの(そのヘッドが層の出力に足す分)で、「ヘッドが書き込む」"
    "とも言います。論文の「アテンションスコア」(ソフトマックス後の値)を、ここでは「アテンションの重み」、"
    "それを全トークンの組について並べた表を「マップ」と呼びます。アテンションの計算方式(カーネル)は2通りで、"
    "eagerはマップをすべてメモリに書き出し、sdpaは書き出しません。損失の単位はnat(自然対数)です。driftは、"
    "文全体を1つのベクトルにまとめたモデル出力が、ヘッドを除く前後でどれだけ変わったかを表し、"
    "1−コサイン類似度です(0なら同じ)。未学習の複製は、同じ構造で重みだけを初期化し直したモデルです。学習できた量は、"
    "でたらめに答えたときの誤差から、最良のヘッド数での誤差を引いた値です。タスクは、"
    "16組の中から4個のキーの値を答えるlookups、ランダムに作った8〜64トークンのマップを再現するmaps-8〜maps-64、"
    "英文の次のバイトを当てるlanguage、手書き数字を当てるdigitsです。学習シードは、"
    "重みの初期値などを決める乱数の種です。区間は、測るテキスト、学習シード、計時の回を取り替えたときに数値がどの程度動くかを"
    "表す幅です。95%区間は、同じ手順を100回繰り返せば95回以上は真の値を含むように作ったものです。"
    "文書についての区間が実際に含んだ割合は、docs/coverage.md(英語)で数えています。",
)
_BOX_OF = ("C6", "C9", "C12")
_BOX = Both(
    "> **How C6, C9 and C12 can all be as they are.** They ask three different things. C6 compares heads two at a "
    "time: two heads can be unlike. C9 asks what *all* the others of a layer give together, once weights are adjusted "
    "to it: many unlike heads can make up a good part of one. C12 takes one head away and adjusts nothing: the model "
    "then misses even what others could have given. So heads can differ, be partly replaceable and matter, all at "
    "once.",
    "> **C6・C9・C12が矛盾しない理由。** 3つは別々の問いです。C6はヘッドを2個ずつ比べます。"
    "2個のヘッドは互いに異なっていて構いません。C9は、同じ層の残り*すべて*を使い、重みを調整すれば、"
    "そのヘッドの出力をどこまで再現できるかを調べます。互いに異なるヘッドでも、"
    "集まれば1個のかなりの部分を再現できます。C12は1個を除くだけで、何も調整しません。"
    "他のヘッドで補えたはずの分も失われます。したがって、ヘッドは互いに異なり、一部は代替でき、"
    "しかも除けば影響が出る、ということが同時に成り立ちます。",
)
_SEEDS = Both(
    "Over several training seeds: of their mean; its half-width is √(a² + b²), with a that of 95% over the seeds and b "
    "that of a single model's interval.",
    "学習シードが複数あるときは、シードによるばらつきと、1つのモデルを測るときのばらつきの両方を含む区間(半幅は、"
    "それぞれの95%区間の半幅aとbから√(a²+b²))。",
)
_MEANS, _OUT = Both("What this means", "要点"), Both("What came out", "測定結果")
_HEAD = Both("model,verdict,number,interval,measured on", "モデル,判定,数値,区間,測った対象と数")
_NUMBER = Both("Number", "数値")
_INTERVAL = Both("Interval", "区間")
_KIND, _RULE = Both("Kind of claim", "主張の種類"), Both("The rule", "判定基準")
_FOLLOWS, _MEASURED = Both("What follows", "ここから言えること"), Both("How it is measured", "測定方法")
_REACHES = Both("How far it reaches", "適用範囲")
_TRAINED = Both("Trained with few heads and with many", "ヘッド数を変えて学習した結果")
_LINES = Both(
    "Lines: means over training seeds; bands, where there are any: their 95% intervals.",
    "線は学習シードの平均、帯(ある場合)は95%区間。",
)
_DOTTED = Both(
    "Dotted, where there are any: the same learners before training.", "点線(ある場合)は同じモデルの学習前の値。"
)
_SHOWN = {
    "bound": Both(
        "How far the maps that heads make stay from those they were to match, as a share of a uniform map's distance.",
        "ヘッドのマップと、再現すべきマップとのずれ(一様なマップのずれに対する割合)。横軸はhead_dim÷マップの長さ。",
    ),
    "cka": joined([Both("Mean CKA of two heads of a layer.", "同じ層の2個のヘッドのCKAの平均。"), _DOTTED]),
    "effective_heads": joined([Both("Effective heads of a layer, by outputs.", "層の有効ヘッド数(出力)。"), _DOTTED]),
    "removable": Both("Heads of a layer that cannot go at that cost.", "そのコストでは除けないヘッドの数(1層あたり)。"),
    "removal": Both(
        "Error with a share of the heads removed together, a colour and a mark for each number of heads, fixed width.",
        "ヘッドをまとめて除いたときの誤差。横軸は除いた割合、色と印は学習時のヘッド数(幅固定)。",
    ),
    "score_rank": Both(
        "Rank of a head's scores (QKᵀ), which head_dim bounds: what a head too small lacks.",
        "ヘッドのQKᵀのランク。head_dimを超えられないことが、小さすぎるヘッドの限界になる。",
    ),
    "step": Both("A step of training, as times what one head takes.", "学習の1ステップ(1ヘッドの場合に対する倍率)。"),
}
_PAPER = Both("the paper, abridged, under", "論文より(要約)")
_ALL = Both("All claims", "主張の一覧")
_INDEX = Both("claim,verdict", "主張,判定")
_DPI = 110
_DOCUMENT = re.compile(r"docs/([a-z]+(?:\.ja)?\.md)")


def write_pages(made: Sequence[Rulings], folder: Path, sweep: Sweep | None = None, documents: str = "") -> None:
    """Write C1.md, C1.ja.md …, index.md, index.ja.md and figures/ into an existing folder.

    Args:
        made: results of one subject or of several, side by side.
        folder: where.
        sweep: runs with few heads and many, for what they add.
        documents: where the documentation that pages name lies, as seen from them, for links; "" for none.
    """
    names = _names(made)
    (folder / "figures").mkdir(exist_ok=True)
    drawn: set[str] = set()
    for name in names:
        claim = claim_named(name)
        for one in made:
            if name in one and not one[name].table.empty and (file := _figure(claim, name, one)) not in drawn:
                with styling():
                    claim.draw(_drawn(claim, name, one)).savefig(folder / "figures" / file, dpi=_DPI)
                drawn.add(file)
        sentence, further = (NOTHING, {}) if sweep is None else claim.beside(sweep)
        for title, figure in further.items():
            with styling():
                figure.savefig(folder / "figures" / f"{name}-{title}.png", dpi=_DPI)
        for language in LANGUAGES:
            written = page(name, made, sentence, list(further), language)
            new_file(folder / _file(name, language), _linked(written, documents), force=True)
    for language in LANGUAGES:
        new_file(folder / _file("index", language), _linked(index_page(made, language), documents), force=True)


def _linked(text: str, documents: str) -> str:
    """A page whose names of further documents are links."""
    return _DOCUMENT.sub(rf"[\g<0>]({documents}/\g<1>)", text) if documents else text


def page(
    name: str,
    made: Sequence[Rulings],
    beside: Both = NOTHING,
    figures: Sequence[str] = (),
    language: Language = "en",
) -> str:
    """One claim's page: what it means, what the paper says, what came out of whom, what follows, how, how far.

    Args:
        name: "C7".
        made: results; those of subjects that the claim was not put to are left out.
        beside, figures: what training with few heads and many adds, and the names of its figures.
        language: of the page.
    """
    claim, rulings = claim_named(name), list(_rulings(name, made))
    several = any(ruling.over.endswith("seeds") for _, ruling in rulings) and claim.of_a_model
    around = _around(name, _names(made), language)
    unit = _ended(_NUMBER, claim.unit, language)
    ends = [_ended(_INTERVAL, claim.interval, language)] if claim.interval else []
    parts = [
        f"# {name}: {claim.about.of(language)}",
        around,
        f"## {_MEANS.of(language)}\n\n{claim.means.of(language)}\n\n{_short(claim, rulings, language)}",
        _quote(claim, language),
        f"## {_OUT.of(language)}",
        _sentences([unit, *ends, *([_SEEDS.of(language)] if several and ends else [])], language),
        _table(claim, rulings, language),
    ]
    for one, ruling in rulings:
        parts.append(f"### {subject_name(one.subject, claim).of(language)}\n\n{ruling.sentence.of(language)}")
        if not ruling.table.empty:
            figure = f"![{name}, {one.subject}](figures/{_figure(claim, name, one)})"
            parts.append(f"{figure}\n\n*{claim.drawn.of(language)}*")
            parts += [told.of(language)] if (told := claim.tabled(ruling.table)) else []
        parts.append(f"```sh\n{_lines(ruling.command)}\n```\n\n{made_of(one, [claim]).of(language)}")
    parts += _beside(name, beside, figures, language)
    parts += _following(claim, rulings, language)
    parts += [
        f"## {_MEASURED.of(language)}\n\n{claim.measured.of(language)}",
        _sentences([_ended(_KIND, KINDS[claim.kind], language), _ended(_RULE, claim.rule, language)], language),
        f"## {_REACHES.of(language)}\n\n{claim.limits.of(language)}",
        around,
    ]
    return "\n\n".join(parts) + "\n"


def index_page(made: Sequence[Rulings], language: Language = "en") -> str:
    """All claims in one table that a phone can show: each with its verdicts, and on whom."""
    names = _names(made)
    rows = []
    for name in names:
        claim = claim_named(name)
        verdicts = _verdicts(claim, list(_rulings(name, made)))
        rows.append((f"[{name}]({_file(name, language)}) {claim.about.of(language)}", verdicts.of(language)))
    other = "[日本語](index.ja.md)" if language == "en" else "[English](index.md)"
    parts = [
        f"# {_TITLE.of(language)}", other, _INTRODUCTION.of(language),
        markdown_table(_INDEX.of(language).split(","), rows), _LEGEND.of(language), _WORDS.of(language),
        *([_BOX.of(language)] if {*_BOX_OF} <= {*names} else []),
    ]  # fmt: skip
    parts += [line.of(language) for one in made for line in _subjects(one)]
    return "\n\n".join(parts) + "\n"


def _names(made: Iterable[Rulings]) -> list[str]:
    found = {ruling.claim for one in made for ruling in one.rulings}
    return [name for name in CLAIMS if name in found]


def _rulings(name: str, made: Iterable[Rulings]) -> Iterator[tuple[Rulings, Ruling]]:
    return ((one, one[name]) for one in made if name in one)


def _file(name: str, language: Language) -> str:
    return f"{name}.md" if language == "en" else f"{name}.{language}.md"


def _figure(claim: Claim, name: str, one: Rulings) -> str:
    """The file of a claim's figure, which may be that of several claims."""
    return f"{'-'.join(_together(claim, one)) or name}-{one.slug}.png"


def _drawn(claim: Claim, name: str, one: Rulings) -> pd.DataFrame:
    """The rows that its figure is drawn from; several claims' are told apart by a column."""
    several = [one[other].table.assign(claim=other) for other in _together(claim, one)]
    return pd.concat(several, ignore_index=True) if several else one[name].table


def _together(claim: Claim, one: Rulings) -> list[str]:
    return [other for other in claim.drawn_with if other in one and not one[other].table.empty]


def _around(name: str, names: Sequence[str], language: Language) -> str:
    """Links to the page before, to all, to the next, and to the same page in the other language."""
    place = names.index(name)
    links = [f"[← {before}]({_file(before, language)})" for before in names[max(place - 1, 0) : place]]
    links.append(f"[{_ALL.of(language)}]({_file('index', language)})")
    links += [f"[{after} →]({_file(after, language)})" for after in names[place + 1 : place + 2]]
    links.append(f"[日本語]({name}.ja.md)" if language == "en" else f"[English]({name}.md)")
    return " · ".join(links)


def _verdicts(claim: Claim, rulings: Sequence[tuple[Rulings, Ruling]]) -> Both:
    """Which verdict whom: equal ones together.

    Args:
        claim: that was asked.
        rulings: each with its subject.
    """
    each: dict[Verdict, list[Both]] = {}
    for one, ruling in rulings:
        each.setdefault(ruling.verdict, []).append(subject_name(one.subject, claim))
    return joined((_told(verdict, subjects) for verdict, subjects in each.items()), "; ", "、")


def _short(claim: Claim, rulings: Sequence[tuple[Rulings, Ruling]], language: Language) -> str:
    """What came out of each subject, in a sentence."""
    lines = []
    for one, ruling in rulings:
        name, verdict = subject_name(one.subject, claim), _bold(ruling.verdict)
        told = claim.headline(ruling.numbers) if ruling.numbers else NOTHING
        models = ruling.numbers.get("seeds", 1)
        of = Both(f" ({models:g} models)", f"({models:g}個)") if models > 1 and claim.of_a_model else NOTHING
        line = Both(f"- {name.en}{of.en}: {verdict.en}. {told.en}", f"- {name.ja}{of.ja}:{verdict.ja}。{told.ja}")
        lines.append(line.of(language).rstrip())
    together = claim.side_by_side([ruling.numbers for _, ruling in rulings if ruling.numbers])
    return "\n".join(lines) + (f"\n\n{together.of(language)}" if together else "")


def _subjects(one: Rulings) -> list[Both]:
    """Who was asked what, a line for each kind of claim."""
    kinds: dict[Both, list[Claim]] = {}
    for ruling in one.rulings:
        claim = claim_named(ruling.claim)
        kinds.setdefault(subject_name(one.subject, claim), []).append(claim)
    lines = []
    for name, claims in kinds.items():
        told, asked = made_of(one, claims), [CLAIMS.name_of(claim) for claim in claims]
        lines.append(
            Both(f"**{name.en}** ({', '.join(asked)}): {told.en}", f"**{name.ja}**({'、'.join(asked)}):{told.ja}")
        )
    return lines


def _told(verdict: Verdict, subjects: Sequence[Both]) -> Both:
    """One verdict, and on whom."""
    bold, names = _bold(verdict), joined(subjects, ", ", "、")
    return Both(f"{bold.en}: {names.en}", f"{names.ja}では {bold.ja}")


def _bold(verdict: Verdict) -> Both:
    """A verdict with its word alone bold, since what follows a bracket is not seen as bold's end."""
    word, where = VERDICTS[verdict.word], verdict.where
    return Both(f"**{word.en}**{f' ({where.en})' if where else ''}", f"**{word.ja}**{f'({where.ja})' if where else ''}")


def _quote(claim: Claim, language: Language) -> str:
    heading = f"「{claim.where_ja}」"
    if language == "ja":
        return f"> {claim.says.ja}\n>\n> — {_PAPER.ja}、{heading}"
    return f"> {claim.says.en}\n>\n> {claim.says.ja}\n>\n> — {_PAPER.en} {heading}"


def _table(claim: Claim, rulings: Sequence[tuple[Rulings, Ruling]], language: Language) -> str:
    rows = [
        (
            subject_name(one.subject, claim).of(language), f"**{ruling.verdict.told(language)}**",
            number(ruling.effect), _ends(ruling, language), measured_on(ruling.over, language) or MISSING,
        )
        for one, ruling in rulings
    ]  # fmt: skip
    return markdown_table(_HEAD.of(language).split(","), rows)


def _ends(ruling: Ruling, language: Language) -> str:
    told = interval(ruling.low, ruling.high) or MISSING
    return told if language == "en" else told.replace(" to ", "〜")


def _ended(title: Both, text: Both, language: Language) -> str:
    return f"{title.en}: {text.en}." if language == "en" else f"{title.ja}:{text.ja}。"


def _sentences(parts: Sequence[str], language: Language) -> str:
    return (" " if language == "en" else "").join(parts)


def _beside(name: str, beside: Both, figures: Sequence[str], language: Language) -> list[str]:
    """What training with few heads and many adds."""
    if not figures:
        return []
    shown = [
        f"![{name}, {title}](figures/{name}-{title}.png)\n\n*{(_SHOWN[title] + _LINES).of(language)}*"
        for title in figures
    ]
    command = (
        f"```sh\nheadscope headcount --out heads\nheadscope claims --sweep heads --claim {name} --out "
        f"claims-{name}-heads\n```"
    )
    return [
        f"### {_TRAINED.of(language)}", *([beside.of(language)] if beside else []), *shown, command,
    ]  # fmt: skip


def _following(claim: Claim, rulings: Sequence[tuple[Rulings, Ruling]], language: Language) -> list[str]:
    """What readers infer, and what came of it."""
    found: Mapping[str, str] = {
        subject_name(one.subject, claim).of(language): ruling.follows.of(language)
        for one, ruling in rulings
        if ruling.follows
    }
    if not claim.follows and not found:
        return []
    each = [f"**{subject}**: {told}" for subject, told in found.items()]
    return [f"## {_FOLLOWS.of(language)}", *([claim.follows.of(language)] if claim.follows else []), *each]


def _lines(command: str) -> str:
    """A command a line."""
    return command.replace(" && ", "\n")
