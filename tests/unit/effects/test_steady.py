"""Models that draw at random in evaluation mode: their noise is no effect, and is said."""

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.metrics import UserMetric
from headscope.effects.sweep import head_effects
from headscope.errors import MetricError
from tests.spellings import WIDTH, Spelled


class _Drops(nn.Module):
    """Monte-Carlo dropout; or noise that no seed of torch's makes the same."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.attend, self.way, self.calls = Spelled("einsum"), way, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.way == "dropout":
            x = nn.functional.dropout(x, 0.3, training=True)
        elif self.way == "unseeded":
            x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(self.calls))
        return self.attend(x)


_METRIC = UserMetric(lambda output, batch: output.square().mean((1, 2)))


def _build(way: str) -> tuple[_Drops, dict[str, Tensor]]:
    torch.manual_seed(0)
    return _Drops(way).eval(), {"x": torch.randn(3, 6, WIDTH)}


def test_noise_is_no_effect() -> None:
    model, batch = _build("dropout")
    state = torch.get_rng_state()
    anatomy = discover(model, batch)
    made = head_effects(model, [batch], _METRIC, anatomy)
    assert torch.equal(torch.get_rng_state(), state), "the user's own draws go on as if nothing had been"
    assert made.values.tolist() == head_effects(model, [batch], _METRIC, anatomy).values.tolist()
    # the same draws, by hand
    with torch.no_grad():
        torch.manual_seed(0)
        whole = model(**batch)
        model.attend.o.weight[:, :8] = 0
        torch.manual_seed(0)
        without = model(**batch)
    want = (without.square() - whole.square()).mean((1, 2))
    torch.testing.assert_close(torch.tensor(made.values[0]), want.double(), rtol=0, atol=1e-6)


def test_draws_are_said() -> None:
    assert "it draws at random" in discover(*_build("dropout")).remarks[0]
    assert discover(*_build("none")).remarks == ()


def test_noise_that_no_seed_settles_is_refused() -> None:
    model, batch = _build("unseeded")
    anatomy = discover(model, batch)
    assert "whatever the seed" in anatomy.remarks[-1]
    with pytest.raises(MetricError, match=r"two runs of the intact _Drops on one batch differ by .* whatever the seed"):
        head_effects(model, [batch], _METRIC, anatomy)
