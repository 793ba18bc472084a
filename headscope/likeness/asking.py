"""What is asked of a comparison: which measure of what, of which models, and how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import nn

from headscope.anatomy.untrained import check_null
from headscope.errors import UnknownNameError
from headscope.heads import HeadId
from headscope.likeness.measures import Measure
from headscope.likeness.pairing import heads_of
from headscope.likeness.passes import parse_memory
from headscope.sites import Anatomy
from headscope.statistics.arrivals import OTHER, SCOPES

__all__ = ["Ask", "How", "Pair", "needs_text"]

_TEXTLESS = {"qk_factors", "ov_factors"}


def needs_text(measure: Measure) -> bool:
    """Whether a measure looks at what a model makes of text; those of weights do not."""
    return not measure.needs <= _TEXTLESS


@dataclass(frozen=True, kw_only=True)
class How:
    """Settings of a comparison.

    Attributes:
        scope: "layer": within each layer (of two models: a layer with the same layer), NaN elsewhere; "model": every
            head with every other.
        memory: bytes that sums may take, or as text: "2GB". What does not fit is done in several passes.
        intervals: across the model, make them whatever the number of passes that takes; else only where all blocks of
            documents fit into one.
        skip_first: positions at the start of each row that do not count.
        seed: of random tokens, and of the weights of an untrained copy.
        null: "untrained": the same numbers of an untrained copy of the model stand beside, on the same text.
    """

    scope: str = "layer"
    memory: float | str = "2GB"
    intervals: bool = False
    skip_first: int = 0
    seed: int = 0
    null: str = ""

    def __post_init__(self) -> None:
        check_null(self.null)
        if self.scope not in SCOPES:
            raise UnknownNameError(f"there is no scope {self.scope!r}; there are: {', '.join(SCOPES)}")
        parse_memory(self.memory)


@dataclass(frozen=True)
class Ask:
    """One measure, and what it compares."""

    measure: Measure
    of: str

    @property
    def textless(self) -> bool:
        return not needs_text(self.measure)

    @property
    def streamed(self) -> str:
        """The tensor that is summed for it."""
        if "output_weights" in self.measure.needs and self.of == "contribution":
            return "gated_z"  # contributions are compared through z as the projection reads it
        return "written" if self.of == "contribution" else self.of

    def key(self, need: str) -> tuple[str, str]:
        """Which statistic a need is met by; measures that want the same share it."""
        return ("moments" if need == "halves" else need, self.streamed)

    @property
    def statistics(self) -> set[tuple[str, str]]:
        return {self.key(need) for need in self.measure.needs if need != "output_weights"}


@dataclass(frozen=True, eq=False)
class Pair:
    """One model, or two that are compared with each other."""

    model: nn.Module
    anatomy: Anatomy
    other: nn.Module | None
    other_anatomy: Anatomy | None

    def heads(self, of: str) -> tuple[tuple[HeadId, ...], tuple[HeadId, ...] | None]:
        theirs = None if self.other_anatomy is None else heads_of(self.other_anatomy, of)
        return heads_of(self.anatomy, of), theirs

    def by_layer(self, make: Callable[[nn.Module, Anatomy], Mapping[int, Any]]) -> dict[int, Any]:
        """Something of each layer, the other model's from OTHER on."""
        made = dict(make(self.model, self.anatomy))
        if self.other is not None and self.other_anatomy is not None:
            made |= {OTHER + layer: value for layer, value in make(self.other, self.other_anatomy).items()}
        return made

    @property
    def layers(self) -> list[int]:
        """The layers' numbers, the other model's from OTHER on."""
        theirs = () if self.other_anatomy is None else self.other_anatomy.sites
        return [*(site.layer for site in self.anatomy.sites), *(OTHER + site.layer for site in theirs)]

    @property
    def facts(self) -> dict[str, str]:
        """Which models they are."""
        known = self.anatomy.facts
        other = self.other_anatomy
        theirs = {} if other is None else {"other_class": other.model_class, "other_fingerprint": other.fingerprint}
        return known | theirs

    def having(self, *names: str) -> Self:
        theirs = None if self.other_anatomy is None else self.other_anatomy.having(*names)
        return replace(self, anatomy=self.anatomy.having(*names), other_anatomy=theirs)

    @property
    def apart(self) -> Self:
        theirs = None if self.other_anatomy is None else self.other_anatomy.apart
        return replace(self, anatomy=self.anatomy.apart, other_anatomy=theirs)
