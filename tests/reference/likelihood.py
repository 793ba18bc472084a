"""Log-likelihoods in NumPy, float64, as the textbook has them."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["log_softmax"]


def log_softmax(logits: Tensor) -> npt.NDArray[np.float64]:
    """(…, vocabulary): natural logarithms of probabilities."""
    x = logits.detach().numpy().astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
