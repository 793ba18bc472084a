"""Why heads cannot be cut, told before a cut is tried."""

from dataclasses import replace

from headscope.anatomy import discover
from headscope.anatomy.uncuttable import torn, uncuttable
from tests.families import build_any


def test_layers_with_one_reason_stand_together() -> None:
    anatomy = discover(build_any("llama"))
    assert uncuttable(anatomy, anatomy.heads) == ""
    mixed = replace(anatomy, sites=tuple(replace(site, entangled=("o",)) for site in anatomy.sites))
    told = "its heads cannot be told apart in o (something mixes them there)"
    assert uncuttable(mixed, ["L0H1", "L1H0"]) == f"layers 0, 1: {told}"
    one = replace(anatomy, sites=(mixed.sites[0], anatomy.sites[1]))
    assert uncuttable(one, ["L0H1", "L1H0"]) == f"layer 0: {told}"
    assert uncuttable(one, ["L1H0"]) == ""


def test_layers_that_run_the_same_weights_lose_the_same_heads() -> None:
    anatomy = discover(build_any("albert"))
    assert "add L1H1, L2H1 to the plan" in uncuttable(anatomy, ["L0H1"])
    assert torn(anatomy, ["L0H1", "L1H1", "L2H1"]) == ""
    assert torn(anatomy, []) == ""
