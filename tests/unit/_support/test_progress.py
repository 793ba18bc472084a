"""Whoever asks is told of every step, and of as many as were announced."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import headscope as hs
from headscope._support.progress import Progress, n_steps, part_of
from headscope.likeness.asking import How
from headscope.likeness.comparing import compare_heads
from headscope.likeness.measures import MEASURES
from headscope.scoring.scores import SCORES
from headscope.studies.coverage import coverage
from headscope.verdict.preparation import Budget
from tests.models import build, make_batches

EVERY = [(name, None) for name in MEASURES]
BATCHES = make_batches("gpt2", n_batches=4)
WORK: dict[str, tuple[Callable[[Progress], Any], set[str]]] = {
    "roles": (
        lambda told: hs.roles(build("gpt2"), BATCHES, progress=told),
        {"watching", "repeated sequences"},
    ),
    "redundancy": (lambda told: hs.redundancy(build("gpt2"), BATCHES, progress=told), {"watching"}),
    "every measure": (
        lambda told: compare_heads(build("gpt2"), BATCHES, EVERY, How(), progress=told),
        {"watching", "random tokens"},
    ),
    "several passes": (
        lambda told: hs.similarity(build("gpt2"), BATCHES, memory=150_000, progress=told),
        {"watching"},
    ),
    "two models": (
        lambda told: hs.compare(build("gpt2"), build("gpt2"), BATCHES, scores="gradient", progress=told),
        {"gradients", "watching"},
    ),
    "the whole story": (
        lambda told: hs.analyze(build("gpt2"), batches=BATCHES, budget=Budget(passes=0, claims=True), progress=told),
        {"watching", "ablation", "gradients", "removal", "verdict", "claims"},
    ),
    "coverage": (lambda told: coverage((20,), (10, 20), 2, progress=told), {"texts"}),
} | {
    f"score {name}": (lambda told, name=name: hs.importance(build("gpt2"), BATCHES, name, progress=told), set())
    for name in SCORES
}


@pytest.mark.parametrize("work", WORK)
def test_as_many_steps_are_told_as_were_announced(work: str) -> None:
    steps: list[tuple[str, int, int]] = []
    run, stages = WORK[work]
    run(lambda *step: steps.append(step))
    done: Counter[str] = Counter()
    for stage, count, _ in steps:
        done[stage] += count
    announced = {stage: total for stage, _, total in steps}
    assert done == announced
    assert set(announced) == stages if stages else announced
    assert len(set(steps)) == len(announced), "a stage changed its mind about its length"


def test_parts_count_towards_the_whole() -> None:
    steps: list[tuple[str, int, int]] = []
    part = part_of(lambda *step: steps.append(step), "both", 2)
    assert part is not None
    part("one", 1, 5)
    assert steps == [("both", 1, 10)]
    assert part_of(None) is None


def test_the_length_of_a_stream_is_not_known() -> None:
    assert (n_steps(BATCHES), n_steps(iter(BATCHES))) == (4, 0)
