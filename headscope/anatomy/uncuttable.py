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
    users: dict[tuple[Hashable, str], dict[int, Site]] = {}
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
            users.setdefault((key(part), "makes"), {})[site.layer] = site
        if site.output is not None and site.apart:
            users.setdefault((key(site.output), "reads"), {})[site.layer] = site
    for (one, _), sites in users.items():
        lost = {layer: set(gone.get(layer, ())) for layer in sites}
        everywhere = set().union(*lost.values())
        missing = [
            str(sites[layer].heads[position])
            for layer, own in lost.items()
            for position in sorted(everywhere - own)
            if position < sites[layer].n_heads
        ]
        if missing:
            return (
                f"layers {', '.join(map(str, sites))} run the same weights ({names[one]}), so they lose the same heads "
                f"or none; add {', '.join(missing)} to the plan, or take their counterparts out"
            )
    return ""
