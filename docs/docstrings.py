"""Docstrings and signatures as Markdown that a code host shows as well as the site does."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from typing import Any

__all__ = ["about", "described"]

_WIDTH = 100  # characters of a signature, after which its parameters stand in lines of their own
_SECTION = re.compile(r"(Args|Attributes|Class facts|Raises|Returns|Source|Yields)(?:, [^:]*)?:\s*(.*)")
_ENTRY = re.compile(r"    (\*{0,2}\w+(?:, \w+)*): ?(.*)")
_PROPERTIES = (property, cached_property)
_TITLES = {"Args": "Arguments"}


def about(thing: Any) -> str:
    """The first paragraph of a docstring, in one line.

    Args:
        thing: that has a docstring.
    """
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def described(name: str, thing: Any) -> str:
    """A function or class: its signature, and what its docstring says; of a class, what its methods say too.

    Args:
        name: under which users find it.
        thing: the function or class.
    """
    parts = [f"```python\n{_signature(name, thing)}\n```", _markdown(inspect.getdoc(thing) or "")]
    if inspect.isclass(thing):
        members = [f"- {_member(key, member)}" for key, member in _members(thing)]
        parts += ["**Members**", "\n".join(members)] if members else []
    return "\n\n".join(part for part in parts if part)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties in the order of the source: its own, then those that it inherits in headscope."""
    seen = set()
    for kind in cls.__mro__:
        for key, member in vars(kind).items() if kind.__module__.startswith("headscope.") else ():
            public = not key.startswith("_") and (inspect.isroutine(member) or isinstance(member, _PROPERTIES))
            if public and key not in seen:
                seen.add(key)
                yield key, member


def _member(key: str, member: Any) -> str:
    bare = getattr(member, "__func__", member)
    call = "" if isinstance(member, _PROPERTIES) else f"({', '.join(_parameters(_source_of(bare)))})"
    return f"`{key}{call}`: {about(member)}"


def _signature(name: str, thing: Any) -> str:
    node = _source_of(thing)
    if isinstance(node, ast.ClassDef):
        init = next((line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == "__init__"), None)
        fields = [line for line in node.body if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line)]
        taken = _parameters(init) if init is not None else [ast.unparse(field) for field in fields]
        return _folded(f"class {name}", taken, "")
    returned = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return _folded(name, _parameters(node), returned)


def _folded(start: str, parameters: list[str], end: str) -> str:
    line = f"{start}({', '.join(parameters)}){end}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{start}(", *(f"    {parameter}," for parameter in parameters), f"){end}"])


def _source_of(thing: Any) -> Any:
    """Where it is defined, as a tree; decorators of the standard library are looked through."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))
    return ast.parse(source).body[0]


def _parameters(node: Any) -> list[str]:
    """Parameters with types and defaults, as they are written; self and cls left out."""
    taken = node.args
    first = [*taken.posonlyargs, *taken.args]
    defaults = [None] * (len(first) - len(taken.defaults)) + list(taken.defaults)
    shown = []
    for place, (argument, default) in enumerate(zip(first, defaults, strict=True), start=1):
        if argument.arg not in {"self", "cls"}:
            shown.append(_parameter(argument, default))
        if place == len(taken.posonlyargs) and shown:
            shown.append("/")
    if taken.vararg is not None:
        shown.append(f"*{_parameter(taken.vararg, None)}")
    elif taken.kwonlyargs:
        shown.append("*")
    shown += [_parameter(own, default) for own, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True)]
    if taken.kwarg is not None:
        shown.append(f"**{_parameter(taken.kwarg, None)}")
    return shown


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    hint = f": {ast.unparse(argument.annotation)}" if argument.annotation is not None else ""
    value = "" if default is None else (" = " if hint else "=") + ast.unparse(default)
    return f"{argument.arg}{hint}{value}"


def _markdown(doc: str) -> str:
    """A docstring of the usual sections as paragraphs and lists."""
    parts: list[str] = []
    for title, lines in _sections(doc.splitlines()):
        body = _entries(lines) if title in {"Args", "Attributes", "Class facts", "Raises"} else _prose(lines)
        parts += [body] if not title else [f"**{_TITLES.get(title, title)}**", body]
    return "\n\n".join(part for part in parts if part)


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    title, held = "", []
    for line in lines:
        begins = _SECTION.fullmatch(line)
        if begins:
            yield title, held
            title, held = begins[1], [f"    {begins[2]}"] if begins[2] else []
        elif title and line and not line.startswith(" "):
            yield title, held  # prose goes on after a section
            title, held = "", [line]
        else:
            held.append(line)
    yield title, held


def _entries(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        entry = _ENTRY.fullmatch(line)
        if entry:
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            items.append(f"- {names}: {entry[2]}")
        elif line.strip() and items:
            items[-1] += f" {line.strip()}"
        elif line.strip():
            items.append(line.strip())
    return "\n".join(items)


def _prose(lines: list[str]) -> str:
    """Paragraphs; examples in blocks of their own."""
    parts: list[str] = []
    for paragraph in textwrap.dedent("\n".join(lines)).strip().split("\n\n"):
        if paragraph.startswith(">>>"):
            parts.append(f"```python\n{paragraph}\n```")
        elif paragraph.strip():
            parts.append(" ".join(paragraph.split()))
    return "\n\n".join(parts)
