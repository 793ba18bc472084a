import json
import shutil
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertModel, GenerationConfig, LlamaForCausalLM

from headscope.errors import InputError, StorageError
from headscope.models.reference import Transformer as Reference
from headscope.surgery import checkpoints, load, prune, save, storage
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
    with pytest.raises(StorageError, match=r"of format 99, of headscope .* reads formats 1 to 3: update headscope"):
        load(folder)
    rewrite(folder, headscope_model=None)
    with pytest.raises(StorageError, match="does not say its format: it was altered"):
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


def several(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("model"))


def test_a_large_model_goes_into_several_files_with_an_index(pruned, tmp_path):
    folder = save(pruned, tmp_path / "sharded", max_shard_size=20_000)
    *shards, index = several(folder)
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index == "model.safetensors.index.json"
    assert all((folder / shard).stat().st_size < 21_000 for shard in shards)
    where = json.loads((folder / index).read_text())
    assert set(where["weight_map"].values()) == set(shards)
    assert where["metadata"]["total_size"] == sum(p.nbytes for p in [*pruned.parameters(), *pruned.buffers()])
    loaded, whole = load(folder), load(save(pruned, tmp_path / "whole"))
    assert loaded.state_dict().keys() == whole.state_dict().keys()
    for kind in ("parameters", "buffers"):
        pairs = zip(getattr(loaded, kind)(), getattr(pruned, kind)(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert several(tmp_path / "whole") == ["model.safetensors"]
    with pytest.raises(ValueError, match=r"load it with headscope\.load"):
        LlamaForCausalLM.from_pretrained(folder)


def test_checksums_cover_every_file_and_the_index(pruned, tmp_path):
    folder = save(pruned, tmp_path / "sharded", max_shard_size="20KB")
    about = json.loads((folder / "headscope.json").read_text())
    assert about["headscope_model"] == 2, "headscope before this one says to update it"
    for name in several(folder):
        assert name in about["sha256"]
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StorageError, match=f"{name} is truncated or was altered"):
            load(folder)
        (folder / name).unlink()
        with pytest.raises(StorageError, match=f"{name} is missing; copy the folder again"):
            load(folder)
        (folder / name).write_bytes(whole)
    assert load(folder)


def test_tied_weights_and_views_go_apart_into_files(tmp_path):
    model = models.build("gpt2")
    loaded = load(save(model, tmp_path / "tied", max_shard_size=8_000))
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    flat = torch.arange(64.0)
    own = nn.Module()
    own.first, own.second = nn.Parameter(flat[:40]), nn.Parameter(flat[20:])  # one piece of memory
    again = nn.Module()
    again.first, again.second = nn.Parameter(torch.zeros(40)), nn.Parameter(torch.zeros(44))
    for size, files in (("5GB", 1), (200, 3)):
        folder = save(own, tmp_path / f"views of {size}", max_shard_size=size)
        assert len(several(folder)) == files
        loaded = load(folder, model=again)
        assert torch.equal(loaded.first, own.first)
        assert torch.equal(loaded.second, own.second)


def test_no_more_than_a_file_is_copied_at_a_time(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("headscope.surgery.weights.save_file", lambda tensors, _: given.append(tensors))
    monkeypatch.setattr("headscope.surgery.storage._sha256", lambda _: "")
    model = models.build("bert")
    save(model, tmp_path / "sharded", max_shard_size=9_000)
    assert len(given) > 3
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert all(sum(tensor.nbytes for tensor in file.values()) <= max(9_000, largest) for file in given)
    names = [name for file in given for name in file]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("size", [0, -5, True, "5 apples", "much", None, 2.5])
def test_what_is_no_size_is_refused(size, tmp_path):
    with pytest.raises(InputError, match="a number of bytes, or text like '5GB'"):
        save(models.build("bert"), tmp_path / "saved", max_shard_size=size)
    assert not list(tmp_path.iterdir())


def as_before(folder):
    """As headscope wrote it before it told versions: format 1, without them."""
    about = json.loads((folder / "headscope.json").read_text())
    del about["versions"], about["digest"]
    (folder / "headscope.json").write_text(json.dumps(about | {"digest": storage._digest(about)}))


def test_a_folder_of_before_is_read(folder, pruned):
    assert json.loads((folder / "headscope.json").read_text())["headscope_model"] == 1
    as_before(folder)
    assert torch.equal(load(folder)(IDS).logits, pruned(IDS).logits)


def in_transformers(folder, version):
    """As another version of transformers would have left it."""
    about = json.loads((folder / "headscope.json").read_text())
    about.pop("digest")
    about["versions"]["transformers"] = version
    (folder / "headscope.json").write_text(json.dumps(about | {"digest": storage._digest(about)}))


def test_what_does_not_fit_is_told_with_both_versions(custom, folder):
    wrong = Reference(60, width=24, n_layers=2, n_heads=3, causal=True)
    with pytest.raises(
        StorageError, match=rf"with transformers {version('transformers')} and headscope .*, as are here"
    ):
        load(custom, model=wrong)
    in_transformers(custom, "5.0.1")
    words = rf"saved with transformers 5\.0\.1, here is {version('transformers')}"
    with pytest.raises(StorageError, match=words):
        load(custom, model=wrong)
    as_before(custom)
    with pytest.raises(StorageError, match="It does not tell with which version of transformers it was saved"):
        load(custom, model=wrong)


def test_a_class_that_is_gone_is_told_with_the_version_that_had_it(folder, monkeypatch):
    in_transformers(folder, "5.99.0")
    monkeypatch.setattr(checkpoints, "transformers", SimpleNamespace(__version__="4.0"))
    with pytest.raises(StorageError, match=r"does not have; install transformers 5\.99\.0, with which it was saved"):
        load(folder)


@pytest.mark.parametrize("spoil", [lambda record: record.pop("removed"), lambda record: record["anatomy"].pop("sites")])
def test_a_record_that_is_told_otherwise_is_named(folder, spoil):
    about = json.loads((folder / "headscope.json").read_text())
    about.pop("digest")
    spoil(about["record"])
    (folder / "headscope.json").write_text(json.dumps(about | {"digest": storage._digest(about)}))
    with pytest.raises(StorageError, match=r"headscope.json: what was cut is not told as this headscope tells it"):
        load(folder)
