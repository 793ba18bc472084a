"""Lines and dots that are many differ without colours too: by marks, in the figure and in its legend."""

import pandas as pd

import headscope as hs
from headscope.reporting import figures


def test_what_lies_beyond_a_size_is_told_apart_without_colours() -> None:
    table = pd.DataFrame({"share": [0.1, 0.5, 0.9]})
    table = table.assign(share_low=table["share"] - 0.1, share_high=table["share"] + 0.1)
    ax = figures.sorted_dots(table, "share", label="share", size=0.5)
    marks = {line.get_label(): line.get_marker() for line in ax.lines if not line.get_label().startswith("_")}
    assert list(marks) == ["below 0.5", "cannot be told", "above 0.5"]
    assert len({*marks.values()}) == 3


def test_lengths_of_maps_are_told_apart_without_colours() -> None:
    rows = [
        {"task": f"maps-{length}", "head_dim": dim, "n_heads": 8 // dim, "seed": seed, "error": 1 / dim, "chance": 2.0}
        for length in (8, 16) for dim in (2, 4) for seed in (0, 1)
    ]  # fmt: skip
    lines = figures.map_bound(pd.DataFrame(rows)).get_legend().get_lines()
    assert len({line.get_marker() for line in lines}) == 2


def test_layers_of_the_redundancy_curve_are_told_apart_without_colours() -> None:
    rows = [
        {"layer": layer, "k": k, "head": "constant", "share": k / 3, "low": k / 3, "high": k / 3}
        for layer in range(12) for k in range(4)
    ]  # fmt: skip
    ax = figures.redundancy_curve(hs.Redundancy(pd.DataFrame(columns=["layer"]), pd.DataFrame(rows)))
    assert [line.get_marker() for line in ax.lines] == [f"${layer}$" for layer in range(12)]
