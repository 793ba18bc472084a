"""Options that several commands share, one by one and in bundles: a bundle is its options and what is done with them.

Help texts name what registries hold without loading them; a test holds the two together.
"""

import ast
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope._support.registry import by_number

if TYPE_CHECKING:
    from headscope.models.loading import Loaded
    from headscope.sites import Anatomy
    from headscope.text.batches import Batch
    from headscope.text.texts import Texts

__all__ = [
    "AsJson",
    "Device",
    "Folder",
    "Force",
    "Heads",
    "Intervals",
    "Loading",
    "MaxLossRise",
    "Memory",
    "Metric",
    "Model",
    "Name",
    "Null",
    "Reading",
    "Sampling",
    "Seed",
    "Share",
    "Skip",
    "Tables",
    "Tokens",
    "check_same_tokens",
    "compared",
    "few_batches",
    "registered",
]


def registered(room: str) -> str:
    """What the files of a folder register, as help texts list it: read as text, since importing them takes seconds.

    Args:
        room: the folder, from headscope's own on, e.g. "likeness/measures".
    """
    return ", ".join(_sources(room))


def compared(room: str) -> str:
    """What the measures of a folder compare, as help texts list it: "z by cka; pattern by pattern_js"; as text too.

    Args:
        room: see `registered`.
    """
    found: dict[str, list[str]] = {}
    default = (Path(__file__).parents[1] / room / "__init__.py").read_text(encoding="utf-8")
    (usual,) = re.findall(r"^VECTORS = (\(.*\))", default, re.MULTILINE)
    for name, source in _sources(room).items():
        (things,) = re.findall(r"^    sources: .* = (\(.*\))$", source, re.MULTILINE) or [usual]
        found.setdefault(", ".join(ast.literal_eval(things)), []).append(name)
    return "; ".join(f"{things} by {', '.join(names)}" for things, names in found.items())


def _sources(room: str) -> dict[str, str]:
    """The files of a folder that register something, as text, by the name that they register, in order."""
    found: dict[str, str] = {}
    for file in (Path(__file__).parents[1] / room).glob("*.py"):
        source = file.read_text(encoding="utf-8")
        found |= dict.fromkeys(re.findall(r'^@[A-Z]+\.register\("(\w+)"\)', source, re.MULTILINE), source)
    return {name: found[name] for name in sorted(found, key=by_number)}


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="hub name, local folder, or package.module:factory", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="replace the output if it exists")]
Seed = Annotated[int, typer.Option(help="seed of all random draws; the same seed gives the same tables")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
Metric = Annotated[
    str,
    typer.Option(
        help="auto, loss, mlm, kl, drift, error, cross_entropy; or package.module:function of your own: it takes "
        "(output, batch) and gives one number a row, lower = better",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="tokens of the text on which ablation, gradient and needed are measured", show_default="by size"
    ),
]
Name = Annotated[
    str, typer.Option("--name", help="what to call the model in tables and on pages", show_default="its own name")
]
Skip = Annotated[int, typer.Option(min=0, help="positions at the start of each window that are left out (sinks)")]

Null = Annotated[
    str,
    typer.Option(
        help="untrained: put the numbers of an untrained copy of the model beside likeness, replaceability and norm",
        show_default=False,
    ),
]
Memory = Annotated[str, typer.Option(help="memory for sums; what does not fit is done in several passes")]
Intervals = Annotated[
    bool, typer.Option("--intervals", help="with --scope model: make intervals, in as many passes as memory asks for")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
MaxLossRise = Annotated[
    str | None,
    typer.Option(help="what the heads may cost together: a number of the metric's unit, or 1%", show_default=False),
]
Heads = Annotated[int | None, typer.Option(help="how many heads to remove", show_default=False)]
Share = Annotated[float | None, typer.Option(help="share of all heads to remove, 0 to 1", show_default=False)]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    device: Device = "auto"
    dtype: Annotated[str | None, typer.Option(help="float32 (default on the CPU), bfloat16, float16, float64")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run code that a hub model brings with it")
    ] = False
    describe: Annotated[
        Path | None,
        typer.Option("--describe", help="YAML file that says where attention is, where it is not recognised"),
    ] = None

    def load(self, model: str | Path) -> "Loaded":
        """The model of that name, with its tokenizer or batches."""
        from headscope.anatomy.descriptions import describe, read_descriptions
        from headscope.models.loading import load_model

        described = read_descriptions(self.describe) if self.describe is not None else ()
        loaded = load_model(model, device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        if described:
            describe(loaded.model, *described)
        return replace(loaded, options=self.words)

    @property
    def words(self) -> str:
        """The options as they were given, for a command that loads the model again."""
        given = {"--device": self.device, "--dtype": self.dtype, "--describe": self.describe}
        words = [f"{name} {shlex.quote(str(value))}" for name, value in given.items() if value not in (None, "auto")]
        return " ".join([*words, *(["--trust-remote-code"] if self.trust_remote_code else [])])


@dataclass(frozen=True)
class Reading:
    """Which text is read."""

    text: Annotated[
        list[Path] | None, typer.Option("--text", help="text file or folder (.txt, .md, .jsonl); repeatable")
    ] = None
    split: Annotated[str | None, typer.Option(help="regex at which a text file is split into documents")] = None

    def texts(self) -> "Texts | None":
        """The text that was named; None for the default corpus."""
        from headscope.text.texts import read_texts

        return read_texts(self.text, self.split) if self.text else None


@dataclass(frozen=True)
class Sampling(Reading):
    """Which text is read, and how much of it."""

    windows: Annotated[int, typer.Option(min=0, help="windows of text; 0 for all")] = 64
    length: Annotated[int, typer.Option(help="tokens of a window")] = 128
    seed: Seed = 0

    def batches(self, loaded: "Loaded", texts: "Texts | None") -> "Sequence[Batch]":
        """The batches that a user's function returned, or windows of text."""
        from headscope.text.corpus import text_batches

        if loaded.batches is not None and texts is None:
            return loaded.batches
        return text_batches(
            loaded.tokenizer, texts, length=self.length, windows=self.windows or None, seed=self.seed,
            model=loaded.model,
        )  # fmt: skip

    def for_effects(
        self, loaded: "Loaded", batches: "Sequence[Batch]", tokens: int | None
    ) -> "tuple[Anatomy, Sequence[Batch]]":
        """Where the heads are, and as many of the batches' rows as a forward pass for each head allows."""
        from headscope.anatomy import discover
        from headscope.text.splits import sample_batches
        from headscope.verdict.preparation import affordable_tokens

        anatomy = discover(loaded.model, batches[0])
        return anatomy, sample_batches(batches, tokens or affordable_tokens(loaded.model, anatomy), self.seed)


@dataclass(frozen=True)
class Folder:
    """Where the output goes."""

    out: Annotated[Path, typer.Option(help="output folder")]
    force: Force = False

    def check(self) -> None:
        """Refuse a folder with content before any work is done."""
        from headscope._support.folders import check_free

        check_free(self.out, force=self.force)

    def new(self) -> AbstractContextManager[Path]:
        """A folder to write into, which takes its place when the block ends well, and goes away when it doesn't."""
        from headscope._support.folders import new_folder

        return new_folder(self.out, force=self.force)


@dataclass(frozen=True)
class Tables:
    """Where tables go, if they go anywhere."""

    out: Annotated[Path | None, typer.Option(help="folder for the tables (CSV, Parquet, JSON)")] = None
    force: Force = False

    def check(self) -> None:
        """Refuse a folder with content before any work is done."""
        if self.out is not None:
            Folder(self.out, self.force).check()

    def write(self, tables: Iterable[Any]) -> None:
        """Write them, all or none."""
        if self.out is not None:
            with Folder(self.out, self.force).new() as new:
                for table in tables:
                    table.save(new)


def few_batches(loaded: "Loaded", texts: "Texts | None" = None, seed: int = 0) -> "list[Batch] | None":
    """A little real text, or the first of the model's own batches; None where it came with neither.

    Args:
        loaded: the model.
        texts: what is read; the default corpus without it.
        seed: of the draw.
    """
    from headscope.text.corpus import text_batches

    if loaded.batches is not None and texts is None:
        return list(loaded.batches[:1])
    if loaded.tokenizer is None:
        return None
    return list(text_batches(loaded.tokenizer, texts, length=64, size=4, windows=4, seed=seed, model=loaded.model))


def check_same_tokens(first: "Loaded", second: "Loaded") -> None:
    """Refuse two models whose tokenizers differ: the same ids would be different words to them.

    Raises:
        InputError: the vocabularies of the two are not the same.
    """
    from headscope.errors import InputError

    tokenizers = first.tokenizer, second.tokenizer
    if None in tokenizers:
        return
    one, other = (tokenizer.get_vocab() for tokenizer in tokenizers if tokenizer is not None)
    if one != other:
        apart = [word for word in {**one, **other} if one.get(word) != other.get(word)]
        word = min(apart, key=lambda word: (one.get(word, len(one)), word))
        raise InputError(
            f"{first.name} and {second.name} have different tokenizers ({word!r} is {one.get(word)} in the first and "
            f"{other.get(word)} in the second), so they do not see the same tokens and cannot be compared"
        )
