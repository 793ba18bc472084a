"""C7: too many heads make each head too small to express what it needs."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import MISSING, count, percent
from headscope.errors import InputError
from headscope.reporting.figures import count_curves, figure_of, map_bound
from headscope.studies.bilingual import NOTHING, Both, joined, tables
from headscope.studies.claims import CLAIMS, CURVES_DRAWN, FAILS, HOLDS, Measured, SweepClaim, Verdict, undecided
from headscope.studies.headcount.outcomes import (
    AS_THE_PAPER,
    CONTRARY,
    OPEN,
    grouped,
    more_seeds,
    named,
    numbers_of,
    of_tasks,
    tasks_that,
    untold,
)
from headscope.studies.headcount.regret import regrets
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import falls, pooled, shapes
from headscope.studies.headcount.telling import BONFERRONI, amount

__all__ = ["TooSmall"]

_PAPER = 16  # dimensions of a head that the paper calls too few
_BEGINS = "begins on"  # before the name of a task: the largest head_dim at which error rises
_SAYS = {"falls": AS_THE_PAPER, "as good": CONTRARY, "undecided": OPEN}


@CLAIMS.register("C7")
class TooSmall(SweepClaim):
    """Error with many small heads against the best number of them, and against as many of fixed size."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("heads too small", "ヘッドの次元が小さすぎる")
    says: ClassVar[Both] = Both(
        "With too many heads each may have too few dimensions (512 wide, 32 heads: 16) to capture features that are "
        "complex enough.",
        "ヘッド数を増やすと各ヘッドの次元が小さくなり(512次元・32ヘッドなら16次元)、十分に複雑な特徴を捉えられ"
        "なくなる可能性がある。",
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    means: ClassVar[Both] = Both(
        "The question is whether a model gets worse when its width is cut into so many heads that each is small. If "
        "it gets worse so, and not with as many heads of fixed size, the small size is to blame and not the number.",
        "ここで問うのは、同じ幅を多くのヘッドに分けて1個を小さくすると、モデルの性能が下がるかどうかです。"
        "幅を分けたときは下がり、同じ数でもヘッドの次元を保てば下がらないなら、原因はヘッドの数ではなく小"
        "ささにあります。",
    )
    measured: ClassVar[Both] = Both(
        "The same small transformer is trained with few heads and with many, once with the width shared among them and "
        "once with heads of fixed size. Tasks are four look-ups at once (lookups), attention maps of several lengths "
        "(maps), the next byte of prose (language) and handwritten digits (digits). What is learnt is how far below "
        "chance the best number of heads of the arm errs; chance is the error without having learnt anything (for "
        "maps, that of a uniform map). The number in the table is a mean over kinds of task, maps of several lengths "
        "as one kind; what is said of a task rests on all its seeds. Learning rates are chosen for each task and arm "
        "at the fewest, the middle and the most heads, on data and a seed of their own, and taken over by the nearest "
        "of the numbers between. For attention maps theory says where: scores of head_dim dimensions have that rank at "
        "the most, and a head_dim no less than the length is enough for any map (Bhojanapalli et al. 2020, "
        "arXiv:2002.07028); one less is too, as softmax ignores what is added to a whole row.",
        "同じ小さなTransformerを、ヘッド数を変えて学習させます。幅をヘッドで分け合う場合と、"
        "1ヘッドの次元を固定する場合の2通りです。タスクは4種類です。lookupsは、キーと値の組16個の中から、"
        "指定された4個のキーの値を同時に答えます。mapsは、ランダムに作った8〜64トークンのマップを、"
        "各ヘッドがどこまで再現できるかを測ります。languageは英文の次のバイト、digitsは手書き数字を当てます。"
        "「偶然の水準」は、何も学ばずに答えたときの誤差です(mapsでは、全トークンを均等に見るマップの誤差)。"
        "「学習できた量」は、偶然の水準から、同じ条件の最良のヘッド数での誤差を引いた値です。"
        "表の数値はタスクの種類についての平均で、長さの異なるmapsは1種類と数えます。タスクごとの記述には、"
        "そのタスクの全シードを使います。学習率は、タスクと条件ごとに、最少・中間・最多のヘッド数で、"
        "専用のデータとシードを使って選び、その間のヘッド数は最も近いものの値を使います。"
        "マップについては理論上の限界が分かっています。クエリとキーの内積の表(ソフトマックス前)"
        "のランク(互いに独立な行の数)は、head_dimを超えません。head_dimが長さ以上なら、"
        "どのマップも表せます(Bhojanapalliら2020、arXiv:2002.07028)。"
        "ソフトマックスは行全体に同じ値を足しても変わらないため、head_dimは長さより1小さくても足ります。",
    )
    unit: ClassVar[Both] = Both(
        f"error with heads of {_PAPER} dimensions, the paper's example, beyond that with the best other number at "
        "fixed width, share of what is learnt, mean over kinds of task",
        f"{_PAPER}次元のヘッド(論文の例)の誤差が、幅を固定したときの他のヘッド数のうち最良の誤差を上回る分"
        "(学習できた量に対する割合、タスクの種類の平均)",
    )
    interval: ClassVar[Both] = Both("95%, over training seeds", "95%(学習シードについて)")
    rule: ClassVar[Both] = Both(
        "it holds if, on any task and with any number of heads, they err more at fixed width than the best number (by "
        "over 1% of what is learnt, with the interval above 0) and more so than as many heads of fixed size (by the "
        "same margin); it does not hold if on every task the smallest heads are as good as the best number, or lose "
        "no more than as many of fixed size (the interval below 1%); else it is not decided. Intervals hold for all "
        "tasks and numbers of heads together",
        "いずれかのタスクとヘッド数で、幅を固定したときの誤差が最良のヘッド数より大きく(学習できた量の1%を超え、"
        "区間が0より上)、その増え方が同じ数の固定サイズのヘッドよりも同じ基準で大きければ成り立つ。どのタスクでも、"
        "最小のヘッドが最良のヘッド数と同等か、同じ数の固定サイズのヘッドより悪くならなければ(区間が1%未満)"
        "成り立たない。それ以外は未判定。区間は全タスク・全ヘッド数について同時に成り立つもの",
    )
    drawn: ClassVar[Both] = CURVES_DRAWN
    limits: ClassVar[Both] = Both(
        "Small models and short training. The size at which a rise is clear is where these seeds tell it: smaller "
        "rises may begin at larger heads. Learning rates are chosen at the fewest, the middle and the most heads; "
        "where a number takes its neighbour's, the curve may have a bump (digits at 4 heads). The paper's example, 32 "
        "heads of 16 dimensions, is of a width of 512; here the same size of a head is that of fewer heads, which may "
        "lose for being too few as well (C11). Where heads of fixed size are too small for a task themselves, as 8 "
        "dimensions for long maps, the task is hard with any number of them: more heads do not make up for their size. "
        "Where error begins to rise at heads larger than the fixed 8 dimensions, as many of fixed size are smaller and "
        "err more; what they show there is that their number alone does not raise error. Fixed size costs parameters "
        "too: where many heads of fixed size lose as well, as on prose, what is lost to size, to number and to "
        "parameters is not told apart. A mean over kinds of task may come from one of them: the table tells what each "
        "loses.",
        "小さなモデルを短く学習させた結果です。増加が認められる次元は、このシード数で検出できるところを示します。"
        "もっと大きいヘッドでも小さな増加は始まっているかもしれません。学習率は最少・中間・最多のヘッド数で選ぶため、"
        "隣のヘッド数の学習率を使うところで曲線が乱れることがあります(digitsの4ヘッド)。論文の例(16次元のヘッド32個)"
        "は幅512の場合で、ここでは同じ次元のヘッドの数がそれより少なくなり、少なすぎることによる損失(C11)"
        "も含まれることがあります。長いマップに対する8次元のように、"
        "固定したサイズ自体がタスクに対して小さすぎる場合は、ヘッドをいくつにしても誤差が残ります。数を増やしても、"
        "小ささは補えません。8次元より大きいヘッドで誤差が増え始めるタスクでは、同数の8次元のヘッドはさらに小さく、"
        "誤差も大きくなります。そこで示せるのは、数が増えただけでは誤差は増えないことです。また、"
        "固定サイズではヘッドとともにパラメータも増えます。"
        "languageのように固定サイズの多数のヘッドでも損が出るタスクでは、"
        "小ささ、数、パラメータ数のどれによる損かを切り分けられません。タスクの種類の平均は、"
        "一つのタスクに左右されることがあります。タスクごとの損は表で確かめられます。",
    )

    def measure(self, sweep: Sweep) -> Measured:
        own = sweep.runs[sweep.runs["arm"] == "width"]
        sizes = own.groupby("n_heads")["head_dim"].first()
        if _PAPER not in sizes.tolist():
            heads, rest = divmod(sweep.width, _PAPER)
            way = (
                f"a width that is a multiple of {_PAPER} can have them" if rest else f"train {count(heads, 'head')} too"
            )
            raise InputError(
                f"no heads of {_PAPER} dimensions, the paper's example, are among those trained, which have "
                f"{', '.join(map(str, sizes))}; {way}"
            )
        paper = pooled(sweep.runs, "width", sizes.tolist().index(_PAPER))
        ends = {arm: pooled(sweep.runs, arm, -1) for arm in ("width", "head_dim")}
        found = falls(sweep.runs).set_index("task")
        fixed = sweep.runs.loc[sweep.runs["arm"] == "head_dim", "head_dim"]
        numbers = {
            "paper_heads": float(sizes.index[sizes == _PAPER][0]), "most": float(sizes.index[-1]),
            "smallest": float(sizes.iloc[-1]), "fixed": float(fixed.iloc[0]),
            **_with_ends("small", ends["width"].centre, *ends["width"].interval()),
            **_with_ends("wide", ends["head_dim"].centre, *ends["head_dim"].interval()),
            **numbers_of(found["is"].map(_SAYS).to_dict(), found["seeds"].to_dict()),
            **{f"{_BEGINS} {task}": float(size) for task, size in found["head_dim"].dropna().items()},
        }  # fmt: skip
        low, high = (float(end) for end in paper.interval())
        return Measured(float(paper.centre), sweep.over, numbers, sweep.runs, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if tasks_that(words, AS_THE_PAPER):
            return HOLDS
        return undecided(more_seeds(words)) if tasks_that(words, OPEN) else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        paper, small, wide = (_ends(words, name) for name in ("effect", "small", "wide"))
        sizes = [int(words[name]) for name in ("paper_heads", "most", "smallest", "fixed")]
        few, most = (count(n, "head") for n in sizes[:2])
        tiny, fixed = (count(n, "dimension") for n in sizes[2:])
        lost = Both(
            f"At fixed width {few} of {_PAPER} dimensions lose {paper.en} of what is learnt, and {most} of {tiny} "
            f"{small.en}; {most} of {fixed} lose {wide.en} of what the best number of such heads learns.",
            f"幅を固定すると、{_PAPER}次元のヘッド{sizes[0]}個では学習できた量の{paper.ja}を、"
            f"{sizes[2]}次元のヘッド{sizes[1]}個では{small.ja}を失います。{sizes[3]}次元に固定したヘッド{sizes[1]}個で"
            f"失うのは、そのサイズのヘッドの最良の個数で学習できた量の{wide.ja}です。",
        )
        return joined([lost, _begun(words), _unmoved(words)])

    def headline(self, words: Mapping[str, float]) -> Both:
        own, small, wide = (percent(words[name]) for name in ("effect", "small", "wide"))
        sizes = [int(words[name]) for name in ("most", "smallest", "fixed")]
        most, (tiny, fixed) = count(sizes[0], "head"), (count(n, "dimension") for n in sizes[1:])
        return Both(
            f"Cut out of the same width, heads of {_PAPER} dimensions, the paper's example, lose {own} of what is "
            f"learnt (the mean over kinds of task), {most} of {tiny} {small}. {most} kept at {fixed} lose {wide}.",
            f"同じ幅を分けた場合、論文の例と同じ{_PAPER}次元のヘッドで失うのは学習できた量の{own}"
            f"(タスクの種類の平均)、{sizes[1]}次元のヘッド{sizes[0]}個では{small}です。"
            f"{sizes[2]}次元に固定したヘッド{sizes[0]}個で失うのは{wide}です。",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)

    def tabled(self, table: pd.DataFrame) -> Both:
        found, ends = falls(table).set_index("task"), shapes(table).set_index(["arm", "task"])
        head = [
            Both("task", "タスク"), Both("clear from head_dim", "増加が認められるhead_dim"),
            Both("error there, of chance", "そこでの誤差"),
            Both("as many of fixed size err", "同数の固定サイズでの誤差"),
            Both(f"heads of {_PAPER} dimensions lose, of what is learnt", f"{_PAPER}次元のヘッドでの悪化分"),
            Both("smallest heads lose", "最小のヘッドでの悪化分"),
            Both("as many of fixed size lose", "同数の固定サイズでの悪化分"),
            Both("seeds", "シード"),
        ]  # fmt: skip
        own = table[table["arm"] == "width"]
        paper = regrets(table).loc[own.loc[own["head_dim"] == _PAPER, "n_heads"].iloc[0]]
        rows = []
        for task, row in found.iterrows():
            begun = [MISSING] * 3
            if row["is"] == "falls":
                begun = [f"{row['head_dim']:.0f}", percent(row["error"]), percent(row["error_fixed"])]
            lost = (amount(ends.loc[(arm, task)], "many") for arm in ("width", "head_dim"))
            rows.append(
                (str(task), *begun, percent(paper[task]) if task in paper else MISSING, *lost, str(row["seeds"]))
            )
        told = tables(head, rows)
        note = Both(
            "Errors are shares of chance, losses of what is learnt. A size is told by how much the error rises from "
            "the best number in its own arm, not by the error: heads of the fixed size are smaller than those of "
            f"larger sizes, and err more. {BONFERRONI.en}",
            "誤差の列は偶然の水準に対する割合、悪化分の列は学習できた量に対する割合です。"
            "判定に使うのは誤差そのものではなく、同じ条件の最良のヘッド数からの増え方です(固定サイズより大きいヘ"
            f"ッドの行では、同数の固定サイズのヘッドのほうが小さく、誤差も大きくなります)。{BONFERRONI.ja}",
        )
        return joined([told, note], "\n\n", "\n\n")

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        figures = {"score_rank": count_curves(sweep.runs, "score_rank", label="rank of scores")}
        maps = sweep.runs[sweep.runs["task"].str.startswith("maps-")]
        if maps.empty:
            return NOTHING, figures
        length = maps["task"].str.removeprefix("maps-").astype(int)
        share = maps["error"] / maps["chance"]
        enough, half = share[maps["head_dim"] >= length], share[maps["head_dim"] == length // 2]
        where = {
            Both("where head_dim reaches their length", "head_dimが長さ以上のとき"): enough,
            Both("at half of it", "head_dimが長さの半分のとき"): half,
        }
        found = {place: (max(own.min(), 0), own.max()) for place, own in where.items() if len(own)}
        told = Both(
            "; ".join(f"{low:.2%} to {high:.2%} {place.en}" for place, (low, high) in found.items()),
            "、".join(f"{place.ja}{low:.2%}〜{high:.2%}" for place, (low, high) in found.items()),
        )
        sentence = Both(
            "How far attention maps drawn at random are from being matched, as a share of a uniform map's divergence: "
            f"{told.en}.",
            f"ランダムに作ったマップと学習したマップのずれ(一様なマップのずれに対する割合)は、{told.ja}です。",
        )
        return sentence, {**figures, "bound": figure_of(map_bound(sweep.runs))}


def _begun(words: Mapping[str, float]) -> Both:
    """At which size of a head error begins to rise, on which tasks; the largest size first."""
    begun = of_tasks(words, _BEGINS)
    if not begun:
        return NOTHING
    sizes = grouped(begun, falling=True)
    return Both(
        f"The rise that is due to small heads is clear from head_dim {sizes.en} on.",
        f"ヘッドが小さいことによる誤差の増加がはっきり認められるのは、head_dimが{sizes.ja}以下のときです。",
    )


def _unmoved(words: Mapping[str, float]) -> Both:
    """Tasks on which it does not rise, and those that cannot be told."""
    still, left = named(tasks_that(words, CONTRARY)), untold(words)
    parts = [Both(f"It does not on {still.en}.", f"{still.ja}では増えません。")] if still else []
    if left:
        parts.append(Both(f"It is not decided on {left.en}.", f"{left.ja}については判定できません。"))
    return joined(parts)


def _with_ends(name: str, *values: Any) -> dict[str, float]:
    return {f"{name}{end}": float(value) for end, value in zip(("", "_from", "_to"), values, strict=True)}


def _ends(words: Mapping[str, float], name: str) -> Both:
    """A share with its interval."""
    ends = ("low", "high") if name == "effect" else (f"{name}_from", f"{name}_to")
    middle, low, high = (percent(words[part]) for part in (name, *ends))
    return Both(f"{middle} ({low} to {high})", f"{middle}({low}〜{high})")
