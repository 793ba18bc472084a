"""A cut model as a plain one: which cuts are written, what is in the folder, and what every refusal says."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from headscope.anatomy.records import leave_record, record_of
from headscope.errors import AnatomyError, InputError, StorageError
from headscope.surgery import export, exporting, head_counts, load, prune, save
from headscope.surgery.verification import difference
from tests import families, models

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
GROUPED = {**SIZES, "num_key_value_heads": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def causal(kind, **settings):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TOKENS, **settings))


def bare(kind, **settings):
    return AutoModel.from_config(AutoConfig.for_model(kind, **settings))


def whisper():
    sides = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers",)}
    sides |= {
        f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("attention_heads", 4), ("ffn_dim", 48))
    }
    positions = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    return bare("whisper", d_model=32, vocab_size=60, decoder_start_token_id=1, **sides, **positions, **TOKENS)


# (the model, heads that go, what of the config is other than before)
GOING = {
    "llama": (lambda: models.build("llama"), "whole groups", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "gemma3": (lambda: models.build("gemma3"), "half", {"num_attention_heads": 2}),
    "mistral": (lambda: causal("mistral", **GROUPED), "one of each group", {"num_attention_heads": 2}),
    "qwen2": (lambda: causal("qwen2", **GROUPED), "one of each group", {"num_attention_heads": 2}),
    "qwen3": (lambda: causal("qwen3", **GROUPED), "whole groups", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3, three of four": (
        lambda: causal("qwen3", **SIZES, num_key_value_heads=4, head_dim=8),
        "one",
        {"num_attention_heads": 3, "num_key_value_heads": 3},
    ),
    "glm": (lambda: causal("glm", **GROUPED, head_dim=8), "one of each group", {"num_attention_heads": 2}),
    "cohere": (lambda: causal("cohere", **GROUPED), "one of each group", {"num_attention_heads": 2}),
    "vit": (
        lambda: bare("vit", **{k: v for k, v in SIZES.items() if k != "vocab_size"}, image_size=16, patch_size=8),
        "one",
        {"num_attention_heads": 3},
    ),
}
HEADS = {
    "one": [1],
    "half": [0, 2],
    "whole groups": None,
    "one of each group": [0, 3],
}


def heads_of(model, name):
    config = model.config
    gone = HEADS[name]
    if gone is None:
        gone = range(config.num_attention_heads // config.num_key_value_heads)
    return [(layer, head) for layer in range(config.num_hidden_layers) for head in gone]


def build(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
    return model


def outputs(model, **example):
    with torch.no_grad():
        return model(**example)[0]


IDS = torch.arange(3, 13).view(2, 5)
PICTURES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}

PLAIN = """
import sys
sys.modules["headscope"] = None  # importing it fails
import torch, transformers
for folder in sys.argv[1:]:
    kind, example = torch.load(f"{folder}/given")
    model = getattr(transformers, kind).from_pretrained(f"{folder}/plain")
    with torch.no_grad():
        torch.save(model(**example)[0], f"{folder}/got")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every model that goes: it, the cut one and where it is; run by one process that has no headscope."""
    made = {}
    for name, (make, which, _) in GOING.items():
        model, folder = build(make), tmp_path_factory.mktemp("exported")
        smaller = prune(model, heads_of(model, which))
        export(smaller, folder / "plain")
        kind, example = ("AutoModel", PICTURES) if name == "vit" else ("AutoModelForCausalLM", {"input_ids": IDS})
        torch.save((kind, example), folder / "given")
        made[name] = model, smaller, folder, example
    call = [sys.executable, "-c", PLAIN, *(folder for _, _, folder, _ in made.values())]
    subprocess.run(call, check=True, capture_output=True, text=True, cwd=folder)
    return made


@pytest.mark.parametrize("name", GOING)
def test_transformers_alone_loads_it_and_computes_the_same(name, exported):
    model, smaller, folder, example = exported[name]
    got = torch.load(folder / "got")
    torch.testing.assert_close(got, outputs(smaller, **example), atol=1e-5, rtol=0)
    assert (got - outputs(model, **example)).abs().max() > 1e-3, "the heads do something"


@pytest.mark.parametrize("name", GOING)
def test_the_config_tells_other_numbers_of_heads_and_nothing_of_a_cut(name, exported):
    model, _, folder, _ = exported[name]
    changed = GOING[name][2]
    before, after = model.config.to_dict(), json.loads((folder / "plain/config.json").read_text())
    assert {key: after[key] for key in changed} == changed
    kept = {key for key in before if "head" in key and key not in changed and before[key] is not None}
    assert {key: after.get(key, before[key]) for key in kept} == {key: before[key] for key in kept}
    assert not [key for key in after if "headscope" in key or key == "transformers_weights"]
    files = {path.name for path in (folder / "plain").iterdir()}
    assert files - {"generation_config.json"} == {"config.json", "model.safetensors"}


def test_every_weight_comes_back_and_the_cut_model_is_left_alone(tmp_path):
    models.build("llama").save_pretrained(tmp_path / "whole")
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    model = prune(whole, [(layer, head) for layer in (0, 1) for head in range(4)])
    config, record = model.config.to_dict(), record_of(model)
    plain = LlamaForCausalLM.from_pretrained(export(model, tmp_path / "plain"))
    assert model.config.to_dict() == config
    assert record_of(model) == record
    assert record_of(plain) is None
    assert plain.generation_config.to_dict() == model.generation_config.to_dict() | {
        "transformers_version": plain.generation_config.to_dict()["transformers_version"]
    }
    before, after = model.state_dict(), plain.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert load(save(model, tmp_path / "saved")).config.num_attention_heads == 8, "it is saved as before"
    with pytest.raises(StorageError, match="whole model of transformers loads with its own from_pretrained"):
        load(tmp_path / "plain")


def test_two_cuts_that_end_alike_in_all_layers_are_one(tmp_path):
    model = build(lambda: causal("qwen3", **GROUPED))
    once = prune(model, ["L0H0", "L1H0", "L1H3"])
    with pytest.raises(StorageError, match="L0: 1 and 2 query heads per key head"):
        export(once, tmp_path / "plain")
    twice = prune(once, ["L0H2"])
    plain = AutoModelForCausalLM.from_pretrained(export(twice, tmp_path / "plain"))
    torch.testing.assert_close(outputs(plain, input_ids=IDS), outputs(twice, input_ids=IDS), atol=1e-5, rtol=0)


def test_the_attention_function_is_the_one_of_the_cut_model_in_the_proof(tmp_path, monkeypatch):
    model = prune(build(lambda: causal("qwen3", **GROUPED)), ["L0H0", "L0H3", "L1H0", "L1H3"])
    model.set_attn_implementation("eager")
    seen = []

    def gap(want, got, batch):
        seen.append(True)
        return difference(want, got, batch)

    monkeypatch.setattr("headscope.surgery.exporting.difference", gap)
    export(model, tmp_path / "plain")
    assert seen
    assert model.config._attn_implementation == "eager"


def test_sides_of_a_config_are_changed_where_they_lie(tmp_path):
    text = {"model_type": "qwen3", **GROUPED, "head_dim": 8}
    vision = {"model_type": "clip_vision_model", **SIZES, "image_size": 16, "patch_size": 8}
    model = build(lambda: bare("llava", text_config=text, vision_config=vision))
    folder = export(prune(model, ["L0H0", "L0H3", "L1H0", "L1H3"]), tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["num_attention_heads"] == 2
    assert config["vision_config"]["num_attention_heads"] == 4
    assert AutoModel.from_pretrained(folder)


def test_large_models_go_into_several_files_and_a_tokenizer_beside_them(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    model = prune(build(lambda: causal("qwen3", **GROUPED)), ["L0H0", "L0H3", "L1H0", "L1H3"])
    folder = export(model, tmp_path / "plain", tokenizer=Tokenizer(), max_shard_size=20_000)
    assert (folder / "model.safetensors.index.json").is_file()
    assert (folder / "tokenizer.json").is_file()
    with pytest.raises(StorageError, match="not empty, and was kept"):
        export(model, folder)
    export(model, folder, force=True)
    assert not (folder / "tokenizer.json").exists()
    with pytest.raises(InputError, match="max_shard_size is a number of bytes"):
        export(model, tmp_path / "other", max_shard_size="large")


NO_WIDTH = {
    "gpt2": lambda: models.build("gpt2"),
    "bert": lambda: models.build("bert"),
    "gpt_neox": lambda: families.build_further("gpt_neox"),
    "bart": lambda: families.build_further("bart"),
    "stablelm": lambda: causal("stablelm", **GROUPED),
    "opt": lambda: causal("opt", **SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "clip": lambda: bare("clip_text_model", **SIZES, max_position_embeddings=32, **TOKENS),
    "whisper": whisper,
}


@pytest.mark.parametrize("name", NO_WIDTH)
@pytest.mark.parametrize("gone", [(0, 1), (0, 3)], ids=["a group", "one of each"])
def test_a_config_that_works_out_how_wide_a_head_is_is_named(name, gone, tmp_path):
    model = build(NO_WIDTH[name])
    sites = 3 if name in ("bart", "whisper") else 2
    smaller = prune(model, [(layer, head) for layer in range(sites) for head in gone])
    words = rf"{type(model.config).__name__} has no head_dim: it works out the width .*headscope\.save keeps any cut"
    with pytest.raises(StorageError, match=words):
        export(smaller, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def refused(smaller, tmp_path, words, **more):
    with pytest.raises(StorageError, match=words):
        export(smaller, tmp_path / "plain", **more)
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_numbers_that_a_config_refuses_are_told_with_those_that_it_takes(tmp_path):
    smaller = prune(models.build("llama"), [(layer, head) for layer in (0, 1) for head in (0, 4)])
    words = r"LlamaConfig refuses num_attention_heads 6 \(.*not a multiple.*\); fewer heads that it takes: 1, 2, 4;"
    refused(smaller, tmp_path, words)


def test_layers_that_kept_different_numbers_are_listed(tmp_path):
    model = build(lambda: causal("qwen3", **SIZES | {"num_hidden_layers": 4}, num_key_value_heads=4))
    smaller = prune(model, ["L0H1", "L1H2", "L2H0", "L3H0", "L3H1"])
    words = "layers 0–2 keep 3 heads, layer 3 keeps 2 heads: export needs equally many"
    refused(smaller, tmp_path, words)
    refused(smaller, tmp_path, r"hs\.plan\(scores, uniform=True\).*hs\.save keeps any cut")
    refused(prune(model, ["L2H1"]), tmp_path, "layers 0–1 keep 4 heads, layer 2 keeps 3 heads, layer 3 keeps 4 heads")
    grouped = build(lambda: causal("qwen3", **GROUPED))
    smaller = prune(grouped, ["L0H0", "L0H1", "L1H0", "L1H3"])
    refused(smaller, tmp_path, "layer 0 keeps 2 heads on 1 key head, layer 1 keeps 2 heads on 2 key heads")


def test_query_heads_that_share_key_heads_unevenly_are_counted(tmp_path):
    refused(prune(models.build("llama"), ["L1H0"]), tmp_path, "L1: 3 and 4 query heads per key head")


def test_layers_without_heads_are_named(tmp_path):
    model = models.build("gpt2")
    refused(prune(model, [(0, head) for head in range(4)]), tmp_path, "layer 0 has no head left")
    every = [(layer, head) for layer in (0, 1) for head in range(4)]
    refused(prune(model, every), tmp_path, r"layers 0, 1 have no head left.*headscope\.save")


def test_a_whole_model_is_sent_to_its_own_method(tmp_path):
    refused(models.build("llama"), tmp_path, r"no head was cut out of this LlamaForCausalLM.*own save_pretrained")
    refused(prune(models.build("llama"), []), tmp_path, "no head was cut")


def test_classes_that_plain_transformers_does_not_know_are_refused(tmp_path):
    smaller = prune(models.build("causal"), ["L0H1", "L1H1"], example={"input_ids": IDS})
    refused(smaller, tmp_path, r"Transformer is not a class of transformers.*headscope\.save keeps any cut")

    class Own(LlamaForCausalLM):
        pass

    own = Own(models.build("llama").config)
    refused(prune(own, ["L0H1"]), tmp_path, "Own is not a class of transformers")
    refused(nn.Linear(2, 2), tmp_path, "Linear is not a class of transformers")


def test_a_model_that_is_elsewhere_is_refused(tmp_path):
    smaller = prune(models.build("llama"), [(layer, head) for layer in (0, 1) for head in range(4)])
    refused(smaller.to("meta"), tmp_path, "is offloaded .* load the model whole")


def test_an_example_is_asked_for_where_none_can_be_made_up(tmp_path, monkeypatch):
    smaller = prune(build(lambda: causal("qwen3", **GROUPED)), ["L0H0", "L0H3", "L1H0", "L1H3"])

    def fail(_):
        raise AnatomyError("nothing fits", python="pass example=")

    monkeypatch.setattr(exporting, "make_example", fail)
    with pytest.raises(AnatomyError, match="pass example="):
        export(smaller, tmp_path / "plain")


# ---- the proof: what is written wrong does not appear
@pytest.fixture
def smaller():
    return prune(build(lambda: causal("qwen3", **GROUPED)), ["L0H0", "L0H3", "L1H0", "L1H3"])


def test_an_example_has_to_reach_what_was_cut(smaller, tmp_path):
    smaller.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    words = r"layer 1 \(model.layers.1.self_attn\) was cut, and does not run on the example.*pass example= with what it"
    refused(smaller, tmp_path, words)


def test_weights_that_no_config_builds_are_named_with_both_sizes(smaller, tmp_path):
    smaller.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(40, 32))
    refused(
        smaller, tmp_path, r"num_attention_heads 2, .*mlp.up_proj.weight is \(48, 32\), and \(40, 32\) in the cut model"
    )
    smaller.model.layers[0].mlp.more = nn.Linear(2, 2)
    refused(smaller, tmp_path, r"mlp.more.bias is not there, and \(2,\) in the cut model")


def test_edits_that_are_no_slices_are_named_where_nothing_fits(smaller, tmp_path):
    record = record_of(smaller)
    edit = {"edit": "repair_sizes", "module": "model.layers.0.self_attn", "sizes": []}
    leave_record(smaller, replace(record, edits=(*record.edits, edit)))
    smaller.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(40, 32))
    refused(smaller, tmp_path, r"the cut needed more than slices, too: repair_sizes in model\.layers\.0\.self_attn")


def test_a_model_that_computes_otherwise_is_refused(smaller, tmp_path):
    attention = smaller.model.layers[0].self_attn
    attention.scaling *= 1.5  # in no weight and in no config
    refused(smaller, tmp_path, r"what is loaded gives other outputs, by .* \(allowed 1e-05\); headscope")


def test_tables_that_a_cast_rounded_are_named_with_what_helps(tmp_path):
    heads = [(layer, head) for layer in (0, 1) for head in range(4)]
    cast = prune(models.build("llama").to(torch.bfloat16), heads)
    words = (
        "inv_freq is made anew .* is torch.float32 there, torch.bfloat16 in the cut model: cut one that was loaded with"
    )
    refused(cast, tmp_path, words)


def test_weights_that_come_back_otherwise_are_refused(smaller, tmp_path, monkeypatch):
    plain = type(smaller).from_pretrained

    def altered(*args, **kwargs):
        loaded = plain(*args, **kwargs)
        loaded.model.norm.weight.data[0] += 1e-7
        return loaded

    monkeypatch.setattr(type(smaller), "from_pretrained", altered)
    refused(smaller, tmp_path, "model.norm.weight comes back with other numbers")


def test_a_folder_that_does_not_load_and_a_disk_that_is_full_are_told_apart(smaller, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no such thing")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(smaller), "from_pretrained", broken)
        refused(smaller, tmp_path, r"from_pretrained fails on it \(no such thing\)")
    with monkeypatch.context() as patched:
        patched.setattr("transformers.modeling_utils.safe_save_file", full)
        refused(smaller, tmp_path, "No space left on device; nothing was written")
    with monkeypatch.context() as patched:
        patched.setattr("transformers.modeling_utils.safe_save_file", broken)
        refused(smaller, tmp_path, r"save_pretrained fails \(no such thing\)")


def test_integers_that_change_no_shape_stay_as_they_are(smaller, tmp_path):
    for number in range(12):
        setattr(smaller.config, f"odd_heads_{number}", 4)
    config = json.loads((export(smaller, tmp_path / "plain") / "config.json").read_text())
    assert config["num_attention_heads"] == 2
    assert {config[f"odd_heads_{number}"] for number in range(12)} == {4}


def test_many_integers_that_could_count_heads_end_in_finite_time(smaller, tmp_path, monkeypatch):
    built = []
    shapes = head_counts.Rebuilding._shapes
    monkeypatch.setattr(head_counts.Rebuilding, "_shapes", lambda self, data: built.append(1) or shapes(self, data))
    for number in range(12):
        setattr(smaller.config, f"odd_heads_{number}", 4)
    smaller.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(40, 32))
    refused(smaller, tmp_path, "no numbers of heads in Qwen3Config build this model")
    assert len(built) < 140
