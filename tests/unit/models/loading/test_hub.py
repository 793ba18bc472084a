"""A model by its name on the hub, which no test reaches."""

import socket
import urllib.request

import huggingface_hub
import pytest
import torch
import transformers
from transformers import GPT2LMHeadModel

from headscope.errors import ModelError, StorageError
from headscope.models import loading
from headscope.models.loading import load_model
from headscope.surgery import prune


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


def test_a_cut_model_on_the_hub_is_loaded_as_one(saved, tmp_path, monkeypatch):
    """From its local cache, as where the hub does not answer."""
    smaller = prune(GPT2LMHeadModel.from_pretrained(saved / "causal"), ["L0H1"])
    cached = tmp_path / "models--me--cut"
    smaller.save_pretrained(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    with pytest.warns(UserWarning, match="is unverified"):
        loaded = load_model("me/cut")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, smaller.eval()(ids).logits)
    assert loaded.name == "me/cut"
    next(cached.rglob("model.safetensors")).unlink()
    with pytest.raises(StorageError, match="the weights of the cut GPT2LMHeadModel cannot be read"):
        load_model("me/cut")


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
