"""C16: every token relates to every other token of the sequence."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, SEEDS_DRAWN, Measured, ModelClaim, Verdict, in_part
from headscope.studies.layers import Layer, by_kind, kinds_in, layer_table, layers_named, named, of_layers, only
from headscope.studies.reach import open_pairs
from headscope.studies.subjects import Subject
from headscope.text.batches import Batch
from headscope.watching.observation import Captured

__all__ = ["AllPairs"]

_NUMBERS = ("least_allowed", "least_met", "largest_farthest", "span")
_EARLIER = Both("with itself and earlier tokens only", "自分自身とそれより前のトークンとのみ")


@CLAIMS.register("C16")
class AllPairs(ModelClaim):
    """Pairs that the mask allows, and how many keys a query really looks at."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("all pairs of tokens", "全トークン間の関係")
    says: ClassVar[Both] = Both(
        "Every query is compared with every key, so each token can relate to all other tokens of the sequence.",
        "各クエリが全てのキーと比較される。これにより、"
        "各トークンがシーケンス内の他のすべてのトークンとの関係性を持つことが"
        "可能となる。",
    )
    where_ja: ClassVar[str] = "シーケンス全体に対するアテンション計算"
    means: ClassVar[Both] = Both(
        "We ask which pairs of tokens a layer compares at all, and which a mask hides. If no pair is hidden, then "
        "every token can take something from every other; if the future is hidden, then only from those before it.",
        "層がどのトークンの組を比較し、どの組をマスクが隠しているかを調べます。"
        "隠された組がなければ、どのトークンも他のすべてから情報を受け取ることができ、"
        "未来が隠されていれば、受け取れるのはそれより前のトークンからだけになります。",
    )
    measured: ClassVar[Both] = Both(
        "The share of all pairs of query and key, padding left out, that mask and window leave to any head of a layer. "
        "It is counted in a row of the text that is repeated until it is as long as the model says it takes, cut to a "
        "power of two and to 2,048 tokens; in the rows as they are where the model says nothing or takes less. "
        "Beside it the share of pairs of two tokens that meet in at least one direction: that one of them may look at "
        "the other. A layer is called windowed where its mask hides more than the future. The effective span of a head "
        "is the exponential of the entropy of a query's weights, over the number of keys that it may look at; 1 if it "
        "looks at all of them alike. Spans are of rows as they are, for repeated text is looked at otherwise.",
        "パディングを除くクエリとキーの組のうち、マスクと窓が層のいずれかのヘッドに許す割合を数えます。数えるテキストは、1行を繰り返して、"
        "モデルが受け付けるとする長さ(2の累乗に切り下げ、最長2,048トークン)まで延ばしたものです。長さの上限が分からないモデルや、"
        "実際にはその長さを受け付けないモデルでは、元の行のまま数えます。あわせて、2つのトークンの少なくとも一方が他方を見られる組の割合も数えます。マスクが未来以外も隠す層は「窓付き」"
        "と呼びます。ヘッドの有効な範囲は、クエリのアテンションの重みのエントロピーをHとして、exp(H)"
        "を見ることのできるキーの数で割った値です。すべてのキーを均等に見ていれば1、"
        "1つだけを見ていれば1÷キーの数です。繰り返したテキストでは見方が変わるため、有効な範囲は元の行で測ります。",
    )
    unit: ClassVar[Both] = Both("share of pairs allowed, mean over layers", "マスクと窓が許す組の割合(層の平均)")
    rule: ClassVar[Both] = Both(
        "it holds if every layer allows every pair; it does not hold if in every layer some two tokens meet in neither "
        "direction; else it holds in part: in the layers that allow every pair or, where there are none, in one "
        "direction; where the model declares a window that no text reached, up to the length of the text",
        "すべての層がすべての組を許すなら成り立つ。どの層にも、"
        "どちらの方向にも見られない2トークンがあるなら成り立たない。"
        "それ以外は一部で成り立つ(すべての組を許す層で、そのような層がなければ片方向だけ)。"
        "モデルの設定にある窓がテキストより長い場合は、そのテキストの長さまでについて一部で成り立つとする",
    )
    drawn: ClassVar[Both] = (
        Both(
            "A mark a layer: the share of all pairs that it allows, a mark for each kind of layer; and the effective "
            "span, a share of the keys that a query may see, in texts as they are. The two are not to be compared.",
            "層ごとの値。許される組は全ての組のうちの割合で、層の種類ごとに印を変える。有効な範囲は、"
            "元の長さのテキストで、クエリから見えるキーのうちの割合。両者の大小は比べられない。",
        )
        + SEEDS_DRAWN
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that each head takes the whole sequence into account. It can where nothing is hidden, and no "
        "weight is exactly 0 then; but in many layers most weights are next to nothing. The effective span says how "
        "much of what it may see a head really looks at. A causal model hides the future by design, as it is to tell "
        "it: of T tokens' pairs it allows (T + 1) / (2T), about half.",
        "各ヘッドがシーケンス全体を考慮している、と読まれがちです。隠されたものがなければそれは可能で、"
        "重みがちょうど0になることもありません。しかし多くの層では、ほとんどの重みはごく小さい値です。"
        "見ることのできる範囲のうち実際にどれだけを見ているかは、有効な範囲が示します。"
        "因果モデルは次のトークンを予測するために、設計として未来を隠しています。Tトークンの組のうち許されるのは(T + "
        "1) / (2T)で、およそ半分です。",
    )
    limits: ClassVar[Both] = Both(
        "At the lengths that are told: a window that is longer hides nothing there, and its layer is called causal, or "
        "encoder. Where the model's configuration declares such a window, the verdict says so; a window that nothing "
        "declares is not known of. One layer at a time: what a window hides may still come by way of other tokens, "
        "through several layers; what is in the future may not.",
        "記載した長さでの結果です。それより長い窓は何も隠さないため、その層は因果層またはエンコーダ層に数えます。"
        "モデルの設定にそのような窓があれば、判定に記します。設定に書かれていない窓のことは分かりません。"
        "また、層を1つずつ見ています。窓で隠された情報も、"
        "複数の層にわたって他のトークンを経由すれば届くことがあります。"
        "未来の情報が届くことはありません。",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        rows: list[dict[str, Any]] = []
        numbers: dict[str, float] = {}
        for own in subject.look("pattern", "bias").values():
            reach, number = subject.reach[own.site.layer], own.site.layer
            row = {"layer": number, **vars(reach), **_span(own, subject.few)}
            layer = Layer(reach.kind, number)
            numbers |= {named(name, layer): float(row[name.rpartition("_")[2]]) for name in _NUMBERS}
            rows.append(row)
        table = pd.DataFrame(rows)
        if table["tokens"].nunique() > 1:  # an encoder and a decoder read rows of their own
            for row in rows:
                numbers[named("largest_tokens", Layer(row["kind"], row["layer"]))] = float(row["tokens"])
        numbers |= {
            "tokens": float(table["tokens"].max()), "span_tokens": float(table["span_tokens"].max()),
            "unseen": float(subject.unseen_window),
        }  # fmt: skip
        return Measured(float(table["allowed"].mean()), count(len(table), "layer"), numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        made = _by_masks(words)
        if not words["unseen"] or made == FAILS:
            return made
        tokens = f"{words['tokens']:,.0f}"
        far = Both(f"up to {tokens} tokens", f"{tokens}トークンまで")
        return in_part(joined([made.where, far], ", ", "、") if made.where else far)

    def say(self, words: Mapping[str, float]) -> Both:
        unseen, farthest = words["unseen"], by_kind(words, "largest_farthest")
        longest = {kind: f"{max(own):,.0f}" for kind, own in by_kind(words, "largest_tokens").items()}
        tokens = {kind: longest.get(kind, f"{words['tokens']:,.0f}") for kind in farthest}
        kinds = [
            Both(
                f"Of all pairs in texts of up to {tokens[kind]} tokens, {layers_named([kind]).en} ({len(shares)}) "
                f"allow {np.mean(shares):.0%}{_window(kind, farthest[kind]).en}.",
                f"長さ{tokens[kind]}トークンまでのテキストのすべての組のうち、{layers_named([kind]).ja}({len(shares)}層)"
                f"が許すのは{np.mean(shares):.0%}{_window(kind, farthest[kind]).ja}です。",
            )
            for kind, shares in by_kind(words, "least_allowed").items()
        ]
        if not unseen:
            return joined(kinds)
        window = f"{unseen:,.0f}"
        return joined(kinds) + Both(
            f"The model declares a window of {window} tokens, and no text here is longer, so it hides nothing here.",
            f"モデルの設定には{window}トークンの窓がありますが、これより長いテキストで調べていないため、"
            "ここでは何も隠していません。",
        )

    def headline(self, words: Mapping[str, float]) -> Both:
        kinds = [(layers_named([kind]), np.mean(shares)) for kind, shares in by_kind(words, "least_allowed").items()]
        each = joined(
            (Both(f"{share:.0%} in {layers.en}", f"{layers.ja}では{share:.0%}") for layers, share in kinds), ", ", "、"
        )
        tokens = f"{words['tokens']:,.0f}"
        return Both(
            f"So much of all pairs in texts of up to {tokens} tokens is allowed: {each.en}.",
            f"{tokens}トークンまでのテキストで、全トークンの組のうち許されるのは、{each.ja}です。",
        )

    def follow(self, words: Mapping[str, float]) -> Both:
        tokens = f"{words['span_tokens']:,.0f}"
        return joined(
            Both(
                f"In {layers_named([kind]).en} a query's weights are as wide as an even look at {np.mean(spans):.0%} "
                f"of the keys that it may see{_range(spans).en}, in texts of up to {tokens} tokens.",
                f"{layers_named([kind]).ja}では、{tokens}トークンまでのテキストで、クエリの重みの広がりは、見ることのできるキーの{np.mean(spans):.0%}"
                f"{_range(spans).ja}を均等に見るのと同じです。",
            )
            for kind, spans in by_kind(words, "span").items()
        )

    def tabled(self, table: pd.DataFrame) -> Both:
        long, short = (
            Both(f" ({most:,.0f} tokens)", f"({most:,.0f}トークン)")
            for most in (table["tokens"].max(), table["span_tokens"].max())
        )
        columns = {
            "layer": Both("layer", "層"), "allowed": Both(f"pairs allowed{long.en}", f"許される組{long.ja}"),
            "met": Both("allowed one way at least", "少なくとも片方向に許される組"),
            "span": Both(f"effective span{short.en}", f"有効な範囲{short.ja}"),
        }  # fmt: skip
        return layer_table(table, columns, "{:.0%}".format)

    def draw(self, table: pd.DataFrame) -> Figure:
        kinds = kinds_in([Layer(kind, 0) for kind in table["kind"]])
        series = {kind: f"pairs, {layers_named([kind]).en}" for kind in kinds}
        apart = table.assign(**{kind: table["allowed"].where(table["kind"] == kind) for kind in kinds})
        return figure_of(layer_dots(apart, series | {"span": "effective span"}, label="share", lines={"all": 1.0}))


def _by_masks(words: Mapping[str, float]) -> Verdict:
    """The verdict on texts as long as they were."""
    every, one_way = (
        [layer for layer, share in of_layers(words, name).items() if share == 1]
        for name in ("least_allowed", "least_met")
    )
    layers = of_layers(words, "least_allowed")
    if len(every) == len(layers):
        return HOLDS
    if every:
        return in_part(only(every, layers))
    if len(one_way) == len(layers):
        return in_part(_EARLIER)
    if not one_way:
        return FAILS
    where = only(one_way, layers)
    return in_part(
        Both(f"with itself and earlier tokens, in {where.en}", f"{where.ja}、自分自身とそれより前のトークンと")
    )


def _window(kind: str, farthest: Sequence[float]) -> Both:
    """How far queries of windowed layers see."""
    if kind != "windowed":
        return NOTHING
    ends = [f"{end:,.0f}" for end in sorted({min(farthest), max(farthest)})]
    return Both(
        f": a query sees no farther than {' to '.join(ends)} tokens, itself among them",
        f"で、クエリから見えるのは自分自身を含めて{'〜'.join(ends)}トークンまで",
    )


def _range(shares: Sequence[float]) -> Both:
    """From the layer with the least to that with the most."""
    if len(shares) < 2:
        return NOTHING
    low, high = (f"{end:.0%}" for end in (min(shares), max(shares)))
    return Both(f" (from layer to layer {low} to {high})", f"(層により{low}〜{high})")


def _span(own: Captured, batch: Batch) -> dict[str, float]:
    """Of a layer: the mean over queries of how many keys are looked at alike over those that may be; and its tokens."""
    pattern = own.pattern.double().cpu()
    allowed, real = open_pairs(own.site, own.bias, own.pattern, batch)
    entropy, queries = -(pattern * pattern.clamp_min(1e-300).log()).sum(-1), real.any(2)
    spans = (entropy.exp() / allowed.sum(-1).clamp_min(1)[:, None])[queries[:, None].expand(entropy.shape)]
    return {"span": float(spans.mean()), "span_tokens": int(queries.sum(1).max())}
