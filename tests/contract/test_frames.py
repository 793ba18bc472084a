"""The contract of frames: wherever one names heads or layers, they sort, compare and group as heads do, not as text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import headscope as hs
from headscope.head_roles.tables import ROLES, RoleTable
from headscope.surplus.layers import CONSTANT, WHOLE
from tests.unit.reporting.synthetic import SyntheticAnalysis, analysis

LAYERS, HEADS = 11, 12  # both with two digits, which text sorts before one
RUN = analysis(LAYERS, HEADS)
NAMES = RUN.anatomy.heads
NONE = np.full(len(NAMES), np.nan)


def _saved(run: SyntheticAnalysis, folder: Path) -> hs.Analysis:
    whole = hs.Analysis(run.anatomy, run.scores, run.pairs, run.candidates, run.removal, run.verdict, run.facts)
    whole.save(folder)
    return hs.Analysis.load(folder)


def _roles() -> RoleTable:
    numbers = dict.fromkeys(ROLES, NONE)
    return RoleTable(NAMES, ("mixed",) * len(NAMES), numbers, numbers, numbers, numbers, (None,) * len(NAMES))


def _redundancy() -> hs.Redundancy:
    layers = [*map(str, range(LAYERS)), WHOLE]
    rows = [(layer, k, f"L{layer}H{k - 1}" if k else CONSTANT) for layer in range(LAYERS) for k in range(HEADS + 1)]
    curve = pd.DataFrame(rows, columns=["layer", "k", "head"]).assign(
        share=0.5, low=0.4, high=0.6, chance=0.1, restored=0.7, restored_low=0.6, restored_high=0.8,
        n_documents=9, n_tokens=90,
    )  # fmt: skip
    effective = pd.DataFrame({"layer": layers, "n_heads": HEADS, "effective": 2.0}).assign(
        low=1.0, high=3.0, chance=2.9, tokens_per_dimension=9.0, n_documents=9, n_tokens=90
    )
    return hs.Redundancy(effective, curve)


def _contrast() -> hs.Contrast:
    rows = [("norm", head.layer, head.head, "both", 0.5, 0.01) for head in NAMES]
    frame = pd.DataFrame(rows, columns=["score", "layer", "head", "in", "change", "q_value"])
    given = frame.assign(first=1.0, second=1.5, low=0.4, high=0.6, p_value=0.01)
    return hs.Contrast(("a", "b"), given, RUN.pairs["cka"])


def _frames(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every frame that a user is given, and the same read back from files."""
    loaded = _saved(RUN, folder / "run")
    for when, run in (("", RUN), (", loaded", loaded)):
        yield f"candidates{when}", run.candidates
        yield f"removal{when}", run.removal.costs
        yield f"a score{when}", run.scores["ablation"].to_frame()
        yield f"pairs{when}", run.pairs["cka"].to_frame()
    made = {"roles": _roles(), "redundancy": _redundancy(), "contrast": _contrast()}
    for name, thing in made.items():
        (folder / name).mkdir()
        thing.save(folder / name)
    for when, (roles, redundancy, contrast) in (
        ("", made.values()),
        (", loaded", (
            RoleTable.load(folder / "roles"),
            hs.Redundancy.load(folder / "redundancy"), hs.Contrast.load(folder / "contrast"),
        )),
    ):  # fmt: skip
        yield f"roles{when}", roles.to_frame()
        yield f"effective heads{when}", redundancy.effective
        yield f"redundancy curve{when}", redundancy.curve
        yield f"contrast{when}", contrast.frame
        yield f"changed{when}", contrast.changed
        yield f"itself{when}", contrast.itself


def _place(name: object) -> tuple[int, ...]:
    """Where a head or a layer belongs, whatever it is called."""
    text = str(name)
    if text.startswith("L"):
        head = hs.HeadId.parse(text)
        return head.layer, head.head
    return {"": (-1,), CONSTANT: (-1,), WHOLE: (LAYERS,)}.get(text) or (int(text),)


def test_names_of_heads_and_layers_sort_as_heads_and_layers(tmp_path: Path) -> None:
    found = 0
    for what, frame in _frames(tmp_path):
        assert len(frame), what
        columns = [name for name in frame if name in ("head", "head_a", "head_b", "layer", "stand_in")]
        assert columns or "removal" in what, what
        for column in columns:
            ordered = [*frame[column].sort_values()]
            assert ordered == sorted(frame[column], key=_place), f"{what}: {column}"
            assert len({*frame[column]}) > 10, f"{what}: {column} tells no order"
            if not pd.api.types.is_integer_dtype(frame[column]):
                assert frame[column].cat.ordered, f"{what}: {column}"
                assert frame[column].notna().all(), f"{what}: {column}"
            found += 1
    assert found >= 30
