"""Warnings: what a reader of an analysis, and of a plan made from it, must know before anything else."""

from collections.abc import Mapping
from typing import Any

from headscope._support.formatting import count
from headscope.sites import Anatomy
from headscope.verdict.verdicts import METRIC_WORDS, Verdict

__all__ = ["warnings_of"]


def warnings_of(verdict: Verdict, anatomy: Anatomy, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What cannot be told from so little text, what was not tried, what cannot be cut, and what may be upside down.

    Args:
        verdict: of the analysis.
        anatomy: of its model.
        facts: of its run.

    Returns:
        A sentence each; none where there is nothing to know first.
    """
    said = list(verdict.first)
    mixed = [str(site.layer) for site in anatomy.sites if not site.apart]
    if mixed:
        said.append(f"Heads of layers {', '.join(mixed)} cannot be taken out one by one, and were not tried.")
    if verdict.metric not in METRIC_WORDS and verdict.chosen and verdict.joint_high < 0:
        said.append(f"Without these heads {verdict.metric} is lower; is lower better? Of an accuracy it is not.")
    in_steps = verdict.metric == "error" or verdict.metric not in METRIC_WORDS
    if in_steps and verdict.chosen and verdict.joint == verdict.joint_low == verdict.joint_high == 0:
        said.append(_unmoved(verdict))
    given = str(facts.get("max_loss_rise", ""))
    if given.endswith("%") and given != "0%" and verdict.max_loss_rise == 0:
        said.append(f"The untouched model's {verdict.metric} is 0, and {given} of it allows nothing; give a number.")
    return tuple(said)


def _unmoved(verdict: Verdict) -> str:
    """What an effect of 0 on every document leaves open: of n alike, up to 1 − 0.05^(1/n) of others may differ."""
    n, unit = verdict.n_documents, verdict.text_unit
    return (
        f"The {verdict.metric} of none of the {count(n)} {unit} moved, so the interval says nothing: as far as they "
        f"tell, it moves on up to {1 - 0.05 ** (1 / n):.0%} of all {unit}. A metric without steps, as cross_entropy, "
        "tells more."
    )
