"""Where the numbers of claims come from, in a few lines of English or Japanese: subjects, sweeps, timings, versions."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from headscope._support.formatting import count
from headscope.models.demo import DEMO_MODELS, how_to_install
from headscope.studies.asking import REFERENCE
from headscope.studies.bilingual import Both, Language, joined
from headscope.studies.claims import Claim, CostClaim, ModelClaim, SweepClaim
from headscope.studies.rulings import Rulings

__all__ = ["made_of", "measured_on", "subject_name"]

_REFERENCE = re.compile(
    r"(\d+) causal layers, (\d+) wide, of (\d+) heads of (\d+) dimensions, "
    r"trained for (\d+) steps at a learning rate of ([\d.e-]+) .*"
)
_THE_MODEL = Both(REFERENCE, "参照モデル")
_REFERENCES: tuple[tuple[Any, Both], ...] = (
    (CostClaim, Both("timed layer", "計測用の層")), (SweepClaim, Both("sweep", "スイープ")),
)  # fmt: skip
_TEXTS = {
    "of it, held out": "(Pythonのドキュメントのうち学習に使っていない部分)",
    "of the documentation that Python brings": "(Pythonに付属するドキュメント)",
    "of the text that was named": "(指定されたテキスト)",
    "that came with it": "(モデルに付属)",
}
_OVER = {
    r"(\d+(?: to \d+)?) seeds?": "シード{}個",
    r"(\d+) documents?": "文書{}件",
    r"(\d+) passages?": "文章{}件",
    r"(\d+) rows?": "データ{}件",
    r"(\d+) layers?": "{}層",
    r"(\d+) rounds?": "計時{}回",
    r"(\d+) heads? removed": "ヘッド{}個(1個ずつ除去)",
    "exact": "数えた値(誤差なし)",
    "fit to counts": "数えた値に当てはめた式",
}


def made_of(one: Rulings, claims: Iterable[Claim]) -> Both:
    """What claims were asked of, and where the numbers come from.

    Args:
        one: the results.
        claims: those that it is told for.
    """
    facts: dict[str, Any] = dict(one.facts)
    claims = [*claims]
    kinds = {kind for claim in claims for kind in (ModelClaim, SweepClaim, CostClaim) if isinstance(claim, kind)}
    subject, parts = facts.get("subject", facts), []
    timed = CostClaim in kinds and "costs" not in facts  # a named model, not layers of many sizes
    if "documents" in subject and (ModelClaim in kinds or timed):
        parts.append(_subject(one.subject, subject))
    if CostClaim in kinds and "costs" in facts:
        parts.append(_layers(facts["costs"]))
    if SweepClaim in kinds and "sweep" in facts:
        parts.append(_trained(facts["sweep"]))
    parts.append(
        Both(f"Made on {facts['date']} with {_versions(facts)}.", f"測定日は{facts['date']}({_versions(facts)})。")
    )
    if CostClaim in kinds:
        parts.append(Both(f"Timed on {facts['machine']}.", f"計時した環境は{facts['machine']}。"))
    if any(claim.beside_untrained for claim in claims):
        parts += _untrained(facts)
    if facts.get("quick"):
        parts.append(Both("A quick look: fewer seeds, less text.", "簡易測定(シードもテキストも少ない)。"))
    return joined(parts)


def _untrained(facts: Mapping[str, Any]) -> list[Both]:
    """How untrained copies were drawn, or why there are none."""
    if why := facts.get("why_not_untrained"):
        return [Both(f"Untrained copies are missing: {why}.", f"未学習の複製は作れませんでした(エラー:{why})。")]
    if not (drawn := facts.get("untrained")):
        return []
    return [Both(f"Untrained copies are drawn by {drawn}.", f"未学習の複製の初期化に使った関数:{drawn}。")]


def subject_name(subject: str, claim: Claim) -> Both:
    """A subject as pages call it: what stands for the reference is another thing for each kind of claim.

    Args:
        subject: "reference", perhaps with a place behind it, as "reference on H100"; or a model's name, which is kept.
        claim: that it was asked.
    """
    if not re.match(rf"{REFERENCE}($|, | on )", subject):
        return Both(subject, subject)
    behind = subject.removeprefix(REFERENCE)
    place = behind.strip(" ,").removeprefix("on ")
    if wide := re.fullmatch(r"(\d+) wide", place):
        place = f"幅{wide[1]}"
    name = next((words for kind, words in _REFERENCES if isinstance(claim, kind)), _THE_MODEL)
    return Both(f"{name.en}{behind}", f"{name.ja}({place})" if place else name.ja)


def measured_on(over: str, language: Language) -> str:
    """What a number is over, as "5 seeds"."""
    if language == "en":
        return over
    for pattern, words in _OVER.items():
        if found := re.fullmatch(pattern, over):
            return words.format(*(part.replace(" to ", "〜") for part in found.groups()))
    return over


def _subject(name: str, facts: Mapping[str, Any]) -> Both:
    """A trained model and its text."""
    unit = f" ({facts['unit']})" if facts["unit"] else ""
    size = count(facts["documents"], facts.get("text_unit", "documents").removesuffix("s"))
    text = f"a text of {size} {facts.get('text', '')}".rstrip()
    known = facts["model"] in DEMO_MODELS
    install = f" (installed with `{how_to_install(facts['model'])}`)" if known else ""
    en = f"{facts['about']}{install}; {text}; metric {facts['metric']}{unit}; seed {facts['seed']}."
    about = _about_ja(name, facts["about"])
    install = f"(`{how_to_install(facts['model'])}`で入る)" if known else ""
    where, seed = _TEXTS.get(facts.get("text", ""), ""), str(facts["seed"]).replace(" to ", "〜")
    text = f"テキストは{measured_on(size, 'ja')}{where}"
    return Both(en, f"{about}{install}。{text}、評価指標は{facts['metric']}{unit}、シード{seed}。")


def _about_ja(name: str, about: str) -> str:
    """The reference in Japanese; a named model as it is."""
    found = _REFERENCE.fullmatch(about) if name.startswith(REFERENCE) else None
    if found is None:
        return about
    layers, width, heads, dims, steps, rate = found.groups()
    return (
        f"このために学習した小さな因果Transformer({layers}層、幅{width}、{dims}次元のヘッド{heads}個。"
        f"学習率{rate}で{steps}ステップ、Pythonのドキュメントで次のバイトを予測)"
    )


def _layers(facts: Mapping[str, Any]) -> Both:
    """What was timed."""
    width, heads, length, rounds = facts["width"], facts["heads"], facts["length"], facts["rounds"]
    fixed = facts["head_dim"] or width // heads
    return Both(
        f"One layer without a mask, {width} wide: against length with {heads} heads of {width // heads} dimensions, "
        f"against heads at {length} tokens, with {fixed} dimensions a head where they are fixed; {rounds} rounds.",
        f"マスクのない、幅{width}のアテンション1層。長さを変える測定は{width // heads}次元のヘッド{heads}個、"
        f"ヘッド数を変える測定は{length}トークンで行いました(1ヘッドの次元を固定する条件では{fixed}次元)。"
        f"それぞれ{rounds}回計時しました。",
    )


def _trained(facts: Mapping[str, Any]) -> Both:
    """The runs of a sweep."""
    own = facts["settings"]
    tasks, width, seeds = len(own["tasks"]), own.get("width", 64), own["seeds"]
    first, last, fixed = own["heads"][0], own["heads"][-1], own["head_dim"]
    return Both(
        f"Small transformers, {width} wide, each trained for it: {tasks} tasks ({', '.join(own['tasks'])}), {first} to "
        f"{last} heads, at fixed width and with {fixed} dimensions a head, {seeds} seeds or more; trained by "
        f"{facts['date']} with {_versions(facts)}.",
        f"このために学習した、幅{width}の小さなTransformer(スイープ)です。{tasks}タスク({'、'.join(own['tasks'])})、"
        f"{first}〜{last}ヘッド、"
        f"幅を固定した場合と1ヘッド{fixed}次元に固定した場合、シード{seeds}個以上。"
        f"学習は{facts['date']}まで({_versions(facts)})。",
    )


def _versions(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
