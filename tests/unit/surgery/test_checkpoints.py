"""A cut model through save_pretrained and back: itself, or an error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertModel,
    LlamaModel,
)

from headscope.anatomy import discover
from headscope.errors import StorageError
from headscope.surgery import load, prune, save
from tests import models

IDS = torch.arange(3, 13).view(2, 5)
UNVERIFIED = "is unverified: save_pretrained leaves no checksums"
WHOLE_LAYER = [(0, head) for head in range(4)]


def outputs(model):
    with torch.no_grad():
        return model.eval()(IDS)[0]


def comes_back(folder, model=None):
    with pytest.warns(UserWarning, match=UNVERIFIED):
        return load(folder, model)


@pytest.fixture(scope="module")
def cut():
    return prune(models.build("llama"), ["L0H1", "L1H0"])


@pytest.fixture
def folder(cut, tmp_path):
    cut.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def reweigh(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("gpt2", ["L0H1"]),
        ("gpt2", [*WHOLE_LAYER, (1, 3)]),
        ("llama", [(0, 1), (0, 5), (1, 0), (1, 4)]),  # as many of each group
        ("llama", [(0, 2), (1, 2)]),  # an index map
        ("bert", [(0, 2), (1, 2)]),
        ("gemma3", [*WHOLE_LAYER, (1, 3)]),
    ],
)
def test_it_comes_back_itself_and_plain_from_pretrained_refuses_it(name, heads, tmp_path):
    whole = models.build(name)
    pruned = prune(whole, heads)
    pruned.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    loaded = comes_back(tmp_path)
    assert torch.equal(state, torch.get_rng_state()), "nothing was drawn"
    assert type(loaded) is type(pruned)
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(pruned))
    assert not torch.equal(outputs(loaded), outputs(whole))
    assert loaded._headscope.removed == pruned._headscope.removed
    assert loaded._headscope.anatomy == pruned._headscope.anatomy
    for kind in (type(whole), AutoModel):
        for settings in ({}, {"ignore_mismatched_sizes": True}):
            with pytest.raises(ValueError, match=r"load it with headscope\.load"):
                kind.from_pretrained(tmp_path, **settings)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_where_only_the_config_was_saved_sizes_differ(name, tmp_path):
    """As by code that writes weights and config itself; whoever asks for weights of other sizes gets them, then."""
    pruned = prune(models.build(name), ["L0H1", "L1H2"])
    pruned.save_pretrained(tmp_path)
    pruned.config.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(pruned).from_pretrained(tmp_path)
    assert torch.equal(outputs(comes_back(tmp_path)), outputs(pruned))


def test_what_came_back_is_cut_on_and_saved_again(cut, tmp_path):
    cut.save_pretrained(tmp_path)
    again = prune(comes_back(tmp_path), ["L0H2", "L1H7"])
    again.save_pretrained(tmp_path)
    loaded = comes_back(tmp_path)
    assert torch.equal(outputs(loaded), outputs(again))
    assert [str(head) for head in loaded._headscope.removed] == ["L0H1", "L0H2", "L1H0", "L1H7"]
    assert discover(loaded).sites[0].head_ids == (0, 3, 4, 5, 6, 7)


def test_the_folder_says_how_it_is_loaded(cut, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    for _ in range(2):
        cut.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Mine\n")
    assert text.count("headscope.load(") == 1
    cut.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other/README.md").exists(), "one process of many writes"


def test_shards_and_half_precision_come_back(tmp_path):
    pruned = prune(models.build("gpt2").to(torch.bfloat16), ["L0H1", *((1, head) for head in range(4))])
    pruned.save_pretrained(tmp_path, max_shard_size="8KB", safe_serialization=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = comes_back(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(outputs(loaded), outputs(pruned))
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_checkpoint_over_a_verified_folder_is_the_newer_one(cut, tmp_path):
    loaded = load(save(cut, tmp_path / "saved"))
    with torch.no_grad():
        loaded.lm_head.weight.mul_(2)
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(comes_back(tmp_path / "saved")), outputs(loaded))


def test_the_config_goes_round_and_a_whole_model_is_made_of_it(folder, cut, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    assert AutoConfig.for_model(**config.to_dict()).headscope == cut.config.headscope
    config.save_pretrained(folder)
    assert torch.equal(outputs(comes_back(folder)), outputs(cut))
    whole = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in whole.parameters()) > sum(p.numel() for p in cut.parameters())
    whole.save_pretrained(tmp_path / "whole")
    assert torch.equal(outputs(type(cut).from_pretrained(tmp_path / "whole")), outputs(whole))
    with pytest.raises(
        StorageError, match=r"q_proj.weight is \(64, 32\), not \(56, 32\).*take the entry headscope out"
    ):
        load(tmp_path / "whole")
    assert not hasattr(prune(models.build("bert"), []).config, "headscope")


def test_the_model_inside_a_head_and_a_head_put_on(cut, tmp_path):
    cut.model.save_pretrained(tmp_path / "inside")
    inside = comes_back(tmp_path / "inside")
    assert type(inside) is LlamaModel
    assert torch.equal(outputs(inside), outputs(cut.model))
    assert discover(inside).sites[0].head_ids == (0, 2, 3, 4, 5, 6, 7)
    bare = prune(models.build("llama").model, ["L0H1"])
    whole = type(cut)(bare.config)
    whole.model = bare
    whole.save_pretrained(tmp_path / "on")
    again = comes_back(tmp_path / "on")
    assert torch.equal(outputs(again), outputs(whole))
    again.save_pretrained(tmp_path / "on")
    with pytest.raises(ValueError, match=r"headscope\.load"):
        type(cut).from_pretrained(tmp_path / "on", ignore_mismatched_sizes=True)


def test_what_does_not_fit_is_refused(folder, cut):
    whole = models.build("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    reweigh(folder, lambda tensors: tensors.update({name: whole.state_dict()[name], "more": torch.ones(2)}))
    with pytest.raises(StorageError, match=r"q_proj.weight is \(64, 32\), not \(56, 32\); more belongs nowhere\. Save"):
        load(folder)
    reweigh(folder, lambda tensors: (tensors.pop(name), tensors.pop("more")))
    with pytest.raises(StorageError, match=f"{name} is missing"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(StorageError, match="the weights of the cut LlamaForCausalLM cannot be read"):
        load(folder)
    torch.save(cut.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="the weights of the cut LlamaForCausalLM cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config["headscope"].update(format=9),
            "in format 9 what was cut; this headscope reads format 1",
        ),
        (lambda config: config["headscope"].update(record="{"), "incomplete .* was it edited by hand"),
        (lambda config: config["headscope"].pop("record"), "incomplete"),
        (lambda config: config.update(headscope=3), "in format None what was cut"),
        (
            lambda config: config.update(architectures=["LostModel"]),
            "holds a LostModel, which transformers .* not have",
        ),
        (lambda config: config.pop("architectures"), "does not say of which class the cut model is"),
        (lambda config: config.update(num_attention_heads=4), "q_proj has 32 output features; expected 64"),
        (lambda config: config.update(num_hidden_layers=1), "is not the model that was cut: the record in its config"),
    ],
)
def test_a_record_that_was_edited_is_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(StorageError, match=message):
        load(folder)


class Own(BertModel):
    """A class that is not of transformers."""


def test_a_class_of_ones_own_needs_an_instance(tmp_path):
    torch.manual_seed(0)
    whole = Own(models.build("bert").config)
    pruned = prune(whole, ["L0H1"])
    pruned.save_pretrained(tmp_path)
    with pytest.raises(StorageError, match=r"holds a Own.* pass model="):
        load(tmp_path)
    with pytest.raises(StorageError, match="holds a Own; model= is a BertModel"):
        load(tmp_path, models.build("bert"))
    loaded = comes_back(tmp_path, Own(whole.config))
    assert type(loaded) is Own
    assert torch.equal(outputs(loaded), outputs(pruned))


def test_a_folder_that_says_of_no_cut_is_not_taken_for_one(tmp_path):
    models.build("bert").save_pretrained(tmp_path)
    with pytest.raises(StorageError, match=r"its config.json says of no cut; .* its own from_pretrained"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StorageError, match="says of no cut"):
        load(tmp_path)


def test_a_folder_can_be_moved(folder, cut, tmp_path):
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert torch.equal(outputs(comes_back(moved)), outputs(cut))


def test_what_does_not_fit_is_told_with_both_versions(folder):
    config = folder / "config.json"
    here = json.loads(config.read_text())["transformers_version"]
    config.write_text(
        config.read_text().replace(f'"transformers_version": "{here}"', '"transformers_version": "5.0.1"')
    )
    reweigh(folder, lambda tensors: tensors.update(more=torch.ones(2)))
    with pytest.raises(StorageError, match=rf"more belongs nowhere.* saved with transformers 5\.0\.1, here is {here}"):
        load(folder)


def test_a_missing_file_of_several_is_named(cut, tmp_path):
    cut.save_pretrained(tmp_path, max_shard_size=20_000)
    comes_back(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(StorageError, match=f"cannot be read: .*{shard.name}"):
        load(tmp_path)
