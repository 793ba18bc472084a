import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertModel, GenerationConfig, LlamaForCausalLM

from headscope.errors import StorageError
from headscope.models.reference import Transformer as Reference
from headscope.surgery import checkpoints, load, prune, save
from tests import models


@pytest.fixture(scope="module")
def pruned():
    return prune(models.build("llama"), ["L0H1", "L1H0"])


@pytest.fixture
def folder(pruned, tmp_path):
    return save(pruned, tmp_path / "saved")


IDS = torch.arange(3, 13).view(2, 5)


def rewrite(folder, **changes):
    path = folder / "headscope.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_holds_no_pickle_and_says_what_was_cut(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "headscope.json", "model.safetensors",
    ]  # fmt: skip
    about = json.loads((folder / "headscope.json").read_text())
    assert about["record"]["removed"] == ["L0H1", "L1H0"]
    assert about["class"] == "LlamaForCausalLM"
    assert json.loads((folder / "config.json").read_text())["num_attention_heads"] == 8, "as before the cut"


def test_loading_draws_no_random_numbers_and_leaves_the_model_given_alone(folder, tmp_path):
    state = torch.get_rng_state()
    load(folder)
    assert torch.equal(state, torch.get_rng_state())
    given = models.build("nanogpt", seed=3)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    save(prune(models.build("nanogpt"), ["L0H1"], example={"input_ids": IDS}), tmp_path / "nano")
    loaded = load(tmp_path / "nano", model=given)
    assert loaded is not given
    assert all(torch.equal(before[key], value) for key, value in given.state_dict().items())


def test_a_whole_model_is_saved_and_loaded_as_well(tmp_path):
    model = models.build("bert").train()
    loaded = load(save(model, tmp_path / "whole"))
    assert isinstance(loaded, BertModel)
    assert loaded.training
    assert "_headscope" not in vars(loaded)
    assert torch.equal(loaded.eval()(IDS)[0], model.eval()(IDS)[0])


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    model = prune(models.build("gpt2"), ["L0H1"])
    assert model.lm_head.weight is model.transformer.wte.weight
    loaded = load(save(model, tmp_path / "tied"))
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert len(list(loaded.parameters())) == len(list(model.parameters()))


def test_plain_from_pretrained_refuses_a_cut_model_and_reads_a_whole_one(folder, tmp_path):
    for settings in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=r"load it with headscope\.load"):
            LlamaForCausalLM.from_pretrained(folder, **settings)
    assert "headscope.load" in (folder / "README.md").read_text()
    save(load(folder), tmp_path / "again")
    assert not hasattr(load(tmp_path / "again").config, "transformers_weights"), "it is of the file alone"
    save(models.build("bert"), tmp_path / "whole")
    assert not (tmp_path / "whole/README.md").exists()
    assert BertModel.from_pretrained(tmp_path / "whole")


def test_the_attention_function_and_generation_settings_come_back(pruned, tmp_path):
    pruned = load(save(pruned, tmp_path / "a"))
    pruned.set_attn_implementation("eager")
    pruned.generation_config = GenerationConfig(max_new_tokens=3, do_sample=False)
    loaded = load(save(pruned, tmp_path / "b"))
    assert loaded.config._attn_implementation == "eager"
    assert loaded.generation_config.max_new_tokens == 3


def test_a_folder_with_other_content_is_kept_unless_forced(pruned, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="not empty, and was kept; name another folder, or pass force=True"):
        save(pruned, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    save(pruned, target, force=True)
    assert load(target)


def test_a_save_that_fails_leaves_nothing(pruned, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("headscope.surgery.storage._sha256", fail)
    with pytest.raises(OSError, match="disk full"):
        save(pruned, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_is_saved_beside_it(pruned, tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    folder = save(pruned, tmp_path / "with", tokenizer=Tokenizer())
    assert (folder / "tokenizer.json").is_file()
    (folder / "tokenizer.json").write_text("{ }")
    assert load(folder), "the tokenizer is the user's to change"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_truncated_altered_and_missing_files_are_told_apart_from_whole_ones(folder, name):
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=f"{name} is truncated or was altered.*copy the folder again"):
        load(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match=f"{name} is truncated or was altered"):
        load(folder)
    path.unlink()
    with pytest.raises(StorageError, match=f"{name} is missing"):
        load(folder)


def test_what_is_no_saved_model_is_refused(folder, tmp_path):
    with pytest.raises(StorageError, match="there is no folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"holds no headscope.json.*from_pretrained"):
        load(tmp_path / "empty")
    rewrite(folder, dtype="float8")
    with pytest.raises(StorageError, match="was altered after it was saved"):
        load(folder)
    rewrite(folder, headscope_model=99)
    with pytest.raises(StorageError, match="of format 99; this headscope reads format 1"):
        load(folder)
    (folder / "headscope.json").write_text((folder / "headscope.json").read_text()[:-9])
    with pytest.raises(StorageError, match="cannot be read"):
        load(folder)


@pytest.fixture
def custom(tmp_path):
    return save(prune(models.build("causal"), ["L0H1"], example={"input_ids": IDS}), tmp_path / "custom")


def test_a_class_of_ones_own_needs_an_instance_of_the_original(custom):
    with pytest.raises(StorageError, match=r"Transformer \(of headscope.models.reference\).*pass model="):
        load(custom)
    with pytest.raises(StorageError, match="holds a Transformer; model= is a Linear"):
        load(custom, model=nn.Linear(2, 2))
    with pytest.raises(StorageError, match="model= is pruned itself"):
        load(custom, model=prune(models.build("causal"), ["L0H1"], example={"input_ids": IDS}))
    assert load(custom, model=models.build("causal"))


class Transformer(nn.Module):
    """Another class of the same name."""

    def __init__(self, length=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))


def test_an_original_of_other_sizes_is_refused(custom, tmp_path):
    with pytest.raises(StorageError, match="does not fit the model"):
        load(custom, model=Transformer())
    with pytest.raises(StorageError, match=r"does not fit the model: blocks.0.attention.query has 24 output features"):
        load(custom, model=Reference(60, width=24, n_layers=2, n_heads=3, causal=True))
    with pytest.raises(StorageError, match=r"tokens.weight is \(60, 32\) where the model has \(61, 32\)"):
        load(custom, model=Reference(61, width=32, n_layers=2, n_heads=4, length=64, causal=True))
    with pytest.raises(StorageError, match="weights do not match the model"):
        load(custom, model=Reference(60, width=32, n_layers=2, n_heads=4, length=64))


def test_a_class_that_transformers_lost_is_named(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "transformers", SimpleNamespace(__version__="4.0"))
    with pytest.raises(StorageError, match=r"holds a LlamaForCausalLM, which transformers .* does not have"):
        load(folder)


def test_a_subclass_of_ones_own_is_not_taken_for_the_class_of_transformers(tmp_path):
    class Own(BertModel):
        pass

    folder = save(Own(models.build("bert").config), tmp_path / "own")
    with pytest.raises(StorageError, match=r"holds a Own.*pass model="):
        load(folder)
    shutil.rmtree(folder)


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(StorageError, match="keeps state beside its tensors"):
        save(Counting(2, 2), tmp_path / "odd")
    assert not list(tmp_path.iterdir())


class Forgetful(Reference):
    """Its train() returns nothing, as that of modules with frozen parts often does."""

    def train(self, mode=True):
        super().train(mode)


def test_a_module_whose_train_returns_nothing_is_cut_saved_and_loaded(tmp_path):
    model = Forgetful(11, width=16, n_layers=2, n_heads=4, length=5, causal=True)
    for block in model.modules():
        if type(block).__name__ == "MultiHeadAttention":
            block.train = lambda mode=True: None  # and neither does its attention's
    smaller = prune(model, ["L0H1"], example={"input_ids": IDS % 11})
    loaded = load(save(smaller, tmp_path / "saved"), model=model)
    assert isinstance(loaded, Forgetful)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS % 11), smaller(IDS % 11), rtol=0, atol=0)
