"""Trying: the chosen heads are cut from a copy, so that what is said of the smaller model was measured on it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from headscope.errors import HeadscopeError
from headscope.heads import HeadId
from headscope.sites import Anatomy
from headscope.surgery import prune
from headscope.surgery.timing import time_forwards
from headscope.text.batches import Batch

__all__ = ["try_cut"]


def try_cut(
    model: nn.Module, chosen: Sequence[HeadId], anatomy: Anatomy, batch: Batch, left_out: dict[str, str]
) -> dict[str, Any]:
    """Cut heads from a copy, prove the cut on a batch, and time both models.

    Args:
        model: left as it was.
        chosen: heads to cut.
        anatomy: the model's.
        batch: what the cut is proven and timed on.
        left_out: gets "cut" with the reason where it cannot be had.

    Returns:
        parameters_before, parameters_after and times, as JSON values; nothing where no head was chosen, or none can be
        cut.
    """
    if not chosen:
        return {}
    try:
        smaller = prune(model, chosen, batches=[batch], anatomy=anatomy)
    except HeadscopeError as error:
        left_out["cut"] = str(error)
        return {}
    except (MemoryError, torch.OutOfMemoryError) as error:
        left_out["cut"] = f"there is no room for a copy of the model ({type(error).__name__})"
        return {}
    before, after = (sum(own.numel() for own in one.parameters()) for one in (model, smaller))
    times = [vars(timing) for timing in time_forwards(model, smaller, batch)]
    return {"parameters_before": before, "parameters_after": after, "times": times}
