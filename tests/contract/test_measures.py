"""The contract of measures: one number for every pair of heads; a new measure is one new file, tested from here."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

import headscope.likeness.measures
from headscope.errors import UnknownNameError
from headscope.likeness.comparing import similarity
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.block_sums import SOURCES
from tests.contract.plugins import add_file
from tests.contract.seen import seen_by_measure
from tests.strategies import Stream, make_stream, weights_for

N_HEADS, DIM = 5, 4
ZERO, ONE, TWIN = 2, 1, 4  # a head that is zero; a head, and another that does the same in other coordinates


def planted(seed: int = 0) -> tuple[Stream, dict[int, list]]:
    """Heads with a zero one, and a twin: z turned and doubled, W_O turned back, so that contributions are alike too.

    The zero head's map is zero, and the twin's the same.
    """
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0])
    weights = weights_for(seed, N_HEADS, DIM)
    weights[TWIN] = weights[ONE] @ turn
    weights[ZERO] = torch.zeros_like(weights[ZERO])

    def alter(z: torch.Tensor, layer: int) -> torch.Tensor:
        z = z.clone()
        z[:, ZERO] = 0
        z[:, TWIN] = 2 * z[:, ONE] @ turn
        return z

    stream = make_stream(seed, n_layers=1, n_heads=N_HEADS, dim=DIM, lengths=((30, 41), (50, 22), (35, 8)))
    changed = stream.change(alter)
    for batch in changed.batches:
        batch.tensors[0]["pattern"][:, TWIN] = batch.tensors[0]["pattern"][:, ONE]
        batch.tensors[0]["pattern"][:, ZERO] = 0
    return changed, {0: weights}


def values_of(measure: Measure, stream: Stream, weights: dict[int, list]) -> np.ndarray:
    return measure.compare(seen_by_measure(measure.needs, stream, weights))


@pytest.fixture(params=sorted(MEASURES))
def measure(request: pytest.FixtureRequest) -> Measure:
    return MEASURES[request.param]()


@pytest.fixture
def values(measure: Measure) -> np.ndarray:
    return values_of(measure, *planted())


def check_bounds(measure: Measure, values: np.ndarray) -> None:
    least, greatest = measure.bounds
    known = values[~np.isnan(values)]
    assert (known >= least - 1e-9).all()
    assert (known <= greatest + 1e-9).all()


def test_facts_are_declared_and_settings_are_fields(measure: Measure) -> None:
    assert isinstance(measure, Measure)
    assert is_dataclass(measure)
    assert type(measure).__dataclass_params__.frozen
    assert measure == type(measure)()
    assert measure.needs
    assert isinstance(measure.symmetric, bool)
    assert measure.bounds[0] < measure.bounds[1]
    assert set(measure.sources) <= {*SOURCES, "pattern", "weights"}
    assert all(getattr(measure.card, field.name).strip() for field in fields(measure.card))
    assert not {field.name for field in fields(measure)} & {"needs", "symmetric", "bounds", "sources", "card"}
    assert type(measure).__doc__


def test_one_number_for_every_ordered_pair(values: np.ndarray) -> None:
    assert isinstance(values, np.ndarray)
    assert values.shape == (N_HEADS, N_HEADS)
    assert values.dtype == np.float64


def test_zero_head_is_nan_in_row_and_column_and_nowhere_else(measure: Measure, values: np.ndarray) -> None:
    others = [head for head in range(N_HEADS) if head != ZERO]
    if "pattern_divergence" in measure.needs:  # a row without a key attends to the sink alone, which no other head does
        np.testing.assert_allclose(values[ZERO, others], 0, atol=1e-9)
        assert np.isfinite(values).all()
        return
    assert np.isnan(values[ZERO]).all()
    assert np.isnan(values[:, ZERO]).all()
    assert np.isfinite(values[np.ix_(others, others)]).all()


def test_a_head_that_writes_nothing_has_a_map_all_the_same(measure: Measure) -> None:
    if measure.sources != ("pattern",):
        return
    stream = make_stream(n_layers=1).change(lambda z, layer: torch.zeros_like(z))
    assert np.isfinite(values_of(measure, stream, {})).all()


def test_a_head_is_like_itself(values: np.ndarray) -> None:
    np.testing.assert_allclose(np.delete(values.diagonal(), ZERO), 1, rtol=1e-9)


def test_twin_is_on_top_and_the_case_is_not_trivial(measure: Measure, values: np.ndarray) -> None:
    near = 1e-9 if measure.symmetric else 1e-3  # a ridge takes a little away
    others = [head for head in range(N_HEADS) if head not in (ZERO, ONE, TWIN)]
    assert values[ONE, TWIN] == pytest.approx(1, rel=near)
    assert values[TWIN, ONE] == pytest.approx(1, rel=near)
    assert values[ONE, others].max() < 0.9


def test_symmetry_is_as_declared(measure: Measure, values: np.ndarray) -> None:
    alike = np.allclose(values, values.T, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert alike == measure.symmetric


@pytest.mark.parametrize("lengths", [((5,),), ((3, 2), (6,)), ((20, 30), (1, 40))])
@pytest.mark.parametrize("dim", [1, 12])
def test_bounds_hold_at_awkward_sizes(measure: Measure, lengths: tuple, dim: int) -> None:
    for seed in range(5):
        stream = make_stream(seed, n_layers=1, n_heads=4, dim=dim, lengths=lengths)
        values = values_of(measure, stream, {0: weights_for(seed, 4, dim)})
        assert np.isfinite(values).any() or "halves" in measure.needs  # of one document there are no halves
        check_bounds(measure, values)


def test_padding_is_without_effect(measure: Measure, values: np.ndarray) -> None:
    stream, weights = planted()
    np.testing.assert_allclose(values_of(measure, stream.pad(4), weights), values, rtol=1e-12, atol=1e-12)


def test_order_of_the_text_is_without_effect(measure: Measure, values: np.ndarray) -> None:
    stream, weights = planted()
    turned = Stream(stream.sites, stream.batches[::-1])
    np.testing.assert_allclose(values_of(measure, turned, weights), values, rtol=1e-9, atol=1e-9)


def test_it_runs_on_a_model_by_name(measure: Measure, build_model, make_batches) -> None:
    model, batches = build_model("gpt2"), make_batches("gpt2")
    name = next(name for name, kind in MEASURES.items() if kind is type(measure))
    within, across = (similarity(model, batches, measure=name, scope=scope) for scope in ("layer", "model"))
    assert np.isnan(within.matrix[:4, 4:]).all()
    np.testing.assert_allclose(within.matrix[:4, :4], across.matrix[:4, :4], rtol=1e-6, atol=1e-6)
    assert np.isfinite(across.matrix).all()
    with pytest.raises(UnknownNameError, match=name):
        similarity(model, batches, measure=f"{name}s")


NEW = '''
from dataclasses import dataclass

import numpy as np

from headscope.likeness.measures import MEASURES, Measure


@MEASURES.register("same")
@dataclass(frozen=True)
class Same(Measure):
    """Whether two heads have the same mean."""

    needs = frozenset({"moments"})
    symmetric = True
    bounds = (0.0, 1.0)

    def compare(self, seen):
        moments = seen["moments"]
        means = [moments.mean[own].numpy() for own in moments.slices]
        return np.array([[float(np.allclose(a, b)) for b in means] for a in means])
'''


def test_a_new_measure_is_one_new_file(monkeypatch: pytest.MonkeyPatch, tmp_path, build_model, make_batches) -> None:
    add_file(monkeypatch, tmp_path, headscope.likeness.measures, MEASURES, NEW)
    assert "same" in set(MEASURES)
    values = values_of(MEASURES["same"](), *planted())
    check_bounds(MEASURES["same"](), values)
    np.testing.assert_array_equal(values, np.eye(N_HEADS))
    table = similarity(build_model("gpt2"), make_batches("gpt2"), measure="same")
    np.testing.assert_array_equal(table.matrix[:4, :4], np.eye(4))
    np.testing.assert_allclose(table.low.diagonal(), 1, atol=1e-12)


def test_the_contract_sees_a_measure_out_of_its_bounds() -> None:
    with pytest.raises(AssertionError):
        check_bounds(MEASURES["cka"](), np.array([[1.0, 1.01], [1.01, 1.0]]))
