"""Where heads are: Slices, Site, Padding, Anatomy. Plain values, no torch; each can be written as JSON."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from headscope._support.shown import Shown
from headscope.errors import UnknownNameError
from headscope.heads import HeadId, Heads, spell_out

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Anatomy", "Padding", "Site", "Slices", "attention_of", "heads_read"]


@dataclass(frozen=True, slots=True)
class Slices:
    """Which rows (or columns) of one linear layer belong to each head.

    Attributes:
        module: dotted name of the linear layer; where no module is the layer, of the one that holds the parameter.
        heads: for each head the sorted indices along the layer's output (rows of q, k, v) or input (columns of o).
        parameter: name of the weight in the module.
        layout: from the weight to (out, in), as einops writes it; "" for a weight that its module knows how to use.
    """

    module: str
    heads: tuple[tuple[int, ...], ...]
    parameter: str = "weight"
    layout: str = ""

    @property
    def name(self) -> str:
        """Dotted name of the layer: its module's, or its parameter's where it is no module."""
        return self.module if self.is_module else f"{self.module}.{self.parameter}".lstrip(".")

    @property
    def is_module(self) -> bool:
        """Whether the layer is a module, and not an operation on a parameter."""
        return self.parameter == "weight" and not self.layout

    def to_json(self) -> dict[str, Any]:
        own = {"module": self.module, "heads": [_runs(indices) for indices in self.heads]}
        return own if self.is_module else own | {"parameter": self.parameter, "layout": self.layout}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        heads = tuple(tuple(i for start, stop in runs for i in range(start, stop)) for runs in data["heads"])
        return cls(data["module"], heads, data.get("parameter", "weight"), data.get("layout", ""))


def attention_of(spelling: Mapping[str, Any] | None) -> str:
    """As `Site.attention`, of the spelling alone."""
    parts = (spelling or {}).get("parts", ())
    return " ".join(str(parts[0]["picks"]["z"][name]) for name in ("operation", "nth")) if parts else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One attention call of a forward pass, and which weights belong to which of its heads.

    Attributes:
        layer: number of the call in execution order, from 0; the number in every id and table.
        kind: "self", "causal" or "cross".
        block: first integer in the module's name, or None.
        module_name: dotted name of the attention module ("" is the model itself).
        call: which call of that module this is within one forward pass (0 unless the module is shared).
        unit: dotted name of the smallest module that holds the attention call and every linear layer below.
        route: name of the route that found it.
        n_heads, n_kv_heads, n_value_heads: query heads; key heads; value heads.
        head_dim, value_dim: width of one query (key); of one value.
        scaling: what multiplies q·kᵀ; NaN where it is not one number.
        head_ids: the heads' original numbers (differ from 0, 1, 2 … in a pruned model).
        kv_of_query: for each query head, the key head that it reads.
        query, key, value: the linear layers that make each head's q, k, v; empty where entangled.
        output: the linear layer that consumes z, with each head's columns; None where there is none.
        gated: something stands between z and the output projection (a gate, say).
        entangled: those of "q", "k", "v", "o" where heads cannot be told apart.
        shares_module_with: numbers of the other sites that run the same module.
        rows: how rows and positions enter the output projection: "b t", or "t b" where the sequence comes first; ""
            where they come in an order of their own, as windows do that are put together again.
        output_call: which call of the output projection within one forward pass reads z.
        output_runs: how many calls of it there are; 0 where that is not known.
        spelling: which operations of the module's forward are the attention, where its route has to know.
        refused: tensors that cannot be had, by name, each with the reason: an equation that did not hold in the probe.
        copied: tensors that the model changes in place once they are made, so that they are copied when they are taken.
        batch: how rows of the site stem from rows of the batch: "b", one each; "b w", windows (tiles, frames) of a row
            side by side; "w b", rows in turn; "" where it cannot be told.
        query_masks, key_masks: names of the masks that were proven to speak of its queries' (its keys') positions;
            "none" where none does, as of a picture's; "elsewhere" where they stand in another order; empty where it was
            not told.
        row_sizes: numbers that make one row of each linear layer above, its bias among them, by the layer's name; of
            the output projection, one column. A layer that does not tell is left out.
    """

    layer: int
    kind: str
    block: int | None
    module_name: str
    call: int
    unit: str
    route: str
    n_heads: int
    n_kv_heads: int
    n_value_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    head_ids: tuple[int, ...]
    kv_of_query: tuple[int, ...]
    query: tuple[Slices, ...]
    key: tuple[Slices, ...]
    value: tuple[Slices, ...]
    output: Slices | None
    gated: bool = False
    entangled: tuple[str, ...] = ()
    shares_module_with: tuple[int, ...] = ()
    rows: str = "b t"
    output_call: int = 0
    output_runs: int = 0
    spelling: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)
    copied: tuple[str, ...] = ()
    batch: str = "b"
    query_masks: tuple[str, ...] = ()
    key_masks: tuple[str, ...] = ()
    row_sizes: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def reads_by_operation(self) -> bool:
        """Whether what reads z is no module but an operation of the attention module's own forward."""
        return self.spelling is not None and self.spelling["output"] is not None

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The query heads, by their original numbers."""
        return tuple(HeadId(self.layer, head) for head in self.head_ids)

    @property
    def attention(self) -> str:
        """Tells attentions of one module apart, in a cut model too: what mixes the values, and which of its kind it is.

        "" where the module hands them to a function that is told apart by itself.
        """
        return attention_of(self.spelling)

    @property
    def apart(self) -> bool:
        """Whether heads reach the output projection apart from each other: each can be switched off by itself."""
        return self.output is not None and "o" not in self.entangled

    @property
    def uncuttable(self) -> str:
        """Why no head of it can be cut, as far as that is known without a trial; "" where a cut may be tried."""
        if self.output is None:
            return "no linear layer was found that reads the heads' outputs"
        if "o" in self.entangled:
            why = self.refused.get("contribution", "something mixes them there")
            return f"its heads cannot be told apart in o ({why})"
        if self.n_value_heads not in (self.n_heads, self.n_kv_heads):
            return (
                f"it has {self.n_heads} query, {self.n_kv_heads} key and {self.n_value_heads} value heads, and which "
                "query reads which value is not known"
            )
        return ""

    @property
    def prunable(self) -> bool:
        """Whether single heads may be cut: nothing is known for which `prune` would refuse it."""
        return not self.uncuttable

    def position(self, head: HeadId) -> int:
        """Index of a head on this site's head axis."""
        return self.head_ids.index(head.head)

    def to_json(self) -> dict[str, Any]:
        """The site as JSON values."""
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("query", "key", "value"):
            data[name] = [part.to_json() for part in data[name]]
        data["output"] = None if self.output is None else self.output.to_json()
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read back what `to_json` gave."""
        data = {name: value for name, value in data.items() if name != "biased"}  # written once, and not needed
        data = {
            "output_call": data["call"],
            "copied": (),
            "query_masks": (),
            "key_masks": (),
            "row_sizes": {},
            **data,
        }  # as it was before it was written down
        for name in ("query", "key", "value"):
            data[name] = tuple(Slices.from_json(part) for part in data[name])
        data["output"] = None if data["output"] is None else Slices.from_json(data["output"])
        for name in (
            "head_ids",
            "kv_of_query",
            "entangled",
            "shares_module_with",
            "copied",
            "query_masks",
            "key_masks",
        ):
            data[name] = tuple(data[name])
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Padding:
    """How a mask of a model marks positions that do not count; proven by changing these positions.

    Attributes:
        mask: name of the argument; dotted where it lies in a dict or a list of the batch.
        marks: "zeros", "ones": what marks padding; "floor": a large negative number that is added to scores; "frames":
            zeros over samples of sound, of which the model makes frames as it says itself; "lengths", "last": how many
            positions of a row count, from its start, or the last of them; "id 0": tokens of that id, in no mask at all.
    """

    mask: str
    marks: str


@dataclass(frozen=True, repr=False)
class Anatomy(Shown):
    """Every attention site of a model, in execution order.

    Attributes:
        model_class: name of the model's class.
        sites: the sites; `anatomy.site(3)` finds one by its layer number.
        fingerprint: digest of the sites and of the output projections' weights (rounded to bfloat16, so that loading
            in another precision keeps it); a plan carries it to know the model it was made for.
        remarks: what the probe could not settle, in words.
        padding: masks beside those that are known by name, a 2-dimensional attention_mask and decoder_attention_mask.
        masks: what of the example's arguments is or may be a mask, each with its form; others were not tried.
    """

    model_class: str
    sites: tuple[Site, ...]
    fingerprint: str
    remarks: tuple[str, ...] = field(default=())
    padding: tuple[Padding, ...] = field(default=())
    masks: tuple[str, ...] = field(default=())

    def site(self, layer: int) -> Site:
        """The site with that layer number.

        Raises:
            UnknownNameError: no such layer.
        """
        for site in self.sites:
            if site.layer == layer:
                return site
        known = ", ".join(str(site.layer) for site in self.sites)
        raise UnknownNameError(f"there is no layer {layer} in {self.model_class}; attention layers: {known}")

    @property
    def apart(self) -> Self:
        """Without the sites whose heads are mixed before the output projection, or that have none."""
        return replace(self, sites=tuple(site for site in self.sites if site.apart))

    def having(self, *names: str) -> Self:
        """Without the sites that refuse one of these tensors; see `Site.refused`."""
        return replace(self, sites=tuple(site for site in self.sites if not site.refused.keys() & set(names)))

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """Every query head, layer by layer."""
        return tuple(head for site in self.sites for head in site.heads)

    @property
    def layers(self) -> dict[int, tuple[int, ...]]:
        """The heads' own numbers, by layer."""
        return {site.layer: site.head_ids for site in self.sites}

    @property
    def n_heads(self) -> int:
        """Query heads in all."""
        return sum(site.n_heads for site in self.sites)

    def find(self, heads: Heads) -> dict[int, list[int]]:
        """Positions on the head axis for every layer named, from any spelling of heads; see `spell_out`.

        Raises:
            UnknownNameError: a head that the model does not have.
        """
        found: dict[int, list[int]] = {}
        for head in spell_out(heads, self.layers):
            site = self.site(head.layer)
            if head.head not in site.head_ids:
                have = ", ".join(map(str, site.heads))
                raise UnknownNameError(f"{head} does not exist: layer {head.layer} has {site.n_heads} heads ({have})")
            found.setdefault(head.layer, []).append(site.position(head))
        return found

    def to_frame(self) -> "pd.DataFrame":
        """One row per site, the facts that a person asks for first."""
        import pandas as pd

        columns = ("layer", "kind", "module_name", "n_heads", "n_kv_heads", "head_dim", "value_dim", "scaling", "route")
        frame = pd.DataFrame([{name: getattr(site, name) for name in columns} for site in self.sites])
        frame["prunable"] = [site.prunable for site in self.sites]
        frame["entangled"] = [" ".join(site.entangled) for site in self.sites]
        return frame

    def _tables(self) -> "dict[str, pd.DataFrame]":
        return {f"attention of {self.model_class}": self.to_frame()}

    def to_json(self) -> str:
        """The anatomy as JSON text."""
        data = asdict(self) | {"sites": [site.to_json() for site in self.sites]}
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back what `to_json` wrote."""
        data = json.loads(text)
        sites = tuple(Site.from_json(site) for site in data["sites"])
        padding = tuple(Padding(**one) for one in data.get("padding", ()))
        masks = tuple(data.get("masks", ()))
        return cls(data["model_class"], sites, data["fingerprint"], tuple(data["remarks"]), padding, masks)

    @property
    def facts(self) -> dict[str, Any]:
        """What every table says of the model that it was made of; "blocks" where layers' numbers do not tell them, and
        "key_heads", the key head of each query head, by layer, where several query heads share one.
        """
        told: dict[str, Any] = {"remarks": list(self.remarks)} if self.remarks else {}
        shared = {str(site.layer): list(site.kv_of_query) for site in self.sites if site.n_kv_heads < site.n_heads}
        if shared:
            told["key_heads"] = shared
        if any(site.block not in (None, site.layer) for site in self.sites):
            told["blocks"] = _blocks(self.sites)
        return {"model_class": self.model_class, "fingerprint": self.fingerprint, **told}


def heads_read(many: int, kv_of_query: Sequence[int]) -> list[int]:
    """Which of so many key or value heads each query head reads: its own; that of its group; else even parts of them.

    Args:
        many: key or value heads that there are.
        kv_of_query: for each query head, the key head that it reads.

    >>> heads_read(4, (0, 0, 1, 1)), heads_read(2, (0, 1, 0, 1)), heads_read(3, (0,) * 6)
    ([0, 1, 2, 3], [0, 1, 0, 1], [0, 0, 1, 1, 2, 2])
    """
    heads = len(kv_of_query)
    if many == heads:
        return [*range(heads)]
    return [*kv_of_query] if many == max(kv_of_query) + 1 else [head * many // heads for head in range(heads)]


def _blocks(sites: Sequence[Site]) -> dict[str, str]:
    """By layer, where it stands in the model: its module's name up to the first number, and the kind where that helps.

    A decoder's block with a causal and a cross attention has two layers.
    """
    names = [re.match(r".*?\b\d+\b|.*", site.module_name)[0] or "the model" for site in sites]  # type: ignore[index]
    many = Counter(names)
    own = zip(sites, names, strict=True)
    return {str(site.layer): name if many[name] == 1 else f"{name} {site.kind}" for site, name in own}


def _runs(indices: tuple[int, ...]) -> list[list[int]]:
    """Sorted indices as [start, stop) runs: a head's 64 rows are one pair in the file, not 64 numbers."""
    return [[start, stop] for start, stop in _run_bounds(indices)]


def _run_bounds(indices: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    start = previous = None
    for index in indices:
        if previous is None or index != previous + 1:
            if start is not None and previous is not None:
                yield start, previous + 1
            start = index
        previous = index
    if start is not None and previous is not None:
        yield start, previous + 1
