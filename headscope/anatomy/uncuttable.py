"""Why heads cannot be cut, as far as that is known before it is tried: of their layers, and of weights in common.

A cut that none of this forbids is proven or refused when it is made; see `headscope.surgery`.
"""

from collections.abc import Hashable

from torch import nn

from headscope.heads import Heads
from headscope.sites import Anatomy, Site, Slices

__all__ = ["torn", "uncuttable"]


def uncuttable(anatomy: Anatomy, heads: Heads) -> str:
    """Why these heads cannot be cut, layers with one reason together; "" where a cut may be tried.

    Args:
        anatomy: of the whole model.
        heads: in any spelling; see `headscope.heads.spell_out`.
    """
    layers: dict[str, list[str]] = {}
    for layer in sorted(anatomy.find(heads)):
        if why := anatomy.site(layer).uncuttable:
            layers.setdefault(why, []).append(str(layer))
    told = (f"layer{'s' if len(own) > 1 else ''} {', '.join(own)}: {why}" for why, own in layers.items())
    return "; ".join(told) or torn(anatomy, heads)


def torn(anatomy: Anatomy, heads: Heads, model: nn.Module | None = None) -> str:
    """Which layers run the same weights and would not lose the same heads, in words; "" where there are none.

    Args:
        anatomy: of the whole model.
        heads: in any spelling.
        model: where those of different modules are meant too, which may hold one weight (tied).
    """
    gone = anatomy.find(heads)
    users: dict[tuple[Hashable, str], list[tuple[Site, Slices]]] = {}
    names: dict[Hashable, str] = {}

    def key(part: Slices) -> Hashable:
        # a weight that is computed (a parametrisation) is another tensor every time
        weight = None if model is None else model.get_submodule(part.module)._parameters.get(part.parameter)
        one = part.module if weight is None else id(weight)
        names.setdefault(one, part.module)
        return one

    for site in anatomy.sites:
        # not what makes keys and values: these stay while any layer reads them
        for part in site.query:
            users.setdefault((key(part), "makes"), []).append((site, part))
        if site.output is not None and site.apart:
            users.setdefault((key(site.output), "reads"), []).append((site, site.output))
    for (one, _), uses in users.items():
        rows = {site.heads[place]: {*own} for site, part in uses for place, own in enumerate(part.heads)}
        goes = [site.heads[place] for site, _ in uses for place in gone.get(site.layer, ())]
        cut = {row for head in goes for row in rows[head]}
        missing = [head for head, own in rows.items() if head not in goes and own & cut]
        if missing:
            whose = [head for head in goes if any(rows[head] & rows[other] for other in missing)]
            layers = sorted({head.layer for head in (*missing, *whose)})
            return (
                f"layers {', '.join(map(str, layers))} run the same weights ({names[one]}), so they lose the same "
                f"heads or none; add {', '.join(map(str, missing))} to the plan, or leave "
                f"{', '.join(map(str, whose))} out"
            )
    return ""
