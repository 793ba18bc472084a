"""Tables of pairs from sums made by hand: which cells are filled, which blocks an interval needs, what is said."""

from dataclasses import dataclass

import numpy as np
import pytest

from headscope.anatomy import discover
from headscope.errors import UnknownNameError
from headscope.heads import HeadId
from headscope.likeness.measures import MEASURES, Measure
from headscope.likeness.measures.cka import Cka
from headscope.likeness.pairing import heads_of, pair_table
from headscope.statistics.arrivals import OTHER
from headscope.statistics.pattern_products import PatternProducts
from headscope.statistics.summed_moments import SummedMoments
from tests import models
from tests.reference import jackknife
from tests.reference import similarity as reference
from tests.strategies import Stream, feed, make_stream, weights_for


def heads(*layers: int, n_heads: int = 3) -> tuple[HeadId, ...]:
    return tuple(HeadId(layer, head) for layer in layers for head in range(n_heads))


def table(name: str, stream: Stream, statistic, need: str = "moments", own=None, other=None, weights=None):
    computed = {need: feed(statistic, stream).compute()}
    own = heads(*(site.layer for site in stream.sites)) if own is None else own
    facts = {"documents": sum(len(batch.kept) for batch in stream.batches)}
    return pair_table(MEASURES[name](), "z", computed, (own, other), weights or {}, facts)


def test_layers_fill_their_own_blocks_of_the_matrix_and_nothing_else() -> None:
    stream = make_stream(n_layers=3)
    within, across = table("cka", stream, SummedMoments()), table("cka", stream, SummedMoments(scope="model"))
    layer = np.array([head.layer for head in within.heads])
    same = layer[:, None] == layer
    for got, whole in ((within.matrix, across.matrix), (within.low, across.low), (within.high, across.high)):
        assert np.isnan(got[~same]).all()
        np.testing.assert_allclose(got[same], whole[same], rtol=1e-7, atol=1e-9)
    assert np.isfinite(across.matrix).all()


def test_a_layer_that_saw_nothing_stays_nan_in_its_place() -> None:
    stream = make_stream(n_layers=2)
    made = table("cka", stream, SummedMoments(), own=heads(0, 1, 7))
    assert np.isnan(made.matrix[6:]).all()
    assert np.isfinite(made.matrix[3:6, 3:6]).all()


def test_across_layers_every_pair_is_that_of_the_textbook() -> None:
    stream = make_stream(n_layers=2)
    rows = np.concatenate([stream.rows(0), stream.rows(1)], axis=1)
    made = table("cka_biased", stream, SummedMoments(scope="model"))
    want = reference.all_pairs(reference.biased_cka, list(rows.transpose(1, 0, 2)))
    np.testing.assert_allclose(made.matrix, want, rtol=1e-9, atol=1e-9)


def test_another_model_s_heads_are_columns() -> None:
    stream = make_stream(n_layers=2)
    whole = table("cka", stream, SummedMoments(scope="model"))
    feeding = SummedMoments(scope="model")
    for batch in stream.batches:
        for site, number in zip(stream.sites, (0, OTHER), strict=True):
            moved = type(site)(**{**{f: getattr(site, f) for f in site.__slots__}, "layer": number})
            feeding.update(moved, batch.tensors[site.layer], batch.kept, batch.block)
        feeding.end_batch()
    made = pair_table(
        MEASURES["cka"](), "z", {"moments": feeding.compute()}, (heads(0), heads(0)), {}, {"documents": 6}
    )
    assert made.matrix.shape == (3, 3)
    assert made.other == heads(0)
    np.testing.assert_allclose(made.matrix, whole.matrix[:3, 3:], rtol=1e-9)
    np.testing.assert_allclose(made.high, whole.high[:3, 3:], rtol=1e-7)


def flat_groups(stream: Stream, name: str, a: int, b: int) -> list[np.ndarray]:
    """By block of documents: the rows of two heads side by side."""
    rows, block = stream.rows(0, name), stream.blocks()
    return [np.hstack([rows[block == number][:, a], rows[block == number][:, b]]) for number in np.unique(block)]


@pytest.mark.parametrize("name", ["cosine", "cka_biased", "procrustes"])
def test_ends_equal_a_jackknife_by_hand_over_blocks_of_unequal_size(name: str) -> None:
    stream = make_stream(5, n_layers=1, lengths=((5, 9, 2), (7, 3, 11), (6, 8, 1), (4, 4, 10)))  # block 0, 1 hold two
    weights = weights_for(0, 3, 4)
    made = table(name, stream, SummedMoments(), weights={0: weights})

    def estimate(rows: np.ndarray) -> float:
        x, y = rows[:, :4], rows[:, 4:]
        if name == "cosine":
            return reference.cosine(x @ weights[0].numpy().T, y @ weights[2].numpy().T)
        return {"cka_biased": reference.biased_cka, "procrustes": reference.procrustes}[name](x, y)

    groups = flat_groups(stream, "gated_z", 0, 2)
    assert len({len(group) for group in groups}) > 2
    np.testing.assert_allclose(made.matrix[0, 2], estimate(np.concatenate(groups)), rtol=1e-9)
    np.testing.assert_allclose(
        (made.low[0, 2], made.high[0, 2]), jackknife.interval(estimate, groups), rtol=1e-7, atol=1e-9
    )


def test_ends_of_predict_leave_one_block_out_of_its_half() -> None:
    stream = make_stream(6, n_layers=1, lengths=((15, 9), (17, 13), (16, 8)))
    # the half is told by one more column, which goes along with the rows that stay
    rows, block = stream.rows(), stream.blocks()
    groups = [
        np.hstack([rows[block == n][:, 0], rows[block == n][:, 1], np.full((sum(block == n), 1), n % 2)])
        for n in np.unique(block)
    ]

    def estimate(kept: np.ndarray) -> float:
        even = kept[:, -1] == 0
        x, y = kept[:, :4], kept[:, 4:8]
        ways = [reference.held_out_r2(x[fit], y[fit], x[~fit], y[~fit], 1e-3) for fit in (even, ~even)]
        return float(np.mean(ways))

    computed = {"halves": feed(SummedMoments(), stream).compute()}
    made = pair_table(MEASURES["predict"](), "z", computed, (heads(0), None), {}, {"documents": 6})
    np.testing.assert_allclose(made.matrix[0, 1], estimate(np.concatenate(groups)), rtol=1e-9)
    np.testing.assert_allclose(
        (made.low[0, 1], made.high[0, 1]), jackknife.interval(estimate, groups), rtol=1e-7, atol=1e-9
    )


def test_ends_of_a_measure_of_maps_equal_a_jackknife_over_queries_of_documents() -> None:
    stream = make_stream(7, n_layers=1)
    maps: dict[int, list[np.ndarray]] = {}
    for batch in stream.batches:
        for row, block in enumerate(batch.block.tolist()):
            own = batch.tensors[0]["pattern"][row][:, batch.kept[row]].numpy()
            maps.setdefault(block, []).extend(np.pad(q, ((0, 0), (0, 9 - q.shape[1]))) for q in own.transpose(1, 0, 2))
    groups = [np.array(own) for own in maps.values()]  # (query, head, key)
    made = table("pattern_cosine", stream, PatternProducts(), "pattern_products")

    def estimate(queries: np.ndarray) -> float:
        return reference.cosine(queries[:, 0], queries[:, 1])

    np.testing.assert_allclose(made.matrix[0, 1], estimate(np.concatenate(groups)), rtol=1e-9)
    np.testing.assert_allclose(
        (made.low[0, 1], made.high[0, 1]), jackknife.interval(estimate, groups), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize(("n_documents", "needs"), [(1, 2), (2, 2), (3, 4), (4, 4)])
def test_too_few_documents_have_no_interval_and_the_table_says_so(n_documents: int, needs: int) -> None:
    stream = make_stream(n_layers=1, lengths=((9,),) * n_documents)
    need, name = ("moments", "cka") if needs == 2 else ("halves", "predict")
    made = table(name, stream, SummedMoments(), need)
    enough = n_documents >= needs
    assert np.isfinite(made.matrix).all()
    assert np.isfinite(made.low).all() == np.isfinite(made.high).all() == enough
    assert ("why_no_interval" not in made.facts) == enough
    if not enough:
        assert f"only {n_documents} document" in made.facts["why_no_interval"]
        assert f"at least {needs} blocks" in made.facts["why_no_interval"]


@pytest.mark.parametrize("blocks", [1, 2])
def test_fewer_blocks_than_documents_were_dealt_into_give_no_interval(blocks: int) -> None:
    stream = make_stream(n_layers=2)
    whole, few = (
        table("cka", stream, SummedMoments(scope="model")),
        table("cka", stream, SummedMoments(scope="model", blocks=blocks)),
    )
    np.testing.assert_allclose(few.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isnan(few.low).all()
    assert np.isnan(few.high).all()
    assert "did not fit into memory" in few.facts["why_no_interval"]


@pytest.mark.parametrize(("of", "n_of_a_layer"), [("q", 8), ("z", 8), ("contribution", 8), ("k", 2), ("v", 2)])
def test_heads_of_a_tensor(of: str, n_of_a_layer: int) -> None:
    assert heads_of(discover(models.build("llama")), of) == heads(0, 1, n_heads=n_of_a_layer)


def test_a_measure_has_the_name_that_it_is_registered_under() -> None:
    @dataclass(frozen=True)
    class Bare(Cka):
        """Not registered."""

    assert {name: MEASURES.name_of(kind()) for name, kind in MEASURES.items()} == {name: name for name in MEASURES}
    for measure in (Bare(), Cka):
        with pytest.raises(UnknownNameError, match="is not an object of a registered measure; register its class"):
            MEASURES.name_of(measure)  # type: ignore[arg-type]
    assert issubclass(Bare, Measure)
