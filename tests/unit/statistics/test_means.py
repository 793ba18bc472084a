import numpy as np
import torch
from hypothesis import given, settings

from headscope.statistics.means import Means
from tests.strategies import feed, make_site, streams


@given(streams(n_layers=2))
@settings(deadline=None, max_examples=12)
def test_means_are_over_the_positions_that_count(stream):
    means = feed(Means(), stream).compute()
    assert list(means) == [0, 1]
    for layer in means:
        np.testing.assert_allclose(means[layer], stream.rows(layer).mean(0), rtol=1e-9, atol=1e-12)


def test_float32_sums_do_not_lose_a_small_mean_on_a_long_text():
    statistic, z, kept = Means(), torch.full((1, 1, 1000, 1), 0.1), torch.ones(1, 1000, dtype=torch.bool)
    for _ in range(300):
        statistic.update(make_site(n_heads=1, dim=1), {"gated_z": z}, kept, torch.tensor([0]))
    assert abs(float(statistic.compute()[0]) - float(torch.tensor(0.1).double())) < 1e-12


def test_a_layer_without_a_token_is_left_out():
    statistic, z = Means(), torch.full((1, 2, 5, 3), torch.nan)
    statistic.update(
        make_site(n_heads=2, dim=3), {"gated_z": z}, torch.zeros(1, 5, dtype=torch.bool), torch.tensor([0])
    )
    assert statistic.compute() == {}
