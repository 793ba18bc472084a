"""Made-up attention sites, for studies that feed statistics numbers of their own."""

from headscope.sites import Site

__all__ = ["make_site"]


def make_site(layer: int, n_heads: int, dim: int) -> Site:
    """A causal site of so many heads of one dimension, which belongs to no model.

    Args:
        layer: its number.
        n_heads: query, key and value heads.
        dim: of queries, keys and values.
    """
    heads = tuple(range(n_heads))
    return Site(
        layer=layer, kind="causal", block=layer, module_name="", call=0, unit="", route="", n_heads=n_heads,
        n_kv_heads=n_heads, n_value_heads=n_heads, head_dim=dim, value_dim=dim, scaling=dim**-0.5, head_ids=heads,
        kv_of_query=heads, query=(), key=(), value=(), output=None,
    )  # fmt: skip
