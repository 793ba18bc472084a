"""Too little text is said, with how much more would do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headscope.verdict.amounts import too_little
from tests.rows import in_blocks
from tests.strategies import make_effects


def evidence(n_tokens, n_documents, n_heads=3, dim=2):
    rng = np.random.default_rng(0)
    effects = make_effects(np.zeros((1, n_documents)), list(range(n_documents)))
    return SimpleNamespace(moments={0: in_blocks(rng.standard_normal((n_tokens, n_heads, dim)))}, effects=effects)


def test_enough_is_nothing_to_say():
    assert too_little(evidence(120, 10), 10, (10, 10), 0.3, "documents") == ()


def test_few_documents():
    (said,) = too_little(evidence(120, 9), 10, (9, 10), 0.3, "documents")
    assert "chosen on 9 documents and judged on 10" in said
    assert "it takes about 34 documents of like length in all." in said
    (said,) = too_little(evidence(120, 1), 12, (1, 12), 0.5, "rows")
    assert "Too few rows" in said
    assert "chosen on 1 row and" in said
    assert "about 20 rows of like length in all." in said


def test_a_small_sample_of_many_documents():
    (said,) = too_little(evidence(120, 4), 30, (70, 30), 0.3, "documents")
    assert "it takes more tokens for the ablation, to take in more of the 100 there are" in said


@pytest.mark.parametrize(("tokens", "ratio", "more"), [(60, "10 tokens", "2.0 times"), (30, "5.0 tokens", "4.0 times")])
def test_few_tokens_for_the_dimensions_of_a_layer(tokens, ratio, more):
    (said,) = too_little(evidence(tokens, 10), 10, (10, 10), 0.3, "documents")
    assert ratio in said
    assert more in said
    assert "replaceability" in said


def test_without_statistics_only_documents_count():
    found = SimpleNamespace(moments={}, effects=make_effects(torch.zeros(1, 12).numpy(), list(range(12))))
    assert too_little(found, 12, (12, 12), 0.3, "documents") == ()


def test_rows_of_batches_may_be_no_text():
    (said,) = too_little(evidence(60, 10), 10, (10, 10), 0.3, "rows")
    assert said.startswith("Too few rows to tell")
    assert "10 positions for each dimension" in said
    assert "text" not in said.replace("Too few", "")
