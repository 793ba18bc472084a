"""What a cut module runs goes where the module goes."""

import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch import nn

from headscope.surgery import prune
from headscope.surgery.forwards import copied, replace_forward, run_inner
from tests import models

ROOT = Path(__file__).parents[3]
IDS = torch.arange(3, 13).view(2, 5)

# nothing of headscope is imported here: what is needed comes with the models
ELSEWHERE = """
import sys
from dataclasses import dataclass
import torch

cases = torch.load(sys.argv[1], weights_only=False)
for name, (model, given, want) in cases.items():
    with torch.no_grad():
        out = model(*given)
    torch.testing.assert_close(out if isinstance(out, torch.Tensor) else out[0], want, rtol=1e-5, atol=1e-6, msg=name)
"""


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def cases():
    """By name: a cut model, what it is given, what it makes of it."""
    x, padding = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 4, dtype=torch.bool)
    padding[1, 2:] = True
    ids = {"input_ids": IDS}
    sizes = prune(models.build("nanogpt"), ["L0H1", "L1H0"], example=ids)
    packed = prune(encoder(), ["L0H1"], example={"src": x})
    made = {
        "sizes put right": (sizes, (IDS,)),
        "cut again": (prune(sizes, ["L0H2"], example=ids), (IDS,)),
        "inside another": (nn.Sequential(prune(models.build("nanogpt"), ["L0H3"], example=ids)), (IDS,)),
        "groups mapped": (prune(models.build("llama"), ["L0H1", "L0H2"]), (IDS,)),
        "layers emptied": (prune(models.build("gpt2"), [(1, head) for head in range(4)]), (IDS,)),
        "narrowed and packed": (packed, (x, None, padding)),
    }
    with torch.no_grad():
        return {name: (model, given, first(model(*given))) for name, (model, given) in made.items()}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_cut_model_comes_through_torch_load_and_to_processes_that_are_spawned(tmp_path):
    known = cases()
    torch.save(known, tmp_path / "cases.pt")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "cases.pt"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    whole = models.build("nanogpt")
    for name, (model, given, want) in known.items():
        sent = pickle.loads(ForkingPickler.dumps(model))  # as multiprocessing does it
        with torch.no_grad():
            assert torch.equal(first(sent(*given)), want), name
            assert want.shape[-1] != models.VOCABULARY or not torch.equal(want, whole(IDS)), "the case proves nothing"


class Doubling(nn.Module):
    def forward(self, x, times=2):
        return x * times


def _thrice(module, inner, more, x, times=3):
    assert isinstance(module, Doubling)
    return run_inner(module, inner, x) + more if times == 0 else x * times + more


def test_it_takes_what_the_class_takes_and_is_bound_to_its_own_copy():
    module = Doubling()
    replace_forward(module, _thrice, 1)
    assert list(inspect.signature(module.forward).parameters) == ["x", "times"]
    copied = pickle.loads(pickle.dumps(module))
    assert copied(torch.ones(1)).item() == module(torch.ones(1)).item() == 4
    assert copied.forward.args[0] is copied
    assert type(copied) is Doubling


class Keeping(nn.Module):
    """Keeps what it made for the next call, graph and all; and a config that must not be asked for everything."""

    def __init__(self):
        super().__init__()
        self.linear, self.kept, self.config = nn.Linear(2, 2), {}, Touchy()

    def forward(self, x):
        self.kept["made"] = [self.linear(x)]
        return self.kept["made"][0]


@dataclass
class Touchy:
    @property
    def wide(self):
        raise RuntimeError("ask for one layer")


Touchy.__dataclass_fields__["wide"] = None


def test_what_hangs_on_a_graph_does_not_stop_a_copy():
    module = Keeping()
    made = module(torch.ones(1, 2))
    twin = copied(module)
    assert torch.equal(twin.kept["made"][0], made)
    assert not twin.kept["made"][0].requires_grad
    assert module.kept["made"][0] is made
    assert twin.linear.weight is not module.linear.weight
