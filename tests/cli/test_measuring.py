"""Commands that measure one thing: what they print, what they write, and how they refuse."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import headscope as hs
from tests.cli.conftest import Run


def test_similarity_prints_and_writes_every_measure_asked(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    options = ("--text", text, "--split", "^# ", "--windows", "24", "--length", "16")
    measures = ("--measure", "cka", "--measure", "pattern_js", "--measure", "weights_ov")
    code, out, err = run("similarity", folder, *measures, *options, "--out", tmp_path / "alike")
    assert (code, err) == (0, "")
    assert "cka of z: most alike" in out
    assert "on random tokens" in out
    assert "no intervals: weights are known exactly" in out
    for name in ("cka", "pattern_js", "weights_ov"):
        table = hs.PairTable.load(tmp_path / "alike", name)
        assert table.matrix.shape == (16, 16)
    assert run("similarity", folder, *options, "--out", tmp_path / "alike")[0] == 1
    code, out, _ = run("similarity", folder, *options, "--scope", "model", "--json")
    assert code == 0
    table = json.loads(out)["cka"]
    assert (table["of"], table["facts"]["scope"]) == ("z", "model")
    rows = table["rows"]
    assert len(rows) == 16 * 15 // 2
    assert set(rows[0]) == {"head_a", "head_b", "value", "low", "high", "chance", "n_documents", "n_tokens"}


def test_similarity_of_two_models(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    smaller = tmp_path / "smaller"
    plan = tmp_path / "plan.json"
    plan.write_text(hs.Plan(["L0H1"]).to_json(), encoding="utf-8")
    assert run("prune", folder, "--plan", plan, "--out", smaller, "--text", text)[0] == 0
    code, out, err = run("similarity", folder, "--other", smaller, "--text", text, "--windows", "8", "--json")
    assert (code, err) == (0, "")
    values = {(row["head_a"], row["head_b"]): row["value"] for row in json.loads(out)["cka"]["rows"]}
    assert values["L0H0", "L0H0"] == pytest.approx(1)
    assert ("L0H1", "L0H1") not in values
    assert ("L0H1", "L0H2") in values


def test_importance_prints_and_writes_every_score_asked(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    options = ("--text", text, "--split", "^# ", "--windows", "24", "--length", "16", "--tokens", "150")
    scores = ("--score", "norm", "--score", "ablation")
    code, out, err = run("importance", folder, *scores, *options, "--out", tmp_path / "worth")
    assert (code, err) == (0, "")
    assert "norm, activation" in out
    assert "ablation, nats/token" in out
    assert len(hs.HeadTable.load(tmp_path / "worth", "ablation").heads) == 16
    code, out, _ = run("importance", folder, *scores, *options, "--json")
    assert code == 0
    assert len(json.loads(out)["norm"]["rows"]) == 16
    assert json.loads(out)["ablation"]["unit"] == "nats/token"


def test_what_is_not_defined_is_null_in_json_and_in_files(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    options = ("--text", text, "--windows", "1", "--length", "16")
    for command, wanted in (("importance", "replaceability"), ("similarity", "predict")):
        kind = "--score" if command == "importance" else "--measure"
        code, out, _ = run(command, folder, kind, wanted, *options, "--json", "--out", tmp_path / wanted)
        assert code == 0
        assert "only 1 document" in json.loads(out, parse_constant=strict)[wanted]["facts"]["why_no_interval"]
        json.loads((tmp_path / wanted / f"{wanted}.json").read_text(), parse_constant=strict)


def test_compare_of_two_analyses_and_of_two_models(
    run: Run, folder: Path, report: Path, text: Path, tmp_path: Path
) -> None:
    code, out, err = run("compare", report, report, "--out", tmp_path / "same")
    assert (code, err) == (0, "")
    assert "no change is told from chance" in out
    for option in ("--text", "--score"):
        code, _, err = run("compare", report, report, option, "norm")
        assert (code, f"{option}: of two models" in err) == (1, True)
    assert (tmp_path / "same" / "heads.csv").exists()
    code, out, _ = run("compare", folder, folder, "--text", text, "--windows", "8", "--tokens", "64", "--json")
    assert code == 0
    found = json.loads(out)
    assert "share 16 heads" in found["sentence"]
    assert [round(row["cka"], 9) for row in found["itself"]] == [1.0] * 16
    code, _, err = run("compare", report, folder)
    assert code == 1
    assert "one is a saved analysis and the other a model" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("similarity", "--measure", "ckaa"), "did you mean 'cka'"),
        (("similarity", "--of", "y"), "cka does not compare 'y'; it compares: z, q, k, v, contribution"),
        (("similarity", "--memory", "lots"), "memory is a number of bytes"),
        (("similarity", "--scope", "head"), "there is no scope 'head'"),
        (("importance", "--score", "normm"), "did you mean 'norm'"),
    ],
)
def test_measuring_refuses_by_name(run: Run, folder: Path, text: Path, arguments: tuple[str, ...], said: str) -> None:
    command, *rest = arguments
    code, _, err = run(command, folder, "--text", text, *rest)
    assert code == 1
    assert said in err


def test_models_of_different_tokenizers_are_not_compared(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    words = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (other / "tokenizer.json").write_text(json.dumps(words), "utf-8")
    for command in (("similarity", folder, "--other", other), ("compare", folder, other)):
        code, _, err = run(*command, "--text", text)
        assert code == 1
        assert "have different tokenizers ('w1' is" in err
    code, out, _ = run("similarity", folder, "--other", other, "--measure", "weights_qk")
    assert code == 0
    assert "weights_qk of weights" in out


def test_tokens_are_those_of_scores_by_a_metric(run: Run, folder: Path, text: Path) -> None:
    options = ("--text", text, "--windows", "8", "--tokens", "40", "--json")
    code, out, _ = run("importance", folder, "--score", "ablation", "--score", "norm", *options)
    assert code == 0
    tokens = {name: table["facts"]["tokens"] for name, table in json.loads(out).items()}
    assert tokens["ablation"] < tokens["norm"] / 2
    code, out, _ = run("compare", folder, folder, *options)
    assert json.loads(out)["facts"]["tokens"] == tokens["norm"]


def test_numbers_that_cannot_be_are_wrong_usage(run: Run, folder: Path) -> None:
    assert run("importance", folder, "--tokens", "0")[0] == 2
    assert run("similarity", folder, "--skip-first", "-1")[0] == 2


def test_of_applies_to_the_measures_that_compare_it(run: Run, folder: Path, text: Path) -> None:
    options = ("--text", text, "--windows", "8", "--json")
    code, out, _ = run("similarity", folder, "--measure", "cka", "--measure", "weights_ov", "--of", "q", *options)
    assert code == 0
    assert set(json.loads(out)) == {"cka", "weights_ov"}


def test_commands_take_tokens_under_any_name(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_by_idx.py").write_text(
        "from tests.unit.test_tokens_by_any_name import _Own, IDS, LABELS, in_two\n"
        "from tests.unit.test_every_model_to_the_end import _clip, TOKENS, PICTURES\n"
        "def make(): return _Own().eval(), in_two({'idx': IDS, 'targets': LABELS})\n"
        "def towers(): return _clip(), [{'input_ids': TOKENS.clamp(min=4), 'pixel_values': PICTURES}]\n",
        encoding="utf-8",
    )
    code, out, err = run("similarity", "mine_by_idx:make", "--measure", "pattern_js")
    assert code == 0, err
    assert "on random tokens" in out
    assert "no random tokens" not in out
    code, out, err = run("similarity", "mine_by_idx:towers", "--measure", "pattern_js", "--out", "pairs")
    assert code == 0, err
    assert "no random tokens: not for layer 0" in out
    rows = pd.read_csv(tmp_path / "pairs" / "pattern_js.csv")
    of_pictures = rows["head_a"].str.startswith("L0")
    assert of_pictures.any()
    assert (rows["random_tokens"].isna() == of_pictures).all()
