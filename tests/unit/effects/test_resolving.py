"""Metrics by the name of an object of one's own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import headscope as hs
from headscope.effects.metrics import UserMetric
from headscope.errors import MetricError
from headscope.models.reference import example
from headscope.text.batches import Batch
from tests.models import build, make_batches


def last_logit(output: Any, batch: Batch) -> Tensor:
    """The first logit of the last position."""
    logits: Tensor = output.logits[:, -1, 0]
    return logits


def test_a_function_of_one_s_own_is_found_by_its_name() -> None:
    model, batches = build("llama"), make_batches("llama", 1)
    named = hs.importance(model, batches, metric="tests.unit.effects.test_resolving:last_logit")
    assert named.facts["metric"] == "last_logit"
    np.testing.assert_array_equal(named.score, hs.importance(model, batches, metric=last_logit).score)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("tests.unit.effects.test_resolving:nothing", "has no 'nothing'"),
        ("nowhere:metric", "there is no module 'nowhere'"),
        (3, "a metric is a name, a Metric or a function; it was a int"),
    ],
)
def test_what_is_no_metric_is_refused(metric: Any, told: str) -> None:
    with pytest.raises(MetricError, match=told):
        hs.importance(build("llama"), make_batches("llama", 1), metric=metric)


def test_a_metric_that_raises_is_named_with_its_line_and_how_it_is_called():
    def wrong(model, batch):
        return model(batch)  # an output is no model

    with pytest.raises(
        MetricError,
        match=r"the metric 'wrong' failed: TypeError.*test_resolving.py, line \d+\); it is called.*'input_ids'",
    ):
        UserMetric(wrong, "wrong").measure(object(), {"input_ids": torch.ones(1, 2)})


class _Sparing(nn.Module):
    """A language model that makes logits of the last position alone where it is not trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = example()[0]

    def _logits(self, idx: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor | None]:
        logits = self.inner(idx).logits
        if told is None:
            return logits[:, [-1]], None
        return logits, functional.cross_entropy(logits.flatten(0, 1), told.flatten())


class _OfTargets(_Sparing):
    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self._logits(idx, targets)


class _OfLabels(_Sparing):
    def forward(self, idx: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self._logits(idx, labels)


class _LastAlone(_Sparing):
    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.inner(idx).logits[:, [-1]], None


@pytest.mark.parametrize(("kind", "name"), [(_OfTargets, "targets"), (_OfLabels, "labels")])
def test_a_model_that_spares_logits_is_told_what_to_put_in_the_batches(kind: type[_Sparing], name: str) -> None:
    model, ids = kind().eval(), torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    for metric in ("auto", "loss"):
        with pytest.raises(MetricError, match=rf"put {name} in the batches: {{'idx': x, '{name}': y}}"):
            hs.importance(model, [{"idx": ids}], metric=metric)
    batches = [{"idx": ids, name: ids.roll(-1, 1)}]
    found = hs.importance(model, batches)
    assert found.facts["metric"] == "loss"
    assert np.isfinite(found.score).all()


@pytest.mark.parametrize(
    ("kind", "batch", "metric"), [(_LastAlone, {}, "loss"), (_OfLabels, {}, "kl"), (_OfLabels, {"labels": 1}, "kl")]
)
def test_what_would_not_help_is_not_advised(kind: type[_Sparing], batch: dict[str, int], metric: str) -> None:
    ids = torch.ones(4, 9, dtype=torch.long)
    given = {"idx": ids, **dict.fromkeys(batch, ids)}
    with pytest.raises(MetricError, match="so which belongs to which cannot be told; pass a metric of your own"):
        hs.importance(kind().eval(), [given], metric=metric)
