"""Running: what a model is given, and what of it comes back as it was."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import headscope as hs
from headscope._support.drawing import nothing_drawn
from headscope._support.running import accepts, device_of, evaluating, run_model, withheld
from headscope.errors import InputError, ModelError
from tests import models


class _Echo(nn.Module):
    """Gives back what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, **given: object) -> dict[str, object]:
        return given


class _Caching(_Echo):
    def forward(self, input_ids: Tensor, use_cache: bool = True) -> bool:  # type: ignore[override]
        return use_cache


def test_the_model_gets_its_batch_without_document_and_without_a_cache() -> None:
    batch = {"input_ids": torch.ones(2, 3), "document": torch.arange(2), "flag": True}
    given = run_model(_Echo(), batch, extra=7)
    assert set(given) == {"input_ids", "flag", "extra"}
    assert "document" in batch
    assert run_model(_Caching(), batch_of_ids()) is False
    assert run_model(_Caching(), batch_of_ids() | {"use_cache": True}) is True
    assert run_model(_Echo(), {"a": 1}, a=2)["a"] == 2


def test_whole_numbers_arrive_in_one_piece_as_a_loss_may_want_to_view_them() -> None:
    whole = torch.arange(12).view(2, 6)
    given = run_model(_Echo(), {"idx": whole[:, :-1], "targets": whole[:, 1:]})
    assert given["targets"].view(-1).tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert run_model(_Echo(), {"idx": whole})["idx"] is whole


def test_a_table_that_ends_before_is_told_with_what_is_shorter() -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, idx: Tensor) -> Tensor:
            return self.table(idx)

    with pytest.raises(ModelError, match=r"a table of it ends before, .*length= of text_batches") as refused:
        run_model(Short(), {"idx": torch.arange(6).view(2, 3)})
    assert refused.value.on_command_line.endswith("make them shorter (--length)")


def batch_of_ids(rows: int = 2, length: int = 3) -> dict[str, Tensor]:
    return {"input_ids": torch.arange(rows * length).reshape(rows, length)}


class _Viewing(_Echo):
    """Takes no slices, as nanoGPT's loss."""

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        return idx.view(-1) - targets.view(-1)


def test_a_slice_reaches_the_forward_as_a_tensor_of_its_own() -> None:
    data = torch.arange(10).reshape(2, 5)
    assert run_model(_Viewing(), {"idx": data[:, :-1], "targets": data[:, 1:]}).tolist() == [-1] * 8
    pictures = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert run_model(_Echo(), {"pixel_values": pictures})["pixel_values"] is pictures


def test_an_argument_by_another_name_is_told_from_one_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="needs idx, targets, and takes no input_ids: batches"):
        run_model(_Viewing(), batch_of_ids())
    with pytest.raises(ModelError, match="needs targets too: batches"):
        run_model(_Viewing(), {"idx": torch.ones(2, 3)})


def test_accepts_reads_the_signature() -> None:
    assert accepts(_Caching(), "use_cache")
    assert not accepts(_Caching(), "logits_to_keep")
    assert not accepts(_Echo(), "use_cache")


def test_device_of_a_model_with_and_without_parameters() -> None:
    assert device_of(_Echo().to("meta")) == torch.device("meta")
    assert device_of(nn.Identity()) == torch.device("cpu")


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert [module.training for module in model.modules()] == before
    assert before == [True, True, False, True, True]


class _Rebuilds(nn.Module):
    """Its forward leaves traces of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(2, 2), nn.Linear(2, 2), "sparse"
        self.register_buffer("seen", torch.zeros(2))
        self.cache: dict[str, list[int]] = {"old": [1]}
        self.steps: deque[int] = deque([1, 2])
        self.names = {"a"}

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        self.cache["new"] = [2]
        self.cache["old"].append(3)
        self.steps.rotate()
        self.names.add("b")
        self.kind, self.last = "full", x
        self.first = nn.Linear(2, 2)
        del self.second
        return x


def test_hidden_states_are_collected_once_however_often_headscope_ran_the_model() -> None:
    """transformers hooks the layers on a first forward; with its mark undone and the hooks left, it did so again."""
    model, ids = models.build("llama"), torch.tensor([[1, 2, 3]])
    for _ in range(2):
        with evaluating(model):
            model(ids, output_hidden_states=True)
    assert not any(module._forward_hooks for module in model.modules())
    assert len(model(ids, output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1


def test_what_a_forward_leaves_in_a_model_is_undone() -> None:
    model = _Rebuilds().train()
    before, layers, buffer = dict(model.__dict__), dict(model._modules), model.seen
    held = model.cache, model.steps, model.names
    with evaluating(model) as is_rebuilt:
        assert not model.training
        assert not is_rebuilt()
        model(torch.ones(1, 2))
        assert is_rebuilt()
    assert model.__dict__ == before
    assert held == ({"old": [1]}, deque([1, 2]), {"a"})
    assert list(model._modules.items()) == list(layers.items()), "in their order too"
    assert model.seen is buffer
    assert torch.equal(model.seen, torch.zeros(2))
    assert model.training


class _More(TypedDict, total=False):
    flag: bool


class _Typed(_Caching):
    def forward(self, input_ids: Tensor, **more: Unpack[_More]) -> dict[str, object]:  # type: ignore[override]
        return {"input_ids": input_ids, **more}


def test_labels_reach_a_forward_that_takes_any_argument_and_not_one_that_says_which() -> None:
    batch = batch_of_ids() | {"labels": torch.ones(2), "flag": torch.ones(1), "text": ["a", "b"]}
    assert set(run_model(_Echo(), batch)) == {"input_ids", "labels", "flag"}
    assert set(run_model(_Typed(), batch)) == {"input_ids", "flag"}
    assert withheld(_Caching(), batch) == ("labels", "flag", "text")


VERBS: dict[str, Callable[[Any], Any]] = {
    "analyze": lambda model: hs.analyze(model, batches=torch.ones(9, 2, 4)),
    "discover": hs.discover,
    "importance": lambda model: hs.importance(model, torch.ones(9, 2, 4)),
    "similarity": lambda model: hs.similarity(model, torch.ones(9, 2, 4)),
    "another": lambda model: hs.similarity(models.build("gpt2"), models.make_batches("gpt2", 1), other=model),
    "redundancy": lambda model: hs.redundancy(model, torch.ones(9, 2, 4)),
    "roles": lambda model: hs.roles(model, torch.ones(9, 2, 4)),
    "ablate": lambda model: hs.ablate(model, ["L0H1"]).__enter__(),
    "capture": lambda model: hs.capture(model).__enter__(),
    "prune": lambda model: hs.prune(model, ["L0H1"]),
    "save": lambda model: hs.save(model, "nowhere"),
    "export": lambda model: hs.export(model, "nowhere"),
    "load_model": hs.load_model,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("model", [3, nn.Linear, hs.Budget()], ids=["a number", "a class", "a budget"])
def test_what_is_no_model_is_refused(verb: str, model: Any) -> None:
    with pytest.raises(InputError, match=r"a model is (a torch.nn.Module|named by a str or a Path), and this is "):
        VERBS[verb](model)


def test_nothing_is_drawn_from_the_user_s_generators() -> None:
    model = nn.Linear(2, 2)

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 (a model may use it)

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    want = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    with nothing_drawn(model):
        draws()
    assert draws() == want
