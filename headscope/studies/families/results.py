"""What came of trying headscope on one model type: a row of the support matrix, and how it compares with an earlier."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

__all__ = ["COLUMNS", "Cut", "Result", "worse"]

YES, NO = "yes", "no"
_BETWEEN = " | "  # reasons in one cell
# what a column may say, from the best to the worst; "" where it was not tried
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "built": (YES, NO),
    "forward": (YES, NO),
    "found": ("all", "some", "none", "failed"),
    "captured": ("exact", "in part", "refused", "wrong"),
    "cut": ("exact", "in part", "unproven", "refused", "failed", "wrong"),
    "saved": (YES, NO),
    "trained": (YES, NO),
    "generated": (YES, NO),
    "copied": (YES, NO),
    "exported": (YES, NO),
}


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut that was tried.

    Attributes:
        what: "head" (with keys of its own), "group" (all heads that share keys), "query" (one of those).
        place: class of the attention, where it lies and its kind.
        status: "exact", "unproven" (nothing could show that it is not), "refused", "failed" (it raised something that
            is no refusal), "wrong" (made, and something else than the masked model).
        way: how an exact cut was made, as "whole"; "" for others.
        why: what was said, where it is not exact; or why it is shown on what the layer itself gives.
    """

    what: str
    place: str
    status: str
    way: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.what} of {self.place}: {self.status}{f', {self.way}' if self.way else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read back what str() gave; reasons stand elsewhere."""
        named, _, told = text.partition(": ")
        what, _, place = named.partition(" of ")
        status, _, way = told.partition(", ")
        return cls(what, place, status, way)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one model type. Columns of `COLUMNS` say what stands there, or "" where it was not tried.

    Attributes:
        model_type: as transformers calls it.
        class_name: of the model.
        built, forward: whether there is a tiny model, and an input that it runs on.
        sites: attention calls that were found.
        routes: by route, how many.
        kinds: "self", "causal", "cross", those that there are.
        found: whether all that looks like attention is read; "failed" where looking for it raised no refusal.
        captured: whether z is pattern·v, contributions and bias are the projection's output, and outputs stay the same.
        cut: whether each cut that was tried is exact; see `cuts`.
        cuts: those that were tried.
        saved, trained, generated, copied, exported: whether a cut model can be.
        why: reasons, by column.
        seconds: it took.
    """

    model_type: str
    class_name: str = ""
    built: str = NO
    forward: str = ""
    sites: int = 0
    routes: Mapping[str, int] = field(default_factory=dict, hash=False)
    kinds: tuple[str, ...] = ()
    found: str = ""
    captured: str = ""
    cut: str = ""
    cuts: tuple[Cut, ...] = ()
    saved: str = ""
    trained: str = ""
    generated: str = ""
    copied: str = ""
    exported: str = ""
    why: Mapping[str, str] = field(default_factory=dict, hash=False)
    seconds: float = 0.0

    @property
    def dispatches(self) -> bool:
        """Whether attention is called through transformers' registry."""
        return self.routes.get("registry", 0) > 0

    @property
    def ways(self) -> tuple[str, ...]:
        """How exact cuts were made."""
        return tuple(dict.fromkeys(cut.way for cut in self.cuts if cut.way))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_json` gave."""
        cuts = tuple(Cut(**one) for one in data["cuts"])
        return cls(**{**data, "cuts": cuts, "kinds": tuple(data["kinds"])})

    def to_row(self) -> dict[str, str]:
        """Cells of a table, in words."""
        row = {one.name: str(getattr(self, one.name)) for one in fields(self)}
        return row | {
            "routes": "; ".join(f"{name} {many}" for name, many in self.routes.items()),
            "kinds": "; ".join(self.kinds),
            "cuts": "; ".join(map(str, self.cuts)),
            "why": _BETWEEN.join(f"{column}: {reason.replace('|', '/')}" for column, reason in self.why.items()),
            "seconds": f"{self.seconds:.1f}",
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Self:
        """Read back what `to_row` gave; reasons of single cuts are in `why` alone."""
        routes = dict(one.rsplit(" ", 1) for one in _split(row["routes"]))
        return cls(
            **{
                **row,
                "sites": int(row["sites"]),
                "routes": {name: int(many) for name, many in routes.items()},
                "kinds": tuple(_split(row["kinds"])),
                "cuts": tuple(Cut.parse(one) for one in _split(row["cuts"])),
                "why": dict(one.split(": ", 1) for one in row["why"].split(_BETWEEN) if one),
                "seconds": float(row["seconds"]),
            }  # type: ignore[arg-type]
        )


def _split(cell: str) -> list[str]:
    return [part for part in cell.split("; ") if part]


def worse(now: Result, before: Result) -> list[str]:
    """What got worse since an earlier result, in words; empty for nothing.

    Args:
        now: the present result; what it did not try is not compared.
        before: the earlier one of the same type.
    """
    told = []
    for column, scale in COLUMNS.items():
        had, has = getattr(before, column), getattr(now, column)
        if had and has and scale.index(has) > scale.index(had):
            told.append(f"{column}: {had} before, {has} now ({now.why.get(column, 'no reason given')})")
    if now.sites < before.sites:
        told.append(f"sites: {before.sites} before, {now.sites} now")
    if before.sites == 0 and before.found == "" and before.forward == YES and now.sites:
        told.append(f"sites: none before, as there is no attention; {now.sites} now")
    have = {(one.what, one.place): one for one in now.cuts}
    for cut in before.cuts:
        one = have.get((cut.what, cut.place))
        if cut.status == "exact" and (one is None or one.status != "exact"):
            told.append(f"{cut} before; {'not tried' if one is None else one.status} now")
    return told
