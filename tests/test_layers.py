"""Data flows one way: a file imports its own room or an earlier one. Read off the source, so nothing is run."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "headscope"

# In the order of the flow: a room, or a file beside the rooms, imports itself and what stands above it.
ROOMS = (
    "errors",
    "_support",
    "heads",
    "sites",
    "tables",
    "plans",
    "text",
    "uncertainty",
    "statistics",
    "anatomy",
    "watching",
    "effects",
    "scoring",
    "likeness",
    "surplus",
    "head_roles",
    "planning",
    "surgery",
    "models",
    "verdict",
    "reporting",
    "studies",
    "analysis",
    "contrast",
    "",  # headscope itself, the public names: only what stands below may use them
    "cli",
)
MOST_FILES, MOST_FOLDERS = 10, 18  # that someone who opens headscope/ meets


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _trees(folder: Path) -> dict[str, ast.Module]:
    paths = sorted(folder.rglob("*.py"))
    return {_module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in paths}


SOURCES = _trees(PACKAGE)


def _imports(importer: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of headscope that a file imports anywhere in it, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}, line {node.lineno}: imports are written in full, from headscope down"
            base = node.module or ""
            # "from headscope import tables" is an import of headscope.tables, not of headscope
            found |= {name if (name := f"{base}.{alias.name}") in known else base for alias in node.names}
    return {name for name in found if name.split(".")[0] == "headscope"}


def _room(module: str) -> str:
    return [*module.split("."), ""][1]


def _turn(module: str) -> int:
    """Which room of the flow a module stands in."""
    room = _room(module)
    assert room in ROOMS, f"headscope.{room} stands in no room: put the file into one, or give a new room its turn"
    return ROOMS.index(room)


EDGES = {name: _imports(name, tree, set(SOURCES)) for name, tree in SOURCES.items()}


@pytest.mark.parametrize("importer", sorted(SOURCES))
def test_a_file_imports_its_own_room_or_an_earlier_one(importer: str) -> None:
    later = {imported for imported in EDGES[importer] if _turn(imported) > _turn(importer)}
    assert not later, f"{importer} imports what comes after it in the flow: {sorted(later)}"


def test_every_room_is_there_and_says_what_it_is() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    modules = {name.removesuffix(".py") for name in files if name.endswith(".py")} - {"__init__"}
    assert folders | modules | {""} == set(ROOMS)
    assert len(folders) <= MOST_FOLDERS
    assert len(files) <= MOST_FILES
    for folder in folders:
        told = ast.get_docstring(SOURCES[f"headscope.{folder}"])
        assert told, f"headscope/{folder}/__init__.py says in a sentence what the room is, and what it must not know"


def test_the_contents_page_names_the_rooms_in_their_order() -> None:
    told = ast.get_docstring(SOURCES["headscope"]) or ""
    named = [re.split(r"\s{2,}", line.strip())[0].split(", ") for line in told.splitlines() if line.startswith("    ")]
    assert [room for line in named for room in line] == [room for room in ROOMS if room]


def test_no_imports_in_a_circle() -> None:
    try:
        list(TopologicalSorter(EDGES).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_what_is_imported_exists() -> None:
    missing = {(importer, name) for importer, names in EDGES.items() for name in names - set(SOURCES)}
    assert not missing


def test_the_package_itself_only_re_exports() -> None:
    for node in SOURCES["headscope"].body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_import = isinstance(node, ast.ImportFrom) and node.module in {"importlib", "importlib.util", "typing"}
        is_table = isinstance(node, ast.Assign | ast.AnnAssign)
        lines = node.body if isinstance(node, ast.If) else []
        is_contents = bool(lines) and all(isinstance(line, ast.ImportFrom) for line in lines)
        is_loader = bool(lines) and all(
            isinstance(line, ast.Assign) or getattr(line, "name", "") in {"__getattr__", "__dir__"} for line in lines
        )
        assert is_docstring or is_import or is_table or is_contents or is_loader, (
            f"headscope/__init__.py, line {node.lineno}: a table of contents does no work"
        )


def test_the_reader_of_imports_sees_them_all() -> None:
    source = """
import headscope.heads
from headscope import tables, discover
from headscope.errors import InputError
def late():
    from headscope.surgery.cut import cut
"""
    known = {"headscope", "headscope.tables", "headscope.heads", "headscope.errors", "headscope.surgery.cut"}
    want = known
    assert _imports("made up", ast.parse(source), known) == want
    assert [_room(name) for name in ("headscope", "headscope.heads", "headscope.surgery.cut")] == [
        "",
        "heads",
        "surgery",
    ]


MOST_LINES, MOST_BODY_LINES, MOST_ARGUMENTS = 400, 40, 7
MOST_SETTINGS = 13  # of a public verb: its arguments are the settings of its users, most of them never touched
VERBS = {
    alias.name for node in ast.walk(SOURCES["headscope"]) if isinstance(node, ast.ImportFrom) for alias in node.names
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_files_bodies_and_signatures_stay_small(name: str) -> None:
    """Past these sizes, split by stage."""
    too_large = []
    for node in ast.walk(SOURCES[name]):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        arguments = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
        count = len([argument for argument in arguments if argument not in {"self", "cls"}])
        # the arguments of a command are its options, each a line in --help
        is_command = any(ast.unparse(decorator).startswith("command(") for decorator in node.decorator_list)
        most = MOST_SETTINGS if node.name in VERBS else MOST_ARGUMENTS
        if length > MOST_BODY_LINES or (count > most and not is_command):
            too_large.append(f"{node.name}, line {node.lineno}: {length} lines, {count} arguments")
    lines = max((getattr(node, "end_lineno", 0) for node in ast.walk(SOURCES[name])), default=0)
    assert lines <= MOST_LINES, f"{name} has {lines} lines"
    assert not too_large, f"{name}: {too_large}"


@pytest.mark.parametrize("folder", ["tests", "docs", "analyses"])
def test_files_beside_the_package_stay_small_too(folder: str) -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_module_is_named_for_nothing() -> None:
    last_names = {name.rsplit(".", 1)[-1] for name in SOURCES}
    assert not last_names & {"utils", "util", "helpers", "common", "misc"}
