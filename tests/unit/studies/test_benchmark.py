"""The benchmark's arms: what is timed, against what, and what it is to reach."""

import torch

from headscope.studies.benchmark import bench_discovery
from tests import models
from tests.spellings import WIDTH, Spelled


def test_finding_the_heads_is_timed_against_a_pass() -> None:
    table = bench_discovery(models.build("gpt2"), models.make_batches("gpt2")[0], "tiny", 1).set_index("arm")
    assert table.index.tolist() == ["unwatched", "discover, on the batch", "discover, on a made-up text"]
    assert table.loc["unwatched", "ratio"] == 1
    assert table["goal"].tolist() == ["", "at most 6", "at most 6"]
    assert set(table["case"]) == {"tiny, 3 × 12"}
    assert (table["seconds"] > 0).all()


def test_a_model_without_tokens_has_no_made_up_text() -> None:
    table = bench_discovery(Spelled("einsum"), {"x": torch.randn(4, 5, WIDTH)}, "layer", 1)
    assert table["arm"].tolist() == ["unwatched", "discover, on the batch"]
    assert set(table["case"]) == {"layer, 4 rows"}
