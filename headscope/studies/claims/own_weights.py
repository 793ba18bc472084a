"""C1: every head has its own query, key and value weights, and as many dimensions as its share of the width."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count
from headscope.anatomy.weights import input_weights, weight_of
from headscope.errors import AnatomyError
from headscope.reporting.figures import layer_dots
from headscope.sites import Site
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import CLAIMS, EXACT, WORKED, Measured, ModelClaim, Verdict, in_layers, in_part
from headscope.studies.subjects import Subject

__all__ = ["OwnWeights"]


@CLAIMS.register("C1")
class OwnWeights(ModelClaim):
    """Heads counted, and the weights that make their queries, keys and values."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("own Q, K, V", "専用のQ・K・V")
    says: ClassVar[Both] = Both(
        "Each head makes its own queries, keys and values with weights of its own; with a width of 512 and 8 heads "
        "each has 64 dimensions.",
        "各ヘッドは専用の重み行列でQ・K・Vを作る。512次元・8ヘッドなら各64次元。",
    )
    where_ja: ClassVar[str] = "クエリ、キー、バリューの生成"
    means: ClassVar[Both] = Both(
        "Does each head make queries, keys and values with weights of its own, and do the heads' dimensions add up to "
        "the width of the embedding? Where both are so, a head is a small attention by itself, and more heads are "
        "smaller ones.",
        "各ヘッドが専用の重みでクエリ・キー・バリューを作り、ヘッドの次元数の合計が埋め込みの幅に等しいかを調べます。"
        "両方を満たせば、1個のヘッドはそれだけで小さなアテンションであり、ヘッドを増やすほど1個は小さくなります。",
    )
    measured: ClassVar[Both] = (
        Both(
            "The probe that finds a model's attention says which rows of which weights make each head's query, key "
            "and value. Where heads share keys and values in groups (Ainslie et al. 2023, arXiv:2305.13245) there are "
            "fewer key heads than query heads. Beside it, whether heads × dimensions is the width.",
            "モデルのアテンションを見つけるプローブが、どの重みのどの行が各ヘッドのクエリ・キー・"
            "バリューを作るかを示します。"
            "ヘッドがキーとバリューをグループで共有する場合(Ainslieら2023、arXiv:2305.13245)、"
            "キーのヘッドはクエリのヘッドより少なくなります。ヘッド数×次元数が埋め込みの幅に等しいかも調べます。",
        )
        + WORKED
    )
    unit: ClassVar[Both] = Both("key heads over query heads", "キーのヘッド数÷クエリのヘッド数")
    rule: ClassVar[Both] = Both(
        "it holds if in every layer each head has queries, keys and values of its own and heads × dimensions is the "
        "width; else it holds in part, since queries are always a head's own",
        "すべての層で、各ヘッドが専用のクエリ・キー・バリューを持ち、"
        "ヘッド数×次元数が埋め込みの幅に等しければ成り立ち、"
        "それ以外は(クエリは必ずヘッドごとにあるため)一部で成り立つ",
    )
    drawn: ClassVar[Both] = Both(
        "Left: heads of each layer. Right: dimensions of a head, beside the width over the number of heads.",
        "左は各層のヘッド数。右は1ヘッドの次元数と、埋め込みの幅÷ヘッド数。",
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that heads with weights of their own extract different information. The weights make that "
        "possible and do not ensure it: claim C6 measures how different heads are.",
        "重みが別なら取り出す情報も異なる、と読まれがちです。重みが別であることはそれを可能にしますが、保証はしません。"
        "ヘッドが実際にどれだけ異なるかはC6で測ります。",
    )
    limits: ClassVar[Both] = Both(
        "A fact of the architecture, not of training. Nothing ties the dimensions of a head to the width over the "
        "number of heads: many models choose others.",
        "学習の結果ではなく、構造について言えることです。1ヘッドの次元数を幅÷ヘッド数にする必然性はなく、"
        "別の値を選ぶモデルも多くあります。",
    )

    def measure(self, subject: Subject) -> Measured:
        rows = [
            {
                "layer": site.layer, "n_heads": site.n_heads, "n_kv_heads": site.n_kv_heads, "head_dim": site.head_dim,
                "value_dim": site.value_dim, "width": _width(subject, site),
                "own": float(site.n_heads == site.n_kv_heads == site.n_value_heads),
            }
            for site in subject.anatomy.sites
        ]  # fmt: skip
        table = pd.DataFrame(rows).dropna(subset="width")
        if table.empty:
            raise AnatomyError(
                "no layer says how wide the embedding is: no linear layer reads or makes what heads have"
            )
        fits = (table[["head_dim", "value_dim"]].mul(table["n_heads"], axis=0).eq(table["width"], axis=0)).all(axis=1)
        share = float(table["n_kv_heads"].sum() / table["n_heads"].sum())
        names = ("n_heads", "n_kv_heads", "head_dim", "value_dim", "width", "own")
        numbers = {name: float(table[name].mean()) for name in names}
        numbers |= {"fits": float(fits.mean()), "layers": float(len(table))}
        numbers |= {"whole": float((fits & table["own"].eq(1)).sum())}
        return Measured(share, EXACT, numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["whole"]:
            return in_layers(words["whole"], words["layers"])
        if words["own"] and words["fits"]:
            return in_part(Both("never both in a layer", "両方を満たす層はない"))
        if words["own"]:
            return in_part(Both("own weights, other dimensions", "専用の重みはあるが次元数は別"))
        if words["fits"]:
            return in_part(Both("queries and dimensions only", "クエリと次元数のみ"))
        return in_part(Both("own queries only", "専用のクエリのみ"))

    def say(self, words: Mapping[str, float]) -> Both:
        heads, dims, values, width, pairs = (
            f"{words[name]:.4g}" for name in ("n_heads", "head_dim", "value_dim", "width", "n_kv_heads")
        )
        fits, layers = words["fits"] == 1, int(words["layers"])
        mean = NOTHING if words["n_heads"].is_integer() else Both(" on average", "平均")
        return (
            Both(
                f"{count(layers, 'layer')} of {heads} query heads{mean.en}, each of {dims} dimensions: "
                f"{heads} × {dims} {'=' if fits else '≠'} {width}, the width.",
                f"{layers}層で、クエリのヘッドは各層{mean.ja}{heads}個、各{dims}次元です"
                f"({heads}×{dims}{'=' if fits else '≠'}{width}、埋め込みの幅)。",
            )
            + (NOTHING if values == dims else Both(f"Values have {values}.", f"バリューは{values}次元です。"))
            + _shared(words["own"], pairs)
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        counted = {"n_heads": "query heads", "n_kv_heads": "key and value heads"}
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        layer_dots(table, counted, label="heads", ax=left)
        sizes = {"head_dim": "dimensions", "share": "width over heads"}
        layer_dots(table.assign(share=table["width"] / table["n_heads"]), sizes, label="dimensions of a head", ax=right)
        return figure


def _shared(own: float, pairs: str) -> Both:
    """Whose the keys and values are."""
    if own == 1:
        return Both("Each has keys and values of its own.", "キーとバリューもヘッドごとに専用です。")
    if pairs == "1":
        return Both("They all share one head's keys and values.", "キーとバリューは1組で、全ヘッドが共有します。")
    return Both(
        f"There are {pairs} heads of keys and values, which groups of query heads share.",
        f"キーとバリューは{pairs}組で、クエリのヘッドがグループごとに共有します。",
    )


def _width(subject: Subject, site: Site) -> float:
    """Dimensions of the embedding: what its heads write to, or else read; NaN where no linear layer tells."""
    if site.output is not None:
        return float(weight_of(subject.model, site.output).shape[0])
    return next((float(heads[0].shape[1]) for heads in input_weights(subject.model, site).values()), float("nan"))
