"""C12: each head captures something different, so that every head's output matters."""

from collections.abc import Mapping
from math import isnan, nan
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count, number
from headscope.effects.noise import noise_effects
from headscope.errors import AnatomyError, InputError
from headscope.reporting.figures import share_curves
from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict, in_part, undecided
from headscope.studies.same_document import same_document_effects
from headscope.studies.shares import SHARE_INTERVAL, count_beyond, head_rows
from headscope.studies.subjects import Subject
from headscope.uncertainty.intervals import mean_spread
from headscope.uncertainty.resampling import share_above

__all__ = ["EveryHead"]

_NOISE = Both("noise to hold it against", "比べるためのノイズの測定が必要")
_CLEARLY = Both("clearly above the size:", "基準を明らかに超えるのは")
_FELT = Both("removal is felt, more than noise:", "除去の影響はある。ノイズを超えるのは")
_IDLE = Both("embeddings move, the task hardly suffers", "埋め込みは動くがタスクの誤りはほぼ増えない")
_UNTOLD = Both("embeddings move, the task cannot tell", "埋め込みは変わるがタスクでは判断できない")
_SIZE = 0.001  # of the intact model's loss; of a distance, itself
_TASK_SIZE = 0.001  # of pairs of passages that are taken wrong
_TURNS = 4  # of each head's noise


@CLAIMS.register("C12")
class EveryHead(ModelClaim):
    """What removing each head alone costs, beside noise of its length."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("every head matters", "どのヘッドも重要")
    says: ClassVar[Both] = Both(
        "Each head's output captures a different feature, so each of them is important.",
        "各ヘッドの出力は異なる特徴を捉えるため、それぞれの出力が重要である。",
    )
    where_ja: ClassVar[str] = "アテンション出力の生成"
    means: ClassVar[Both] = Both(
        "A head matters if the model does worse when that head alone is switched off. How many do depends on how much "
        "worse is called worse, so the figure shows the share of heads for every size.",
        "そのヘッドだけを除いたときにモデルの結果が悪くなれば、そのヘッドは重要です。"
        "どれだけ悪くなれば重要と呼ぶかで個数が変わるので、図には基準の大きさごとのヘッドの割合を示します。",
    )
    measured: ClassVar[Both] = Both(
        "Every head is switched off alone, exactly, and the metric taken again on the same text, a sample where there "
        "is much of it, as each head takes a forward pass (Michel et al. 2019, arXiv:1905.10650). A head matters if "
        "that costs more than 0.1% of the loss, or 0.001 where the metric is a distance to the intact model. Noise "
        "stands beside it: the head's contribution turned at random, within the directions that the head can write, "
        "is added to it, at every position as long as the contribution itself. It is the mean over four turns; how "
        "far turns and documents lie apart says what is clearly more. A head whose removal costs no more "
        "than that may be needed for its size alone. Encoders judged by a distance are given a task that a reader "
        "knows as well: given a passage and two others, one from the same document and one from another essay or file, "
        "how often is the stranger's embedding the nearer one to it?",
        "ヘッドを1個ずつ除き(出力を0にする)、同じテキストで評価指標を測り直します(1ヘッドにつき順伝播1回なので、"
        "テキストが多いときは一部を抜き出します。表の文書数はその数です。Michelら2019、arXiv:1905.10650)。"
        "損失が0.1%(元のモデルとの距離で測る場合は0.001)を超えて悪化すれば重要とします。比較のため、"
        "元の寄与は残したまま、それをそのヘッドが書き込める方向の中でランダムに回転させたものを"
        "足したときの影響も測ります(ノイズと呼びます。ノルムはどの位置でも寄与と同じ)。回転は4通り試して平均し、"
        "明らかに差があるかは、文書によるばらつきと回転によるばらつきの両方から判断します。"
        "除いた影響がこれを上回らなければ、そのヘッドの中身が必要だとまでは言えません。距離で測るエンコーダでは、"
        "良し悪しが分かるタスクでも測ります。ある文章に対して、同じ文書の文章と、別の記事やファイルの文章を1つずつ用意し、"
        "埋め込みが後者のほうに近くなる割合を数えます。",
    )
    unit: ClassVar[Both] = Both(
        "share of heads whose mean cost is above the size, clearly or not; the verdict counts only heads whose whole "
        "interval is above it",
        "影響の平均が基準の大きさを超えるヘッドの割合(区間が基準をまたぐヘッドも含む)。"
        "判定で数えるのは、区間全体が基準を超えるヘッドだけ",
    )
    interval: ClassVar[Both] = SHARE_INTERVAL
    rule: ClassVar[Both] = Both(
        "it holds if no head lies below the size by its whole interval, at least half lie above it so, for at least "
        "half removing costs clearly more than noise, and where a task was given at least half are clearly needed for "
        "it; it does not if more heads lie below the size than above it; where none lies below, half lie above and "
        "noise was not measured, it is not decided; else it holds in part",
        "次をすべて満たせば成り立つ。(1)区間全体が基準を下回るヘッドがない、(2)半数以上のヘッドで区間全体が基準を上回る、"
        "(3)半数以上のヘッドで、除いた影響がノイズの影響を明らかに上回る、(4)タスクがあれば、"
        "半数以上のヘッドがそれに明らかに必要である。下回るヘッドが上回るヘッドより多ければ成り立たない。"
        "(1)と(2)を満たすがノイズを測っていないときは未判定。それ以外は一部で成り立つ",
    )
    drawn: ClassVar[Both] = Both(
        "Share of heads that cost more than a size, for every size (the axis is logarithmic). Band: the same by the "
        "ends of the heads' 95% intervals. Dashed: noise of the same length. Dotted: the size of the rule. On either "
        "axis heads at or below 0 are out of sight. Over several training seeds, of the heads of all models. Where "
        "there is a second panel, the size is how much the share of pairs taken wrong rises in the task.",
        "影響の大きさが横軸の値を超えるヘッドの割合(横軸は対数)。"
        "帯は各ヘッドの95%区間の両端で数えた割合、破線は同じ大きさ(ノルム)のノイズ、点線は判定基準の大きさ。"
        "影響が0以下のヘッドは図の範囲に入らない。学習シードが複数あるときは全モデルのヘッドを合わせた割合。"
        "右の図がある場合、横軸はタスクで取り違える組の割合の増加。",
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that no head can be left out. That does not follow: a head alone costs little where others do "
        "the same, and how many can go together is measured by itself (C9).",
        "「どのヘッドも省けない」と読まれがちですが、そうは言えません。"
        "他のヘッドが同じ働きをしていれば1個を除く影響は小さく、まとめて"
        "何個除けるかは別に測る必要があります(C9)。",
    )
    limits: ClassVar[Both] = Both(
        "A head alone: two that stand in for each other both seem not to matter. Intervals are of single heads: of 72 "
        "that sit at the line, about 1.8 would lie clearly above it by chance. By a distance to the intact model no "
        "head can be seen to harm. Switching off sets a head's contribution to zero, which the model never saw.",
        "ヘッドを1個ずつ除いた結果です。互いに代わりになる2個のヘッドは、どちらも重要でないように見えます。"
        "区間は1個ずつのもので、基準ちょうどのヘッドが72個あれば、偶然でも約1.8個が明らかに超えます。"
        "元のモデルとの距離では、"
        "有害なヘッドは見つけられません。また、寄与を0にした状態はモデルが学習中に経験していないものです。",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        size = _SIZE if subject.judged_by.is_distance else _SIZE * abs(subject.intact)
        if not size:
            raise InputError(
                f"the intact model's {subject.judged_by.name} is 0 on this text, and effects are told as shares of it; "
                "give a text on which it errs"
            )
        effects = subject.effects if subject.evidence is None else subject.evidence.effects
        table = head_rows(subject.worth, "effect").assign(size=size, unit=subject.judged_by.unit)
        if table.empty:
            raise AnatomyError("no head of this model can be switched off alone")
        effect, low, high = share_above(mean_spread(effects.values, effects.document), size, seed=subject.seed)
        numbers = {
            "heads": float(len(table)),
            "largest": float(table["effect"].max() / size * _SIZE),
            "distance": float(subject.judged_by.is_distance),
            "helped": float((table["effect_high"] < 0).sum()),
            **count_beyond(table, "effect", size),
        }
        noise, beside = _noise(subject)
        task, further = _task(subject)
        table = table.assign(**beside, **further)
        documents = count(int(subject.worth.facts["documents"]), subject.text_unit.removesuffix("s"))
        return Measured(effect, documents, {**numbers, **noise, **task}, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        half = words["heads"] / 2
        if words["below"] > words["above"]:
            return FAILS
        if words["below"] or words["above"] < half:
            return in_part(joined([_CLEARLY, _counted(words["above"], words["heads"])]))
        if isnan(words["louder"]):
            return undecided(_NOISE)
        if words["louder"] < half:
            return in_part(joined([_FELT, _counted(words["louder"], words["heads"])]))
        if words["task_above"] < half:
            return in_part(_IDLE if words["task_below"] >= half else _UNTOLD)
        return HOLDS

    def say(self, words: Mapping[str, float]) -> Both:
        above, below, across = (_tally(words[name]) for name in ("above", "below", "across"))
        if words["distance"]:
            size, largest = Both(f"{_SIZE:g} of drift", f"driftで{_SIZE:g}"), number(words["largest"])
        else:
            size, largest = Both(f"{_SIZE:.1%} of the loss", f"損失の{_SIZE:.1%}"), f"{words['largest']:.2%}"
        heads, mean = _tally(words["heads"]), _tally(words["effect"] * words["heads"])
        counted = Both(
            f"Switched off alone, {mean} of {heads} heads cost more than {size.en} in the mean over documents. By "
            f"their whole interval {above} cost more, {below} less, and {across} cannot be told; the costliest costs "
            f"{largest}.",
            f"1個だけ除いたとき、影響の平均が{size.ja}を超えるヘッドは{heads}個中{mean}個です。区間全体で見ると、"
            f"超えるのは{above}個、下回るのは{below}個、どちらとも言えないのは{across}個です。"
            f"影響が最も大きいヘッドでは{largest}でした。",
        )
        helped = NOTHING
        if not words["distance"] and words["helped"]:
            count = _tally(words["helped"])
            helped = Both(
                f"Removing {count} of them clearly lowers the loss.",
                f"除くと損失が明らかに下がる(区間全体が0未満の)ヘッドは{count}個です。",
            )
        return joined([counted, helped, _beside_noise(words), _in_the_task(words)])

    def headline(self, words: Mapping[str, float]) -> Both:
        heads, above = _tally(words["heads"]), _tally(words["above"])
        louder = _tally(words["louder"])
        noise, task = NOTHING, NOTHING
        result = Both(
            f"moves the output by clearly more than {_SIZE:g} (drift)", f"出力の変化(drift)が明らかに{_SIZE:g}を超える"
        )
        if not words["distance"]:
            result = Both(
                f"raises the loss by clearly more than {_SIZE:.1%}", f"損失が明らかに{_SIZE:.1%}を超えて増える"
            )
        if not isnan(words["task_above"]):
            needed = _tally(words["task_above"])
            task = Both(f" For the task {needed} are clearly needed.", f"タスクに明らかに必要なのは{needed}個です。")
        if not isnan(words["louder"]):
            noise = Both(
                f", and by clearly more than adding noise as long as what the head writes does for {louder}",
                f"、寄与と同じ大きさ(ノルム)のノイズを足した場合より影響が明らかに大きいのは{louder}個",
            )
        return Both(
            f"Taking one head away alone {result.en} for {above} of {heads} heads{noise.en}.{task.en}",
            f"1個だけ除いて{result.ja}のは{heads}個中{above}個{noise.ja}です。{task.ja}",
        )

    def tabled(self, table: pd.DataFrame) -> Both:
        if "task" not in table or (width := (table["task_high"] - table["task_low"]).median()) <= _TASK_SIZE:
            return NOTHING
        wide, least = f"{width * 100:.2f}", f"{_TASK_SIZE * 100:g}"
        return Both(
            f"In the task the interval of a head's rise is {wide} points wide in the median, and the size that counts "
            f"is {least}: so few passages cannot tell a single head.",
            f"タスクでの増加の区間の幅は中央値{wide}ポイントで、基準の{least}ポイントよりはるかに広く、"
            "この文章の数では1個のヘッドの影響を判断できません。",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        unit = "".join(table["unit"].dropna().unique())  # read back, "" is NaN
        return share_curves(table, unit=unit, task=("same document or not", _TASK_SIZE) if "task" in table else None)


def _counted(some: float, every: float) -> Both:
    mean = Both(" on average", "平均") if some != round(some) else NOTHING  # of several training seeds
    return Both(f"{_tally(some)} of {_tally(every)} heads{mean.en}", f"{_tally(every)}個中{mean.ja}{_tally(some)}個")


def _tally(number: float) -> str:
    """A count of heads, which is a mean over training seeds where there are several."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _noise(subject: Subject) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """How many heads cost clearly more, and clearly less, when removed than as much noise costs; what noise costs.

    One turn of a head says little of the next: noise is the mean over several, and how far they lie apart counts.
    """
    if subject.evidence is not None:  # an analysis does without: it would take as long as its ablation
        return dict.fromkeys(("louder", "quieter"), nan), {}
    own = subject.effects
    about = subject.model, subject.sample, subject.judged_by, subject.anatomy
    seeds = range(_TURNS * subject.seed, _TURNS * (subject.seed + 1))
    turned = np.stack([noise_effects(*about, seed).values for seed in seeds])
    more = mean_spread(own.values - turned.mean(0), own.document)
    turns = mean_spread(turned.mean(2).T, np.arange(_TURNS))
    half = np.hypot(*(one.interval()[1] - one.centre for one in (more, turns)))
    numbers = {"louder": float((more.centre > half).sum()), "quieter": float((more.centre < -half).sum())}
    return numbers, {"noise": turns.centre}


def _task(subject: Subject) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The task of documents, where the model takes it: how often it errs, and how many heads it needs."""
    names = ("task_intact", "task_above", "task_below", "task_across", "task_largest")
    found = None if subject.evidence is not None else same_document_effects(subject)
    if found is None:
        return dict.fromkeys(names, nan), {}
    intact, spread = found
    low, high = spread.interval()
    columns = {"task": spread.centre, "task_low": low, "task_high": high}
    counted = count_beyond(pd.DataFrame(columns), "task", _TASK_SIZE)
    numbers = {f"task_{name}": value for name, value in counted.items()}
    return {"task_intact": intact, "task_largest": float(spread.centre.max()), **numbers}, columns


def _beside_noise(words: Mapping[str, float]) -> Both:
    if isnan(words["louder"]):
        return NOTHING
    louder, quieter = (_tally(words[name]) for name in ("louder", "quieter"))
    return Both(
        f"Removing costs clearly more than noise of the same length for {louder} heads, clearly less for {quieter}, "
        "and for the others it cannot be told.",
        f"同じ大きさ(ノルム)のノイズを加えた場合と比べると、除いた影響のほうが明らかに大きいヘッドは{louder}個、"
        f"明らかに小さいヘッドは{quieter}個で、残りは判断できません。",
    )


def _in_the_task(words: Mapping[str, float]) -> Both:
    if isnan(words["task_intact"]):
        return NOTHING
    above, below, across = (_tally(words[f"task_{name}"]) for name in ("above", "below", "across"))
    heads = _tally(words["heads"])
    intact, largest = f"{words['task_intact']:.1%}", f"{words['task_largest'] * 100:.2f}"
    least = f"{_TASK_SIZE * 100:g}"
    return Both(
        f"Told to find the passage of the same document, the intact model errs in {intact} of the pairs. Without one "
        f"head it errs clearly more (by over {least} points) for {above} of {heads} heads, surely no more than that "
        f"for {below}, and for {across} it cannot be told; the largest rise is {largest} points.",
        f"同じ文書の文章を選ぶタスクでは、元のモデルが取り違える組は{intact}です。"
        f"1個除いて明らかに({least}ポイントを超えて)増えるのは{heads}個中{above}個、増加が{least}ポイント以下と言えるのは{below}個、"
        f"判断できないのは{across}個で、増加は最大{largest}ポイントです。",
    )
