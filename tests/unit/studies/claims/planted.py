"""Sweeps whose truth is known: errors of small models that were never trained."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from headscope.studies.headcount import Sweep

ARMS = ("width", "head_dim")
VARYING = {1: 0.13, 4: 0.1, 16: 0.13}  # with as much noise as that, see below
OPTIMUM, FLAT, LONG = {1: 0.5, 4: 0.1, 16: 0.4}, {1: 0.1, 4: 0.1, 16: 0.1}, {1: 0.5, 4: 0.3, 16: 0.1}


def runs(
    errors: Mapping[tuple[str, str], Mapping[int, float]],
    noise: float = 0.002,
    *,
    seeds: Mapping[str, int] | None = None,
    width: int = 16,
) -> Sweep:
    """A sweep of planted errors, by task and arm and by number of heads.

    Args:
        errors: chance is 1.
        noise: of each run; 0.1 where the errors are VARYING.
        seeds: by task; 5 without it.
        width: of the models; heads of fixed size have 4 dimensions.
    """
    rng = np.random.default_rng(0)
    rows = [
        {
            "task": task, "arm": arm, "n_heads": n, "seed": seed,
            "error": error + (0.1 if own is VARYING else noise) * rng.standard_normal(),
            "chance": 1.0, "unit": "share", "head_dim": width // n if arm == "width" else 4,
        }
        for (task, arm), own in errors.items()
        for n, error in own.items()
        for seed in range((seeds or {}).get(task, 5))
    ]  # fmt: skip
    settings: dict[str, Any] = {"seeds": 5, "share": 1.0, "rates": [0.001, 0.01], "width": width}
    return Sweep(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), {"settings": settings})
