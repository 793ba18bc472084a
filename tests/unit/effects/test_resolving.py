"""Metrics by the name of an object of one's own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headscope as hs
from headscope.effects.metrics import UserMetric
from headscope.errors import MetricError
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
        MetricError, match=r"the metric 'wrong' failed: TypeError.*test_resolving.py, line \d+\); it is called"
    ):
        UserMetric(wrong, "wrong").measure(object(), {"input_ids": torch.ones(1, 2)})
