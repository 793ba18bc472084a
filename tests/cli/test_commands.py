"""The command line as a user meets it: what it prints, what it writes, and how it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import headscope as hs
from headscope.cli import app
from headscope.cli.application import GROUPS
from headscope.effects.resolving import METRICS
from headscope.models.demo import DEMO_MODELS
from headscope.studies.headcount import Settings
from tests import models
from tests.cli.conftest import SMALL, Run, make_tokenizer
from tests.heavy import HEAVY

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"headscope {hs.__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "inspect", "analyze", "plan", "prune"):
        assert command in out
        code, usage, _ = run(command, "--help")
        assert code == 0
        assert "Example: headscope" in usage


def test_commands_stand_in_the_order_of_the_work(run: Run) -> None:
    out = run("--help")[1]
    groups = re.findall(r"^(\w+):$", out, flags=re.MULTILINE)
    assert groups == ["Options", *GROUPS]
    shown = re.findall(r"^  ([a-z]+) +[A-Z]", out, flags=re.MULTILINE)
    assert " ".join(shown) == "demo inspect analyze similarity importance compare plan prune headcount claims families"
    assert "..." not in out.partition("Start:")[2], "a command's sentence is whole"
    begins = {
        len(line) - len(line[2:].lstrip("abcdefghijklmnopqrstuvwxyz").lstrip())
        for line in out.splitlines()
        if re.match(r"  [a-z]+ +[A-Z]", line)
    }
    assert len(begins) == 1, "in one column, through all groups"


def test_the_nearest_command_or_option_is_offered(run: Run) -> None:
    code, _, err = run("analize")
    assert (code, "'analyze'" in err) == (2, True)
    code, _, err = run("analyze", "model", "--tekst", "x")
    assert (code, "--text" in err) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("analize",), ("analyze", "--tekst"), *((name, "--help") for name in COMMANDS)],
    ids=" ".join,
)
def test_help_and_mistakes_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    source = (
        f"import sys\nsys.argv = ['headscope', *{arguments!r}]\nimport headscope.cli\n"
        "try:\n    headscope.cli.main()\nexcept SystemExit:\n    pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    assert not set(HEAVY) & loaded


def test_help_names_what_registries_hold() -> None:
    """Written down in help texts, so that these need no registry; here the two are held together."""

    def told(command: str, option: str) -> tuple[str, ...]:
        """Names in an option's help, up to the first semicolon."""
        (parameter,) = (one for one in COMMANDS[command].params if one.name == option)
        return tuple(parameter.help.split(";")[0].removeprefix("of two models: ").split(", "))

    assert told("similarity", "measure") == tuple(hs.MEASURES)
    (of,) = (one.help for one in COMMANDS["similarity"].params if one.name == "of")
    for name, measure in hs.MEASURES.items():
        assert re.search(rf"(?:: |; ){', '.join(measure.sources)} by [^;]*\b{name}\b", of), name
    assert told("importance", "score") == told("compare", "score") == tuple(hs.SCORES)
    assert told("claims", "claim") == tuple(hs.CLAIMS)
    assert told("headcount", "task") == tuple(hs.TASKS)
    assert " or ".join(DEMO_MODELS) in " ".join(told("demo", "model"))
    assert " or ".join(DEMO_MODELS) in next(one.help for one in COMMANDS["claims"].params if one.name == "model")
    usable = [name for name in hs.SCORES if name != "replaceability"]
    assert sorted(told("plan", "score")[0].split(": ")[1:] + list(told("plan", "score")[1:])) == sorted(usable)
    defaults = {one.name: str(one.show_default) for one in COMMANDS["headcount"].params}
    assert defaults["head_dim"] == str(Settings().head_dim)
    assert defaults["seeds"] == f"{Settings().seeds}, or {Settings.quick().seeds} with --quick"
    assert defaults["heads"] == "1,2,4,…,64"
    assert (Settings().heads[:3], Settings().heads[-1]) == ((1, 2, 4), 64)
    assert told("analyze", "metric") == ("auto", *METRICS)
    (metrics,) = (one.help for one in COMMANDS["analyze"].params if one.name == "metric")
    assert "; or package.module:function of your own: it takes (output, batch)" in metrics


def test_wrong_usage_is_exit_code_2(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("analyze", folder)[0] == 2
    assert run("nonsense")[0] == 2
    assert run("prune", folder, "--out", tmp_path / "x")[0] == 2
    assert run("prune", folder, "--out", tmp_path / "x", "--plan", "p", "--share", "0.1")[0] == 2


def test_a_description_tells_what_is_not_recognised(run: Run, folder: Path, tmp_path: Path) -> None:
    layer = "{module: model.layers.*.self_attn, heads: 8, kv_heads: 2, query: q_proj, key: k_proj, value: v_proj, "
    (tmp_path / "own.yaml").write_text(layer + "output: o_proj}")
    code, out, err = run("inspect", folder, "--describe", tmp_path / "own.yaml")
    assert (code, err) == (0, "")
    assert "described" in out
    assert "name a module that makes it as `pattern`" in " ".join(out.split())
    (tmp_path / "wrong.yaml").write_text(
        layer.replace("heads: 8, kv_heads: 2", "heads: 4, kv_heads: 1") + "output: o_proj}"
    )
    _refused(run("importance", folder, "--describe", tmp_path / "wrong.yaml"), "as if query had 8 heads")
    _refused(run("inspect", folder, "--describe", tmp_path / "none.yaml"), "none.yaml cannot be read")


def test_inspect_prints_the_anatomy(run: Run, folder: Path) -> None:
    code, out, err = run("inspect", folder)
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM: 16 heads in 2 layers" in out
    code, out, _ = run("inspect", folder, "--json")
    assert hs.Anatomy.from_json(out) == hs.discover(hs.load_model(str(folder)).model)
    assert run("inspect", "headscope.models.reference:example")[0] == 0


def test_analyze_writes_a_page_tables_figures_and_the_run(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    run = hs.Analysis.load(report)
    assert run.facts["documents"] == 8
    assert run.facts["text_unit"] == "documents"
    assert "<script>alert(1)" not in page
    assert "16 attention heads of tiny-llama" in page
    assert {path.suffix for path in (report / "tables").iterdir()} == {".csv"}
    assert {path.suffix for path in (report / "figures").iterdir()} == {".png"}


def test_plan_and_prune(run: Run, folder: Path, text: Path, report: Path, tmp_path: Path) -> None:
    code, out, err = run("plan", report, "--share", "0.25", "--out", tmp_path / "plan.json")
    assert (code, err) == (0, "")
    plan, analysis = hs.Plan.from_json((tmp_path / "plan.json").read_text()), hs.Analysis.load(report)
    assert plan.heads == hs.plan(analysis, share=0.25).heads == tuple(sorted(analysis.removal.first(4)))
    assert out.startswith("Too few documents")  # eight of them
    for words in (
        "4 of 16 heads",
        "together they cost",
        "parameters of attention",
        "bytes of keys and values for a token",
    ):
        assert words in out, words
    assert f"next: headscope prune {folder} --plan {tmp_path / 'plan.json'} --out smaller" in out

    code, out, err = run("prune", folder, "--plan", tmp_path / "plan.json", "--out", tmp_path / "small", "--text", text)
    assert (code, err) == (0, "")
    assert "removed 4 heads" in out
    assert "a forward pass of 1 row: " in out
    smaller = hs.load(tmp_path / "small")
    original = hs.load_model(str(folder)).model
    ids = torch.randint(6, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), hs.ablate(original, plan.heads):
        expected = original(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(smaller(ids).logits, expected, atol=1e-5, rtol=0)
    assert run("inspect", tmp_path / "small")[0] == 0
    assert not set(hs.discover(smaller).heads) & set(plan.heads)

    code, out, _ = run("prune", folder, "--heads", "4", "--run", report, "--out", tmp_path / "again", "--json")
    assert json.loads(out)["removed"] == list(map(str, plan.heads))


def test_a_plan_by_budget_by_number_or_by_score(run: Run, report: Path, tmp_path: Path) -> None:
    analysis = hs.Analysis.load(report)

    def planned(*arguments: str) -> tuple[hs.HeadId, ...]:
        code, out, _ = run("plan", report, *arguments, "--out", tmp_path / "p.json", "--force", "--json")
        assert code == 0, out
        return hs.Plan.from_json(out).heads

    assert planned() == analysis.verdict.chosen
    assert planned("--heads", "3") == tuple(sorted(analysis.removal.first(3)))
    high = float(analysis.removal.costs["chosen_high"].max())
    assert len(planned("--max-loss-rise", str(high))) == 16
    assert planned("--max-loss-rise", "0%") == hs.plan(analysis, max_loss_rise=0).heads
    by_score = hs.plan(analysis.scores["norm"], share=0.25, uniform=True).heads
    assert planned("--score", "norm", "--share", "0.25", "--uniform") == by_score
    for usage in (["--score", "norm"], ["--uniform", "--share", "0.25"]):
        assert run("plan", report, *usage, "--out", tmp_path / "q.json")[0] == 2
    _refused(run("plan", report, "--heads", "3", "--share", "0.5", "--out", tmp_path / "q.json"), "share and heads")
    _refused(run("plan", report, "--max-loss-rise", "-1%", "--out", tmp_path / "q.json"), "max_loss_rise")
    assert not (tmp_path / "q.json").exists()


def _refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 1, (code, out, err)
    assert err.startswith("headscope: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err, (word, err)


def test_models_that_cannot_be_had_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    _refused(run("inspect", tmp_path / "nowhere"), "nowhere")
    _refused(run("inspect", "tests.cli.test_commands:missing"), "missing")
    _refused(run("inspect", "tests.cli.test_commands:without_attention"), "no attention was found in Linear")
    (tmp_path / "remote").mkdir()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "remote" / "config.json").write_text(json.dumps(config))
    _refused(run("inspect", tmp_path / "remote"), "remote")


def without_attention() -> nn.Module:
    """A model for the command line that has no attention."""
    model = nn.Linear(4, 4)
    return model, [{"input": torch.ones(2, 4)}]  # type: ignore[return-value]


def test_text_that_cannot_be_used_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    def analyze(content: bytes, *more: str) -> tuple[int, str, str]:
        (tmp_path / "t.txt").write_bytes(content)
        result = run("analyze", folder, "--text", tmp_path / "t.txt", "--out", tmp_path / "out", *SMALL, *more)
        assert not (tmp_path / "out").exists()
        return result

    _refused(analyze(b""), "t.txt", "empty")
    _refused(analyze(b"w1"), "at least")
    _refused(analyze(b"w1 \xff w2 " * 50), "UTF-8")
    _refused(analyze(b" ".join(b"w%d" % (n % 40) for n in range(300))), "at least 4 documents")
    _refused(analyze(b"w1 w2 " * 50, "--split", "("), "(")
    _refused(run("analyze", folder, "--text", tmp_path / "gone.txt", "--out", tmp_path / "out"), "gone.txt")


def test_an_output_folder_with_content_is_kept(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for arguments in (
        ("analyze", folder, "--text", text, "--out", tmp_path),
        ("prune", folder, "--share", "0.1", "--out", tmp_path),
        ("demo", "--out", tmp_path),
    ):
        _refused(run(*arguments), "not empty", "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_damaged_weights_are_refused(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    model = models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    model.save_pretrained(tmp_path / "bad")
    make_tokenizer(pad=True).save_pretrained(tmp_path / "bad")
    result = run("analyze", tmp_path / "bad", "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    _refused(result, "layers.1.mlp.up_proj.weight")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused(run: Run, text: Path, tmp_path: Path) -> None:
    models.build("llama").save_pretrained(tmp_path / "bare")
    result = run("analyze", tmp_path / "bare", "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    _refused(result, "tokenizer")


def test_an_encoder_asked_for_next_token_loss_is_refused(run: Run, text: Path, tmp_path: Path) -> None:
    models.build("bert").save_pretrained(tmp_path / "bert")
    make_tokenizer(pad=True).save_pretrained(tmp_path / "bert")
    common = ("analyze", tmp_path / "bert", "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    _refused(run(*common, "--metric", "loss"), "BertModel", "drift")
    _refused(run(*common, "--metric", "nonsense"), "auto, loss")


def test_a_masked_language_model_is_judged_by_its_masked_tokens(run: Run, text: Path, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=models.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer = make_tokenizer(pad=True)
    tokenizer.mask_token = "[CLS]"
    tokenizer.save_pretrained(tmp_path / "bert")
    common = ("analyze", tmp_path / "bert", "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    code, _, err = run(*common)
    assert (code, err) == (0, "")
    assert hs.Analysis.load(tmp_path / "out").facts["metric"] == "mlm"


def test_plans_that_do_not_fit_are_refused(run: Run, folder: Path, report: Path, tmp_path: Path) -> None:
    def prune(plan: str, model: Path = folder) -> tuple[int, str, str]:
        (tmp_path / "plan.json").write_text(plan)
        result = run("prune", model, "--plan", tmp_path / "plan.json", "--out", tmp_path / "small")
        assert not (tmp_path / "small").exists()
        return result

    _refused(prune(hs.Plan(["L9H0"]).to_json()), "layer 9")
    _refused(prune(hs.Plan(["L0H99"]).to_json()), "L0H99 does not exist")
    twice = hs.Plan(["L0H1"]).to_json().replace('"L0H1"', '"L0H1", "L0H1"')
    _refused(prune(twice), "L0H1", "twice")
    _refused(prune("{"), "JSON")
    models.build("llama", seed=1).save_pretrained(tmp_path / "other")
    made = hs.plan(hs.Analysis.load(report).scores["needed"], share=0.25)
    _refused(prune(made.to_json(), tmp_path / "other"), "another model")
    _refused(run("plan", report, "--share", "1.5", "--out", tmp_path / "p.json"), "1.5")
    _refused(run("plan", report, "--share", "0.2", "--score", "nonsense", "--out", tmp_path / "p.json"), "nonsense")
    _refused(run("plan", tmp_path, "--share", "0.2", "--out", tmp_path / "p.json"), "analysis")
    _refused(
        run("plan", tmp_path / "nope", "--share", "0.2", "--out", tmp_path / "p.json"), "there is no folder", "nope"
    )
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("heads", "told"),
    [(["L0H1"], "removed 1 head; equal to the masked model on made-up input"), ([], "the model was copied whole")],
)
def test_a_cut_says_on_what_it_was_proven(run: Run, tmp_path: Path, heads: list[str], told: str) -> None:
    models.build("llama").save_pretrained(tmp_path / "without a tokenizer")
    (tmp_path / "plan.json").write_text(hs.Plan(heads).to_json())
    folder, plan = tmp_path / "without a tokenizer", tmp_path / "plan.json"
    code, out, err = run("prune", folder, "--plan", plan, "--out", tmp_path / "small")
    assert (code, err) == (0, "")
    assert told in out


def test_damaged_saved_models_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    hs.save(hs.prune(hs.load_model(str(folder)).model, ["L0H1"]), saved)
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:-100])
    _refused(run("inspect", saved), "model.safetensors")
    (saved / "model.safetensors").write_bytes(weights)
    tensors = load_file(saved / "model.safetensors")
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, saved / "model.safetensors")
    _refused(run("inspect", saved), "model.safetensors")


def test_an_interruption_is_said(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headscope.anatomy.discover", interrupt)
    code, _, err = run("inspect", folder)
    assert code == 130
    assert "interrupted; nothing was written" in err
