import json
import logging
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from headscope import loading
from headscope.errors import InputError, ModelError, StorageError
from headscope.loading import load_model, quietly
from headscope.surgery import prune, save

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make_tokenizer():
    vocabulary = {"[UNK]": 0, **{f"w{number}": number for number in range(1, 40)}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "[UNK]")), unk_token="[UNK]")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of saved models; tests that alter one copy it."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    with quietly():
        BertModel(BertConfig(**SIZES)).save_pretrained(root / "bare")
        BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(root / "masked")
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
        gpt2.bfloat16().save_pretrained(root / "causal")
        make_tokenizer().save_pretrained(root / "causal")
    return root


@pytest.fixture
def bare(saved, tmp_path):
    return Path(shutil.copytree(saved / "bare", tmp_path / "bare"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "kind"), [("bare", BertModel), ("masked", BertForMaskedLM), ("causal", GPT2LMHeadModel)]
)
def test_a_folder_loads_as_the_class_that_was_saved(saved, name, kind):
    loaded = load_model(saved / name)
    assert type(loaded.model) is kind
    assert loaded.name == name
    assert loaded.batches is None
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    want = kind.from_pretrained(saved / name, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, want[key]) for key, tensor in loaded.model.state_dict().items())


def test_a_config_that_names_no_class_loads_without_a_head(bare):
    edit_config(bare, architectures=None)
    assert type(load_model(str(bare)).model) is BertModel


def test_the_tokenizer_comes_with_the_model_and_none_is_made_up(saved):
    tokenizer = load_model(saved / "causal").tokenizer
    assert tokenizer.convert_tokens_to_ids("w7") == 7
    # for a folder without one, transformers makes up a BERT tokenizer that knows nothing but special tokens
    assert load_model(saved / "bare").tokenizer is None


def test_a_broken_tokenizer_is_told(saved, tmp_path):
    folder = Path(shutil.copytree(saved / "causal", tmp_path / "causal"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer in '.*causal' does not load: "):
        load_model(folder)


@pytest.mark.parametrize("dtype", ["float64", "torch.bfloat16", torch.float16])
def test_a_precision_is_taken_as_asked(saved, dtype):
    want = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in load_model(saved / "causal", dtype=dtype).model.parameters()} == {want}


@pytest.mark.parametrize("dtype", ["float7", "int64", "nn", ""])
def test_no_such_precision(saved, dtype):
    with pytest.raises(InputError, match=f"the dtype '{dtype}' is not a precision"):
        load_model(saved / "bare", dtype=dtype)


@pytest.mark.parametrize("device", ["warp", "cuda:99", ""])
def test_no_such_device(saved, device):
    with pytest.raises(InputError, match=rf"the device '{device}' cannot be used here: .* try 'cpu'"):
        load_model(saved / "bare", device=device)


def test_a_model_goes_to_the_device_that_was_named(saved):
    assert next(load_model(saved / "bare", device="meta").model.parameters()).device.type == "meta"


# ---- a pruned model


def test_a_pruned_model_loads_pruned(saved, tmp_path):
    whole = load_model(saved / "causal")
    smaller = prune(whole.model, ["L0H1"])
    save(smaller, tmp_path / "smaller", tokenizer=whole.tokenizer)
    loaded = load_model(tmp_path / "smaller")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, smaller(ids).logits)
        assert not torch.equal(loaded.model(ids).logits, whole.model(ids).logits)
    assert loaded.tokenizer.convert_tokens_to_ids("w7") == 7
    assert not loaded.model.training
    (tmp_path / "smaller/headscope.json").write_text("{}")
    with pytest.raises(StorageError):
        load_model(tmp_path / "smaller")


# ---- folders that are no models


def test_what_is_not_there_is_told_with_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("./nothing", str(tmp_path / "nothing"), "a/b/c"):
        with pytest.raises(ModelError, match=rf"there is no folder '{name}' \(looked in {tmp_path}\)"):
            load_model(name)
    with pytest.raises(ModelError, match="no model was named"):
        load_model("")


def test_a_file_is_not_a_model(bare):
    with pytest.raises(ModelError, match=r"config\.json' is a file; a model is the folder"):
        load_model(bare / "config.json")


def test_a_folder_without_config_says_what_it_holds(bare, tmp_path):
    (bare / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json \(it holds: model\.safetensors\)"):
        load_model(bare)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"\(it holds: nothing\)"):
        load_model(tmp_path / "empty")


def test_pickles_are_not_read(bare):
    weights = bare / "model.safetensors"
    weights.rename(bare / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, which can run code as it loads"):
        load_model(bare)
    (bare / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file \(no weights\)"):
        load_model(bare)


def test_truncated_weights_and_weights_of_another_size_are_told(bare):
    weights = bare / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"the model in '.*bare' does not load: SafetensorError: "):
        load_model(bare)
    weights.write_bytes(whole)
    edit_config(bare, hidden_size=32)
    with pytest.raises(ModelError, match=r"the model in '.*bare' does not load: "):
        load_model(bare)


def test_weights_that_were_never_saved_are_warned_of(bare):
    edit_config(bare, architectures=["BertForMaskedLM"])
    with pytest.warns(UserWarning, match=r"6 weights of BertForMaskedLM .* drawn at random \(cls\.predictions\.bias, "):
        load_model(bare)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nonsense"}, "does not load: ValueError: .* model type `nonsense`"),
        ({"architectures": ["BertForNothing"]}, r"saved as BertForNothing, which transformers [\d.]+ does not have"),
    ],
)
def test_an_unknown_kind_of_model_is_told(bare, changes, message):
    edit_config(bare, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(bare)


def test_a_config_that_is_not_json_is_told(bare):
    (bare / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"does not load: .*not a valid JSON"):
        load_model(bare)


# ---- code that comes with a model

REMOTE = """
from pathlib import Path
from transformers import BertModel
Path({marker!r}).touch()
class OwnModel(BertModel):
    {body}
"""
REMOTE_CONFIG = "from transformers import BertConfig\nclass OwnConfig(BertConfig):\n    model_type = 'own'\n"


@pytest.fixture(params=["own config", "config of transformers"])
def remote(request, bare, tmp_path, monkeypatch):
    """A model with code of its own, which leaves a file called "ran" when it runs."""
    own = request.param == "own config"
    body = "from .own_config import OwnConfig as config_class" if own else "pass"
    (bare / "own_model.py").write_text(REMOTE.format(marker=str(tmp_path / "ran"), body=body))
    (bare / "own_config.py").write_text(REMOTE_CONFIG)
    auto = {"AutoModel": "own_model.OwnModel"}
    if own:
        edit_config(bare, model_type="own", auto_map=auto | {"AutoConfig": "own_config.OwnConfig"})
    else:
        edit_config(bare, auto_map=auto)
    edit_config(bare, architectures=["OwnModel"])
    # where transformers copies such code to, and how it becomes importable
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return bare


def test_code_that_comes_with_a_model_does_not_run_unasked(remote, tmp_path):
    with pytest.raises(ModelError, match=r"own Python code.*, which would run .*trust_remote_code=True"):
        load_model(remote)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_runs_when_asked(remote, tmp_path):
    loaded = load_model(remote, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert (tmp_path / "ran").exists()


# ---- names on the hub


def test_a_name_that_no_hub_answers_for_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    where = rf"there is no folder 'nobody/nothing' \(looked in {tmp_path}\)"
    with pytest.raises(ModelError, match=rf"{where}, and the hub \(huggingface\.co\) cannot be reached"):
        load_model("nobody/nothing")


def test_what_the_hub_answers_is_passed_on(monkeypatch):
    def refuse(name, **settings):
        assert not settings["local_files_only"]
        raise OSError("nobody/nothing is not a valid model identifier\nlisted on the hub\n\nPages of advice")

    monkeypatch.setattr(loading, "_hub_answers", lambda: True)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=r"as a hub name it does not load: OSError: nobody/nothing .* on the hub$"):
        load_model("nobody/nothing")


def test_a_model_on_the_hub_loads_with_its_tokenizer(saved, monkeypatch):
    """The hub is a folder here: what is asked of transformers is the same."""

    def redirect(cls):
        original = cls.from_pretrained
        monkeypatch.setattr(cls, "from_pretrained", lambda name, **settings: original(saved / "causal", **settings))

    for cls in (transformers.AutoConfig, GPT2LMHeadModel, transformers.AutoTokenizer):
        redirect(cls)
    loaded = load_model("openai/tiny")
    assert (loaded.name, type(loaded.model)) == ("openai/tiny", GPT2LMHeadModel)
    assert loaded.tokenizer.convert_tokens_to_ids("w7") == 7


def test_the_hub_is_looked_up_unless_a_proxy_does_it(monkeypatch):
    def unknown(*address):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(loading, "is_offline_mode", lambda: False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert not loading._hub_answers()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address: [])
    assert loading._hub_answers()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:8080"})
    assert loading._hub_answers()
    monkeypatch.setattr(loading, "is_offline_mode", lambda: True)
    assert not loading._hub_answers()


# ---- functions of the user's own

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

def no_batches():
    return nn.Linear(3, 4), []

def bad_batches():
    return nn.Linear(3, 4), [{"x": torch.ones(2, 3)}, {"x": [1, 2]}]

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
        ("own_models:junk", r"own_models:junk returned a list; expected a torch\.nn\.Module, or \(module, batches\)"),
        ("own_models:nothing", r"own_models:nothing returned None"),
        ("own_models:failing", r"failed: RuntimeError: no weights \(.*own_models\.py, line \d+\)"),
        ("own_models:leaving", r"failed: SystemExit: 3"),
        ("own_models:wanting", r"failed: TypeError: .*'path'"),
        ("own_models:no_batches", r"own_models:no_batches returned no batches"),
        (
            "own_models:bad_batches",
            r"batch 1 of own_models:bad_batches is a dict; expected a dict of the model's tensors",
        ),
        ("own_models:failing_batches", r"the batches of .* cannot be read: OSError: no disk \(.*own_models\.py, line"),
    ],
)
def test_a_function_that_makes_no_model_is_told_with_the_place(here, source, message):
    before = list(sys.path)
    with pytest.raises(ModelError, match=message):
        load_model(source)
    assert sys.path == before


# ---- no noise, no trace


@pytest.mark.parametrize("bars", [True, False])
def test_loading_says_nothing_and_leaves_the_settings_as_they_were(saved, bare, capfd, bars):
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), not loading.are_progress_bars_disabled()
    try:
        hf_logging.set_verbosity(logging.INFO)
        (hf_logging.enable_progress_bar if bars else hf_logging.disable_progress_bar)()
        load_model(saved / "causal")
        (bare / "model.safetensors").write_bytes(b"")
        with pytest.raises(ModelError):
            load_model(bare)
        assert capfd.readouterr() == ("", "")
        assert hf_logging.get_verbosity() == logging.INFO
        assert hf_logging.is_progress_bar_enabled() is bars
        assert loading.are_progress_bars_disabled() is not bars
    finally:
        hf_logging.set_verbosity(before[0])
        (hf_logging.enable_progress_bar if before[1] else hf_logging.disable_progress_bar)()
        loading._show_downloads(before[2])


def test_downloads_show_in_a_terminal_only(monkeypatch):
    loading._show_downloads(True)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with quietly():
            assert not hf_logging.is_progress_bar_enabled()
            assert loading.are_progress_bars_disabled() is not terminal
