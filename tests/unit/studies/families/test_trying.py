"""What is held against headscope: a wrong capture, and a wrong cut, are seen."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from headscope.anatomy import discover
from headscope.anatomy.examples import make_example
from headscope.errors import SurgeryError
from headscope.heads import HeadId
from headscope.studies.families import capturing, cutting, try_type
from headscope.studies.families.afterwards import check_afterwards
from headscope.studies.families.building import tiny_model
from headscope.studies.families.capturing import check_captured, nearest_rows
from headscope.studies.families.cutting import masked, try_cuts
from headscope.studies.families.outputs import apart, complaint_of, outputs_of, same, with_settings
from headscope.surgery import prune


@pytest.fixture(params=["bert", "llama", "gpt2"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, dict[str, Any]]:
    model = tiny_model(request.param)
    inputs = with_settings(model, make_example(model))
    return model, discover(model, inputs), inputs


def test_captures_of_these_are_exact(case: Any) -> None:
    assert check_captured(*case).status == "exact"


@pytest.mark.parametrize("name", ["z", "v", "pattern", "contribution"])
def test_a_capture_that_is_off_is_wrong(case: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = capturing.capture

    @contextmanager
    def spoilt(*args: Any, **settings: Any) -> Iterator[Any]:
        with real(*args, **settings) as seen:
            yield Spoilt(seen, name)

    monkeypatch.setattr(capturing, "capture", spoilt)
    found = check_captured(*case)
    assert found.status == "wrong"
    assert "away from" in found.why


class Spoilt:
    """What was captured, with one tensor a little larger."""

    def __init__(self, seen: Any, name: str) -> None:
        self.seen, self.name = seen, name

    def __contains__(self, layer: int) -> bool:
        return layer in self.seen

    def __getitem__(self, layer: int) -> Any:
        tensors = {name: tensor.clone() for name, tensor in self.seen[layer].tensors.items()}
        tensors[self.name] *= 1.01
        return type(self.seen[layer])(self.seen[layer].site, tensors)


def test_outputs_that_change_while_watched_are_wrong(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, anatomy, inputs = case
    real = capturing.capture

    @contextmanager
    def nudging(*args: Any, **settings: Any) -> Iterator[Any]:
        handle = model.register_forward_hook(lambda _, __, out: (out[0] + 1e-7, *tuple(out.values())[1:]))
        try:
            with real(*args, **settings) as seen:
                yield seen
        finally:
            handle.remove()

    monkeypatch.setattr(capturing, "capture", nudging)
    assert "outputs are others while it is watched" in check_captured(model, anatomy, inputs).why


def test_cuts_of_these_are_exact(case: Any) -> None:
    cuts = [one.cut for one in try_cuts(*case)]
    assert cuts
    assert {cut.status for cut in cuts} == {"exact"}
    assert {cut.way for cut in cuts} == {"whole"}


@pytest.mark.parametrize("spoil", ["another head", "nothing", "weights"])
def test_a_wrong_cut_is_seen(case: Any, spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, anatomy, inputs = case

    def bad(model: nn.Module, heads: Any, **settings: Any) -> nn.Module:
        if spoil == "another head":
            site = anatomy.sites[0]
            group = {kv for head, kv in zip(site.heads, site.kv_of_query, strict=True) if head in heads}
            others = [h for h, kv in zip(site.heads, site.kv_of_query, strict=True) if kv not in group]
            return prune(model, others[: len(heads)], **settings)
        if spoil == "nothing":
            return copy.deepcopy(model)
        made = prune(model, heads, **settings)
        with torch.no_grad():
            for weight in made.parameters():
                weight.mul_(1.01)
        return made

    monkeypatch.setattr(cutting, "prune", bad)
    cuts = [one.cut for one in try_cuts(model, anatomy, inputs)]
    assert {cut.status for cut in cuts} == {"wrong"}
    assert all("away from the masked model's" in cut.why for cut in cuts)


def test_heads_that_do_nothing_prove_nothing(case: Any) -> None:
    model, anatomy, inputs = case
    with torch.no_grad():
        for site in anatomy.sites:
            model.get_submodule(site.output.module).weight.zero_()
    assert {one.cut.status for one in try_cuts(model, anatomy, inputs)} == {"unproven"}


@pytest.mark.parametrize("spoil", [False, True])
def test_a_layer_that_the_model_reads_nothing_of_is_judged_by_what_it_gives(
    spoil: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gemma3")  # SigLIP pools its patches, and the text reads the patches alone
    if spoil:
        monkeypatch.setattr(cutting, "prune", lambda model, heads, **more: prune(model, _moved(heads), **more))
    inputs = with_settings(model, make_example(model))
    cuts = {one.cut.place: one.cut for one in try_cuts(model, discover(model, inputs), inputs)}
    pooling = cuts["MultiheadAttention in vision_tower (cross)"]
    assert pooling.status == ("wrong" if spoil else "exact")
    told = "what vision_tower.head.attention gives is" if spoil else "is proven on what the layer itself gives"
    assert told in pooling.why


def _moved(heads: list[HeadId]) -> list[HeadId]:
    """As many other heads of the same layers."""
    return [HeadId(layer, head) for layer in {one.layer for one in heads} for head in range(2, 2 + len(heads))]


def test_a_refusal_is_told_in_its_first_sentence(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> nn.Module:
        raise SurgeryError("layer 0 (encoder.x): its heads are mixed; the model was left as it was. And so on")

    monkeypatch.setattr(cutting, "prune", refuse)
    cut = next(iter(try_cuts(*case))).cut
    assert (cut.status, cut.why) == ("refused", "its heads are mixed")

    def fail(*_: Any, **__: Any) -> nn.Module:
        raise KeyError("x")

    monkeypatch.setattr(cutting, "prune", fail)
    assert next(iter(try_cuts(*case))).cut.status == "failed"


def test_masking_puts_columns_to_zero_and_leaves_the_model(case: Any) -> None:
    model, anatomy, inputs = case
    before, site = outputs_of(model, inputs), anatomy.sites[0]
    twin = masked(model, inputs, [site], [1])
    by_hand = copy.deepcopy(model)
    projection = by_hand.get_submodule(site.output.module)
    columns = list(site.output.heads[1])
    with torch.no_grad():
        if type(projection).__name__ == "Conv1D":
            projection.weight[columns] = 0
        else:
            projection.weight[:, columns] = 0
    assert apart(outputs_of(twin, inputs), outputs_of(by_hand, inputs)) <= 1e-6
    assert apart(outputs_of(twin, inputs), before) > 1e-3
    assert same(outputs_of(model, inputs), before)


def test_what_is_checked_afterwards_can_fail(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, anatomy, inputs = case
    pruned = prune(model, [anatomy.heads[0]], anatomy=anatomy, example=inputs)
    good = check_afterwards(model, pruned, inputs, ("saved", "copied", "trained"))
    assert {answer for answer, _ in good.values()} == {"yes"}
    with torch.no_grad():
        next(iter(pruned.parameters())).fill_(float("nan"))
    found = check_afterwards(model, pruned, inputs, ("trained",))["trained"]
    assert found == ("no", "a step of training gives NaN or infinity")


def test_what_the_whole_model_cannot_is_no_fault_of_the_cut(case: Any) -> None:
    model, _, inputs = case
    answer, why = check_afterwards(model, model, {**inputs, "input_ids": torch.full((2, 7), 10**6)}, ("copied",))[
        "copied"
    ]
    assert answer == ""
    assert why.startswith("the whole model cannot either")


def test_a_model_that_gives_nothing_is_told() -> None:
    assert "TypeError" in complaint_of(nn.Linear(2, 2), {"wrong": 1})
    assert complaint_of(nn.Linear(2, 2), {"input": torch.full((1, 2), float("nan"))}).endswith("NaN or infinity")
    assert complaint_of(nn.Linear(2, 2), {"input": torch.ones(1, 2)}) == ""


def test_rows_in_another_order_are_compared_as_a_set() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_rows(rows, rows.flip(0)), rows)


def test_a_type_without_an_input_says_so() -> None:
    def none(_: nn.Module) -> dict[str, Any]:
        raise SurgeryError("nothing comes to mind")

    found = try_type("bert", example=none)
    assert (found.built, found.forward, found.found) == ("yes", "no", "")
    assert "nothing comes to mind" in found.why["forward"]
