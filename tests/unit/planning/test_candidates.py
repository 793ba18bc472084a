"""Candidates: the cheapest first, each with a reason that holds its numbers."""

from dataclasses import replace

import numpy as np
import pytest

from headscope.heads import HeadId
from headscope.planning.candidates import list_candidates
from headscope.planning.quadrants import Lines
from headscope.tables import HeadTable, PairTable

HEADS = tuple(HeadId(layer, head) for layer in range(2) for head in range(3))


ORDER = tuple(HEADS[place] for place in (1, 3, 0, 2, 4))  # by ablation; the last has none


def table(name: str, *values: float) -> HeadTable:
    score = np.array(values)
    return HeadTable(name, "nats/token", HEADS, score, score - 0.01, score + 0.01)


def frame_of(**changes: HeadTable) -> "object":
    scores = {
        "ablation": table("ablation", 0.1, -0.2, 0.3, 0.0, 0.5, np.nan),
        "replaceability": table("replaceability", 0.9, 0.8, 0.7, 0.2, 0.1, np.nan),
        "needed": table("needed", 0.01, 0.0, 0.09, 0.0, 0.45, np.nan),
        "norm": table("norm", 1, 2, 3, 4, 5, 6),
        "gradient": table("gradient", 1, 2, 3, 4, 5, 6),
    }
    empty = np.full((6, 6), np.nan)
    cka = PairTable("cka", "z", HEADS, np.arange(36.0).reshape(6, 6) / 36, empty, empty)
    stand_ins = {HEADS[0]: (HEADS[2], 0.6), HEADS[2]: (HEADS[0], 0.5)}
    return list_candidates(scores | changes, cka, stand_ins, Lines(0.1, 0.5, "because"), ORDER, 2)


def test_they_stand_in_the_order_in_which_they_go() -> None:
    frame = frame_of()
    assert list(frame["head"]) == ["L0H1", "L1H0", "L0H0", "L0H2", "L1H1", "L1H2"]
    assert list(frame["rank"]) == [1, 2, 3, 4, 5, 6]
    assert list(frame["chosen"]) == [True, True, False, False, False, False]


def test_what_replaceability_stands_beside_has_columns() -> None:
    given = table("replaceability", 0.9, 0.8, 0.7, 0.2, 0.1, np.nan)
    beside = {"constant": given.score / 3, "chance": given.score / 9, "untrained": given.score / 2}
    frame = frame_of(replaceability=replace(given, columns=beside))
    for name, numbers in beside.items():
        assert dict(zip(frame["head"], frame[name], strict=True))["L0H2"] == numbers[2]
    assert "untrained" not in frame_of()


@pytest.mark.parametrize(
    ("head", "quadrant", "words"),
    [
        (
            "L0H0",
            "redundant",
            "removing it costs 0.100 nats/token; the rest of its layer gives 90% of what varies in it, L0H2",
        ),
        ("L0H1", "redundant", "chosen: the model does better without it (−0.200 nats/token)"),
        ("L0H2", "backed up", "gives 70% of what varies in it, L0H0 foremost"),
        ("L1H0", "idle", "chosen: removing it costs 0 nats/token; the rest of its layer gives 20%"),
        ("L1H1", "needed", "removing it costs 0.500"),
        ("L1H2", "", "no effect that is a number"),
    ],
)
def test_reasons(head: str, quadrant: str, words: str) -> None:
    row = frame_of().set_index("head").loc[head]
    assert row["quadrant"] == quadrant
    assert words in row["reason"]


def test_without_statistics_effects_alone_are_told() -> None:
    scores = {"ablation": table("ablation", 0.1, -0.2, 0.3, 0.0, 0.5, np.nan)}
    frame = list_candidates(scores, None, {}, Lines(0.1, 0.5, "because"), ORDER, 0)
    assert list(frame["head"])[:2] == ["L0H1", "L1H0"]
    assert set(frame["quadrant"]) == {""}
    assert frame["replaceability"].isna().all()
    assert frame["reason"][2] == "removing it costs 0.100 nats/token"


def test_stand_ins_are_named_with_their_similarity() -> None:
    row = frame_of().set_index("head").loc["L0H0"]
    assert (row["stand_in"], row["stand_in_share"]) == ("L0H2", 0.6)
    assert row["stand_in_cka"] == pytest.approx(2 / 36)
    assert frame_of().set_index("head").loc["L1H1", "stand_in"] == ""
