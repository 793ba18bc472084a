"""What a command offers next works: it is run, for a folder and for a function of one's own."""

import pathlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AlbertConfig, AlbertModel

import headscope as hs
from tests import models
from tests.cli.conftest import SMALL, Run, make_tokenizer

OWN = """
import torch
import headscope.models.reference as reference
from tests.cli.conftest import make_tokenizer
from tests.models import VOCABULARY

def batches():
    return reference.example()

def tokenizer():
    torch.manual_seed(0)
    return reference.Transformer(VOCABULARY, 32, 2, 4, causal=True), make_tokenizer(pad=True)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_next.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(out: str) -> tuple[str, str]:
    """The command, and what is to be done in Python; "" for either that is not offered."""
    (line,) = re.findall(r"^next: (.*)$", out, re.MULTILINE)
    command, python = re.fullmatch(r"(headscope .*?)?(?:; )?(?:in Python, (.*))?", line).groups("")  # type: ignore[union-attr]
    return command, python


def follow(run: Run, out: str, *more: object) -> str:
    """Run the command that was offered."""
    command = offered(out)[0]
    assert command.startswith("headscope ")
    code, said, err = run(*shlex.split(command)[1:], *more)
    assert code == 0, (command, err)
    return said


@pytest.mark.parametrize("source", ["a folder", "own_next:batches", "own_next:tokenizer"])
def test_what_is_offered_next_works(run: Run, folder: Path, text: Path, here: Path, source: str) -> None:
    reading: tuple[object, ...] = () if source == "own_next:batches" else ("--text", text, "--split", "^# ")
    model = str(folder) if source == "a folder" else source
    code, out, err = run("analyze", model, *reading, "--out", "my report", *SMALL)
    assert code == 0, err
    out = follow(run, out)
    out = follow(run, out, *reading[:2])
    command, python = offered(out)
    smaller: Any = eval(python, {"headscope": hs})
    assert _size(smaller) < _size(hs.load_model(model).model)
    assert bool(command) == (source == "a folder"), "a class of one's own is not built from its folder"
    if command:
        follow(run, out, *reading, *SMALL)


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_plan_of_a_run_without_a_name_is_cut_in_python(run: Run, here: Path) -> None:
    model, batches = models.build("llama"), models.make_batches("llama", n_batches=4, rows=4)
    hs.analyze(model, batches=batches, budget=hs.Budget(passes=0, ablation_tokens=60)).save(here / "run")
    code, out, _ = run("plan", "run", "--heads", "2", "--out", "plan.json")
    command, python = offered(out)
    assert (code, command) == (0, "")
    smaller = eval(python, {"headscope": hs, "pathlib": pathlib, "model": model, "batches": batches})
    assert hs.discover(smaller).n_heads == 14


@pytest.mark.parametrize("command", [("inspect",), ("similarity", "--measure", "weights_ov")])
def test_a_model_that_comes_with_a_tokenizer_is_probed_with_its_text(
    run: Run, here: Path, command: tuple[str, ...]
) -> None:
    code, out, err = run(command[0], "own_next:tokenizer", *command[1:])
    assert code == 0, err
    assert "L0H" in out or "Transformer: 8 heads in 2 layers" in out


def test_how_a_model_was_loaded_is_part_of_what_is_offered(run: Run, folder: Path, text: Path, here: Path) -> None:
    reading = ("--text", text, "--split", "^# ", *SMALL)
    code, out, _ = run("analyze", folder, *reading, "--out", "out", "--dtype", "float64")
    assert code == 0
    code, out, _ = run("plan", "out", "--heads", "1")
    assert offered(out)[0] == f"headscope prune {folder} --dtype float64 --plan plan.json --out smaller"


def test_a_cut_that_is_known_to_be_refused_is_not_offered(run: Run, here: Path) -> None:
    """ALBERT: its layers run the same weights, and would have to lose the same heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    AlbertModel(AlbertConfig(**sizes, vocab_size=models.VOCABULARY, embedding_size=16)).save_pretrained("albert")
    make_tokenizer(pad=True).save_pretrained("albert")
    model = hs.load_model("albert").model
    ids = torch.randint(6, models.VOCABULARY, (4, 4, 9), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": one} for one in ids]
    analysis = hs.analyze(model, batches=batches, budget=hs.Budget(passes=0, ablation_tokens=60))
    analysis.save(here / "run")
    for how in (("--heads", "1"), ("--score", "ablation", "--share", "0.15", "--keep-per-layer", "0")):
        code, out, err = run("plan", "run", *how, "--out", "plan.json", "--force")
        assert code == 0, err
        assert "refused: layers 0, 1 run the same weights" in out
        assert "next:" not in out
        assert "parameters of attention" not in out


def test_a_plain_folder_is_offered_to_transformers_and_to_headscope(
    run: Run, folder: Path, text: Path, here: Path
) -> None:
    heads = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (1, 7)]  # a key head of each layer goes with them
    (here / "plan.json").write_text(hs.Plan(heads).to_json())
    code, out, err = run("prune", folder, "--plan", "plan.json", "--export", "--out", "plain")
    assert (code, err) == (0, "")
    command, python = offered(out)
    assert python == "transformers.LlamaForCausalLM.from_pretrained('plain')"
    plain = eval(python, {"transformers": transformers})
    assert plain.config.num_attention_heads == 4
    assert (here / "plain/tokenizer.json").is_file()
    assert not (here / "plain/headscope.json").exists()
    ids = torch.randint(6, models.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), hs.ablate(whole := hs.load_model(str(folder)).model, heads):
        torch.testing.assert_close(plain(ids).logits, whole(ids).logits, atol=1e-5, rtol=0)
    assert command == "headscope analyze plain --out plain-report"
    follow(run, out, "--text", text, "--split", "^# ", *SMALL)


def test_a_plan_that_cannot_be_exported_is_refused_with_what_to_do(run: Run, folder: Path, here: Path) -> None:
    code, _, err = run("prune", folder, "--share", "0.5", "--export", "--out", "plain")
    assert code == 2
    words = " ".join(re.sub("[│╭╰─]", " ", err).split())
    assert "headscope plan RUN --score ablation --share SHARE --uniform" in words
    (here / "plan.json").write_text(hs.Plan([(0, head) for head in range(4)]).to_json())
    code, _, err = run("prune", folder, "--plan", "plan.json", "--export", "--out", "plain")
    assert code == 1
    assert "layer 0 keeps 4 heads, layer 1 keeps 8 heads: export needs equally many" in err
    assert "`headscope plan --score … --uniform` takes as many from each; without --export any cut is written" in err
    assert not (here / "plain").exists()
