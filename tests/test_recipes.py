"""The recipes of docs/recipes.md: each block runs as it stands, and what it leaves is the model that was cut."""

import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from headscope.errors import StorageError
from headscope.models.loading import load_model
from headscope.surgery import load
from tests import models
from tests.contract.test_cuts import zeroed_by_hand
from tests.pages import DOCS, ROOT, blocks

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries warn of is theirs
HEADS = [(0, 1), (0, 2), (1, 0)]  # of groups that share a key head, unevenly
INPUTS = {"input_ids": torch.arange(3, 13).view(2, 5)}
UNVERIFIED = "is unverified"


def recipe(heading: str) -> str:
    """The one block beneath a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", (DOCS / "recipes.md").read_text("utf-8"), re.M | re.S)
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    return block


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[PAD]": 1, **{f"w{number}": number for number in range(2, models.VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_input_names=names
    )


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


@pytest.fixture
def space(tmp_path, monkeypatch) -> dict:
    """What the page takes for granted, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    model = models.build("llama")
    model.save_pretrained("original")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, models.VOCABULARY, (8,), generator=generator) for _ in range(16)]
    return {
        "model": model, "tokenizer": make_tokenizer(), "heads": HEADS, "inputs": INPUTS, "original": "original",
        "data": [{"input_ids": row, "labels": row} for row in rows],
    }  # fmt: skip


def follow(heading: str, space: dict) -> dict:
    exec(recipe(heading), space)  # the page is ours
    return space


def check_cut(model, whole) -> None:
    """By columns zeroed by hand, with nothing of headscope."""
    want = logits(zeroed_by_hand("llama", whole, HEADS))
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)
    assert (want - logits(whole)).abs().max() > 1e-3, "these heads do nothing: the case proves nothing"


def test_save_and_load(space) -> None:
    with pytest.warns(UserWarning, match=UNVERIFIED):
        follow("Save and load", space)
    assert torch.equal(logits(space["again"]), logits(space["smaller"]))
    check_cut(space["again"], space["model"])


def test_without_headscope(space) -> None:
    follow("Without headscope", space)
    again, smaller, whole = (space[name] for name in ("again", "smaller", "model"))
    torch.testing.assert_close(logits(again), logits(smaller), atol=1e-5, rtol=0)
    assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (4, 1)
    assert (logits(again) - logits(whole)).abs().max() > 1e-3
    assert not hasattr(again, "_headscope")


def test_a_class_of_your_own(space, monkeypatch) -> None:
    batches = [{"input_ids": models.make_batches("nanogpt", 1)[0]["input_ids"]}]
    own = lambda: models.build("nanogpt", seed=1)  # noqa: E731  # of other weights
    space |= {"own": models.build("nanogpt"), "Own": own, "batches": batches}
    follow("A class of your own", space)
    with torch.no_grad():
        found, want = (space[name](**batches[0]) for name in ("again", "smaller"))
    assert torch.equal(found, want)
    module = types.ModuleType("own_module")
    module.function = lambda: (load(Path("smaller"), model=own()), batches)
    monkeypatch.setitem(sys.modules, "own_module", module)
    assert load_model("own_module:function").batches is not None
    with pytest.raises(StorageError, match=r"pass model=, an instance of it .*hs\.load\('smaller', model=NanoGPT"):
        load("smaller")


def test_torch_save(space) -> None:
    follow(r"torch\.save", space)
    assert torch.equal(logits(space["again"]), logits(space["smaller"]))
    check_cut(space["again"], space["model"])


def test_trainer(space) -> None:
    pytest.importorskip("accelerate")
    # as on the page, and the first trainer with a name
    block = (
        recipe("Trainer")
        .replace("Trainer(hs.prune", "first = Trainer(hs.prune")
        .replace(").train()", ")\nfirst.train()")
    )
    with pytest.warns(UserWarning, match=UNVERIFIED):
        exec(block, space)
    assert space["trainer"].state.global_step == 4
    at_one_go, gone_on = (space[name].model.state_dict() for name in ("first", "trainer"))
    assert all(torch.equal(gone_on[name], weight) for name, weight in at_one_go.items())
    half_way = load_file("run/checkpoint-2/model.safetensors")
    assert not all(torch.equal(gone_on[name].cpu(), weight) for name, weight in half_way.items())
    assert [layer.self_attn.q_proj.out_features for layer in space["trainer"].model.model.layers] == [48, 56]


def test_lora(space) -> None:
    pytest.importorskip("peft")
    block = recipe("LoRA").replace("adapted.save", "randomise(adapted)\nadapted.save")

    def randomise(model) -> None:  # adapters that are new do nothing
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)

    exec(block, made := space | {"randomise": randomise})
    assert torch.equal(logits(made["again"]), logits(made["merged"]))
    torch.testing.assert_close(logits(made["merged"]), logits(made["adapted"]), atol=1e-5, rtol=0)
    masked = logits(zeroed_by_hand("llama", space["model"], HEADS))
    assert (logits(made["merged"]) - masked).abs().max() > 1e-3, "the adapter does nothing"
    with pytest.warns(UserWarning, match=UNVERIFIED):
        assert torch.equal(logits(load("merged")), logits(made["merged"]))


def test_pipeline(space) -> None:
    follow("Pipeline", space)
    masked = zeroed_by_hand("llama", space["model"], HEADS)
    ids = space["tokenizer"]("w3 w4 w5", return_tensors="pt")
    want = masked.generate(**ids, max_new_tokens=4, do_sample=False)
    words = space["tokenizer"].convert_ids_to_tokens(want[0, 3:])
    assert space["written"][0]["generated_text"].endswith(" ".join(words))


def test_half_precision(space) -> None:
    with pytest.warns(UserWarning, match=UNVERIFIED):
        follow("Half precision", space)
    assert {parameter.dtype for parameter in space["again"].parameters()} == {torch.bfloat16}
    assert torch.equal(logits(space["again"]), logits(space["smaller"]))


def test_sentence_encoders(space) -> None:
    library = pytest.importorskip("sentence_transformers")
    models.build("bert").save_pretrained("bert")
    space["tokenizer"].save_pretrained("bert")
    parts = importlib.import_module("sentence_transformers.models")
    whole = library.SentenceTransformer(modules=[parts.Transformer("bert"), parts.Pooling(32, "mean")], device="cpu")
    whole.save("encoder")
    space["original"] = "encoder"
    with pytest.warns(UserWarning, match=UNVERIFIED):
        follow("Sentence encoders", space)
    texts = ["w3 w4 w5", "w6"]
    before = whole.encode(texts)
    whole[0].model = zeroed_by_hand("bert", whole[0].model, HEADS)
    np.testing.assert_allclose(space["vectors"], whole.encode(texts), atol=1e-5)
    assert np.abs(space["vectors"] - before).max() > 1e-3, "these heads do nothing"
    with pytest.raises(ValueError, match=r"headscope\.load"):
        library.SentenceTransformer("smaller")


# in a process of its own: the checks of shapes that tests wear cannot be traced
TRACED = """
import functools
import torch
from tests import models
from tests.contract.test_cuts import zeroed_by_hand

heads, inputs = {heads}, {{"input_ids": torch.arange(3, 13).view(2, 5)}}
model = models.build("llama")
torch.compile = functools.partial(torch.compile, backend="eager")  # a compiler of C++ takes most of a minute
with torch.no_grad():
    want = zeroed_by_hand("llama", model, heads)(**inputs).logits
assert (want - model(**inputs).logits).abs().max() > 1e-3
for block in {blocks}:
    exec(block)
    torch.testing.assert_close(torch.as_tensor(logits), want, atol=1e-5, rtol=0)
    del logits
"""


def check_traced(folder: Path, *headings: str) -> None:
    script = TRACED.format(heads=HEADS, blocks=[recipe(heading) for heading in headings])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_compiled_and_exported(tmp_path: Path) -> None:
    check_traced(tmp_path, r"torch\.compile", r"torch\.export")


def test_onnx(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    check_traced(tmp_path, "ONNX")


def test_the_readme_runs_as_it_stands(space) -> None:
    """Its Python, on a model of four layers that lies in a folder; only another model is taken for granted."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    config = LlamaConfig(**sizes, vocab_size=models.VOCABULARY, num_key_value_heads=2, max_position_embeddings=256)
    model, fine_tuned = (LlamaForCausalLM(config).eval() for _ in range(2))
    for saved in (model, space["tokenizer"]):
        saved.save_pretrained("my-model")
    (block,) = blocks(ROOT / "README.md", "python")
    exec(block, done := {"fine_tuned": fine_tuned})
    assert Path("report/index.html").is_file()
    assert done["smaller"].num_parameters() < model.num_parameters()
    (japanese,) = blocks(ROOT / "README.ja.md", "python")
    assert [line.partition("#")[0].rstrip() for line in japanese.splitlines()] == [
        line.partition("#")[0].rstrip() for line in block.splitlines()
    ]


def test_every_recipe_is_followed() -> None:
    headings = re.findall(r"^## (.*)$", (DOCS / "recipes.md").read_text("utf-8"), re.M)
    tests = Path(__file__).read_text("utf-8").replace("\\", "")
    assert len(headings) == 12
    assert [heading for heading in headings if f'"{heading}"' not in tests] == []
