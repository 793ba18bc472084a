"""Roles on real models: MiniLM where the demo extra is installed, Gemma 3 270M behind its marker."""

import numpy as np
import pytest

import headscope as hs
from tests.contract.test_real_cuts import loaded


def judged(name):
    source = loaded(name)
    batches = hs.text_batches(source.tokenizer, length=128, windows=16)
    table = hs.roles(source.model, batches, source.tokenizer)
    assert len(table.heads) == 72
    for kind in (table.low, table.high, table.chance):
        assert set(kind) == set(table.scores)
    return table


def test_minilm_has_heads_for_the_tokens_beside_and_none_that_goes_on_from_repetitions():
    table = judged("minilm")
    assert (table["L0H2"], table["L1H8"], table["L2H9"]) == ("previous", "next", "duplicate")
    assert table.scores["previous"].max() > 0.95
    assert table.scores["induction"].max() < 0.1
    assert table.role.count("broad") > 20
    example = table.examples[table.heads.index(hs.HeadId(0, 2))]
    assert example.keys[0].position == example.query.position - 1


@pytest.mark.gemma
def test_gemma_has_heads_that_go_on_from_repetitions():
    table = judged("gemma")
    found = {str(head) for head, role in zip(table.heads, table.role, strict=True) if role == "induction"}
    assert {"L5H1", "L5H2"} <= found
    assert np.nanmax(table.scores["induction"]) > 0.95
    assert {"previous", "sink", "delimiter"} <= set(table.role)
    assert np.isnan(table.scores["next"]).all()
