"""Descriptions: attention that a user names where none is recognised, in Python or in YAML; kept on the model."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import yaml
from torch import nn

from headscope._support.running import unwrapped
from headscope.anatomy.records import record_of
from headscope.errors import InputError
from headscope.sites import Site

__all__ = ["Description", "describe", "described_in", "read_descriptions"]

_NAME = "_headscope_described"
MAKERS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Description:
    """Attention, told by the modules that make its queries, keys and values and the one that reads its result.

    Nothing of it is believed: `discover` proves on the probe that each head's query, key and value move that head's
    columns of what `output` reads, and no others; and q, k, v and the map are handed out only where softmax(q·kᵀ)·v is
    what `output` reads.

    Attributes:
        module: dotted name of the module that holds the others; `*` stands for any one part of it, so that
            "blocks.*.attn" is all layers.
        heads: query heads.
        query, key, value: modules that make q, k, v, by name inside `module`. One that makes several of them puts them
            side by side, in this order, unless its layout says where they lie.
        output: the linear layer whose input is z, the heads' results.
        kv_heads: heads of k and v; None: as many as query heads. Query heads that share one stand side by side.
        pattern: a module whose output is the map, a softmax or the dropout after it, where there is one; without it
            the map is softmax(scaling·q·kᵀ), causal or not, where that proves right.
        scaling: what multiplies q·kᵀ; None: head_dim**-0.5.
        layouts: how features lie, as einops writes it, by name of the tensor; axes are b, t, h, d, and n for the
            tensors that one module makes. Of "query", "key", "value" and "output" it is "b t (h d)" if not given, of
            "pattern" "b h t k". Or the whole way: "b (h d) x y -> b h (x y) d".

    >>> Description(module="*.attn", heads=8, query="qkv", key="qkv", value="qkv", output="proj").kv_heads is None
    True
    """

    module: str
    heads: int
    query: str
    key: str
    value: str
    output: str
    kv_heads: int | None = None
    pattern: str | None = None
    scaling: float | None = None
    layouts: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("module", *MAKERS, "output"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} of a description is the name of a module, and here {getattr(self, name)!r}")
        for name in ("heads", "kv_heads"):
            count = getattr(self, name)
            if not (count is None and name == "kv_heads") and (type(count) is not int or count < 1):
                raise InputError(f"{name} of a description is a whole number from 1 on, and here {count!r}")
        if self.heads % self.n_kv_heads:
            raise InputError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")
        odd = set(self.layouts) - {*MAKERS, "output", "pattern"}
        if odd:
            raise InputError(f"layouts of a description are of query, key, value, output or pattern, not of {min(odd)}")

    @property
    def n_kv_heads(self) -> int:
        """Heads of k and v."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def made(self) -> dict[str, list[str]]:
        """By module, which of query, key and value it makes."""
        found: dict[str, list[str]] = {}
        for name in MAKERS:
            found.setdefault(getattr(self, name), []).append(name)
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"layouts": dict(self.layouts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_json` gave, or what a file says.

        Raises:
            InputError: names that a description does not have, or lacks.
        """
        known = [one.name for one in fields(cls)]
        odd = [name for name in data if name not in known]
        if odd:
            raise InputError(f"a description has no {odd[0]!r}; it has: {', '.join(known)}")
        lacking = [name for name in known[:6] if name not in data]
        if lacking:
            raise InputError(f"a description needs {', '.join(lacking)} too; it has: {', '.join(known)}")
        return cls(**data)


def describe(model: nn.Module, *descriptions: Description) -> None:
    """Tell where a model's attention is, for `discover` and all that calls it; takes the place of what was told before.

    Args:
        model: the model; the descriptions are kept on it, and nothing else of it changes.
        descriptions: of its attention, or of that part of it which is not recognised. None: forget those given before.

    Raises:
        InputError: no module bears a name that was given; the message says which do.

    >>> attention = Description(module="layers.*.attn", heads=4, query="q", key="k", value="v", output="o")
    >>> describe(nn.Linear(2, 2), attention)
    Traceback (most recent call last):
        ...
    headscope.errors.InputError: no module of Linear is named 'layers.*.attn'; it has no modules in it
    """
    model = unwrapped(model)
    for one in descriptions:
        for name in _matching(model, one):
            _check_names(model.get_submodule(name), name, one)
    model.__dict__.pop(_NAME, None)
    if descriptions:
        model.__dict__[_NAME] = descriptions


def read_descriptions(file: str | Path) -> tuple[Description, ...]:
    """Descriptions from a YAML file: one, or a list of them, each with the fields of `Description`.

    Args:
        file: its path.

    Raises:
        InputError: it cannot be read, or is no description; the message says what is wrong.
    """
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {error}") from error
    entries = data if isinstance(data, list) else [data]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file} holds no description: write module:, heads:, query:, key:, value: and output:")
    found = []
    for place, entry in enumerate(entries, 1):
        try:
            found.append(Description.from_json(entry))
        except InputError as error:
            raise InputError(f"{file}, description {place}: {error}") from error
    return tuple(found)


def described_in(model: nn.Module) -> list[tuple[nn.Module, Description]]:
    """The attention modules that were described, on a model or on models inside it, each with its own description.

    In a pruned model they are described with the heads that are left.

    Args:
        model: the model, unwrapped.
    """
    record = record_of(model)
    known = [site for site in record.anatomy.sites if site.route == "described"] if record else []
    if record is not None and known:
        gone = set(record.removed)
        kept = {site.module_name: [h for h in site.heads if h not in gone] for site in known}
        return [
            (model.get_submodule(name), _left(site, [site.position(head) for head in kept[name]]))
            for name, site in {site.module_name: site for site in known}.items()
            if kept[name]
        ]
    return list(_told_of(model))


def _told_of(model: nn.Module) -> Iterator[tuple[nn.Module, Description]]:
    for inside in model.modules():
        for one in inside.__dict__.get(_NAME, ()):
            for name in _matching(inside, one):
                yield inside.get_submodule(name), replace(one, module=name)


def _left(site: Site, positions: Sequence[int]) -> Description:
    """The description of a site that has these of its heads left."""
    assert site.spelling is not None
    whole = Description.from_json(site.spelling["description"])
    return replace(whole, heads=len(positions), kv_heads=len({site.kv_of_query[place] for place in positions}))


def _matching(model: nn.Module, one: Description) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    spelled = re.compile(r"[^.]+".join(map(re.escape, one.module.split("*"))))
    found = [name for name in names if spelled.fullmatch(name)]
    if not found:
        raise InputError(f"no module of {type(model).__name__} is named {one.module!r}; {_some(names, one.module)}")
    return found


def _check_names(module: nn.Module, name: str, one: Description) -> None:
    inside = dict(module.named_modules())
    for role in (*MAKERS, "output", "pattern"):
        path = getattr(one, role)
        if path is not None and path not in inside:
            where = f"{name} ({type(module).__name__})"
            raise InputError(
                f"{where} has no module {path!r}, which was told to be its {role}; {_some(list(inside), path)}"
            )


def _some(names: Sequence[str], asked: str) -> str:
    """The names that come closest, layers told once."""
    names = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names if name))
    if not names:
        return "it has no modules in it"
    near = difflib.get_close_matches(asked, names, n=4, cutoff=0.0)
    return "it has " + ", ".join(near) + (f" and {len(names) - len(near)} more" if len(names) > len(near) else "")
