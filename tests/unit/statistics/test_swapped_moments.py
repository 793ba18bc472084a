"""Heads beside those of other documents: sums, and what is read off them, against the pairs written out."""

import numpy as np
import pytest
import torch

from headscope.likeness.measures.cka import cka
from headscope.likeness.measures.cka_biased import cka_biased
from headscope.scoring.scores.replaceability import rate_replaceability
from headscope.statistics.prediction import RIDGE
from headscope.statistics.swapped_moments import Swapped, SwappedMoments
from tests.reference import regression, similarity
from tests.rows import measured, textbook_weights
from tests.strategies import feed, make_site, make_stream, weights_for

LENGTHS = ((9, 8, 6, 9), (7, 9, 9, 5), (9, 9, 8, 8), (6, 9, 7, 9), (9, 9, 9, 9))


def pairs_of(stream, layer=0):
    """For each half, (token, head, dim) twice: positions of one row, and the same positions of its partner."""
    halves = [([], []), ([], [])]
    for batch in stream.batches:
        z = batch.tensors[layer]["gated_z"].transpose(1, 2).numpy()
        for half, (one, other) in enumerate([(0, 2), (1, 3)]):  # of the even blocks, and of the odd ones
            n = int(min(batch.kept[one].sum(), batch.kept[other].sum()))
            halves[half][0].append(z[one, :n])
            halves[half][1].append(z[other, :n])
    return [tuple(np.concatenate(side) for side in half) for half in halves]


@pytest.fixture
def stream():
    return make_stream(n_layers=1, lengths=LENGTHS, offset=3.0)


def test_sums_are_those_of_the_pairs(stream):
    halves = feed(SwappedMoments(), stream).compute()[0]
    for half, (one, other) in zip(halves, pairs_of(stream), strict=True):
        there, here = np.concatenate([one, other]), np.concatenate([other, one])
        assert half.n == len(there) > 0
        zero = torch.zeros_like(half.own.pivot)
        flat, turned = there.reshape(len(there), -1), here.reshape(len(here), -1)
        np.testing.assert_allclose(half.own.second(zero), flat.T @ flat, rtol=1e-9)
        np.testing.assert_allclose(half.crossed.second(zero), flat.T @ turned, rtol=1e-9)


def test_likeness_of_strangers_is_that_of_the_swapped_rows(stream):
    one, other = pairs_of(stream)[0]
    there, here = np.concatenate([one, other]), np.concatenate([other, one])
    strangers = feed(SwappedMoments(), stream).compute()[0][0].of_strangers
    for a, b in [(0, 1), (0, 2), (2, 1)]:
        got = cka(strangers)[a, b], cka_biased(strangers)[a, b]
        want = [kind(there[:, a], here[:, b]) for kind in (similarity.unbiased_cka, similarity.biased_cka)]
        want[1] = similarity.biased_cka(there[:, a] - there[:, a].mean(0), here[:, b] - here[:, b].mean(0))
        np.testing.assert_allclose(got, want, rtol=1e-8)
    np.testing.assert_allclose(cka(strangers).diagonal(), 1)


def test_chance_is_the_regression_on_the_heads_of_other_documents(stream):
    halves, weights = pairs_of(stream), weights_for(0, 3, 4)
    swapped = feed(SwappedMoments(), stream).compute()
    rows = np.concatenate([side for half in halves for side in half])
    rating = rate_replaceability({0: [measured(rows)] * 2}, swapped, {0: weights})
    for head in range(3):
        # this head as it is, the others as they are in the other document
        given = []
        for one, other in halves:
            rows = np.concatenate([other, one])
            rows[:, head] = np.concatenate([one, other])[:, head]
            given.append(rows)
        ways = [given, given[::-1]]
        _, varying, missed = sum(regression.energies(*way, textbook_weights(weights), RIDGE)[:, head] for way in ways)
        np.testing.assert_allclose(rating.columns["chance"][head], 1 - missed / varying, rtol=1e-9)


def test_a_copy_is_replaceable_and_its_chance_is_none():
    def alter(z, layer):
        z = z.clone()
        z[:, 2] = 2 * z[:, 0] + 5
        return z

    lengths = ((30, 30, 30, 30),) * 12
    stream = make_stream(n_layers=1, lengths=lengths).change(alter)
    statistic = feed(SwappedMoments(), stream)
    rating = rate_replaceability(
        {0: [measured(part) for part in np.array_split(stream.rows(), 6)]},
        statistic.compute(),
        {0: weights_for(0, 3, 4)},
    )
    assert rating.score[[0, 2]].min() > 0.99
    assert rating.columns["chance"].max() < 0.05
    assert rating.columns["chance"].min() > -0.2


def test_no_document_is_in_both_halves():
    """Each document writes its own number: sums tell who was there."""
    block, met = torch.tensor([0, 1, 2, 4, 3]), [set(), set()]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 4, 0, 3, 2]):
        statistic, z = SwappedMoments(), torch.eye(5)[:, None, None, :].expand(5, 1, 2, 5)[order]
        statistic.begin_batch({"input_ids": torch.ones(5, 2, dtype=torch.long), "document": torch.tensor(order)})
        statistic.update(make_site(0, 1, 5), {"gated_z": z}, torch.ones(5, 2, dtype=torch.bool), block[order])
        for number, half in enumerate(statistic.compute()[0]):
            assert half.n == 4
            there = half.own.second(torch.zeros(5).double()).diagonal()
            met[number] |= set(there.nonzero().flatten().tolist())
    assert met[1] == {1, 4}
    assert met[0] == {0, 2, 3}


def test_rows_of_one_document_and_rows_in_parts_make_no_pair():
    statistic, z, kept = SwappedMoments(), torch.randn(4, 1, 2, 3), torch.ones(4, 2, dtype=torch.bool)
    statistic.begin_batch({"input_ids": torch.ones(4, 2, dtype=torch.long), "document": torch.tensor([3, 3, 3, 3])})
    statistic.update(make_site(0, 1, 3), {"gated_z": z}, kept, torch.zeros(4, dtype=torch.long))
    statistic.begin_batch({"input_ids": torch.ones(2, 4, dtype=torch.long)})
    statistic.update(make_site(0, 1, 3), {"gated_z": z}, kept, torch.zeros(4, dtype=torch.long))
    assert statistic.compute() == {}


def test_panels_of_wide_layers_hold_the_same():
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.standard_normal((50, 5, 200)) + 2) for _ in range(2))
    swapped = Swapped.of_rows(one, other, one.mean(0).flatten())
    assert len(swapped.own.panels) == 3
    zero = torch.zeros(1000, dtype=torch.float64)
    there, here = torch.cat([one, other]).flatten(1), torch.cat([other, one]).flatten(1)
    want = there.T @ here
    for head in range(5):
        own = slice(200 * head, 200 * head + 200)
        want[own, own] = there[:, own].T @ there[:, own]
    torch.testing.assert_close(swapped.of_strangers.second(zero), want, rtol=1e-9, atol=1e-9)
    got = cka(swapped.of_strangers)[1, 4]
    np.testing.assert_allclose(
        got,
        similarity.unbiased_cka(torch.cat([one, other])[:, 1].numpy(), torch.cat([other, one])[:, 4].numpy()),
        rtol=1e-8,
    )
