"""C5: every query meets every key, so that cost grows with the square of the length."""

from collections.abc import Mapping
from math import isnan, log10, nan
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count, number, percent
from headscope.reporting.figures import cost_terms
from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.claims import CLAIMS, EXACT, FAILS, HOLDS, ROUNDING, CostClaim, Measured, Verdict, undecided
from headscope.studies.growing import Terms, growth, terms

__all__ = ["SquareOfLength"]

_TOKENS = 10  # the paper's example
_FITTED = "fit to counts"  # what is told of a length that was not counted itself
_CLOSE = 0.05  # terms that miss a cost by more than that share of it say nothing of it
_ROUGH = 0.01  # terms that miss a cost by more: where they cross is told to two digits
_NOTHING = 1e-6  # of a cost: a term that is less is what rounding leaves of none
_NAMES = {"flops": Both("operations", "演算量"), "bytes": Both("bytes of memory", "メモリのバイト数")}


@CLAIMS.register("C5")
class SquareOfLength(CostClaim):
    """Pairs that are computed, from counted operations; and how operations, bytes and time grow with length."""

    kind: ClassVar[str] = "definition"
    about: ClassVar[Both] = Both("every query meets every key", "全クエリと全キーの総当たり")
    says: ClassVar[Both] = Both(
        "Every query is compared with every key. With 10 tokens each head computes all pairs of queries and keys, 10 "
        "× 10.",
        "各クエリが全てのキーと比較される。10個のトークンがある場合、各ヘッドは全てのクエリと全てのキーのペア"
        "を計算する。",
    )
    where_ja: ClassVar[str] = "シーケンス全体に対するアテンション計算"
    means: ClassVar[Both] = Both(
        "The question is how many pairs of a query and a key each head computes. If it is the number of tokens "
        "squared, no pair is skipped: twice as long a text has four times as many pairs.",
        "ここで問うのは、各ヘッドがクエリとキーの組をいくつ計算しているかです。トークン数の二乗であれば、"
        "省かれた組はなく、テキストの長さが2倍になると組の数は4倍になります。",
    )
    measured: ClassVar[Both] = Both(
        "torch counts the operations of the matrix products in inference, at several lengths T: of the timed layer its "
        "attention; of a named model as a whole, on a row of its text that is repeated. "
        "Where it can be told to, it makes logits of the last position alone, as when "
        "text is generated. Counts are fitted as a fixed part "
        "+ a·T + b·T², by least squares of the relative errors over the longest four lengths. One pair costs a head 2 "
        "· (head_dim + value_dim) operations, one product for the score and one for the weighted value. b over that "
        "sum, taken over all heads and layers, is how many pairs of T² a head computes. The most bytes that are alive "
        "at once are fitted alike, with maps written out (eager) and never (sdpa; Dao et al. 2022, arXiv:2205.14135). "
        "Seconds are taken in turns in one process, many rounds.",
        "複数の長さTについて、推論時の行列積の演算量をtorchで数えます。計測用の層ではアテンション1層、"
        "指定されたモデルでは全体が対象です。後者の入力は、テキストの1行を必要な長さになるまで繰り返したものです。"
        "モデルに指定できる場合は、テキスト生成のときと同じく、最後の位置のロジットだけを計算させます。数えた値を、"
        "長い方から4つの長さについて、相対誤差の最小二乗法で「定数+a·T+b·T²」に当てはめます。1組あたりの演算量は1ヘッド"
        "につき2·(head_dim+value_dim)(スコアの積と、重みを掛けたバリューの積)です。全ヘッド・全層についての合"
        "計でbを割ると、1ヘッドが計算した組の数がT²の何倍かが分かります。同時に必要な最大バイト数も"
        "同じ式に当てはめます。マップを書き出すカーネル(eager)と書き出さないカーネル(sdpa、Daoら2022、"
        "arXiv:2205.14135)の両方が対象です。時間は1つのプロセスの中で長さを交互に変えながら何度も計ります。",
    )
    unit: ClassVar[Both] = Both(
        f"pairs that a head computes at {_TOKENS} tokens, from counted operations",
        f"{_TOKENS}トークンで1ヘッドが計算する組の数(数えた演算量から求めた値)",
    )
    rule: ClassVar[Both] = Both(
        "it holds if the pairs counted are T² a head, to within 0.1%; it does not hold if they are fewer; it is not "
        "decided where three terms do not fit the counts to within 0.1%, or where more than the pairs grows with T²",
        "数えた組が1ヘッドあたりT²個に0.1%以内で一致すれば成り立つ。それより少なければ成り立たない。"
        "演算量を「定数+a·T+b·T²」で0.1%以内に表せない場合や、組のほかにもT²で増える演算がある場合は判定しない",
    )
    drawn: ClassVar[Both] = Both(
        "Dots: what was counted or timed (of time, every round); filled: eager, rings: sdpa. Lines of operations and "
        "memory: the fit, over the lengths that were fitted. Lines of time: the median. Dotted lines, for operations "
        "and for memory, stand where the term of T² overtakes that of T by the fit, if that is in sight.",
        "点は数えた値または計った値(時間は繰り返した計時のすべて)。塗りつぶしはeager、白抜きはsdpa。"
        "演算量とメモリの線は当てはめた式(当てはめに使った長さの範囲)、時間の線は中央値。演算量とメモリの"
        "縦の点線は、当てはめた式でトークン数の二乗に比例する項が、トークン数に比例する項を超える長さ"
        "(図の範囲にあるとき)。",
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that cost grows with the square of the length. Operations do in the end. A part of them, the "
        "projections and in a whole model the layers between, grows with the length itself, so that short texts seem "
        "linear. Memory grows with the square where the maps are written out; elsewhere only "
        "where masks or position biases of T × T are made, as for windows, and that is less. Times are an "
        "illustration: the interval over the rounds of one day does not hold on another. On one processor three days "
        "gave from T^2.7 to T^3.5 for the same doubling.",
        "「コストはシーケンス長の二乗で増える」と読まれがちです。演算量は、十分に長ければそのとおりです。ただし、"
        "射影や(モデル全体では)間にある層の演算量は長さに比例するため、短いテキストでは全体も長さに比例して見えます。"
        "メモリは、マップを書き出す場合に長さの二乗で増えます。書き出さない場合に二乗で増えるのは、"
        "窓などのためにT×Tのマスクや位置バイアスを作るときだけで、その量は小さくなります。時間は参考値です。"
        "1日のうちに繰り返した計時の区間は、別の日には当てはまりません。同じプロセッサで3日計ると、"
        "長さを2倍にしたときの時間の増え方は、トークン数の2.7乗から3.5乗まで変わりました。",
    )
    limits: ClassVar[Both] = Both(
        "Counted is what is computed, whether or not a mask hides it afterwards: these kernels compute hidden pairs "
        "too. Softmax and norms are not among the operations counted. Bytes are those of tensors; the most may be "
        "alive at another moment in short texts than in long ones, so that a fit of bytes is rougher. Where a model "
        "takes three lengths alone, the fit cannot be checked. Times are those of the machine named, on that day.",
        "数えるのは実際に計算した組です。あとでマスクに隠される組も、これらのカーネルは計算します。"
        "ソフトマックスや正規化は演算量に含みません。メモリはテンソルのバイト数です。最大になる時点が短いテキス"
        "トと長いテキストで異なることがあり、当てはめはやや粗くなります。3つの長さしか測れないモデルでは、"
        "当てはめの良さを確かめられません。時間は記載した環境でのその日の値です。",
    )

    of_a_model: ClassVar[bool] = True

    def measure(self, costs: pd.DataFrame) -> Measured:
        own = _inference(costs)
        lengths = sorted(own["length"].unique())
        numbers = {
            "shortest": float(lengths[0]),
            "longest": float(lengths[-1]),
            "before": float(lengths[-2]),
            "whole": float(_part(own) == "model"),
        }
        if len(lengths) < 3:
            return Measured(nan, EXACT, {**numbers, "pairs": nan, "gap": nan}, own)
        fitted = _fitted(own)
        kernel = next(iter(fitted))[0]
        operations = fitted[kernel, "flops"]
        pairs = operations.square / _pair(own)
        if numbers["whole"]:
            numbers |= {"last": float(own["last"].iloc[0]), **_masks(own)}
        for (name, quantity), found in fitted.items():
            numbers |= {f"{name}_{quantity}_{part}": float(getattr(found, part)) for part in _PARTS}
        against = growth(own)
        for row in against[against["quantity"] == "seconds"].to_dict("records"):
            numbers |= {f"{row['kernel']}_seconds{end}": 2.0 ** row[f"last{end}"] for end in ("", "_low", "_high")}
        told = operations.gap < ROUNDING and pairs < 1 + ROUNDING
        effect = pairs * _TOKENS**2 if told else nan
        return Measured(effect, _FITTED, {**numbers, "pairs": pairs, "gap": operations.gap}, own)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        pairs, gap = words["pairs"], words["gap"]
        if isnan(pairs):
            return undecided(Both("three lengths", "3つ以上の長さが必要"))
        if gap >= ROUNDING:
            return undecided(Both("counts that three terms fit", "3つの項で表せる演算量が必要"))
        if pairs >= 1 + ROUNDING:
            return undecided(Both("counts of the maps alone", "マップだけの演算量が必要"))
        return HOLDS if pairs > 1 - ROUNDING else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        if isnan(words["pairs"]):
            return Both(
                "The text has only two lengths, which leave three terms open.",
                "2つの長さしか測れないため、3つの項を決められません。",
            )
        if isnan(words["effect"]):
            return Both(
                f"b is {words['pairs']:.4g} times what all pairs take; the three terms miss the counts by "
                f"{words['gap']:.2%} at most. The fit cannot tell the pairs from what else is computed.",
                f"bは全ての組に必要な演算量の{words['pairs']:.4g}倍で、3つの項と演算量のずれは最大{words['gap']:.2%}"
                "です。この当てはめでは、組の計算と他の計算を区別できません。",
            )
        pairs, shortest, longest = number(round(words["effect"], 3)), words["shortest"], words["longest"]
        most = count(round(words["pairs"] * longest**2))
        told = Both(
            f"At {_TOKENS} tokens a head computes {pairs} pairs of a query and a key, of {_TOKENS} × {_TOKENS}; at "
            f"{longest:,.0f} tokens {most}. Operations were counted at {shortest:,.0f} to {longest:,.0f} tokens; what "
            f"is told of {_TOKENS} follows from the terms that fit them.",
            f"{_TOKENS}トークンでは、1個のヘッドがクエリとキーの組を{_TOKENS}×{_TOKENS}組のうち{pairs}組計算し、"
            f"{longest:,.0f}トークンでは{most}組を計算します。演算量を数えた長さは{shortest:,.0f}〜{longest:,.0f}トークンで、"
            f"{_TOKENS}トークンでの組の数は、そこに当てはめた式から求めた値です。",
        )
        return told + _HEAD if words["whole"] and words["last"] else told

    def follow(self, words: Mapping[str, float]) -> Both:
        if isnan(words["pairs"]):
            return NOTHING
        kernels = [name for name in ("eager", "sdpa") if f"{name}_seconds" in words]
        parts = [_grown(words, kernels[0], "flops"), *(_grown(words, name, "bytes") for name in kernels)]
        return joined([_TERMS, *parts, _time(words, kernels)])

    def draw(self, table: pd.DataFrame) -> Figure:
        own = _inference(table)
        fitted = _fitted(own) if own["length"].nunique() > 2 else {}
        told = {place: found for place, found in fitted.items() if found.gap <= _CLOSE and found.share > _NOTHING}
        curves = {place: found.curve() for place, found in fitted.items()}
        return cost_terms(own, _part(own), curves, {place: found.crossing for place, found in told.items()})


_HEAD = Both(
    "The model's language head made logits of the last position alone, as when text is generated; logits of every "
    "position would add operations and bytes that grow with T.",
    "言語モデルの出力層は、テキスト生成のときと同じく最後の位置のロジット(次のトークンの得点)だけを計算しています。"
    "すべての位置のロジットを計算すると、Tに比例する演算量とメモリが加わります。",
)
_TERMS = Both(
    "T is the number of tokens; a multiply-add counts as 2 operations.",
    "以下、Tはトークン数です。演算量は、乗算と加算の組を2と数えます。",
)
_PARTS = ("fixed", "linear", "square", "gap", "share", "crossing")  # of `Terms`, that are told


def _part(costs: pd.DataFrame) -> str:
    """Attention alone where it was timed; else the whole."""
    return "attention" if "attention" in set(costs["part"]) else str(costs["part"].iloc[0])


def _inference(costs: pd.DataFrame) -> pd.DataFrame:
    return costs[(costs["part"] == _part(costs)) & (costs["against"] == "length") & (costs["mode"] == "inference")]


def _pair(costs: pd.DataFrame) -> float:
    """Operations of one query with one key, in all heads and layers."""
    if "pair" in costs:
        return float(costs["pair"].iloc[0])
    return 4.0 * float(costs["n_heads"].iloc[0] * costs["head_dim"].iloc[0])  # one layer, whose values are as wide


def _fitted(costs: pd.DataFrame) -> dict[tuple[str, str], Terms]:
    """Terms of operations and bytes by kernel, eager first."""
    kernels = sorted(costs["kernel"].unique(), key=lambda name: name != "eager")
    return {
        (kernel, quantity): terms(costs[costs["kernel"] == kernel].groupby("length")[quantity].first().to_dict())
        for kernel in kernels
        for quantity in _NAMES
    }


def _masks(costs: pd.DataFrame) -> dict[str, float]:
    """Bytes of masks at the longest length, by kernel."""
    longest = costs[costs["length"] == costs["length"].max()].groupby("kernel")["masks"].first()
    return {f"{kernel}_masks": float(own) for kernel, own in longest.items()}


def _grown(words: Mapping[str, float], kernel: str, quantity: str) -> Both:
    """What operations or bytes are made of, and where the square takes over."""
    fixed, linear, square, gap, share, crossing = (words[f"{kernel}_{quantity}_{part}"] for part in _PARTS)
    name, longest = _NAMES[quantity], f"{words['longest']:,.0f}"
    with_maps = NOTHING if quantity == "flops" else Both(f" ({kernel})", f"({kernel})")
    if gap > _CLOSE:
        return Both(
            f"{name.en.capitalize()}{with_maps.en}: three terms miss them by {percent(gap)}, so that the fit cannot "
            "tell.",
            f"{name.ja}{with_maps.ja}は3つの項とのずれが{percent(gap)}あり、当てはめからは判断できません。",
        )
    shown = [(fixed, ""), (linear, "·T"), (square, "·T²")]
    size = fixed + linear * words["longest"] + square * words["longest"] ** 2
    sizes = (fixed, linear * words["longest"], square * words["longest"] ** 2)
    formula = " + ".join(
        f"{number(part)}{power}" for (part, power), own in zip(shown, sizes, strict=True) if abs(own) > _NOTHING * size
    ).replace("+ −", "− ")
    least = max(gap, 1e-4)  # what is less is not told in figures
    off = NOTHING if gap < _NOTHING else Both(f", to within {percent(least, 2)}", f"(誤差{percent(least, 2)}以内)")
    if share < _NOTHING:
        return Both(
            f"{name.en.capitalize()}{with_maps.en}: {formula}{off.en}; nothing grows with the square.",
            f"{name.ja}{with_maps.ja}は{formula}{off.ja}で、二乗で増える部分はありません。",
        )
    counted = words["shortest"] <= crossing <= words["longest"]
    rough = gap > _ROUGH  # another weighting of the lengths would give another crossing
    tokens = round(crossing, 1 - int(log10(crossing))) if rough and crossing >= 1 else round(crossing)
    tokens, about = round(tokens), Both("about ", "約") if rough else NOTHING
    beyond = NOTHING if counted else Both(" (by the fit: no such length was counted)", "(測った長さの外で、式による値)")
    return Both(
        f"{name.en.capitalize()}{with_maps.en}: {formula}{off.en}; the term of T² overtakes that of T at "
        f"{about.en}{count(tokens)} tokens{beyond.en} and is {percent(share)} of all at {longest}.",
        f"{name.ja}{with_maps.ja}は{formula}{off.ja}です。T²の項は{about.ja}{count(tokens)}トークン{beyond.ja}で"
        f"Tの項を超え、{longest}トークンでは全体の{percent(share)}を占めます。",
    ) + (_of_masks(words, kernel) if quantity == "bytes" else NOTHING)


def _of_masks(words: Mapping[str, float], kernel: str) -> Both:
    """How much masks take of the bytes of a kernel; nothing where there are none, or none can be told."""
    masks = words.get(f"{kernel}_masks", nan)
    if not masks > 0:
        return NOTHING
    told, a_pair = number(masks), number(masks / words["longest"] ** 2)
    longest = f"{words['longest']:,.0f}"
    return Both(
        f"Of all bytes at {longest} tokens, {told} are masks of truth values, {a_pair} bytes a pair of tokens.",
        f"{longest}トークンで使う全バイト数のうち、{told}バイトは真偽値のマスクです(トークンの組1つあたり{a_pair}バイト)。",
    )


def _time(words: Mapping[str, float], kernels: list[str]) -> Both:
    """How many times as long the last doubling takes."""
    each = [(name, *(words[f"{name}_seconds{end}"] for end in ("", "_low", "_high"))) for name in kernels]
    en = ", ".join(f"× {time:.2f} ({name}; {low:.2f} to {high:.2f})" for name, time, low, high in each)
    ja = "、".join(f"{time:.2f}倍({name}、{low:.2f}〜{high:.2f}倍)" for name, time, low, high in each)
    before, longest = (f"{words[name]:,.0f}" for name in ("before", "longest"))
    return Both(
        f"As an illustration, from {before} to {longest} tokens time grew {en}; the brackets hold over the rounds of "
        "one session. T² alone would give × 4; traffic with memory may add to it in long texts.",
        f"参考として、{before}トークンから{longest}トークンへの変化で、時間は{ja}になりました(括弧内は1回の計測の中での区間)。"
        "T²に比例する部分だけなら4倍です(長いテキストではメモリの読み書きなどが加わり、それを超えることもあります)。",
    )
