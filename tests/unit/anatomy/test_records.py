"""The record of a cut, wherever the pruned model is put: numbers of heads, saving, loading, cutting again."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from headscope.anatomy import discover
from headscope.anatomy.records import record_of
from headscope.errors import StorageError
from headscope.surgery import load, prune, save
from tests.spellings import WIDTH, Spelled


def _bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=60, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4,
                                intermediate_size=48)).eval()  # fmt: skip


_BATCH = {"input_ids": torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))}


class _Classifier(nn.Module):
    def __init__(self, bert: BertModel, more: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"encoder": bert})
        self.more = Spelled("einsum") if more else nn.Identity()
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(self.more(self.parts["encoder"](input_ids).last_hidden_state).mean(1))


_EMPTIED = ["L0H1", "L1H0", "L1H1", "L1H2", "L1H3", "L2H2"]


def _numbers(model: nn.Module) -> list[tuple[int, tuple[int, ...]]]:
    return [(site.layer, site.head_ids) for site in discover(model, _BATCH).sites]


def test_heads_keep_their_numbers_in_a_wrapper() -> None:
    cut = prune(_bert(), _EMPTIED, batches=[_BATCH])
    inside = _numbers(cut)
    assert inside == [(0, (0, 2, 3)), (2, (0, 1, 3))]
    assert _numbers(_Classifier(cut).eval()) == inside
    assert _numbers(_Classifier(cut, more=True).eval()) == [*inside, (3, (0, 1, 2))]
    assert _numbers(nn.ModuleDict({"model": cut})["model"]) == inside


def test_a_wrapper_around_a_cut_model_is_saved_loaded_and_cut_again(tmp_path: object) -> None:
    whole = _Classifier(_bert()).eval()
    wrapper = copy.deepcopy(whole)
    wrapper.parts["encoder"] = prune(wrapper.parts["encoder"], ["L0H1"], batches=[_BATCH])
    save(wrapper, tmp_path / "saved")
    again = load(tmp_path / "saved", model=copy.deepcopy(whole)).eval()
    with torch.no_grad():
        assert torch.equal(again(**_BATCH), wrapper(**_BATCH))
    assert _numbers(again) == _numbers(wrapper)
    twice = prune(again, ["L0H2", "L2H0"], batches=[_BATCH])
    record = record_of(twice)
    assert record is not None
    assert [str(head) for head in record.removed] == ["L0H1", "L0H2", "L2H0"]
    save(twice, tmp_path / "twice")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "twice", model=whole).eval()(**_BATCH), twice(**_BATCH))


def test_two_cut_models_in_one_are_counted_on() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = (prune(_bert(), heads, batches=[_BATCH]) for heads in (["L0H1"], ["L2H3"]))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.one(input_ids).last_hidden_state + self.other(input_ids).last_hidden_state

    numbers = dict(_numbers(Two().eval()))
    assert (numbers[0], numbers[5]) == ((0, 2, 3), (0, 1, 2))
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: nn.Sequential(model)])
def test_a_whole_model_has_none(wrap: object) -> None:
    assert record_of(wrap(_bert())) is None


class _Adapter(nn.Module):
    """A low-rank change of a layer's output, around it, as PEFT has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.out_features = base, base.in_features, base.out_features
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def test_adapters_around_a_cut_keep_the_heads_numbers_and_are_not_saved_with_it(tmp_path: Path) -> None:
    cut = prune(_bert(), ["L0H1"], batches=[_BATCH])
    for layer in cut.encoder.layer:
        layer.attention.output.dense = _Adapter(layer.attention.output.dense)
    assert _numbers(cut)[0] == (0, (0, 2, 3))
    with pytest.raises(StorageError, match=r"layer\.0\.attention\.output\.dense \(_Adapter\) .* was cut and wrapped"):
        save(cut, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
