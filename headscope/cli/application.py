"""The application: its commands in the groups of the work, refusals as one message, exit codes."""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer
from typer.core import TyperGroup

from headscope.errors import HeadscopeError, InterruptedWorkError

__all__ = ["GROUPS", "app", "command", "main", "refusing", "script", "spread"]

_SENTENCE = 200  # characters: the first sentence of a command's help, whole
_INTERRUPTED = 130  # as a shell says it: 128 and the number of the signal

Command = TypeVar("Command", bound=Callable[..., None])


GROUPS = ("Start", "Measure", "Cut", "Study")  # of commands, in the order of the work


class _Grouped(TyperGroup):
    """Commands under the name of their group."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the work."""
        return sorted(self.commands, key=lambda name: GROUPS.index(_group_of(self.commands[name])))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            about = self.commands[name].get_short_help_str(_SENTENCE)
            groups.setdefault(_group_of(self.commands[name]), []).append((name.ljust(width), about))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


def _group_of(known: Any) -> str:
    return str(known.rich_help_panel)


_STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(
    cls=_Grouped,
    name="headscope",
    help="Which attention heads does a model need? Find them, measure them, cut the rest.",
    no_args_is_help=True,
    **_STYLE,
)


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop", is_eager=True)] = False,
) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"headscope {version('headscope')}")
        raise typer.Exit


def command(group: str, name: str | None = None) -> Callable[[Command], Command]:
    """Make a function a command of a group; see `spread` for what its parameters may be.

    Args:
        group: one of `GROUPS`, the heading under which `headscope --help` lists it.
        name: of the command; that of the function without it.

    Raises:
        ValueError: no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"commands stand in one of {', '.join(GROUPS)}; {group!r} is none of them")

    def add(function: Command) -> Command:
        app.command(name=name, rich_help_panel=group)(spread(function))
        return function

    return add


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """The same command with each parameter that is a bundle of options (a dataclass) replaced by the bundle's fields.

    So what several commands share, its options and what is done with them, is written once. Where a parameter has a
    bundle as its default, the fields have their defaults from there.

    Args:
        function: a command whose parameters are options, or bundles of them.
    """
    hints = get_type_hints(function, include_extras=True)
    bundles: dict[str, Any] = {}
    spread_out: list[inspect.Parameter] = []
    for own in inspect.signature(function).parameters.values():
        hint = hints[own.name]
        if is_dataclass(hint):
            bundles[own.name] = hint
            spread_out += _options_of(hint, None if own.default is own.empty else own.default)
        else:
            spread_out.append(own.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in bundles.items()
        }
        function(**given, **made)

    run.__signature__ = inspect.Signature(spread_out)  # type: ignore[attr-defined]
    run.__annotations__ = {own.name: own.annotation for own in spread_out}
    return run


def _options_of(kind: Any, defaults: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field) if defaults is None else getattr(defaults, field.name),
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def _default(field: Any) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def main() -> None:
    """Run the command line."""
    # Before torch is loaded: threads that wait for each other sleep. Else they spin, and where another process works on
    # the same cores, each of a model's many small operations waits for one that cannot run: MiniLM took 1,100 ms a pass
    # beside one busy process of two threads, and takes 300 ms so.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    refusing(app)


def script(function: Callable[..., None]) -> None:
    """Run a function as a command of its own, as the scripts in analyses/ are; its help and refusals are the commands'.

    Args:
        function: see `spread`.
    """
    alone = typer.Typer(**_STYLE)
    alone.command()(spread(function))
    refusing(alone)


def refusing(run: Callable[[], object]) -> None:
    """Run a command; a refusal is one message on stderr and exit code 1.

    Args:
        run: called without arguments.
    """
    try:
        run()
    except HeadscopeError as error:
        typer.echo(f"headscope: {error.on_command_line}", err=True)
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
