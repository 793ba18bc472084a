"""A model that a function of the user's own makes."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from headscope.errors import ModelError
from headscope.models.loading import load_model
from tests.unit.models.loading.conftest import make_tokenizer

FACTORIES = """
import torch
from torch import nn

class Ready:
    @staticmethod
    def made():
        return nn.Linear(3, 4)

whole = nn.Linear(3, 4)
number = 3

def model():
    return nn.Dropout()

def both():
    return nn.Linear(3, 4), ({"x": torch.full((2, 3), float(number))} for number in range(2))

def in_half():
    return nn.Linear(3, 4).half()

def junk():
    return [nn.Linear(3, 4)]

def nothing():
    pass

def three():
    return nn.Linear(3, 4), [], None

def none_first():
    return None, []

class Encoding:
    def encode(self, text): return [ord(letter) for letter in text]
    def decode(self, ids): return "".join(map(chr, ids))

def no_tokenizer():
    return nn.Linear(3, 4), Encoding()

def one_dict():
    return nn.Linear(3, 4), {"input": torch.ones(2, 3)}

def no_batches():
    return nn.Linear(3, 4), []

def bad_batches():
    return nn.Linear(3, 4), [{"x": torch.ones(2, 3)}, {"x": "words"}]

def failing_batches():
    def batches():
        yield {"x": torch.ones(2, 3)}
        raise OSError("no disk")
    return nn.Linear(3, 4), batches()

def failing():
    raise RuntimeError("no weights")

def leaving():
    raise SystemExit(3)

def wanting(path):
    return nn.Linear(3, 4)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with modules in it; gone from the interpreter afterwards."""
    known = set(sys.modules)
    (tmp_path / "own_models.py").write_text(FACTORIES)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package/__init__.py").write_text("")
    (tmp_path / "own_package/deep.py").write_text("from own_models import model")
    (tmp_path / "own_broken.py").write_text("import torch\nimport not_installed_at_all\n")
    (tmp_path / "own_typo.py").write_text("def model(:\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "source", ["own_models:model", "own_package.deep:model", "own_models:Ready.made", "own_models:whole"]
)
def test_a_function_in_the_current_directory_makes_the_model(here, source):
    before = list(sys.path)
    loaded = load_model(source)
    assert isinstance(loaded.model, nn.Dropout | nn.Linear)
    assert not loaded.model.training
    assert (loaded.name, loaded.tokenizer, loaded.batches) == (source, None, None)
    assert sys.path == before


def test_a_function_may_bring_batches_and_they_can_be_read_again(here):
    batches = load_model("own_models:both").batches
    for _ in range(2):
        assert [batch["x"][0, 0].item() for batch in batches] == [0.0, 1.0]


def test_a_function_may_bring_one_batch_as_a_dict(here):
    (batch,) = load_model("own_models:one_dict").batches
    assert torch.equal(batch["input"], torch.ones(2, 3))


def test_a_function_may_bring_a_tokenizer(monkeypatch):
    """Told by what it is, whatever it is called."""
    module, tokenizer = ModuleType("own_words"), make_tokenizer()
    module.made = lambda: (nn.Linear(3, 4), tokenizer)
    monkeypatch.setitem(sys.modules, "own_words", module)
    loaded = load_model("own_words:made")
    assert (loaded.tokenizer, loaded.batches) == (tokenizer, None)


def test_a_model_of_the_users_own_keeps_its_precision_unless_asked(here):
    assert load_model("own_models:in_half").model.weight.dtype == torch.float16
    assert load_model("own_models:in_half", dtype="float64").model.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("own_nowhere:model", r"there is no module 'own_nowhere': neither in .* nor installed"),
        ("own_package.nowhere:model", r"there is no module 'own_package\.nowhere'"),
        ("own_models:nowhere", r"own_models \(.*own_models\.py\) has no 'nowhere'"),
        ("own_models:", r"has no ''"),
        (":model", r"does not import: ValueError"),
        ("own_broken:model", r"'own_broken' does not import: .*not_installed_at_all.* \(.*own_broken\.py, line 2\)"),
        ("own_typo:model", r"'own_typo' does not import: SyntaxError: .*own_typo\.py, line 1"),
        ("own_models:number", r"own_models:number is a int; expected a function"),
        ("own_models:junk", r"own_models:junk returned a list; expected a torch\.nn\.Module, \(module, batches\)"),
        ("own_models:three", r"returned a tuple of 3 \(Linear, list, NoneType\); expected .*\(module, tokenizer\)"),
        ("own_models:none_first", r"returned a tuple of 2 \(NoneType, list\)"),
        ("own_models:no_tokenizer", r"returned a model and a Encoding, which is no tokenizer.*Return batches"),
        ("own_models:nothing", r"own_models:nothing returned None"),
        ("own_models:failing", r"failed: RuntimeError: no weights \(.*own_models\.py, line \d+\)"),
        ("own_models:leaving", r"failed: SystemExit: 3"),
        ("own_models:wanting", r"failed: TypeError: .*'path'"),
        ("own_models:no_batches", r"own_models:no_batches returned no batches"),
        (
            "own_models:bad_batches",
            r"the batches of own_models:bad_batches cannot be used: .* holds what the model takes, and this is text",
        ),
        ("own_models:failing_batches", r"the batches of .* cannot be read: OSError: no disk \(.*own_models\.py, line"),
    ],
)
def test_a_function_that_makes_no_model_is_told_with_the_place(here, source, message):
    before = list(sys.path)
    with pytest.raises(ModelError, match=message):
        load_model(source)
    assert sys.path == before


def test_batches_are_taken_as_python_takes_them(here, monkeypatch):
    module = ModuleType("own_pairs")
    x, y = torch.randn(6, 4), torch.arange(6) % 2

    class Classifies(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    module.pairs = lambda: (Classifies(4, 2), [(x[:3], y[:3]), (x[3:], y[3:])])
    module.whole = lambda: (Classifies(4, 2), (x, y))
    monkeypatch.setitem(sys.modules, "own_pairs", module)
    for source in ("own_pairs:pairs", "own_pairs:whole"):
        batches = load_model(source).batches
        assert torch.equal(torch.cat([batch["x"] for batch in batches]), x)
        assert torch.equal(torch.cat([batch["labels"] for batch in batches]), y)


# ---- no noise, no trace
