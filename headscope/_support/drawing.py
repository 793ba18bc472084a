"""Running a model without drawing from the user's generators: PyTorch's, NumPy's and Python's own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["nothing_drawn"]


@contextmanager
def nothing_drawn(model: nn.Module) -> Iterator[None]:
    """While open, what is drawn at random is drawn from generators that are put back as they were.

    Args:
        model: on whose device things are drawn too.
    """
    devices = [one.device for one in model.parameters() if one.device.type == "cuda"][:1]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (models draw from it)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
