"""Which heads go, and what was done to a model that lost some: Plan and Record. Plain values, no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from headscope._support.formatting import count
from headscope._support.shown import Shown
from headscope.errors import PlanError, UnknownNameError
from headscope.heads import HeadId, HeadLike, Heads, spell_out
from headscope.sites import Anatomy, Site

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Plan", "Record"]

_VERSION = 1


@dataclass(frozen=True)
class Record:
    """What was cut from a model; it stays on the pruned model, so that heads keep their original numbers for good.

    Attributes:
        anatomy: of the model before the first cut.
        removed: every head that is gone, sorted.
        edits: what was done to the modules, in order, as JSON values (see `headscope.surgery.edits`).
    """

    anatomy: Anatomy
    removed: tuple[HeadId, ...]
    edits: tuple[Mapping[str, Any], ...]

    @property
    def ways(self) -> dict[int, str]:
        """How layers were cut that did not get smaller in all their parts, or not faster, in words; by layer."""
        framing = [edit for edit in self.edits if edit["edit"] == "keep_heads"]
        kept = {(edit["module"], edit.get("attention", "")): edit for edit in framing}
        emptied = {edit["module"] for edit in self.edits if edit["edit"] == "empty_attention"}
        found = {}
        for site in self.anatomy.sites:
            if site.module_name in emptied or not any(head in self.removed for head in site.heads):
                continue
            framed = kept.get((site.module_name, site.attention), kept.get((site.module_name, "")))
            whole = [p for p in ("q", "k", "v") if p in (*site.entangled, *(framed or {}).get("whole", ()))]
            told = [f"{' and '.join(whole)} stay{'s' if len(whole) == 1 else ''} whole"] if whole else []
            told += ["zeros stand where its heads were, so it is smaller and no faster"] if framed else []
            unread = self._unread(site)
            told += (
                [f"{', '.join(unread)}: not read when the cut was proven, and taken to be by head"] if unread else []
            )
            if told:
                found[site.layer] = "; ".join(told)
        return found

    def _unread(self, site: Site) -> list[str]:
        """Parameters of a site that went with its heads, though nothing read them."""
        inside = f"{site.module_name}." if site.module_name else ""
        edits = [edit for edit in self.edits if edit.get("unread") and f"{edit['module']}.".startswith(inside)]
        return list(
            dict.fromkeys(f"{edit['module']}.{edit['name']}".lstrip(".").removeprefix(inside) for edit in edits)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "anatomy": json.loads(self.anatomy.to_json()),
            "removed": [str(head) for head in self.removed],
            "edits": [dict(edit) for edit in self.edits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        anatomy = Anatomy.from_json(json.dumps(data["anatomy"]))
        return cls(anatomy, tuple(map(HeadId.parse, data["removed"])), tuple(data["edits"]))


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Which heads go, from which model, and why. Data: print it, diff it, commit it.

    Attributes:
        heads: the heads to remove, sorted; "L3H7" and (3, 7) are welcome in the constructor.
        model: fingerprint of the model that the plan was made for (`Anatomy.fingerprint`); None fits any model.
        model_class: name of that model's class; "" where unknown.
        score: name of the score that the heads were chosen by; "" for a choice by hand.
        reason: why, in words.
        facts: settings of the planner and what the score was measured on; JSON values only.

    Raises:
        PlanError: a head is given twice, or a fact cannot be written as JSON.
        UnknownNameError: something is not a head.

    >>> plan = Plan(["L1H0", (0, 3)], reason="by hand")
    >>> [str(head) for head in plan.heads], Plan.from_json(plan.to_json()) == plan
    (['L0H3', 'L1H0'], True)
    """

    heads: tuple[HeadId, ...]
    model: str | None = None
    model_class: str = ""
    score: str = ""
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        heads = sorted(spell_out(self.heads))
        twice = sorted({str(head) for head, after in pairwise(heads) if head == after})
        if twice:
            raise PlanError(f"{', '.join(twice)}: given twice in one plan; name each head once")
        object.__setattr__(self, "heads", tuple(heads))
        try:
            # through JSON once, so that a plan equals itself read back (tuples become lists here, not later)
            object.__setattr__(self, "facts", json.loads(json.dumps(dict(self.facts))))
        except (TypeError, ValueError) as error:
            raise PlanError(f"the facts of a plan must be JSON values: {error}") from error

    def _said(self) -> list[str]:
        return [
            *self.facts.get("warnings", ()),
            self.reason or f"A plan by hand: {count(len(self.heads), 'head')} to go.",
        ]

    def _tables(self) -> "dict[str, pd.DataFrame]":
        import pandas as pd

        layers: dict[int, list[str]] = {}
        for head in self.heads:
            layers.setdefault(head.layer, []).append(str(head))
        rows = [(layer, len(own), " ".join(own)) for layer, own in layers.items()]
        return {"heads to remove, layer by layer": pd.DataFrame(rows, columns=["layer", "how many", "heads"])}

    def _more(self) -> list[str]:
        return ["to cut: hs.prune(model, plan, batches=batches); to keep: plan.to_json()"]

    @classmethod
    def of(cls, plan: "Plan | Heads | HeadLike", anatomy: Anatomy | None = None) -> "Plan":
        """A plan from itself, or from heads in any spelling; one head is a plan of one.

        Args:
            plan: see `headscope.heads.spell_out`.
            anatomy: of the model that is meant, for layers counted from the end and for masks.
        """
        return plan if isinstance(plan, Plan) else cls(spell_out(plan, anatomy.layers if anatomy else {}))

    def check(self, anatomy: Anatomy, record: Record | None = None) -> None:
        """Refuse a plan that does not fit a model.

        Args:
            anatomy: of the model as it is now.
            record: of earlier cuts, for a pruned model; a plan made for the original fits it too.

        Raises:
            PlanError: made for another model, or a head that the model does not have (any more).
        """
        known = {anatomy.fingerprint} | ({record.anatomy.fingerprint} if record else set())
        if self.model is not None and self.model not in known:
            raise PlanError(
                f"this plan was made for another model: for {self.model_class or 'a model'} {self.model}, and this "
                f"{anatomy.model_class} is {anatomy.fingerprint}",
                python="make a plan from this model's scores, or pass the plan's heads if you mean the same places "
                "whatever the weights",
                shell="make one with `headscope plan`, from an analysis of this model",
            )
        gone = set(record.removed) if record else set()
        for head in self.heads:
            if head in gone:
                raise PlanError(f"{head} is gone already, removed by an earlier cut; leave it out of the plan")
            try:
                anatomy.find([head])
            except UnknownNameError as error:
                raise PlanError(f"{error}; was the plan made for another model?") from error

    def to_json(self) -> str:
        """The plan as text, a head a line, so that two plans can be compared by eye."""
        data = {
            "headscope_plan": _VERSION,
            "model": self.model,
            "model_class": self.model_class,
            "score": self.score,
            "reason": self.reason,
            "heads": [str(head) for head in self.heads],
            "facts": self.facts,
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back what `to_json` wrote.

        Raises:
            PlanError: it is not JSON, not a plan, incomplete, or of a version that this headscope cannot read.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(
                f"not a plan: this is no JSON ({error})",
                python="make one with headscope.plan",
                shell="`headscope plan` makes one",
            ) from error
        version = data.get("headscope_plan") if isinstance(data, dict) else None
        if version != _VERSION:
            found = "no headscope_plan entry" if version is None else f"version {version!r}"
            raise PlanError(f"not a plan that can be read here: {found}, expected headscope_plan {_VERSION}")
        try:
            heads = tuple(map(HeadId.parse, data["heads"]))
            return cls(heads, data["model"], data["model_class"], data["score"], data["reason"], data["facts"])
        except UnknownNameError as error:
            raise PlanError(f"the plan names what is no head: {error}") from error
        except (KeyError, TypeError) as error:
            raise PlanError(f"the plan is incomplete: {error!r}; was it edited by hand?") from error
