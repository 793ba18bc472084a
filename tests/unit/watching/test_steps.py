"""A layer that runs as often as its input says: as in the probe, or refused."""

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.statistics import STATISTICS
from headscope.watching.observation import capture, observe
from tests.spellings import WIDTH, Spelled


class _Steps(nn.Module):
    """One layer, again and again, as many times as it is told."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer = Spelled(way)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        for _ in range(int(steps)):
            x = x + self.layer(x)
        return x


def _batch(steps: int) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0)), "steps": torch.tensor(steps)}


@pytest.mark.parametrize("way", ["einsum", "bmm"])
def test_more_steps_than_in_the_probe_are_refused(way: str) -> None:
    model = _Steps(way).eval()
    anatomy = discover(model, _batch(2))
    assert len(anatomy.sites) == 2
    with capture(model, ("z",), anatomy=anatomy) as seen:
        model(**_batch(2))
        assert list(seen) == [0, 1]
    with pytest.raises(AnatomyError, match="attends more often in one forward pass here than the 2 times"):
        observe(model, [_batch(3)], [STATISTICS["means"]()], anatomy=anatomy)
    with capture(model, ("z",), anatomy=anatomy) as seen:  # the layer alone is no forward pass of the model
        for _ in range(3):
            model.layer(_batch(1)["x"])
    assert list(seen) == [0, 1]


def test_a_projection_that_runs_more_often_is_not_switched_off_by_guess() -> None:
    model = _Steps("einsum").eval()
    anatomy = discover(model, _batch(1))
    with torch.no_grad(), ablate(model, ["L0H1"], anatomy=anatomy):
        model(**_batch(1))
    with (
        pytest.raises(AnatomyError, match=r"layer\.o runs more often in one forward pass here than the 1 times"),
        torch.no_grad(),
        ablate(model, ["L0H1"], anatomy=anatomy),
    ):
        model(**_batch(2))
