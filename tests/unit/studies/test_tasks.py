"""Tasks of the head-count study: every one is learnt, repeats for a seed, holds something out and has heads to find."""

from functools import cache
from itertools import islice

import pytest
import torch

import headscope as hs
from headscope.batches import Batch
from headscope.errors import InputError
from headscope.studies.tasks import TASKS, Task
from headscope.studies.tasks.language import Language
from headscope.studies.tasks.maps import Maps
from headscope.studies.training import judge, train
from headscope.texts import Document, Texts

WITH_A_LAYER = sorted({*TASKS} - {"maps"})  # that one makes maps and nothing else, and holds nothing out


@cache
def make(name: str) -> Task:
    if name == "language":
        words = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "after", "the", "cat"]
        texts = tuple(Document(f"d{n}", " ".join(words[(n + i) % 12] for i in range(80))) for n in range(12))
        return Language(Texts("made up", texts, "0"))
    return TASKS[name]()


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest) -> Task:
    return make(request.param)


def inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "document"}


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
    held = {str(row.tolist()) for batch in task.held_out() for row in next(iter(inputs(batch).values()))}
    trained = {str(row.tolist()) for batch in islice(task.batches(1), 40) for row in next(iter(inputs(batch).values()))}
    assert not held & trained


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
