"""The contract of statistics: they stream, merge and are saved; a new statistic is one new file, tested from here."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import headscope.statistics
from headscope.statistics import STATISTICS, Statistic
from headscope.statistics.moments import Moments
from headscope.watching.hooks import TENSORS
from headscope.watching.observation import observe
from tests.contract.plugins import add_file
from tests.strategies import Stream, feed, make_stream

# an offset, documents of unequal length, padding, more dimensions in all than tokens
STREAMS = {
    "plain": lambda: make_stream(0),
    "offset": lambda: make_stream(1, offset=1e4, n_heads=2),
    "wide": lambda: make_stream(2, dim=16, lengths=((2, 3), (1, 4), (2,))),
    "sided": lambda: make_stream(3, n_layers=3, kinds=("self", "causal", "cross")),
}


@pytest.fixture(params=sorted(STATISTICS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(STREAMS))
def stream(request: pytest.FixtureRequest) -> Stream:
    return STREAMS[request.param]()


def numbers(value: object) -> list[np.ndarray]:
    """All arrays in what a statistic computes, in a fixed order; moments about zero, as their pivot is free."""
    if isinstance(value, Moments):
        about = value.about(torch.zeros_like(value.pivot)) if value.n else value
        return [about.square().numpy(), np.array(value.dims)]
    if isinstance(value, Mapping):
        return [
            np.array([str(key) for key in sorted(value)]),
            *(array for key in sorted(value) for array in numbers(value[key])),
        ]
    if is_dataclass(value):
        return [array for field in fields(value) for array in numbers(getattr(value, field.name))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [array for part in value for array in numbers(part)]
    return [np.asarray(value)]


def assert_equal(got: object, want: object, rtol: float = 1e-9) -> None:
    ours, theirs = numbers(got), numbers(want)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if b.dtype.kind in "fc":
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.nan_to_num(np.abs(b)).max(initial=1))
        else:
            np.testing.assert_array_equal(a, b)


def check_one_pass_equals_two_merged_halves(make: type[Statistic], stream: Stream) -> None:
    whole = feed(make(), stream)
    for cut in range(1, len(stream.batches)):
        left = feed(make(), stream, range(cut))
        right = feed(make(), stream, range(cut, len(stream.batches)))
        left.merge(right)
        assert_equal(left.compute(), whole.compute())


def test_it_says_what_it_needs_and_has_defaults(name: str) -> None:
    statistic = STATISTICS[name]()
    assert isinstance(statistic, Statistic)
    assert statistic.needs
    assert statistic.needs <= set(TENSORS)
    assert type(statistic).__doc__


def test_one_pass_equals_two_merged_halves(name: str, stream: Stream) -> None:
    check_one_pass_equals_two_merged_halves(STATISTICS[name], stream)


def test_something_is_computed(name: str) -> None:
    arrays = numbers(feed(STATISTICS[name](), make_stream(lengths=((5, 9, 6), (7, 3, 8)))).compute())
    assert any(array.dtype.kind == "f" and np.abs(np.nan_to_num(array)).sum() > 0 for array in arrays)


def test_merging_nothing_changes_nothing(name: str, stream: Stream) -> None:
    whole, empty = feed(STATISTICS[name](), stream), STATISTICS[name]()
    want = whole.compute()
    empty.merge(whole)
    whole.merge(STATISTICS[name]())
    assert_equal(whole.compute(), want, rtol=0)
    assert_equal(empty.compute(), want, rtol=0)


def test_merging_leaves_the_other_as_it_was(name: str, stream: Stream) -> None:
    other, own = feed(STATISTICS[name](), stream, [0]), feed(STATISTICS[name](), stream, [1])
    want = [array.copy() for array in numbers(other.compute())]
    own.merge(other)
    feed(own, stream, [1])
    assert_equal(other.compute(), want, rtol=0)


def test_state_survives_a_file_and_goes_on(name: str, stream: Stream) -> None:
    whole, first = feed(STATISTICS[name](), stream), feed(STATISTICS[name](), stream, [0])
    saved = save({key: tensor.contiguous() for key, tensor in first.state().items()})
    resumed = feed(STATISTICS[name](), stream, [1])  # what it held is dropped
    resumed.load_state(load(saved))
    assert_equal(resumed.compute(), first.compute(), rtol=0)
    feed(resumed, stream, range(1, len(stream.batches)))
    assert_equal(resumed.compute(), whole.compute(), rtol=0)


def test_what_was_computed_stays_as_it_was(name: str, stream: Stream) -> None:
    statistic = feed(STATISTICS[name](), stream, [0])
    value, state = statistic.compute(), statistic.state()
    before = [array.copy() for array in numbers(value)]
    kept = {key: tensor.clone() for key, tensor in state.items()}
    feed(statistic, stream, [0])
    assert_equal(value, before, rtol=0)
    assert_equal(state, kept, rtol=0)


def test_padding_is_without_effect(name: str, stream: Stream) -> None:
    padded = feed(STATISTICS[name](), stream.pad(3, fill=torch.nan))
    assert_equal(padded.compute(), feed(STATISTICS[name](), stream).compute(), rtol=1e-12)


def test_order_of_sites_is_without_effect(name: str, stream: Stream) -> None:
    backwards = feed(STATISTICS[name](), stream, backwards=True)
    assert_equal(backwards.compute(), feed(STATISTICS[name](), stream).compute(), rtol=1e-12)


def test_memory_does_not_grow_with_the_text(name: str) -> None:
    stream = make_stream(lengths=((5, 9),) * 12)

    def size(batches: range) -> int:
        return sum(tensor.numel() for tensor in feed(STATISTICS[name](), stream, batches).state().values())

    assert size(range(12)) == size(range(6))


def test_it_runs_on_a_model(name: str, build_model, make_batches) -> None:
    model, batches = build_model("bert"), make_batches("bert")
    first, again = STATISTICS[name](), STATISTICS[name]()
    observe(model, batches, [first])
    observe(model, batches, [again])
    arrays = [array for array in numbers(first.compute()) if array.dtype.kind in "fiub"]
    assert all(np.isfinite(array).all() for array in arrays)
    assert_equal(again.compute(), first.compute(), rtol=0)


NEW = '''
import torch

from headscope.statistics import STATISTICS, Statistic


@STATISTICS.register("tokens")
class Tokens(Statistic):
    """How many positions count, by layer."""

    needs = frozenset({"z"})

    def __init__(self):
        self.count = {}

    def update(self, site, tensors, kept, block):
        self.count[site.layer] = self.count.get(site.layer, 0) + int(kept.sum())

    def merge(self, other):
        for layer, count in other.count.items():
            self.count[layer] = self.count.get(layer, 0) + count

    def compute(self):
        return dict(self.count)

    def state(self):
        return {str(layer): torch.tensor(count) for layer, count in self.count.items()}

    def load_state(self, state):
        self.count = {int(layer): int(count) for layer, count in state.items()}
'''


def test_a_new_statistic_is_one_new_file(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    add_file(monkeypatch, tmp_path, headscope.statistics, STATISTICS, NEW)
    assert "tokens" in set(STATISTICS)
    check_one_pass_equals_two_merged_halves(STATISTICS["tokens"], make_stream())
    assert feed(STATISTICS["tokens"](), make_stream()).compute() == {0: 38, 1: 38}


def test_the_contract_sees_a_statistic_that_forgets_to_merge() -> None:
    class Forgetful(STATISTICS["means"]):
        def merge(self, other):
            pass

    with pytest.raises(AssertionError):
        check_one_pass_equals_two_merged_halves(Forgetful, make_stream())


def test_the_streams_are_not_trivial(stream: Stream) -> None:
    lengths = [int(n) for batch in stream.batches for n in batch.kept.sum(1)]
    assert len(set(lengths)) > 1
    assert any((~batch.kept).any() for batch in stream.batches)
