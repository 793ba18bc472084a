"""A model by the folder that it was saved in."""

import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM, BertModel, GPT2LMHeadModel
from transformers.utils import logging as hf_logging

from headscope._support import silence
from headscope.errors import InputError, ModelError, StorageError
from headscope.models.loading import load_model
from headscope.surgery import prune, save
from tests.unit.models.loading.configs import edit_config


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


def test_a_checkpoint_of_a_pruned_model_loads_pruned_and_says_that_it_is_unverified(saved, tmp_path):
    smaller = prune(load_model(saved / "causal").model, ["L0H1"])
    smaller.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is unverified"):
        loaded = load_model(tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, smaller(ids).logits)
    assert loaded.model._headscope.removed == smaller._headscope.removed


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
    (bare / "mine.py").touch()
    with pytest.raises(ModelError, match=r"mine\.py' is a file.*is named mine:function"):
        load_model(bare / "mine.py")


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
@pytest.mark.parametrize("bars", [True, False])
def test_loading_says_nothing_and_leaves_the_settings_as_they_were(saved, bare, capfd, bars):
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), not silence.are_progress_bars_disabled()
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
        assert silence.are_progress_bars_disabled() is not bars
    finally:
        hf_logging.set_verbosity(before[0])
        (hf_logging.enable_progress_bar if before[1] else hf_logging.disable_progress_bar)()
        silence._show_downloads(before[2])


def test_downloads_show_in_a_terminal_only(monkeypatch):
    silence._show_downloads(True)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with silence.quietly():
            assert not hf_logging.is_progress_bar_enabled()
            assert silence.are_progress_bars_disabled() is not terminal
