"""What tests of commands share: a way to run them, a tiny model in a folder, a text, a report."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from headscope.cli import main
from tests import models

Run = Callable[..., tuple[int, str, str]]

LOGGED = re.compile(r"^\d+:\d\d [a-z][^:]*: \d+( of \d+)?\n", re.MULTILINE)  # how far the work is
WORDS = [f"w{number}" for number in range(models.VOCABULARY - 6)]
SMALL = ("--passes", "0", "--windows", "24", "--length", "16", "--ablation-tokens", "150")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("inspect", "folder"): exit code, stdout, stderr without the lines of its log."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headscope", *map(str, arguments)])
        capsys.readouterr()  # what the test itself set off before
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, LOGGED.sub("", err)

    return call


def make_tokenizer(pad: bool) -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[BOS]", "[CLS]", "[SEP]", "[UNK]", "<"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    pads = {"pad_token": "[PAD]"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="[BOS]", **pads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer that has no pad token."""
    target = tmp_path_factory.mktemp("models") / "tiny-llama"
    models.build("llama").save_pretrained(target)
    make_tokenizer(pad=False).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sections, each its own document with --split; markup among the words."""
    generator = torch.Generator().manual_seed(0)
    sections = []
    for number in range(8):
        drawn = torch.randint(len(WORDS), (60,), generator=generator).tolist()
        sections.append(f"# section {number} <script>alert(1)</script>\n" + " ".join(WORDS[word] for word in drawn))
    target = tmp_path_factory.mktemp("text") / "notes.txt"
    target.write_text("\n".join(sections), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def report(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the tiny Llama, made by the command."""
    out = tmp_path_factory.mktemp("reports") / "report"
    sys.argv = ["headscope", "analyze", str(folder), "--text", str(text), "--split", "^# ", "--out", str(out), *SMALL]
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return out
