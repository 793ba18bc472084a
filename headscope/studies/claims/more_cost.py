"""C8: more heads cost more compute and memory, in training and in inference."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count
from headscope.reporting.figures import cost_times
from headscope.studies.bilingual import NOTHING, Both, joined, tables
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, CostClaim, Measured, Verdict, in_part
from headscope.studies.growing import growth
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.telling import ARMS
from headscope.studies.scaling import KERNELS, MODES
from headscope.uncertainty.intervals import mean_spread

__all__ = ["MoreCost"]

_MORE = 1.1  # times as much: less than that is no more
_MODES_JA = {"inference": "推論", "training": "学習"}
_QUANTITIES = {
    "flops": Both("operations", "演算量"), "bytes": Both("memory", "メモリ"), "seconds": Both("time", "時間"),
}  # fmt: skip
_PARAMETERS = Both("parameters", "パラメータ数")
_STEP = {"parameters": "parameters", "flops": "operations", "memory": "memory", "seconds": "time"}  # of a learner


@CLAIMS.register("C8")
class MoreCost(CostClaim):
    """Operations, memory and time with the most heads, over those with one, in two arms."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("more heads cost more", "ヘッド数と計算コスト・メモリ")
    says: ClassVar[Both] = Both(
        "With more heads computation and memory grow, so that training and inference can get less efficient.",
        "ヘッド数が増えると計算量やメモリ使用量も増加する。これにより、トレーニングや推論の効率が"
        "低下する可能性がある。",
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    means: ClassVar[Both] = Both(
        "The question is what grows with the number of heads: operations, memory, time. There are two ways to have "
        "more heads, cutting the same width into smaller ones or adding heads of the same size, and each has an "
        "answer of its own.",
        "ここで問うのは、ヘッド数とともに増えるのは演算量・メモリ・時間のどれかです。ヘッドの増やし方には、"
        "同じ幅を小さく分ける方法と、同じサイズのヘッドを足す方法の2つがあり、それぞれ答えが異なります。",
    )
    measured: ClassVar[Both] = Both(
        "Layers with few heads and with many are timed in turns in one process, with the width shared among heads and "
        "with heads of fixed size, in training and inference, with maps written out (eager) and without (sdpa). Bytes "
        "and operations (those of matrix products) are counted, and operations equal the count by hand. All is told "
        "as times what one head takes.",
        "ヘッド数の異なる層を、1つのプロセスの中で交互に計時します。"
        "幅をヘッドで分け合う場合と1ヘッドの次元を固定する場合、学習と推論、マップを書き出すカーネル(eager)"
        "と書き出さないカーネル(sdpa)のすべてを計ります。バイト数と演算量(行列の積の演算数)は数えた値で、"
        "演算量は手計算と一致します。いずれも、1ヘッドの場合の何倍かで表します。",
    )
    unit: ClassVar[Both] = Both(
        "time of the most heads over one, at fixed width, eager inference",
        "最多ヘッドと1ヘッドの推論時間の比(幅固定、eager)",
    )
    interval: ClassVar[Both] = Both(
        "95%, over rounds of timing in one session", "95%(1回の計測の中での繰り返しについて)"
    )
    rule: ClassVar[Both] = Both(
        "it holds if operations, memory and time all grow (over 1.1 times, with the interval) in both arms, in "
        "inference and in training, with both kernels; it does not hold if none of them does; else it holds in part, "
        "for what grows. That efficiency *can* fall is shown where time grows",
        "演算量・メモリ・時間のすべてが、2つの条件、推論と学習、2つのカーネルの全部で増えれば(1.1倍を超え、"
        "区間も含めて)成り立つ。どれも増えなければ成り立たない。それ以外は、増えたものについて一部で成り立つ。"
        "効率が低下する「可能性」は、時間が増えた場合に示されたとする",
    )
    drawn: ClassVar[Both] = Both(
        "Times what one head takes. Filled marks and full lines: eager; hollow marks and broken lines: sdpa; "
        "operations are the same with both. Bands: 95% over rounds of timing.",
        "1ヘッドの場合に対する倍率。塗りつぶしと実線はeager、白抜きと破線はsdpa(演算量はどちらも同じ)。"
        "帯は計時の繰り返しについての95%区間。",
    )
    limits: ClassVar[Both] = Both(
        "One layer of attention; a whole model dilutes it. That operations do not grow at fixed width follows from "
        "how attention is defined: the products are the same, cut otherwise. Softmax, one for each map, grows with "
        "the number of heads and is not counted. Most memory grows there with the maps, one for each head, where they "
        "are written out; without them it can grow in training (× 1.79 on the H100), which the rule does not count, "
        "as it does not in inference. The one head that all is held against has 512 dimensions, which is untypical: "
        "with sdpa a few heads can take less time than it. Times are those of the machine named, on that day: another "
        "day gives others, beyond the interval.",
        "アテンション1層の値です。モデル全体では差が薄まります。幅を固定したときに演算量が増えないのは、"
        "アテンションの定義から明らかです。同じ積を別の切り方で計算するだけだからです。"
        "マップごとに1回のソフトマックスはヘッドとともに増えますが、演算量に数えていません。"
        "幅を固定した場合にメモリが大きく増えるのは、ヘッドごとに1枚のマップを書き出す場合です。書き出さない場合でも、"
        "学習時には増えることがあります(H100で1.79倍)。推論では増えないため、判定には数えません。"
        "比較の基準である1ヘッドは512次元と大きく、sdpaではヘッドが数個のほうが速いこともあります。"
        "時間は記載した環境でのその日の値で、別の日には区間の外の値にもなります。",
    )

    def measure(self, costs: pd.DataFrame) -> Measured:
        own = costs[(costs["part"] == "attention") & (costs["against"] == "heads")]
        grown = growth(own).set_index(["arm", "mode", "kernel", "quantity"])
        times = grown.drop("analytic", level="quantity")
        numbers = {
            f"{'_'.join(place)}{end}": float(value)
            for end in ("", "_low", "_high")
            for place, value in times[f"times{end}"].items()
        }
        inner = own.assign(inner=own["n_heads"] * own["head_dim"]).groupby(["arm", "n_heads"])["inner"].first()
        numbers |= {f"{arm}_parameters": float(inner[arm].iloc[-1] / inner[arm].iloc[0]) for arm in ARMS}
        numbers |= {"fewest": float(own["n_heads"].min()), "most": float(own["n_heads"].max())}
        first = grown.loc[("width", "inference", "eager", "seconds")]
        middle, low, high = (float(first[f"times{end}"]) for end in ("", "_low", "_high"))
        return Measured(middle, f"{int(first['rounds'])} rounds", numbers, own, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        each = {arm: _growing(words, arm) for arm in ARMS}
        whole = [ARMS[arm] for arm, (everywhere, _) in each.items() if len(everywhere) == len(_QUANTITIES)]
        if len(whole) == len(ARMS):
            return HOLDS
        parts = []
        for arm, (everywhere, somewhere) in each.items():
            found = joined([*everywhere, *somewhere], ", ", "・")
            if found and ARMS[arm] not in whole:
                parts.append(Both(f"{found.en} at {ARMS[arm].en}", f"{ARMS[arm].ja}では{found.ja}"))
        every = [Both(f"all at {arm.en}", f"{arm.ja}ではすべて") for arm in whole]
        return in_part(joined([*every, *parts], "; ", "、")) if whole or parts else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        width, head_dim = (_arm(words, arm) for arm in ARMS)
        most, fewest = (f"{words[name]:g}" for name in ("most", "fewest"))
        return Both(
            f"In inference, {most} heads in place of {fewest} take at fixed width {width.en}; at fixed head_dim they "
            "take "
            f"{head_dim.en}; in brackets, where no map is written out (sdpa).",
            f"推論では、ヘッド数を{fewest}から{most}にすると、幅を固定した場合は{width.ja}、head_dimを固定した場合は"
            f"{head_dim.ja}になります(括弧内はマップを書き出さない場合、sdpa)。",
        )

    def headline(self, words: Mapping[str, float]) -> Both:
        most, fewest = (f"{words[name]:g}" for name in ("most", "fewest"))
        arms = [_eager(words, arm) for arm in ARMS]
        return Both(
            f"With {most} heads in place of {fewest}, cut out of the same width, inference takes {arms[0].en}; with "
            f"heads of the same size each, {arms[1].en}.",
            f"推論では、ヘッド数を{fewest}から{most}にすると、同じ幅を分ける場合は{arms[0].ja}、"
            f"同じサイズのヘッドを足す場合は{arms[1].ja}になります。",
        )

    def tabled(self, table: pd.DataFrame) -> Both:
        own, fewest = growth(table), int(table["n_heads"].min())
        rows: list[list[Both | str]] = []
        for arm, quantity in product(ARMS, _QUANTITIES):
            part = own[(own["arm"] == arm) & (own["quantity"] == quantity)].set_index(["mode", "kernel"])
            cells = []
            for mode, kernel in product(MODES, KERNELS):
                curve = table[(table["arm"] == arm) & (table["mode"] == mode) & (table["kernel"] == kernel)]
                cells.append(_cell(part.loc[(mode, kernel)], _begun(curve, quantity)))
            rows.append([ARMS[arm], _QUANTITIES[quantity], *cells])
        runs = [Both(f"{mode}, {kernel}", f"{_MODES_JA[mode]}、{kernel}") for mode, kernel in product(MODES, KERNELS)]
        told = tables([Both("arm", "条件"), Both("what grows", "項目"), *runs], rows)
        note = Both(
            f"The most heads over {count(fewest, 'head')}; in square brackets the number of heads from which on more "
            f"than {_MORE:g} times is taken.",
            f"最多のヘッド数の、{fewest}ヘッドに対する倍率。角括弧は、{_MORE:g}倍を超え始めるヘッド数。",
        )
        return joined([told, note], "\n\n", "\n\n")

    def draw(self, table: pd.DataFrame) -> Figure:
        return cost_times(_layer_times(table))

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        sentence = Both(
            "What a step of training took whole learners, one thread each, as times what it took with one head; the "
            "geometric mean over tasks. A step of the smallest takes a millisecond or two, and such times scatter.",
            "学習の1ステップにモデル全体(アテンション以外も含む)で要した量(1スレッド)を、"
            "1ヘッドの場合の倍率で示します(タスクについての幾何平均)。最小のモデルの1ステップは1〜2ミリ秒で、"
            "時間はばらつきます。",
        )
        return sentence, {"step": cost_times(_step_times(sweep.runs))}


def _arm(words: Mapping[str, float], arm: str) -> Both:
    """What one arm takes in inference: eager, and in brackets sdpa where that is another number."""
    found = {_PARAMETERS: (words[f"{arm}_parameters"],) * 2}
    for quantity, name in _QUANTITIES.items():
        eager, sdpa = (words[f"{arm}_inference_{kernel}_{quantity}"] for kernel in KERNELS)
        found[name] = eager, sdpa
    return _factors(found)


def _eager(words: Mapping[str, float], arm: str) -> Both:
    """The same with maps written out alone, and without parameters."""
    taken = {name: words[f"{arm}_inference_{KERNELS[0]}_{quantity}"] for quantity, name in _QUANTITIES.items()}
    return _factors({name: (own, own) for name, own in taken.items()})


def _factors(found: Mapping[Both, tuple[float, float]]) -> Both:
    """How many times as much of each; what stays the same first."""
    told = {name: tuple(f"{value:.3g}" for value in pair) for name, pair in found.items()}
    parts, same = [], [name for name, pair in told.items() if {*pair} == {"1"}]
    if same:
        names = joined(same, " and ", "と")
        parts.append(Both(f"the same {names.en}", f"{names.ja}は変わらず"))
    for name, (first, second) in told.items():
        if name in same:
            continue
        beside = Both(f" (× {second})", f"({second}倍)") if first != second else NOTHING
        parts.append(Both(f"× {first}{beside.en} the {name.en}", f"{name.ja}が{first}倍{beside.ja}"))
    return joined(parts, ", ", "、")


def _begun(curve: pd.DataFrame, quantity: str) -> int | None:
    """The number of heads from which on, by the whole interval, clearly more is taken than by the fewest."""
    times = [*_times(curve.pivot(index="round", columns="n_heads", values=quantity), "", "", quantity)]
    flat = [row["n_heads"] for row in times if row["low"] <= _MORE]
    return min((row["n_heads"] for row in times if row["n_heads"] > max(flat)), default=None)


def _cell(row: pd.Series, begun: int | None) -> str:
    """Times, with the interval where there is one to tell, and from how many heads on it grows."""
    middle, low, high = (f"{row[f'times{end}']:.3g}" for end in ("", "_low", "_high"))
    told = f"× {middle}" if low == high else f"× {middle} ({low} to {high})"
    return told if begun is None else f"{told} [{begun}]"


def _growing(words: Mapping[str, float], arm: str) -> tuple[list[Both], list[Both]]:
    """Quantities that grow in an arm in both modes and with both kernels; and those that do with one kernel, named."""
    everywhere, somewhere = [], []
    for quantity, name in _QUANTITIES.items():
        grown = [
            kernel
            for kernel in KERNELS
            if min(words[f"{arm}_{mode}_{kernel}_{quantity}_low"] for mode in MODES) > _MORE
        ]
        if len(grown) == len(KERNELS):
            everywhere.append(name)
        elif grown:
            somewhere.append(Both(f"{name.en} with {grown[0]}", f"{grown[0]}での{name.ja}"))
    return everywhere, somewhere


def _layer_times(costs: pd.DataFrame) -> pd.DataFrame:
    """Times what the fewest heads take, with intervals over rounds, as the figure takes them."""
    rows: list[dict[str, Any]] = []
    for (mode, arm, kernel), own in costs.groupby(["mode", "arm", "kernel"], sort=False):
        for quantity, name in _QUANTITIES.items():
            if quantity == "flops" and kernel != KERNELS[0]:
                continue  # the same products
            label = name.en if quantity == "flops" else f"{name.en}, {kernel}"
            rows += _times(own.pivot(index="round", columns="n_heads", values=quantity), str(mode), str(arm), label)
    return pd.DataFrame(rows)


def _step_times(runs: pd.DataFrame) -> pd.DataFrame:
    """The same of a step of a whole learner: geometric means over tasks, with intervals over seeds."""
    rows: list[dict[str, Any]] = []
    for arm, own in runs.groupby("arm", sort=False):
        for quantity, label in _STEP.items():
            tables = [
                np.log(part.pivot(index="seed", columns="n_heads", values=quantity))
                for _, part in own.groupby("task", sort=False)
            ]
            mean = sum(tables[1:], tables[0]).dropna() / len(tables)  # seeds that every task has
            rows += _times(np.exp(mean), "", str(arm), label)
    return pd.DataFrame(rows)


def _times(table: pd.DataFrame, run: str, arm: str, quantity: str) -> Iterator[dict[str, Any]]:
    logs = np.log(table.to_numpy(np.float64))
    spread = mean_spread((logs - logs[:, :1]).T, np.arange(len(logs)))
    low, high = spread.interval()
    for n_heads, *values in zip(table.columns, spread.centre, low, high, strict=True):
        times = dict(zip(("times", "low", "high"), (float(np.exp(value)) for value in values), strict=True))
        yield {"run": run, "arm": arm, "quantity": quantity, "n_heads": int(n_heads), **times}
