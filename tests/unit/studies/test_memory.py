"""What is held while something runs."""

import math
from pathlib import Path

import pytest
import torch

from headscope.studies.memory import bench_memory, peak_memory
from tests import models

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")


def test_what_is_held_for_a_moment_is_seen() -> None:
    size = 200_000_000

    def hold() -> None:
        block = torch.ones(size, dtype=torch.uint8)
        for _ in range(20):
            block.add_(1)

    small = [torch.ones(100_000, dtype=torch.uint8) for _ in range(4 * size // 100_000)]
    del small  # freed, but not given back: the heap still holds it
    assert 0.9 * size < peak_memory(hold) < 1.5 * size
    assert peak_memory(lambda: None) < 0.1 * size
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 // 0)


def test_a_row_for_each_setting() -> None:
    table = bench_memory(models.build("gpt2"), models.make_batches("gpt2"), "tiny", ("1GB", "2GB"))
    assert table["arm"].tolist() == ["memory=1GB", "memory=2GB"]
    assert (table["ratio"] < 0.5).all()
    assert all(map(math.isnan, table["seconds"]))
