"""Tasks of the head-count study: every one is learnt, repeats for a seed, holds something out and has heads to find."""

from functools import cache
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import InputError
from headscope.studies.tasks import TASKS, Task, inputs, task_named
from headscope.studies.tasks.language import Language
from headscope.studies.tasks.maps import Maps
from headscope.studies.training import judge, train
from headscope.text.texts import Document, Texts

WITH_A_LAYER = sorted({*TASKS} - {"maps"})  # that one makes maps and nothing else, and holds nothing out


@cache
def make(name: str) -> Task:
    if name == "language":
        words = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "after", "the", "cat"]
        texts = tuple(Document(f"d{n}", " ".join(Random(n).choices(words, k=80))) for n in range(12))
        return Language(Texts("made up", texts, "0"))
    return TASKS[name]()


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest) -> Task:
    return make(request.param)


def test_its_numbers_have_one_a_row(task: Task) -> None:
    learner = task.learner(4, 16)
    for batch in (next(task.batches(0)), task.held_out()[0]):
        output = learner(**inputs(batch))
        rows = len(next(iter(batch.values())))
        assert task.loss(output, batch).shape == task.error(output, batch).shape == (rows,)
        assert (task.loss(output, batch) > 0).all()


@pytest.mark.parametrize("name", WITH_A_LAYER)
def test_batches_repeat_for_a_seed_and_none_is_held_out(name: str) -> None:
    task = make(name)
    one, again, other = (list(islice(task.batches(seed), 2)) for seed in (1, 1, 2))
    for a, b in zip(one, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(one[0][name], other[0][name]) for name in one[0])
    held, tuning = (
        {str(row.tolist()) for batch in task.held_out(part) for row in next(iter(inputs(batch).values()))}
        for part in (False, True)
    )
    trained = {str(row.tolist()) for batch in islice(task.batches(1), 40) for row in next(iter(inputs(batch).values()))}
    assert not held & trained
    assert not tuning & (held | trained)


def test_a_little_training_helps_and_repeats(task: Task) -> None:
    steps = 30
    trained, again = (train(task, 4, 16, 3e-3, seed=3, steps=steps) for _ in range(2))
    assert (trained.loss, trained.error) == (again.loss, again.error)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fresh = task.learner(4, 16)
    assert trained.loss < judge(task, fresh, task.held_out())[0]
    assert not trained.learner.training


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 64), (8, 8), (3, 16)])
@pytest.mark.parametrize("name", WITH_A_LAYER)
def test_its_heads_are_found_by_no_special_case(name: str, n_heads: int, head_dim: int) -> None:
    task = make(name)
    anatomy = hs.discover(task.learner(n_heads, head_dim), inputs(task.held_out()[0]))
    assert [(site.n_heads, site.head_dim) for site in anatomy.sites] == [(n_heads, head_dim)] * task.n_layers


def test_a_map_can_be_matched_from_one_dimension_less_than_tokens_on_and_not_below() -> None:
    errors = {dim: train(Maps(length=8), 2, dim, 0.02, seed=0, steps=1200).error for dim in (2, 4, 7)}
    assert errors[2] > errors[4] > 0.01
    assert errors[7] < 1e-3
    with pytest.raises(InputError, match="2 to 64 tokens"):
        Maps(length=65)


def test_chance_is_what_a_learner_without_training_errs(task: Task) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = task.learner(4, 16)
    error = judge(task, fresh, task.held_out())[1]
    assert task.chance < 1.15 * error
    trained = train(task, 4, 16, 1e-2, seed=0, steps=150)
    assert trained.error < task.chance


def test_a_label_makes_the_task_again(task: Task) -> None:
    if task.label != "language":  # its text is no part of the label
        assert vars(task_named(task.label)) == vars(task)


def test_the_chance_of_maps_is_the_divergence_of_an_even_map() -> None:
    rng = np.random.default_rng(0)
    scores = 2 * rng.standard_normal((20_000, 16))
    maps = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert Maps(16).chance == pytest.approx((maps * np.log(maps * 16)).sum(1).mean(), rel=0.03)
