"""What a plan means for one site: which of its heads, rows and columns go, and which integers that makes stale."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from headscope.anatomy.linear import is_linear
from headscope.errors import SurgeryError
from headscope.sites import Site, Slices
from headscope.surgery.edits.attributes import AXES, SetAttribute, SetAxis

__all__ = ["SiteChange", "Stale", "is_matrix", "site_within"]

_NOT_A_SIZE = (
    "idx", "index", "layer", "window", "pos", "len", "ctx", "block", "vocab", "bucket", "seed", "pad", "max", "min",
)  # fmt: skip


@dataclass(frozen=True)
class Stale:
    """An integer attribute that may have to change.

    Attributes:
        module: dotted name of the module that has it.
        name: the attribute's name.
        was, value: what it is, and what it would become.
        counts_heads: whether its name says that it is a number of heads (or of queries per key head).
        is_axis: whether it is the length of an axis in a layer of einops, and no attribute.
    """

    module: str
    name: str
    was: int
    value: int
    counts_heads: bool
    is_axis: bool = False

    def edit(self) -> SetAttribute:
        """What puts it right."""
        return (SetAxis if self.is_axis else SetAttribute)(self.module, self.name, self.value, self.was)


@dataclass(frozen=True)
class SiteChange:
    """One site and the positions on its head axis that go.

    Attributes:
        site: the site as it is.
        gone: positions of the query heads to remove, sorted.
        first: the site as it was before any cut, whose sizes code that writes them out still holds.
        held: key heads that another site reads too, and still does.
        spared: those of q, k and v whose layers are left whole though heads could be told apart in them: something
            else reads them too.
        alike: other attentions of the same module that read the same layers, and lose these heads with it; see
            `headscope.sites.Site.attention`.
    """

    site: Site
    gone: tuple[int, ...]
    first: Site
    held: frozenset[int] = frozenset()
    spared: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()

    @cached_property
    def kept(self) -> tuple[int, ...]:
        return tuple(head for head in range(self.site.n_heads) if head not in self.gone)

    @cached_property
    def kept_kv(self) -> tuple[int, ...]:
        """Key heads that a query head left still reads, here or in another site; the others go too."""
        return tuple(sorted({self.site.kv_of_query[head] for head in self.kept} | self.held))

    @cached_property
    def kv_of_query(self) -> tuple[int, ...]:
        """For each query head left, its place among the key heads left."""
        return tuple(self.kept_kv.index(self.site.kv_of_query[head]) for head in self.kept)

    @property
    def counts(self) -> tuple[tuple[int, int], ...]:
        """(heads there were, heads there are), of queries and of keys."""
        return (self.site.n_heads, len(self.kept)), (self.site.n_kv_heads, len(self.kept_kv))

    @property
    def empties(self) -> bool:
        return not self.kept

    @property
    def home(self) -> str:
        """Dotted name of the attention module, where it makes its queries and reads its heads itself; else the unit's.

        Keys may be made far away: a later layer reads those of an earlier one.
        """
        site = self.site
        inside = f"{site.module_name}."
        parts = (*site.query, *((site.output,) if site.output else ()))
        return site.module_name if all(part.module.startswith(inside) for part in parts) else site.unit

    @property
    def unit(self) -> str:
        """Dotted name of the smallest module that a cut changes."""
        keys_go = len(self.kept_kv) < self.site.n_kv_heads or (self.site.n_value_heads != self.site.n_kv_heads)
        return self.site.unit if keys_go else self.home

    @property
    def whole(self) -> tuple[str, ...]:
        """Those of q, k and v whose layers stay whole: heads cannot be told apart in them, or they are spared."""
        return tuple(part for part in ("q", "k", "v") if part in (*self.site.entangled, *self.spared))

    @property
    def grouped(self) -> bool:
        return self.site.n_kv_heads < self.site.n_heads

    @property
    def even(self) -> bool:
        """Whether the query heads left fall into blocks of equal size, one for each key head left, in order."""
        each, rest = divmod(len(self.kept), max(len(self.kept_kv), 1))
        return not rest and self.kv_of_query == tuple(place // each for place in range(len(self.kept)))

    @cached_property
    def kept_first(self) -> tuple[int, ...]:
        """The heads left, by their places before any cut: what stays whole has them there."""
        return tuple(self.first.head_ids.index(self.site.head_ids[head]) for head in self.kept)

    def slices(self) -> Iterator[tuple[Slices, str, frozenset[int]]]:
        """(layer, "output" or "input", rows or columns that go) of every linear layer that makes or reads heads.

        Layers in which heads cannot be told apart stay whole.
        """
        site = self.site
        gone_kv = set(range(site.n_kv_heads)) - set(self.kept_kv)
        if site.n_value_heads == site.n_kv_heads:
            gone_values = gone_kv
        elif site.n_value_heads == site.n_heads:
            gone_values = set(self.gone)
        else:
            raise SurgeryError(f"layer {site.layer} ({site.module_name}): {site.uncuttable}")
        made = {"q": (site.query, set(self.gone)), "k": (site.key, gone_kv), "v": (site.value, gone_values)}
        for parts, gone in (made[name] for name in made if name not in self.spared):
            for part in parts:
                yield part, "output", _own(part, gone)
        assert site.output is not None
        yield site.output, "input", _own(site.output, set(self.gone))

    def stale(self, unit: nn.Module, prefix: str) -> list[Stale]:
        """Integer attributes beneath `unit` whose value could be one of the sizes that change.

        Args:
            unit: the module to look into.
            prefix: its dotted name.
        """
        found = []
        for name, module in unit.named_modules():
            if is_linear(module) or type(module).__module__.startswith("torch.nn"):
                continue
            full = ".".join(part for part in (prefix, name) if part)
            for attribute, value in vars(module).items():
                if type(value) is int and (new := self._size(attribute.lower(), value)) not in (None, value):
                    found.append(Stale(full, attribute, value, int(new or 0), _counts_heads(attribute.lower())))
            lengths = getattr(module, AXES, None)
            for axis, value in lengths.items() if isinstance(lengths, dict) else ():
                if (new := self._size("heads", value)) not in (None, value):  # their names say less: h
                    found.append(Stale(full, axis, value, int(new or 0), True, is_axis=True))
        return found

    def stale_config(self, module: nn.Module) -> list[Stale]:
        """The same of the config that an attention module keeps; `module` is the site's."""
        found = []
        for name, value in vars(getattr(module, "config", None) or object).items():
            if type(value) is int and _counts_heads(name) and (new := self._size(name, value)) not in (None, value):
                found.append(Stale(self.site.module_name, name, value, int(new or 0), True))
        return found

    def _size(self, name: str, value: int) -> int | None:
        """What an attribute of that name and value would become; None for one that is no size of this site."""
        site, heads, kv_heads = self.site, len(self.kept), len(self.kept_kv)
        if name.startswith(("_", "training")) or any(word in name for word in _NOT_A_SIZE):
            return None
        if "group" in name or "rep" in name:
            each = heads // max(kv_heads, 1)
            return each if value == site.n_heads // site.n_kv_heads and heads == each * kv_heads else None
        if "head" in name and ("dim" in name or "size" in name) and "all" not in name:
            return None
        keys_only = "kv" in name or "key_value" in name
        if value == site.n_heads and not (keys_only and self.grouped):
            return heads
        if value == site.n_kv_heads and (keys_only or self.grouped):
            return kv_heads
        if _counts_heads(name):
            return None
        return next((new for width, new in _widths(site, heads, kv_heads) if width == value), None)

    def stale_sizes(self) -> tuple[tuple[int, int], ...]:
        """(stale, right) pairs for sizes that a forward writes out, as of now or as of before any cut."""
        heads, kv_heads = len(self.kept), len(self.kept_kv)
        pairs: dict[tuple[int, int], None] = {}
        for old in (self.site, self.first):
            for stale, right in _widths(old, heads, kv_heads):
                pairs[stale, right] = None
            # a head's width, worked out as (all of the width) // (the number of heads left)
            pairs[old.n_heads * old.head_dim // heads, self.site.head_dim] = None
            pairs[old.n_heads, heads] = None
            pairs[old.n_kv_heads, kv_heads] = None
        return tuple(pair for pair in pairs if pair[0] != pair[1])


def _widths(old: Site, heads: int, kv_heads: int) -> Iterator[tuple[int, int]]:
    """(width with the old counts, width with the new ones) of the tensors that hold all heads side by side."""
    for dim in dict.fromkeys((old.head_dim, old.value_dim)):
        yield old.n_heads * dim, heads * dim
        yield old.n_kv_heads * dim, kv_heads * dim
        yield 3 * old.n_heads * dim, 3 * heads * dim
        yield 2 * old.n_kv_heads * dim, 2 * kv_heads * dim
        yield (old.n_heads + 2 * old.n_kv_heads) * dim, (heads + 2 * kv_heads) * dim


def _counts_heads(name: str) -> bool:
    return "group" in name or ("head" in name and "dim" not in name and "size" not in name)


def is_matrix(module: nn.Module, layer: Slices) -> bool:
    """Whether it is known how a weight that is no module's lies: which of its numbers are a row.

    Args:
        module: what holds the parameter.
        layer: of which it is the weight.
    """
    weight = getattr(module, layer.parameter, None)
    return bool(layer.layout) or (isinstance(weight, Tensor) and weight.ndim == 2)


def _own(part: Slices, gone: set[int]) -> frozenset[int]:
    return frozenset(index for head in gone for index in part.heads[head])


def site_within(site: Site, unit: str) -> Site:
    """A site as seen from a module around it.

    Args:
        site: with an output projection.
        unit: dotted name of that module; "" for the whole model.
    """

    def inner(name: str) -> str:
        return name[len(unit) :].lstrip(".")

    def moved(parts: tuple[Slices, ...]) -> tuple[Slices, ...]:
        return tuple(replace(part, module=inner(part.module)) for part in parts)

    spelling = None if site.spelling is None else dict(site.spelling)
    if spelling is not None and "weightings" in spelling:
        spelling["weightings"] = [one | {"parameter": inner(one["parameter"])} for one in spelling["weightings"]]
    assert site.output is not None
    return replace(
        site,
        spelling=spelling,
        module_name=inner(site.module_name),
        query=moved(site.query),
        key=moved(site.key),
        value=moved(site.value),
        output=moved((site.output,))[0],
    )
