"""What reporting asks of an analysis, and of two that are compared: tables and facts, no model."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from headscope.planning.removal import Removal
from headscope.sites import Anatomy
from headscope.tables import HeadTable, PairTable
from headscope.verdict.verdicts import Verdict

__all__ = ["Contrasted", "Reportable"]


@runtime_checkable
class Reportable(Protocol):
    """A finished analysis; `headscope.analysis.Analysis` is one.

    Attributes:
        anatomy: where the heads are.
        scores: tables by name; "ablation" is the importance, "replaceability" the share of what varies
            that others give.
        pairs: similarities by name; "cka" is the one that is drawn, any other stands beside it.
        candidates: a row per head, best candidate for removal first; see
            `headscope.planning.candidates.list_candidates`.
        removal: what removing the first so many candidates costs, together.
        verdict: what it comes to.
        warnings: what a reader must know first.
        claims: a row for each claim of the paper that was put to the model; empty where none was.
        facts: how it was measured.
    """

    @property
    def anatomy(self) -> Anatomy: ...
    @property
    def scores(self) -> Mapping[str, HeadTable]: ...
    @property
    def pairs(self) -> Mapping[str, PairTable]: ...
    @property
    def candidates(self) -> pd.DataFrame: ...
    @property
    def removal(self) -> Removal: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def claims(self) -> pd.DataFrame: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...


@runtime_checkable
class Contrasted(Protocol):
    """Two models set side by side; `headscope.contrast.Contrast` is such a thing.

    Attributes:
        changes: by score, the change of each head.
        changed: a row for each score and head whose change is told from zero: score, layer, head and more.
    """

    @property
    def changes(self) -> Mapping[str, HeadTable]: ...
    @property
    def changed(self) -> pd.DataFrame: ...
