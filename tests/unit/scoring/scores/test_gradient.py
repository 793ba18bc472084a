import numpy as np

from headscope.effects.gradients import GateGradients
from headscope.heads import HeadId
from headscope.scoring.scores.gradient import Gradient
from tests.reference import jackknife as reference


def test_score_is_the_mean_of_absolute_slopes_row_by_row():
    block = np.array([0, 0, 0, 1, 2, 2])
    values = np.random.default_rng(0).standard_normal((2, 6))
    values[1] = [1, -1, 1, -1, 1, -1]  # a mean of zero, and yet the metric notices
    slopes = GateGradients(
        heads=(HeadId(0, 0), HeadId(0, 1)),
        values=values,
        document=block,
        block=block,
        metric="loss",
        unit="nats/token",
        is_distance=False,
        n_tokens=60,
    )
    rating = Gradient().rate({"gate_gradients": slopes})
    np.testing.assert_allclose(rating.score, [sum(map(abs, row)) / 6 for row in values.tolist()], rtol=1e-12)
    assert (rating.low[1], rating.high[1]) == (1, 1)
    want = reference.interval(lambda rows: np.mean(np.abs(rows)), [values[0, block == number] for number in range(3)])
    np.testing.assert_allclose([rating.low[0], rating.high[0]], want, rtol=1e-9)
