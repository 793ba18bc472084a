"""Layers as claims tell of them: numbers of single layers, kinds of layers, and which of them something is true of."""

from collections.abc import Callable, Collection, Iterable, Mapping
from math import isnan
from typing import NamedTuple

import pandas as pd

from headscope._support.formatting import MISSING
from headscope.sites import Site
from headscope.studies.bilingual import Both, joined, tables

__all__ = [
    "Layer", "by_kind", "kind_of", "kinds_in", "layer_table", "layers_named", "named", "of_layers", "only",
]  # fmt: skip

_KINDS = {
    "encoder": Both("encoder", "エンコーダ"),
    "causal": Both("causal", "因果"),
    "windowed": Both("windowed", "窓付き"),
    "cross": Both("cross-attention", "クロスアテンション"),
}
_MOST_NAMED = 3  # layers that a verdict lists by number; of more it tells how many


class Layer(NamedTuple):
    """A layer.

    Attributes:
        kind: "encoder", "causal", "cross"; or "windowed", of one whose mask was seen to hide more than the future.
        number: in order of execution.
    """

    kind: str
    number: int


def kind_of(site: Site) -> str:
    """The kind of a site as claims call it."""
    return "encoder" if site.kind == "self" else site.kind


def named(name: str, layer: Layer) -> str:
    """The name of one layer's number among the numbers of a claim.

    >>> named("least_low", Layer("causal", 3))
    'least_low:causal:3'
    """
    return f"{name}:{layer.kind}:{layer.number}"


def of_layers(words: Mapping[str, float], name: str) -> dict[Layer, float]:
    """What `named` named, by layer, in their order.

    Args:
        words: numbers of a claim by name.
        name: of the number.
    """
    parts = {key: key.split(":") for key in words if key.startswith(f"{name}:")}
    found = {Layer(kind, int(number)): words[key] for key, (_, kind, number) in parts.items()}
    return dict(sorted(found.items(), key=lambda item: item[0].number))


def by_kind(words: Mapping[str, float], name: str) -> dict[str, list[float]]:
    """The same apart by kind of layer: the numbers of its layers."""
    layers = of_layers(words, name)
    return {kind: [value for layer, value in layers.items() if layer.kind == kind] for kind in kinds_in(layers)}


def kinds_in(layers: Collection[Layer]) -> list[str]:
    """The kinds that there are, in a fixed order."""
    there = {layer.kind for layer in layers}
    return [kind for kind in _KINDS if kind in there]


def layer_table(
    table: pd.DataFrame, columns: Mapping[str, Both], words: Callable[[float], str], *, by: str = "layer"
) -> Both:
    """A row a layer in Markdown: what an average over layers hides; over training seeds their mean.

    Args:
        table: as it is drawn, a row a layer (and seed).
        columns: heads of the columns, by their names in the table; the first is that of `by`.
        words: how a number is written.
        by: the column of layers.

    >>> layers = pd.DataFrame({"layer": [0, 0, 1], "span": [0.25, 0.75, 0.25]})
    >>> print(layer_table(layers, {"layer": Both("layer", "層"), "span": Both("span", "範囲")}, "{:.0%}".format).ja)
    | 層 | 範囲 |
    | --- | --- |
    | 0 | 50% |
    | 1 | 25% |
    """
    means = table.groupby(by)[[name for name in columns if name != by]].mean()
    rows = [
        [f"{layer:.0f}", *(MISSING if isnan(own) else words(own) for own in row)]
        for layer, row in zip(means.index, means.to_numpy(), strict=True)
    ]
    return tables([*columns.values()], rows)


def layers_named(kinds: Collection[str]) -> Both:
    """All layers of these kinds, in words.

    >>> layers_named(["encoder", "cross"])
    Both(en='encoder and cross-attention layers', ja='エンコーダ層とクロスアテンション層')
    """
    return Both(
        f"{' and '.join(_KINDS[kind].en for kind in kinds)} layers", "と".join(f"{_KINDS[kind].ja}層" for kind in kinds)
    )


def only(held: Collection[Layer], every: Collection[Layer]) -> Both:
    """Where something holds, in a few words: by kinds of layers where it goes by kinds, else by single layers.

    Args:
        held: layers of which it is true, at least one.
        every: all layers that were asked.

    >>> every = [Layer("encoder", 0), Layer("encoder", 1), Layer("causal", 2)]
    >>> only(every[:2], every).en, only(every[:1], every).en, only([every[0], every[2]], every).en
    ('encoder layers only', 'layer 0 only', 'all layers but 1')
    """
    kinds = kinds_in(held)
    if {*held} == {layer for layer in every if layer.kind in kinds}:
        told = layers_named(kinds)
        return Both(f"{told.en} only", f"{told.ja}のみ")
    numbers = sorted(layer.number for layer in held)
    missing = sorted({layer.number for layer in every} - {*numbers})
    if min(len(numbers), len(missing)) > _MOST_NAMED:
        return Both(f"{len(numbers)} of {len(every)} layers", f"{len(every)}層中{len(numbers)}層")
    if len(missing) < len(numbers):
        return Both(f"all layers but {_listed(missing, 'en')}", f"層{_listed(missing, 'ja')}を除く全層")
    noun = "layer" if len(numbers) == 1 else "layers"
    return Both(f"{noun} {_listed(numbers, 'en')} only", f"層{_listed(numbers, 'ja')}のみ")


def _listed(numbers: Collection[int], language: str) -> str:
    return (", " if language == "en" else "・").join(map(str, numbers))


def spans(numbers: Iterable[int]) -> Both:
    """Whole numbers in their order, three or more in a row by their ends.

    >>> spans([0, 5, 6, 7, 9, 10])
    Both(en='0, 5 to 7, 9, 10', ja='0、5〜7、9、10')
    """
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    parts: list[Both] = []
    for row in rows:
        if len(row) > 2:
            parts.append(Both(f"{row[0]} to {row[-1]}", f"{row[0]}〜{row[-1]}"))
        else:
            parts += [Both(str(number), str(number)) for number in row]
    return joined(parts, ", ", "、")
