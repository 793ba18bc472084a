"""C10: the number of heads must be balanced with the width and the task, by experiment."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count, percent
from headscope.errors import InputError
from headscope.reporting.figures import figure_of, regret_curves
from headscope.studies.bilingual import NOTHING, Both, first_sentence, joined, tables
from headscope.studies.claims import CLAIMS, FAILS, Measured, SweepClaim, Verdict, in_part, undecided
from headscope.studies.headcount.outcomes import grouped, of_tasks
from headscope.studies.headcount.regret import least_worst, regrets, suited
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import MARGIN

__all__ = ["Balance"]

_FEWEST, _WORST = "fewest on", "worst on"  # before the name of a task
_NO_FEWER, _NO_MORE = "no fewer on", "no more on"  # the ends of the fewest heads that suit it


@CLAIMS.register("C10")
class Balance(SweepClaim):
    """What one number of heads for every task costs on the task that it suits worst."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("balance with width and task", "埋め込み次元・タスクとのバランス")
    says: ClassVar[Both] = Both(
        "The number of heads must be balanced with the width and suit the task; find it by experiment.",
        "埋め込み次元とのバランスを考慮し、タスクに応じて適切なヘッド数を選定することが重要である。"
        "実験的に調整を行うことが推奨される。",
    )
    where_ja: ClassVar[str] = "結論"
    means: ClassVar[Both] = Both(
        "The question is what it costs to use one number of heads for every task. If even the number that suits all "
        "tasks best costs one of them much, the number must be chosen for the task.",
        "ここで問うのは、すべてのタスクで同じヘッド数を使うと、どれだけ損をするかです。全体に最も適した個数でも、"
        "損の大きいタスクがあるなら、ヘッド数はタスクごとに選ぶ必要があります。",
    )
    measured: ClassVar[Both] = Both(
        "At fixed width every number of heads is held, on each task, against the number that is best there. Its worst "
        "task is the one that loses most. The number in the table is what is lost with the number of heads that costs "
        "least on its worst task. Number, task and the task's own best are chosen, for each seed, by the other seeds: "
        "were one number the best for all, nothing would be lost on average. Tasks and what is learnt are those of "
        "C7. A sweep has one width: those of several stand side by side.",
        "幅を固定して、各ヘッド数での誤差を、タスクごとに、そのタスクで最良のヘッド数での誤差と比べます。"
        "損が最も大きいタスクを、そのヘッド数の最悪のタスクと呼びます。表の数値は、"
        "最悪のタスクでの損が最も小さいヘッド数で失う割合です。タスクと「学習できた量」はC7と同じです。"
        "あるシードを評価するときのヘッド数、タスク、タスクごとの最良のヘッド数は、"
        "そのシード以外の結果から選びます(同じデータで選んで評価するのを避けるため)。"
        "1個のヘッド数が全タスクで最良であれば、損は平均0になります。1つのスイープの幅は1つなので、"
        "幅の異なるスイープを並べて比べます。",
    )
    unit: ClassVar[Both] = Both(
        "lost on its worst task by the number of heads that costs least there, share of what is learnt",
        "最悪のタスクでの損が最も小さいヘッド数が、そのタスクで失う割合(学習できた量に対する割合)",
    )
    interval: ClassVar[Both] = Both("95%, over training seeds", "95%(学習シードについて)")
    rule: ClassVar[Both] = Both(
        "it holds in part, for the task and at the width of the sweep, if more than 1% of what is learnt is lost, by "
        "the low end; balance with the width takes sweeps of several widths, which stand side by side; it does not "
        "hold if that number of heads is as good on every task as "
        "the best other number (the interval of what it errs more ends below 1%, for all tasks together); else it is "
        "not decided",
        "学習できた量の1%を超えて失えば(区間の下端で)、タスクについて、そのスイープの幅で一部で成り立つとする。"
        "幅とのバランスは、幅の異なるスイープを並べて調べる。そのヘッド数が、"
        "どのタスクでも他の最良のヘッド数と同等なら(誤差の差の区間が、全タスク同時に1%未満)成り立たない。"
        "それ以外は未判定",
    )
    drawn: ClassVar[Both] = Both(
        "A line a task: the mean over its training seeds. The broad grey line is the task that each number of heads "
        "suits worst, the ring the number that costs least there.",
        "線はタスクごとの学習シードの平均。太い灰色の線は各ヘッド数の最悪のタスク、"
        "丸印はそこでの損が最も小さいヘッド数。",
    )
    limits: ClassVar[Both] = Both(
        "Small models and short training. The worst task is the worst of those here: with other tasks another number "
        "may cost least. Tasks that must clash are among them: lookups ask for four looks at once, and maps of 64 "
        "tokens for about as many dimensions; the table tells what is lost on each. Learning rates are chosen at "
        "three numbers of heads and taken over by those between.",
        "小さなモデルを短く学習させた結果です。最悪のタスクは、ここで試したタスクの中での最悪です。"
        "他のタスクを加えれば、損の最も小さいヘッド数も変わりえます。"
        "必然的に両立しないタスクも含まれています(lookupsは同時に4か所を見る必要があり、"
        "64トークンのマップには約64次元が要ります)。タスクごとの損は表で確かめられます。学習率は3つのヘッド数で選び、"
        "その間のヘッド数にも使います。",
    )

    def measure(self, sweep: Sweep) -> Measured:
        runs = sweep.runs[sweep.runs["arm"] == "width"]
        if runs["task"].nunique() < 2:
            raise InputError("one task alone says nothing of whether the best number depends on the task")
        costs = regrets(runs)
        common, task, spread = least_worst(runs)
        sizes = runs.groupby("n_heads")["head_dim"].first()
        low, high = (float(end) for end in spread.interval())
        told = [*suited(runs, common).values()]
        ends = _ends({n: suited(runs, n) for n in sizes.index})
        numbers = {
            "width": float(sweep.width), "common": float(common), "head_dim": float(sizes[common]),
            "tasks": float(len(told)), "as_good": float(told.count("as good")),
            "least_seeds": float(runs.groupby("task")["seed"].nunique().min()),
            f"{_WORST} {task}": float(costs.loc[common, task]),
            **{f"{_FEWEST} {label}": float(n) for label, n in (costs <= costs.min() + MARGIN).idxmax().items()},
            **{f"{_NO_FEWER} {label}": float(least) for label, (least, _) in ends.items()},
            **{f"{_NO_MORE} {label}": float(most) for label, (_, most) in ends.items()},
        }  # fmt: skip
        return Measured(float(spread.centre), sweep.over, numbers, runs, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["low"] > MARGIN:
            return in_part(
                Both(
                    f"for the task only, at a width of {words['width']:g}",
                    f"幅{words['width']:g}で、タスクについてのみ",
                )
            )
        if words["as_good"] == words["tasks"]:
            return FAILS
        seeds = f"{2 * words['least_seeds']:g}"
        return undecided(Both(f"{seeds} seeds or more", f"シード{seeds}個以上が必要"))

    def say(self, words: Mapping[str, float]) -> Both:
        middle, low, high = (percent(words[name]) for name in ("effect", "low", "high"))
        common, size, width = (f"{words[name]:g}" for name in ("common", "head_dim", "width"))
        heads = f"{common} {'head' if common == '1' else 'heads'}"
        task = next(iter(of_tasks(words, _WORST)))
        fewest = grouped(of_tasks(words, _FEWEST))
        return joined([
            Both(
                f"At a width of {width}, {heads} of {size} dimensions cost least on their worst task, {task}: {middle} "
                f"({low} to {high}) of what is learnt.",
                f"幅{width}では、最悪のタスクでの損が最も小さいのは{size}次元のヘッド{common}個で、そのタスク({task})で"
                f"学習できた量の{middle}({low}〜{high})を失います。",
            ),
            Both(
                "The fewest heads whose mean error exceeds the best by no more than 1% of what is learnt: "
                f"{fewest.en}.",
                f"誤差の平均と最良との差が学習できた量の1%以内に収まる最少のヘッド数は、{fewest.ja}です。",
            ),
        ])  # fmt: skip

    def side_by_side(self, words: Sequence[Mapping[str, float]]) -> Both:
        each: dict[float, Mapping[str, float]] = {}
        for own in sorted(words, key=lambda one: one["width"]):
            each.setdefault(own["width"], own)
        if len(each) < 2:
            return NOTHING
        return joined([_common_at(each), *_fewest_at(each)])

    def headline(self, words: Mapping[str, float]) -> Both:
        if words["low"] <= MARGIN:
            return first_sentence(self.say(words))
        lost, common = percent(words["effect"]), f"{words['common']:g}"
        task = next(iter(of_tasks(words, _WORST)))
        return Both(
            f"No number of heads suits every task: even the one that costs least on its worst task, {common}, loses "
            f"{lost} "
            f"of what is learnt there ({task}).",
            f"どのタスクにも良いヘッド数はありません。最悪のタスクでの損が最も小さい{common}個でも、"
            f"そのタスク({task})で学習できた量の{lost}を失います。",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        costs = regrets(table)
        return figure_of(regret_curves(costs, least_worst(table)[0]))

    def tabled(self, table: pd.DataFrame) -> Both:
        costs = regrets(table)
        best, cells = least_worst(table)[0], costs.assign(worst=costs.max(axis=1))
        rows = [
            [f"**{heads}**" if heads == best else str(heads), *(percent(cost) for cost in row)]
            for heads, row in zip(cells.index, cells.to_numpy(), strict=True)
        ]
        head = [Both("heads", "ヘッド数"), *(Both(task, task) for task in costs), Both("worst", "最悪")]
        told, failed = tables(head, rows), NOTHING
        if float(costs.max(axis=None)) > 1:
            failed = Both(
                " Over 100% means an error above chance: training failed there, most likely.",
                "100%を超える値は、誤差が偶然の水準より大きいことを表します(学習がうまくいかなかったと考えられます)。",
            )
        return Both(
            "What each number of heads costs each task beside the task's own best number, a share of what is learnt, "
            "the mean over all its seeds. The best number is chosen for each seed by the other seeds, so that a cost "
            "can be slightly negative. The number above is of the seeds that all tasks have, and its number of heads "
            "and its "
            f"task are chosen by the other seeds too.{failed.en}\n\n{told.en}",
            "各ヘッド数での損(学習できた量に対する割合、全シードの平均)を次に示します。"
            "比べる相手はタスクごとの最良のヘッド数で、シードごとに残りのシードから選ぶため、損がわずかに負になることもあります。"
            "上の数値は、全タスクに共通するシードだけを使い、ヘッド数とタスクも残りのシードで選んだ値なので、"
            f"表とは少し異なります。{failed.ja}\n\n{told.ja}",
        )


def _ends(told: Mapping[int, Mapping[str, str]]) -> dict[str, tuple[int, int]]:
    """The fewest heads that may suit each task, and the fewest that surely do, or the most tried."""
    found = {}
    for task in next(iter(told.values())):
        may = [n for n, own in told.items() if own[task] != "worse"]
        surely = [n for n, own in told.items() if own[task] == "as good"]
        found[task] = min(may, default=max(told)), min(surely, default=max(told))
    return found


def _common_at(each: Mapping[float, Mapping[str, float]]) -> Both:
    """The number of heads that costs least on its worst task, at each width."""
    widths, common = [f"{width:g}" for width in each], [f"{own['common']:g}" for own in each.values()]
    same = len({*common}) == 1
    return Both(
        f"At widths of {' and '.join(widths)} the number of heads that costs least on its worst task is "
        + (f"{common[0]} at each." if same else f"{' and '.join(common)}."),
        f"最悪のタスクでの損が最も小さいヘッド数は、幅{'、'.join(widths)}で"
        + (f"いずれも{common[0]}個です。" if same else f"それぞれ{'、'.join(common)}個です。"),
    )


def _fewest_at(each: Mapping[float, Mapping[str, float]]) -> list[Both]:
    """For which tasks the fewest heads that suit them differ between widths: by the means, and by their intervals."""
    fewest, no_fewer, no_more = (
        [of_tasks(own, name) for own in each.values()] for name in (_FEWEST, _NO_FEWER, _NO_MORE)
    )
    shared = [task for task in fewest[0] if all(task in own for own in fewest)]
    moved = [task for task in shared if len({own[task] for own in fewest}) > 1]
    sure = [task for task in moved if min(own[task] for own in no_more) < max(own[task] for own in no_fewer)]
    tasks = count(len(shared), "task")
    suits = Both(
        "the fewest heads that suit a task, erring no more than 1% of what is learnt beyond its best,",
        "十分な(最良との差が学習できた量の1%以内になる)最少のヘッド数",
    )
    if not moved:
        return [
            Both(
                f"By the means {suits.en} differ for none of {tasks}.",
                f"{suits.ja}は、平均値で比べると、共通の{len(shared)}タスクのどれでも変わりません。",
            )
        ]
    means = {
        task: [(f"{width:g}", f"{own[task]:g}") for width, own in zip(each, fewest, strict=True)] for task in moved
    }
    en = "; ".join(f"{task} ({', '.join(f'{n} at {width}' for width, n in own)})" for task, own in means.items())
    ja = "、".join(f"{task}({'、'.join(f'幅{width}で{n}個' for width, n in own)})" for task, own in means.items())
    told = Both(
        f"By the means {suits.en} differ for {en}, of {tasks}.",
        f"{suits.ja}を平均値で比べると、異なるのは、共通の{len(shared)}タスクのうち{ja}です。",
    )
    unsure = Both(
        "By their intervals it cannot be told: that the number must be balanced with the width is not shown.",
        "区間で見ると、異なるとは言い切れません。幅とのバランスが必要だとは示されていません。",
    )
    clear = Both(
        f"By their intervals they differ for {' and '.join(sure)}.",
        f"区間で見ても異なると言えるのは{'、'.join(sure)}です。",
    )
    return [told, clear if sure else unsure]
