"""Tensors beside parameters and buffers: saved and put back, or refused."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from headscope.surgery import load, prune, save
from headscope.surgery.kept import kept_tensors


class Keeping(nn.Module):
    """Attention with slopes by head, and tables of all kinds, drawn anew for each instance."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.slopes = torch.rand(4)
        self.tables = [{"scale": torch.rand(16)}, (torch.ones(16),)]
        self.turns = torch.polar(torch.ones(9), torch.arange(9.0))
        self.same = [self.o.bias]
        self.last: Tensor | None = None
        self.longest = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        place = torch.arange(x.shape[1])
        self.last = (q @ k.mT / 2 - self.slopes[:, None, None] * (place[:, None] - place).abs()).softmax(-1)
        self.longest = place if len(place) > len(self.longest) else self.longest
        out = nn.functional.linear((self.last @ v).transpose(1, 2).flatten(2), self.o.weight) + self.same[0]
        return out * self.tables[0]["scale"] + self.tables[1][0] + self.turns[: x.shape[1], None].real  # type: ignore[call-overload]


@pytest.fixture
def model() -> Keeping:
    torch.manual_seed(0)
    return Keeping().eval()


X = torch.linspace(-1, 1, 2 * 6 * 16).view(2, 6, 16)


def test_they_are_named_by_what_leads_to_them(model: Keeping) -> None:
    names = {"slopes", "tables[0]['scale']", "tables[1][0]", "turns", "same[0]", "longest"}
    assert kept_tensors(model).keys() == names
    assert kept_tensors(nn.Sequential(model)).keys() == {f"0.{name}" for name in names}
    model.tables.append(model.tables)  # type: ignore[arg-type]
    assert kept_tensors(model).keys() == names, "and one that holds itself comes to an end"


@pytest.mark.parametrize("heads", [[], ["L0H1"]])
def test_an_instance_with_others_gets_those_that_were_saved(model: Keeping, heads: list[str], tmp_path) -> None:
    whole = model(X)
    smaller = prune(model, heads, example=X) if heads else model
    assert not torch.equal(Keeping()(X), whole)
    for one in (model, smaller):  # what the forward left is no part of it
        one.last, one.longest = None, torch.zeros(0)
    loaded = load(save(smaller, tmp_path / "saved"), model=Keeping())
    assert torch.equal(loaded(X), smaller(X))
    assert json.loads((tmp_path / "saved" / "headscope.json").read_text())["headscope_model"] == 3


def test_what_a_forward_left_is_left_to_the_instance(model: Keeping, tmp_path) -> None:
    model(X)
    save(model, tmp_path / "saved")
    with pytest.warns(UserWarning, match=r"last, longest: saved, .* what it has stays"):
        loaded = load(tmp_path / "saved", model=Keeping())
    assert loaded.last is None
    assert len(loaded.longest) == 0, "of another size: what counts positions beside it is not known"


def test_one_that_is_a_parameter_is_that_parameter_again(model: Keeping, tmp_path) -> None:
    loaded = load(save(model, tmp_path / "saved"), model=Keeping())
    assert loaded.same[0] is loaded.o.bias


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Odd(nn.Module):
    """Keeps tensors in tuples, under keys that look alike, one of them twice, and one that is trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pair = (torch.rand(2), Pair(torch.rand(2), torch.rand(2)))
        self.by_key = {1: torch.rand(2), "1": torch.rand(2), "a.b": torch.rand(2), "a": {"b": torch.rand(2)}}
        self.trained = torch.rand(2).requires_grad_()
        self.twice = [torch.rand(300)] * 2
        self.layer = nn.Linear(1, 1)


def test_tuples_keys_and_sharing_come_back(tmp_path) -> None:
    model = Odd(0)
    save(model, tmp_path / "saved")
    loaded = load(tmp_path / "saved", model=Odd(1))
    wanted, made = kept_tensors(model), kept_tensors(loaded)
    assert wanted.keys() == made.keys()
    assert len(made) == 10
    assert all(torch.equal(wanted[name].tensor, made[name].tensor) for name in made)
    assert type(loaded.pair[1]) is Pair
    assert loaded.trained.requires_grad
    assert loaded.twice[0] is loaded.twice[1]
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 3000


@pytest.mark.parametrize("odd", [torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse()])
def test_one_that_cannot_be_stored_is_named_and_left_to_the_instance(odd: Tensor, tmp_path) -> None:
    model = Odd(0)
    model.turns = odd
    with pytest.warns(UserWarning, match="turns: safetensors holds no tensors of that kind"):
        save(model, tmp_path / "saved")
    other = Odd(1)
    other.turns = odd
    assert load(tmp_path / "saved", model=other).turns.dtype == odd.dtype


def test_a_model_without_any_is_read_by_a_headscope_of_before(tmp_path) -> None:
    save(nn.Linear(2, 2), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "headscope.json").read_text())["headscope_model"] == 1
