"""Slices, Site and Anatomy: plain values with a text form that comes back the same."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import UnknownNameError
from headscope.heads import HeadId
from headscope.sites import Anatomy, Site, Slices


def _site(layer: int = 0, n_heads: int = 4, **changes: object) -> Site:
    rows = Slices(f"blocks.{layer}.qkv", tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(n_heads)))
    settings = {
        "layer": layer,
        "kind": "causal",
        "block": layer,
        "module_name": f"blocks.{layer}",
        "call": 0,
        "unit": f"blocks.{layer}",
        "route": "handwritten",
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "n_value_heads": n_heads,
        "head_dim": 4,
        "value_dim": 4,
        "scaling": 0.5,
        "head_ids": tuple(range(n_heads)),
        "kv_of_query": tuple(range(n_heads)),
        "query": (rows,),
        "key": (rows,),
        "value": (rows,),
        "output": Slices(f"blocks.{layer}.o", rows.heads),
    }
    return Site(**settings | changes)


@pytest.fixture
def anatomy() -> Anatomy:
    mixed = _site(3, entangled=("q", "o"), gated=True)
    return Anatomy("Model", (_site(0), _site(2, head_ids=(0, 1, 3, 5)), mixed), "abc", ("layer 3: mixed",))


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 40)), max_size=5))
def test_slices_come_back_from_json(sets: list[set[int]]) -> None:
    slices = Slices("a.b", tuple(tuple(sorted(part)) for part in sets))
    assert Slices.from_json(slices.to_json()) == slices


def test_slices_are_written_as_runs() -> None:
    assert Slices("a", ((0, 1, 2, 7, 8), (), (5,))).to_json() == {
        "module": "a",
        "heads": [[[0, 3], [7, 9]], [], [[5, 6]]],
    }


def test_anatomy_comes_back_from_json(anatomy: Anatomy) -> None:
    assert Anatomy.from_json(anatomy.to_json()) == anatomy


def test_a_site_without_projection_or_scaling_comes_back_too() -> None:
    bare = _site(output=None, block=None, scaling=float("nan"), query=(), entangled=("q",))
    back = Site.from_json(bare.to_json())
    assert np.isnan(back.scaling)
    assert replace(back, scaling=0.0) == replace(bare, scaling=0.0)
    assert not back.prunable


def test_sites_and_heads_go_by_their_own_numbers(anatomy: Anatomy) -> None:
    assert anatomy.site(2) is anatomy.sites[1]
    assert anatomy.n_heads == 12 == len(anatomy.heads)
    assert [str(head) for head in anatomy.heads[4:8]] == ["L2H0", "L2H1", "L2H3", "L2H5"]
    assert anatomy.sites[1].position(HeadId(2, 5)) == 3


def test_find_takes_any_spelling_and_gives_positions(anatomy: Anatomy) -> None:
    assert anatomy.find(["L2H5", (0, 3), HeadId(2, 0)]) == {2: [3, 0], 0: [3]}
    assert anatomy.find([]) == {}


def test_a_head_or_layer_that_is_not_there_is_named_with_those_that_are(anatomy: Anatomy) -> None:
    with pytest.raises(UnknownNameError, match=r"L2H2 does not exist: layer 2 has 4 heads .L2H0, L2H1, L2H3, L2H5."):
        anatomy.find(["L2H2"])
    with pytest.raises(UnknownNameError, match="no layer 1 in Model; attention layers: 0, 2, 3"):
        anatomy.find(["L1H0"])


def test_only_heads_that_reach_the_projection_apart_are_apart(anatomy: Anatomy) -> None:
    assert [site.apart for site in anatomy.sites] == [True, True, False]
    assert [site.layer for site in anatomy.apart.sites] == [0, 2]
    assert anatomy.apart.fingerprint == anatomy.fingerprint
    assert not replace(anatomy.sites[0], output=None).apart


OWN = Slices("attn", ((0, 1), (2, 3), (4, 5), (6, 7)), "w_qkv")
UNCUTTABLE: dict[str, tuple[dict[str, Any], str, bool]] = {
    "no projection": ({"output": None}, "no linear layer was found", False),
    "mixed": ({"entangled": ("o",)}, "cannot be told apart in o .something mixes them there", False),
    "mixed, and told why": (
        {"entangled": ("o",), "refused": {"contribution": "it sorts"}}, "in o .it sorts", False,
    ),
    "odd values": ({"n_value_heads": 3}, "3 value heads, and which query reads which value is not known", True),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCUTTABLE)
def test_why_no_head_can_be_cut_is_told_in_one_place(anatomy: Anatomy, name: str) -> None:
    changes, told, apart = UNCUTTABLE[name]
    first = anatomy.sites[0]
    assert (first.prunable, first.uncuttable) == (True, "")
    site = replace(first, **changes)
    assert (site.prunable, site.apart) == (False, apart)
    assert re.search(told, site.uncuttable)


def test_neither_bare_parameters_nor_mixed_queries_are_a_bar(anatomy: Anatomy) -> None:
    assert replace(anatomy.sites[0], query=(OWN,)).prunable
    assert replace(anatomy.sites[0], entangled=("q", "k")).prunable


def test_key_heads_that_are_shared_are_told_with_every_table(anatomy: Anatomy) -> None:
    many = anatomy.sites[0].n_heads
    grouped = replace(anatomy.sites[0], n_kv_heads=1, kv_of_query=(0,) * many)
    assert replace(anatomy, sites=(grouped,)).facts["key_heads"] == {"0": [0] * many}
    alone = replace(anatomy.sites[0], n_kv_heads=many, kv_of_query=tuple(range(many)))
    assert "key_heads" not in replace(anatomy, sites=(alone,)).facts


def test_frame_has_a_row_per_site(anatomy: Anatomy) -> None:
    frame = anatomy.to_frame()
    assert frame["layer"].tolist() == [0, 2, 3]
    assert frame["prunable"].tolist() == [True, True, False]
    assert frame["entangled"].tolist() == ["", "", "q o"]
    assert "blocks.2" in anatomy._repr_html_()


MASK = np.array([[1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    "heads",
    [
        ["L0H1", "L2H3"],
        {0: [1], 2: (3,)},
        {0: {1}, np.int64(2): torch.tensor([3])},
        {0: [1], -2: [3]},
        [(0, 1), (-2, 3)],
        torch.tensor([[0, 1], [2, 3]]),
        MASK.astype(bool),
        MASK.astype(np.float32),
        torch.from_numpy(MASK),
        torch.from_numpy(MASK).bool(),
    ],
    ids=[
        "text",
        "lists",
        "numbers",
        "from the end",
        "pairs from the end",
        "tensor of pairs",
        "bool",
        "float",
        "int",
        "tensor",
    ],
)
def test_heads_as_they_are_written_elsewhere(anatomy: Anatomy, heads: object) -> None:
    assert anatomy.find(heads) == {0: [1], 2: [2]}


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({3: 7}, r"write \{layer: \[heads\]\}"),
        ({"a": [1]}, "not a head"),
        ([("a", 1)], "not a head"),
        ([(-4, 1)], "not a head"),
        ([(-1, -1)], "not a head"),
        ([0, 1], "not a head"),
        (np.array([[1, 0], [0, 1]]), "may be pairs"),
        (np.array([[1.0, 0.5]]), "0.5"),
        (np.array([[1.0, np.nan]]), "nan"),
        (MASK[:2].astype(bool), r"\(2, 6\)"),
        (MASK[:, :4].astype(bool), r"\(3, 4\)"),
        (1 - MASK, "does not exist"),
    ],
)
def test_heads_that_are_none_are_refused(anatomy: Anatomy, heads: object, said: str) -> None:
    with pytest.raises(UnknownNameError, match=said):
        anatomy.find(heads)


def test_blocks_are_told_where_the_number_of_a_layer_does_not(anatomy: Anatomy) -> None:
    assert "blocks" not in anatomy.facts
    names = ["encoder.layers.0.attn", "decoder.layers.0.attn", "decoder.layers.0.cross", "head"]
    kinds, blocks = ["self", "causal", "cross", "self"], [0, 0, 0, None]
    sites = tuple(
        replace(_site(layer), module_name=name, kind=kind, block=block)
        for layer, (name, kind, block) in enumerate(zip(names, kinds, blocks, strict=True))
    )
    assert replace(anatomy, sites=sites).facts["blocks"] == {
        "0": "encoder.layers.0", "1": "decoder.layers.0 causal", "2": "decoder.layers.0 cross", "3": "head",
    }  # fmt: skip
    hybrid = tuple(replace(_site(layer), module_name=f"layers.{4 * layer}.attn", block=4 * layer) for layer in (0, 1))
    assert replace(anatomy, sites=hybrid).facts["blocks"] == {"0": "layers.0", "1": "layers.4"}
