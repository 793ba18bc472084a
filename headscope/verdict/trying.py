"""Trying: the chosen heads are cut from a copy, so that what is said of the smaller model was measured on it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from headscope.errors import HeadscopeError
from headscope.heads import HeadId
from headscope.sites import Anatomy
from headscope.surgery import prune
from headscope.surgery.timing import compare_sizes
from headscope.text.batches import Batch

__all__ = ["try_cut"]


def try_cut(model: nn.Module, chosen: Sequence[HeadId], anatomy: Anatomy, batch: Batch) -> dict[str, Any]:
    """Cut heads from a copy, prove the cut on a batch, and time both models.

    Args:
        model: left as it was.
        chosen: heads to cut.
        anatomy: the model's.
        batch: what the cut is proven and timed on.

    Returns:
        parameters_before, parameters_after and times, as JSON values, see `told_of_cut`; "refused" alone, with the
        reason, where these heads cannot be cut; nothing where none was chosen.
    """
    if not chosen:
        return {}
    try:
        smaller = prune(model, chosen, batches=[batch], anatomy=anatomy)
    except HeadscopeError as error:
        return {"refused": str(error)}
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {"refused": f"there is no room for a copy of the model ({type(error).__name__})"}
    return compare_sizes(model, smaller, batch)
