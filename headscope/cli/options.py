"""What all commands share: options, refusals, text, a progress bar."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from headscope.errors import HeadscopeError, InputError, InterruptedWorkError
from headscope.models.loading import Loaded
from headscope.text.batches import Batch
from headscope.text.corpus import text_batches
from headscope.text.texts import Texts

__all__ = [
    "AsJson",
    "Device",
    "Dtype",
    "Force",
    "Length",
    "Metric",
    "Model",
    "Remote",
    "Seed",
    "Skip",
    "Split",
    "TextFiles",
    "Tokens",
    "Windows",
    "app",
    "check_same_tokens",
    "main",
    "progress_bar",
    "read_batches",
    "refusing",
    "stdout",
]

_INTERRUPTED = 130  # as a shell says it: 128 and the number of the signal

app = typer.Typer(
    name="headscope",
    help="Which attention heads does a model need? Find them, measure them, cut the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_stderr = Console(stderr=True)
stdout = Console() if sys.stdout.isatty() else Console(width=200)  # a pipe has no width to fit into

Model = Annotated[str, typer.Argument(help="hub name, local folder, or package.module:factory", show_default=False)]
TextFiles = Annotated[
    list[Path] | None, typer.Option("--text", help="text file or folder (.txt, .md, .jsonl); repeatable")
]
Split = Annotated[str | None, typer.Option(help="regex at which a text file is split into documents")]
Force = Annotated[bool, typer.Option("--force", help="replace the output if it exists")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default on the CPU), bfloat16, float16, float64")]
Seed = Annotated[int, typer.Option(help="of every draw; the same seed gives the same tables")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
Metric = Annotated[str, typer.Option(help="auto, loss, mlm, kl or drift")]
Tokens = Annotated[
    int | None,
    typer.Option(min=1, help="tokens that scores by a metric, as ablation, take of the text", show_default="by size"),
]
Windows = Annotated[int, typer.Option(min=0, help="windows of text; 0 for all")]
Length = Annotated[int, typer.Option(help="tokens of a window")]
Skip = Annotated[int, typer.Option(min=0, help="positions at the start of each window that do not count (sinks)")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="run code that a hub model brings with it")]


def main() -> None:
    """Run the command line."""
    refusing(app)


def refusing(run: Callable[[], object]) -> None:
    """Run a command; a refusal is one message on stderr and exit code 1."""
    try:
        run()
    except HeadscopeError as error:
        typer.echo(f"headscope: {error}", err=True)
        for note in getattr(error, "__notes__", ()):
            typer.echo(f"  {note}", err=True)
        sys.exit(_INTERRUPTED if isinstance(error, InterruptedWorkError) else 1)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer's own word for it is the code alone
            _interrupted()
        raise


def _interrupted() -> NoReturn:
    typer.echo("headscope: interrupted; nothing was written", err=True)
    sys.exit(_INTERRUPTED)


def check_same_tokens(first: Loaded, second: Loaded) -> None:
    """Refuse two models whose tokenizers differ: the same ids would be different words to them.

    Raises:
        InputError: the vocabularies of the two are not the same.
    """
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


def read_batches(loaded: Loaded, texts: Texts | None, length: int, windows: int, seed: int) -> Sequence[Batch]:
    """The batches that a user's function returned, or windows of text."""
    if loaded.batches is not None and texts is None:
        return loaded.batches
    return text_batches(loaded.tokenizer, texts, length=length, windows=windows or None, seed=seed)


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A progress bar on stderr; nothing at all where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_stderr, transient=True, disable=not _stderr.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            elif bar.tasks[tasks[stage]].finished:  # the stage has come again
                bar.reset(tasks[stage], total=total or None)
            bar.advance(tasks[stage], done)

        yield step
