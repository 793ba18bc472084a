"""What is called around modules: on this thread, in order, also when a forward raises; and it leaves nothing behind."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from headscope._support.around import around


class _Layer(nn.Module):
    def forward(self, x: Tensor, *, fail: bool = False) -> Tensor:
        if fail:
            raise ZeroDivisionError
        return x + 1


def _nothing_left() -> bool:
    return not torch_modules._has_any_global_hook()


def test_arguments_and_results_may_be_changed() -> None:
    layer, told = _Layer(), []
    with around(layer, before=lambda args: (args[0] * 10,), after=lambda args, kwargs, out: out + 100):
        assert layer(torch.tensor(2.0)) == 121
        with around(layer, before=lambda args: told.append(args), first=True):
            layer(torch.tensor(3.0))
    assert told == [(torch.tensor(3.0),)]
    assert layer(torch.tensor(2.0)) == 3
    assert _nothing_left()


def test_only_the_module_meant_is_heard_not_its_copies_nor_other_threads() -> None:
    layer, told = _Layer(), []
    with around(layer, before=told.append):
        copy.deepcopy(layer)(torch.zeros(1))
        _Layer()(torch.zeros(1))
        thread = threading.Thread(target=layer, args=(torch.zeros(1),))
        thread.start()
        thread.join()
        assert told == []
        layer(torch.zeros(1))
    assert len(told) == 1


def test_a_thousand_failures_leave_nothing_behind() -> None:
    layer, left = _Layer(), []
    for _ in range(1000):
        with pytest.raises(ZeroDivisionError), around(layer, leave=lambda: left.append(None)):
            layer(torch.zeros(1), fail=True)
    assert len(left) == 1000
    assert _nothing_left()
    assert vars(layer).keys() == vars(_Layer()).keys()
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
