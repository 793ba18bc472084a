"""C14: the embedding is divided among the heads."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headscope.anatomy.weights import input_weights, output_weights
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.claims import CLAIMS, EXACT, FAILS, HOLDS, SEEDS_DRAWN, Measured, ModelClaim, Verdict, in_part
from headscope.studies.layers import Layer, kind_of, layer_table, named, of_layers, only
from headscope.studies.subjects import Subject

__all__ = ["Division", "overlap"]

_NOTHING = 1e-6  # of the longest column: a shorter one reads nothing of its input dimension
_ROUNDED = 1e-9  # of a share of the width, which is a count over a count
_WHAT = {
    "read": Both("The subspaces that two heads of a layer read", "同じ層の2個のヘッドが読み取る部分空間"),
    "write": Both("The subspaces that they write", "書き込む部分空間"),
}
_SHARED = Both(
    "All heads of a layer read by one value head that they share: they read the same subspace, and there are no two "
    "to compare.",
    "バリューは1組で、層のすべてのヘッドが共有しています。そのため読み取る部分空間はどのヘッドでも同じで、"
    "比べる組がありません。",
)
_UNREAD = {
    "read": Both(
        "How far the subspaces that heads read overlap cannot be told: no two heads' value weights can be read apart.",
        "バリューの重みをヘッドごとに取り出せないため、読み取る部分空間の重なりは測れません。",
    ),
    "write": Both(
        "How far the subspaces that heads write overlap cannot be told: no two heads' output weights can be read "
        "apart.",
        "出力射影の重みをヘッドごとに取り出せないため、書き込む部分空間の重なりは測れません。",
    ),
}


@CLAIMS.register("C14")
class Division(ModelClaim):
    """How much of the width each head reads, and how much of it two heads share."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("the embedding is divided", "埋め込みの分割")
    says: ClassVar[Both] = Both(
        "The input's embedding is divided into several heads; the original vector is split into small ones.",
        "…埋め込みベクトルを複数の「ヘッド」に分割し、…。…元の埋め込みベクトルを小さな次元に分割し、…。",
    )
    where_ja: ClassVar[str] = "マルチヘッドアテンションの概要」と「クエリ、キー、バリューの生成"
    means: ClassVar[Both] = Both(
        "We ask whether a head is given a slice of each token's embedding, 64 of 512 numbers say, or all of it. If "
        "each reads a slice, then heads see different parts of a token; if each reads all, then they differ only in "
        "what they make of it.",
        "各ヘッドが受け取るのは、トークンの埋め込みの一部分(たとえば512個の数値のうち64個)なのか、"
        "それとも全体なのかを調べます。"
        "一部分であれば、ヘッドごとにトークンの別の部分を見ていることになり、"
        "全体であれば、違いはそこから何を取り出すかだけになります。",
    )
    measured: ClassVar[Both] = Both(
        "Of each head's query, key and value weights: the share of the input's dimensions with any weight at all. Were "
        "the embedding divided among h heads it would be 1 / h. Beside it, the overlap of the subspaces that two heads "
        "of a layer read (by their value weights) and write (by their output weights): the mean squared cosine of the "
        "principal angles between them (Björck and Golub 1973), 0 if they share nothing, 1 if they are the same. "
        "Heads that share a value head read the same subspace, which is taken once. Chance is what two random "
        "subspaces of these dimensions overlap by on average: dimensions of the head over width.",
        "各ヘッドのクエリ・キー・バリューの重みについて、0でない重みを持つ入力次元の割合を数えます。"
        "埋め込みがh個のヘッドに分割されているなら、この割合は1/hになります。"
        "あわせて、同じ層の2個のヘッドが読み取る部分空間(バリューの重みによる)と"
        "書き込む部分空間(出力射影の重みによる)の重なりを、主角のコサインの二乗の平均で測ります"
        "(Björck・Golub 1973)。共有がなければ0、一致すれば1です。"
        "同じバリューヘッドを共有するヘッドは同じ部分空間を読み取るため、1つとして扱います。"
        "偶然の水準は、同じ次元のランダムな部分空間2つの重なりの平均で、ヘッドの次元数÷幅です。",
    )
    unit: ClassVar[Both] = Both("share of the width that a head reads", "ヘッドが読み取る入力次元の割合")
    rule: ClassVar[Both] = Both(
        "it holds if in every layer a head reads no more than its share of the width, 1 / heads; it does not hold if "
        "it reads more in every layer; else it holds in part, in the layers that are named",
        "すべての層でヘッドの読み取る割合が1/ヘッド数以下なら成り立つ。すべての層でそれを超えるなら成り立たない。"
        "それ以外は、名前を挙げた層についてだけ一部で成り立つ",
    )
    drawn: ClassVar[Both] = (
        Both(
            "A mark a layer. Dotted lines: what a head would read of a divided embedding, and the overlap by chance.",
            "層ごとの値。点線は、埋め込みが分割されていた場合にヘッドが読み取る割合と、重なりの偶然の水準。",
        )
        + SEEDS_DRAWN
    )
    follows: ClassVar[Both] = Both(
        "Readers picture heads that each get a slice of the embedding. One may not: each head has weight matrices of "
        "its own for the whole embedding, as the paper itself says where queries, keys and values are made "
        "(「埋め込みベクトル(例:512次元)に対して専用の重み行列を用いて」). What is small is what a head makes of it: "
        "its queries, keys and values. So the picture of slices is right for the heads' outputs side by side, and "
        "wrong for the input. Nor are a head's directions its own: two heads may read, and write, the same ones.",
        "各ヘッドに埋め込みの一部分が渡される、という図を思い浮かべがちですが、そうではありません。論文自身もクエリ・"
        "キー・バリューの生成の箇所で「埋め込みベクトル(例:512次元)に対して専用の重み行列を用いて」と述べているとおり、"
        "各ヘッドは埋め込み全体に対する重み行列を持っています。小さいのは、そこから作られるクエリ・キー・"
        "バリューのほうです。したがって「切り分ける」という図は、ヘッドの出力を並べたものについては正しく、"
        "入力については誤りです。また、方向が各ヘッドに専有されているわけでもなく、"
        "2個のヘッドが同じ方向を読み取ったり、同じ方向に書き込んだりすることもあります。",
    )
    limits: ClassVar[Both] = Both(
        "Weights alone, no text: that a weight is there does not say how much it matters. An overlap above chance says "
        "that heads prefer the same directions of the width, and not that they do the same with them.",
        "重みだけを見ており、テキストは使っていません。重みがあることは、それがどれだけ効いているかを意味しません。"
        "重なりが偶然の水準を上回っても、ヘッドが同じ方向を好むことを示すだけで、"
        "同じ働きをしているとは限りません。",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        out = output_weights(subject.model, subject.anatomy.apart)
        rows, times = [], {}
        for site in subject.anatomy.sites:
            own = input_weights(subject.model, site)
            if not own or site.n_heads < 2:
                continue
            read, width = _read(own)
            times[named("largest_times", Layer(kind_of(site), site.layer))] = read * site.n_heads
            read_overlap, chance = overlap(own.get("v", []))
            write_overlap, write_chance = overlap([head.T for head in out.get(site.layer, [])])
            rows.append(
                {
                    "layer": site.layer, "n_heads": site.n_heads, "width": width, "dims": site.head_dim,
                    "value_dims": site.value_dim, "value_heads": site.n_value_heads, "read": read,
                    "share": 1 / site.n_heads,
                    "read_overlap": read_overlap, "read_chance": chance,
                    "write_overlap": write_overlap, "write_chance": write_chance,
                }
            )  # fmt: skip
        if not rows:
            raise AnatomyError(
                "no layer has two heads, each made by one linear map of the width, that it could be divided among"
            )
        table = pd.DataFrame(rows)
        means = {name: float(table[name].mean()) for name in table.columns if name not in ("layer", "read")}
        return Measured(float(table["read"].mean()), EXACT, means | times, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        times = of_layers(words, "largest_times")
        divided = [layer for layer, value in times.items() if value <= 1 + _ROUNDED]
        if len(divided) == len(times):
            return HOLDS
        return in_part(only(divided, times)) if divided else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        read, share, width = f"{words['effect']:.0%}", f"{words['share']:.1%}", f"{words['width']:.4g}"
        return Both(
            f"A head's weights read {read} of the {width} dimensions of the width; of an embedding that is divided it "
            f"would be {share}.",
            f"各ヘッドは入力{width}次元の{read}を使っています。埋め込みが分割されているなら、{share}になるはずです。",
        )

    def follow(self, words: Mapping[str, float]) -> Both:
        width, dims, values = (f"{words[name]:.4g}" for name in ("width", "dims", "value_dims"))
        narrow = Both(
            f"Of {width} dimensions a head makes queries and keys of {dims}, and values of {values}.",
            f"ヘッドは{width}次元の埋め込みから、{dims}次元のクエリとキー、{values}次元のバリューを作ります。",
        )
        return joined([narrow, *(_overlapping(what, words) for what in _WHAT)])

    def tabled(self, table: pd.DataFrame) -> Both:
        columns = {
            "layer": Both("layer", "層"), "read": Both("share of width read", "読み取る入力次元の割合"),
            "read_overlap": Both("overlap, read", "読み取る部分空間の重なり"),
            "read_chance": Both("by chance", "偶然の水準"),
            "write_overlap": Both("overlap, written", "書き込む部分空間の重なり"),
            "write_chance": Both("by chance", "偶然の水準"),
        }  # fmt: skip
        made = layer_table(table, columns, "{:.3g}".format)
        untold = [(what, table[table[f"{what}_overlap"].isna()]) for what in _WHAT]
        reasons = {_why_not(what, heads) for what, own in untold if len(own) for heads in own["value_heads"]}
        less = [told for what in _WHAT if (told := _less_than_chance(what, table))]
        return joined([made, *less, *sorted(reasons, key=lambda one: one.en)], "\n\n", "\n\n")

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"read": "width read by a head", "read_overlap": "overlap, read", "write_overlap": "overlap, written"}
        series = {name: words for name, words in series.items() if table[name].notna().any()}
        lines = {"1 / heads": float(table["share"].mean())}
        chance = float(table[["read_chance", "write_chance"]].mean(axis=None))
        if abs(lines["1 / heads"] - chance) < 0.01:
            lines = {"1 / heads, and\nby chance": chance}
        elif not isnan(chance):
            lines["by chance"] = chance
        return figure_of(layer_dots(table, series, label="share", lines=lines))


def overlap(weights: Sequence[Tensor]) -> tuple[float, float]:
    """How much the row spaces of every two heads' weights overlap, and how much random ones would.

    Args:
        weights: of each head, (dim, width); one without any weight is left out.

    Returns:
        Means over pairs, no unit, in [0, 1]: the mean squared cosine of the principal angles, and what it is on average
        for random subspaces of as many dimensions; NaN with fewer than two heads.
    """
    bases = [basis for basis in map(_basis, weights) if basis.shape[1]]
    pairs = list(combinations(bases, 2))
    if not pairs:
        return float("nan"), float("nan")
    shared = [float((a.T @ b).square().sum()) / min(a.shape[1], b.shape[1]) for a, b in pairs]
    # the squared length of a random unit vector's part in a subspace of n dimensions is n / width on average
    chance = [max(a.shape[1], b.shape[1]) / len(a) for a, b in pairs]
    return float(np.mean(shared)), float(np.mean(chance))


def _basis(weight: Tensor) -> Tensor:
    """(width, rank): orthonormal directions that a head's weights span; fewer than its dimensions where some agree."""
    _, sizes, directions = torch.linalg.svd(weight.double(), full_matrices=False)
    return directions[sizes > _NOTHING * sizes.max().clamp_min(torch.finfo(torch.float64).tiny)].T


def _read(own: Mapping[str, Sequence[Tensor]]) -> tuple[float, int]:
    """Share of what they could that a head's query, key and value weights read, and the widest of what they read."""
    columns = [torch.stack([head.norm(dim=0) for head in heads]) for heads in own.values()]  # widths may be unlike
    largest = max(float(each.max()) for each in columns)
    shares = [float((each > _NOTHING * largest).double().mean()) for each in columns]
    return float(np.mean(shares)), max(each.shape[1] for each in columns)


def _less_than_chance(what: str, table: pd.DataFrame) -> Both:
    """Layers whose heads overlap less than random ones do, where others overlap more: a mean hides them."""
    means = table.groupby("layer")[[f"{what}_overlap", f"{what}_chance"]].mean()
    less = means.index[means[f"{what}_overlap"] < means[f"{what}_chance"]]
    if not 0 < len(less) < len(means):
        return NOTHING
    layers, named = (mark.join(map(str, less)) for mark in (", ", "、"))
    done = "読み取る" if what == "read" else "書き込む"
    return Both(
        f"In layer{'' if len(less) == 1 else 's'} {layers} the subspaces that two heads {what} overlap less than "
        "random ones.",
        f"層{named}では、2個のヘッドが{done}部分空間の重なりが、ランダムな部分空間より小さくなっています。",
    )


def _overlapping(what: str, words: Mapping[str, float]) -> Both:
    """How far an overlap is from chance, or why there is none to tell."""
    value, chance = words[f"{what}_overlap"], words[f"{what}_chance"]
    if isnan(value):
        return _why_not(what, words["value_heads"])
    subspaces, times = _WHAT[what], value / chance
    return Both(
        f"{subspaces.en} overlap by {value:.3f}, {times:.2f} times what random ones do ({chance:.3f}).",
        f"{subspaces.ja}の重なりは{value:.3f}で、ランダムな部分空間({chance:.3f})の{times:.2f}倍です。",
    )


def _why_not(what: str, value_heads: float) -> Both:
    """Why there is no overlap to tell in layers of so many value heads."""
    return _SHARED if what == "read" and value_heads == 1 else _UNREAD[what]
