"""What the other heads of a layer give of a head, in words: the sentences of C9."""

from collections.abc import Mapping
from functools import partial
from math import isnan, nan

from headscope._support.formatting import percent
from headscope.heads import HeadId
from headscope.studies.bilingual import NOTHING, Both, joined

__all__ = ["amount_of_text", "done_by_training", "ends_of_mean", "given_most"]

_LOST = 0.05  # what a fit may lose to little text in the trained model more than in its copies without a word
_percent = partial(percent, digits=0)


def amount_of_text(words: Mapping[str, float]) -> Both:
    """How much text it was, and what more would do."""
    tokens, chance = f"{words['tokens']:.0f}", words["chance"]
    drawn = words.get("untrained_chance", nan)  # results of before it was asked do not say it
    told = Both(
        f"The text has {tokens} tokens for each dimension of a layer. With more text fits are better and the others "
        "give more; intervals hold over other texts of this length.",
        f"テキストは層の次元1つあたり{tokens}トークンです。テキストが多いほど当てはめが良くなり、再現率は上がります。"
        "区間は、同じ長さの別のテキストで測ったときの幅です。",
    )
    if isnan(chance) or isnan(drawn) or abs(drawn - chance) <= _LOST:
        return told
    lost, less = _percent(chance), _percent(drawn)
    if drawn > _LOST:
        short = Both(
            f"In untrained copies heads of other documents, at the same positions, give {less}, in the trained model "
            f"{lost}: so much of what varies in the copies goes with the position, whatever the text says.",
            f"未学習の複製では、別の文書の同じ位置のヘッドからも{less}を再現できます(学習後は{lost})。"
            "複製の変動のうちその分は、テキストの内容によらず、行の中の位置で決まります。",
        )
    else:
        more = Both("the trained model more than its copies", "学習後のモデルのほうに")
        if drawn < chance:
            more = Both("the copies more than the trained model", "複製のほうに")
        short = Both(
            f"Little text costs {more.en}: heads of other documents give {less} in the copies.",
            f"テキストの少なさの影響は、{more.ja}大きく出ています(別の文書のヘッドからの再現率は、複製では{less})。",
        )
    return joined([told, short])


def given_most(words: Mapping[str, float]) -> Both:
    """The head that the others give most of, in words; nothing where there are several training seeds."""
    if isnan(words["which_layer"]):
        return NOTHING
    head, share = HeadId(int(words["which_layer"]), int(words["which_head"])), _percent(words["top"])
    low = "" if isnan(words["top_low"]) else _percent(words["top_low"])
    if low:
        return Both(
            f"They give most of {head}: {share} (its own interval begins at {low}; the largest of many is rather too "
            "large).",
            f"最も再現できるのは{head}の{share}です(単独での区間の下端は{low}。最大のものを選んだ値なので、"
            "やや高めに出ます)。",
        )
    return Both(f"They give most of {head}: {share}.", f"最も再現できるのは{head}の{share}です。")


def ends_of_mean(words: Mapping[str, float]) -> Both:
    """The interval of the mean in brackets; nothing where there is none."""
    low, high = words["mean_low"], words["mean_high"]
    if isnan(low) or isnan(high):
        return NOTHING
    return Both(f" ({_percent(low)} to {_percent(high)})", f"({_percent(low)}〜{_percent(high)})")


def done_by_training(words: Mapping[str, float]) -> Both:
    """What training did to it."""
    untrained, mean = _percent(words["untrained"]), _percent(words["mean"])
    beside = Both(f"In untrained copies the others give {untrained} on average", f"未学習の複製では平均{untrained}")
    if words["more_low"] > 0:
        did = Both(
            f"; in the trained model they give {mean}, clearly more: training made heads redundant.",
            f"ですが、学習後は{mean}と明らかに高い値です。学習がヘッドを冗長にしました。",
        )
    elif words["more_high"] < 0:
        did = Both(
            f"; in the trained model they give {mean}, clearly less: what the others give comes with "
            "architecture, initialisation and text, and training lowers it on average.",
            f"ですが、学習後は{mean}と明らかに低い値です。"
            "他のヘッドから再現できる分は構造と初期値とテキストによるもので、平均すると、学習後はむしろ減っています。",
        )
    else:
        did = Both(
            f"; in the trained model they give {mean}: whether training changed it cannot be told.",
            f"で、学習後は{mean}です。学習による変化があったかは判断できません。",
        )
    return Both(beside.en + did.en, beside.ja + did.ja)
