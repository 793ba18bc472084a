"""The wheel, unpacked where nothing else of the repository is, does the main job."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# what the console script does, once it is sure to be the wheel's
COMMAND = """
import sys
from importlib.metadata import distribution
import headscope
assert headscope.__file__.startswith(sys.argv.pop(1)), headscope.__file__
(command,) = (entry for entry in distribution("headscope").entry_points if entry.name == "headscope")
sys.argv[0] = "headscope"
sys.exit(command.load()())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _run(site: Path, folder: Path, *arguments: str) -> str:
    """Run the command in `folder`, from the unpacked wheel, which stands before whatever else is installed."""
    environment = os.environ | {"PYTHONPATH": str(site), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", COMMAND, str(site), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(site: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path for path in (root / "headscope").rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts}

    assert files(site) == files(ROOT)
    assert {"headscope/py.typed", "headscope/reporting/page.html.j2"} <= files(site)
    (about,) = (path for path in site.iterdir() if path.name != "headscope")
    assert (about / "licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_command_of_the_wheel_knows_its_version(site: Path, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] in _run(site, tmp_path, "--version")


def test_the_wheel_makes_a_report(site: Path, tmp_path: Path) -> None:
    _run(site, tmp_path, "analyze", "headscope.models.reference:example", "--out", "report")
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "L1H3" in page  # every head of the example is named somewhere
