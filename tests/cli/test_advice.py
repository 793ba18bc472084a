"""What refusals advise on the command line: options, and functions of the user's own; no arguments of Python's."""

import re
from pathlib import Path

import pytest
from torch import nn

import headscope as hs
from headscope.models.reference import example
from tests import models
from tests.cli.conftest import SMALL, Run

OF_PYTHON = re.compile(r"\b(anatomy|batches|example|metric|model|scope|texts|tokenizer|want)=")
ALONE, ENCODER = "tests.cli.test_advice:alone", "tests.cli.test_advice:encoder"


def alone() -> nn.Module:
    """A class of one's own, without batches."""
    made = example()
    return made[0] if isinstance(made, tuple) else made


def encoder() -> tuple[nn.Module, list[dict[str, object]]]:
    return models.build("bert"), list(models.make_batches("bert", n_batches=4))


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("inspect", ALONE), "Transformer does not say what it takes; let a function of yours, package.module:factory"),
        (("importance", ALONE), "has no tokenizer, so text cannot be read; save one in the model's folder, or let"),
        (("analyze", ALONE, *SMALL), "comes without a tokenizer; save one in the model's folder, or let a function of"),
        (("analyze", ALONE, *SMALL), "return (model, batches), dicts like {'input_ids': …}, or (model, tokenizer)"),
        (
            ("importance", ENCODER, "--metric", "accuracy"),
            "(error is 1 − accuracy); another one is a function of yours",
        ),
        (("importance", ENCODER, "--metric", "loss"), "use --metric drift (mlm where"),
        (("importance", ENCODER, "--metric", "mlm"), "save a tokenizer with a mask token in the model's folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_advice_is_of_options_and_factories(
    run: Run, arguments: tuple[str, ...], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    out = ("--out", tmp_path / "out") if arguments[0] == "analyze" else ()
    code, _, err = run(*arguments, *out)
    assert code == 1
    assert advice in err
    assert not OF_PYTHON.search(err)


def test_a_cut_model_of_one_s_own_class_is_built_by_a_function(run: Run, tmp_path: Path) -> None:
    model, batches = example()
    hs.save(hs.prune(model, ["L0H1"], batches=batches), tmp_path / "cut")
    code, _, err = run("inspect", tmp_path / "cut")
    assert (code, "a function of yours that returns headscope.load(folder, model=…)" in err) == (1, True)
