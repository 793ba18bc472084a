"""Sizes and times of a cut, as values and in words."""

import json

import torch
from torch import nn

from headscope.surgery.timing import compare_sizes, told_of_cut

LARGE, SMALL = nn.Linear(6, 4), nn.Linear(6, 2)


def test_sizes_are_counted_and_both_models_run_on_so_many_rows():
    seen = []

    def note(module, args, kwargs):
        seen.append((id(module), len(kwargs["input"])))

    handles = [one.register_forward_pre_hook(note, with_kwargs=True) for one in (LARGE, SMALL)]
    found = compare_sizes(LARGE, SMALL, {"input": torch.randn(5, 6)})
    for handle in handles:
        handle.remove()
    assert (found["parameters_before"], found["parameters_after"]) == (28, 14)
    assert [timing["rows"] for timing in found["times"]] == [1, 5]
    assert set(seen) == {(id(one), n) for one in (LARGE, SMALL) for n in (1, 5)}
    assert json.loads(json.dumps(found)) == found


def test_in_words():
    assert told_of_cut(compare_sizes(LARGE, SMALL, None)) == ["28 → 14 parameters (50.0% fewer)"]
    assert told_of_cut({"refused": "why"}) == ["cannot be cut: why"]
    timing = {"rows": 1, "before": 0.002, "after": 0.0005, "ratio_low": 0.2, "ratio_high": 0.3, "rounds": 3}
    (_, time) = told_of_cut({"parameters_before": 2, "parameters_after": 1, "times": [timing]})
    assert time == "a forward pass of 1 row: 2.00 ms → 0.500 ms, 0.25 of the time (quartiles 0.20 to 0.30)"
