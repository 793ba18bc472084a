"""The contract of scores: one number and one interval for every head; a new score is one new file, tested from here."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest

import headscope.scoring.scores
from headscope.errors import UnknownNameError
from headscope.scoring.rating import importance
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.statistics import STATISTICS
from tests.contract.plugins import add_file
from tests.contract.seen import seen_by_score
from tests.strategies import Stream, make_stream, weights_for

LAYERS, N_HEADS, DIM = 2, 3, 4
IDLE, BUSY = (
    1,
    5,
)  # the second head of the first layer adds nothing; the last head adds more than any, and something new
ENGINES = {"effects", "gate_gradients"}
NEEDS = {"output_weights", *STATISTICS, *ENGINES}


def planted(seed: int = 0, lengths: tuple = ((30, 41), (50, 22), (35, 8), (30, 28))) -> tuple[Stream, dict, np.ndarray]:
    """A text in which one head is idle and one is busy, W_O, and effects (head, row) to match."""
    rng = np.random.default_rng(seed)

    def alter(z, layer):
        z = z.clone()
        if layer == 0:
            z[:, IDLE] = 0
        else:
            z[:, BUSY - N_HEADS] = 20 * z.new_tensor(rng.standard_normal(z.shape[::2] + z.shape[3:]))
        return z

    stream = make_stream(seed, n_layers=LAYERS, n_heads=N_HEADS, dim=DIM, lengths=lengths).change(alter)
    values = np.abs(rng.standard_normal((LAYERS * N_HEADS, sum(map(len, lengths))))) + 0.5
    values[IDLE], values[BUSY] = 0, values[BUSY] + 10
    return stream, {layer: weights_for(seed + layer, N_HEADS, DIM) for layer in range(LAYERS)}, values


def rated(score: Score, stream: Stream, weights: dict, values: np.ndarray) -> Rating:
    return score.rate(seen_by_score(score.needs, stream, weights, values))


@pytest.fixture(params=sorted(SCORES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def score(name: str) -> Score:
    return SCORES[name]()


@pytest.fixture
def rating(score: Score) -> Rating:
    return rated(score, *planted())


def busy(score: Score) -> list[int]:
    """The heads that must have a number: a head that adds nothing need not, where a score is of what varies."""
    return [head for head in range(LAYERS * N_HEADS) if head != IDLE or not score.of_what_varies]


def check_rating(rating: Rating, heads: list[int] | None = None) -> None:
    for column in (rating.score, rating.low, rating.high):
        assert isinstance(column, np.ndarray)
        assert column.shape == (LAYERS * N_HEADS,)
        assert column.dtype == np.float64
    assert np.isfinite(rating.score[heads]).all()
    known = ~np.isnan(rating.low)
    assert (known == ~np.isnan(rating.high)).all()
    assert (rating.low <= rating.score)[known].all()
    assert (rating.score <= rating.high)[known].all()


def test_facts_are_declared_and_settings_are_fields(score: Score) -> None:
    assert isinstance(score, Score)
    assert is_dataclass(score)
    assert type(score).__dataclass_params__.frozen
    assert score == type(score)()
    assert score.needs
    assert isinstance(score.unit, str)
    assert (score.unit == "metric") == bool(score.needs & ENGINES)
    assert not {field.name for field in fields(score)} & {"needs", "unit"}
    assert type(score).__doc__


def test_every_head_has_a_number_inside_its_interval(score: Score, rating: Rating) -> None:
    check_rating(rating, busy(score))
    assert np.isfinite(rating.low[busy(score)]).all()
    assert (rating.low < rating.high)[np.arange(LAYERS * N_HEADS) != IDLE].any()


def test_higher_is_more_needed(name: str, rating: Rating) -> None:
    """The one exception is replaceability, which says so; a head that adds nothing does not vary, and has none."""
    worth = -rating.score if name == "replaceability" else rating.score
    assert np.isnan(worth[IDLE]) if SCORES[name].of_what_varies else worth.argmin() == IDLE
    assert np.nanargmax(worth) == BUSY


def test_one_document_has_no_interval(score: Score) -> None:
    rating = rated(score, *planted(lengths=((60,),)))
    assert rating.score.shape == (LAYERS * N_HEADS,)
    assert np.isnan([rating.low, rating.high]).all()


def test_more_documents_narrow_the_interval(score: Score) -> None:
    few = rated(score, *planted(lengths=((30,),) * 5))
    many = rated(score, *planted(lengths=((300,),) * 10))

    def width(rating: Rating) -> float:
        return float(np.median(np.delete(rating.high - rating.low, [IDLE])))

    assert width(many) < width(few)


def test_padding_is_without_effect(score: Score, rating: Rating) -> None:
    stream, weights, values = planted()
    padded = rated(score, stream.pad(4), weights, values)
    for name in ("score", "low", "high"):
        np.testing.assert_allclose(getattr(padded, name), getattr(rating, name), rtol=1e-9, atol=1e-9)


def test_it_runs_on_a_model_by_name(name: str, build_model, make_batches) -> None:
    model, batches = build_model("llama"), make_batches("llama")
    table = importance(model, batches, score=name)
    assert table.score.shape == (16,)
    assert np.isfinite(table.score).all()
    assert table.facts["documents"] == 6
    with pytest.raises(UnknownNameError, match=name):
        importance(model, batches, score=f"{name}s")


NEW = '''
from dataclasses import dataclass

import numpy as np

from headscope.scoring.scores import SCORES, Rating, Score


@SCORES.register("reach")
@dataclass(frozen=True)
class Reach(Score):
    """The largest mean of any dimension of the head's output."""

    needs = frozenset({"means"})
    unit = ""

    def rate(self, seen):
        reach = np.concatenate([means.abs().amax(1).numpy() for _, means in sorted(seen["means"].items())])
        return Rating(reach, np.full_like(reach, np.nan), np.full_like(reach, np.nan))
'''


def test_a_new_score_is_one_new_file(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    add_file(monkeypatch, tmp_path, headscope.scoring.scores, SCORES, NEW)
    assert "reach" in set(SCORES)
    rating = rated(SCORES["reach"](), *planted())
    check_rating(rating)
    assert rating.score[IDLE] == 0


def test_the_contract_sees_a_score_outside_its_interval() -> None:
    ones = np.ones(LAYERS * N_HEADS)
    with pytest.raises(AssertionError):
        check_rating(Rating(ones, ones + 1, ones + 2))
