"""A model by name: from the hub, from a folder, pruned and saved by headscope, or from a function of the user's own."""

import re
import socket
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import transformers
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.constants import ENDPOINT
from torch import Tensor, nn

from headscope import surgery
from headscope._support.objects import find_object, importable, line_of, reason_of
from headscope._support.silence import quietly
from headscope.errors import HeadscopeError, InputError, ModelError
from headscope.surgery.carried import carries_record
from headscope.text.corpus import Tokenizer
from headscope.text.feeding import feed

__all__ = ["Loaded", "device_named", "load_model", "telling_name"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TELLS_NONE = re.compile(r"models?|weights|out(put)?|final|best|last|checkpoint(-\d+)?|[0-9a-f]{7,}")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to be looked at.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer; None where it came without one.
        batches: the batches that a user's function returned with it, in place of a tokenizer; None otherwise.
        name: what to call it: its hub name, its folder's own name, or "package.module:factory".
        source: what it was loaded from, as it was given.
        options: what else it takes to load it so, as the command line spells that; "" for nothing.
    """

    model: nn.Module
    tokenizer: Any | None
    batches: list[Mapping[str, Any]] | None
    name: str
    source: str = ""
    options: str = ""


def load_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """The model that `source` names, with its tokenizer, in evaluation mode.

    Args:
        source: a local folder (as saved by transformers or by headscope); else "package.module:factory", a function
            without arguments, imported and run as it is, with the current directory importable, that returns a model,
            (model, batches) or (model, tokenizer); else a name on the Hugging Face hub.
        device: "auto" (a CUDA device if there is one, else the CPU), or a name that torch knows.
        dtype: precision of the weights, e.g. "float32". None: as saved; for a model of transformers float32 on the
            CPU, where half precision is slow and coarse.
        trust_remote_code: run Python code that comes with the model's files.

    Returns:
        The model, its tokenizer and batches where there are any, and its name.

    Raises:
        ModelError: there is no such model, or it does not load; the message says what was tried.
        InputError: a device or a dtype that does not exist here, or a source that is no name.
    """
    if not isinstance(source, str | Path):
        raise InputError(f"a model is named by a str or a Path, and this is {source!r:.60}")
    name = str(source)
    place, precision = device_named(device), _dtype(dtype)
    folder = Path(source).expanduser()
    if not name:
        raise ModelError("no model was named: give a folder, a hub name, or package.module:factory")
    if folder.exists():
        loaded = _from_folder(folder, place, precision, trust_remote_code)
    elif ":" in name:
        loaded = _from_factory(name)
    elif _HUB_NAME.fullmatch(name):
        loaded = _from_hub(name, place, precision, trust_remote_code)
    else:
        raise ModelError(f"there is no folder {name!r} (looked in {Path.cwd()}), and no hub name is spelled like that")
    try:
        loaded.model.to(device=place, dtype=precision)
    except Exception as error:
        raise ModelError(f"{loaded.name} does not go to {place}: {reason_of(error)}") from error
    loaded.model.eval()
    return replace(loaded, source=name)


def telling_name(path: str | Path) -> str:
    """What to call a model that lies there: its name on the hub, or its folder's, with the one above if it tells none.

    >>> telling_name("/cache/hub/models--openai-community--gpt2/snapshots/607a30d783dfa663caf39e06633721c8d4cfcd7e")
    'openai-community/gpt2'
    >>> telling_name("runs/tiny/model"), telling_name("runs/tiny/checkpoint-500"), telling_name("runs/tiny")
    ('tiny/model', 'tiny/checkpoint-500', 'tiny')
    """
    parts = Path(path).parts
    cached = [part for part in parts if part.startswith("models--")]
    if cached:
        return cached[-1].removeprefix("models--").replace("--", "/")
    tells_none = bool(parts) and _TELLS_NONE.fullmatch(parts[-1].lower())
    return "/".join(parts[-2:] if tells_none and parts[-2:-1] != ("/",) else parts[-1:])


def _from_folder(folder: Path, place: torch.device, precision: torch.dtype | None, trust: bool) -> Loaded:
    shown, name = repr(str(folder)), telling_name(folder.resolve())
    if not folder.is_dir():
        own = (
            f"; a function in it that returns a model is named {folder.stem}:function" if folder.suffix == ".py" else ""
        )
        raise ModelError(f"{shown} is a file; a model is the folder that holds config.json and the weights{own}")
    held = sorted(file.name for file in folder.iterdir())
    if surgery.holds_cut(folder):
        with quietly():
            model = surgery.load(folder)
        return Loaded(model, _tokenizer(str(folder), trust, local=True), None, name)
    if "config.json" not in held:
        some = ", ".join(held[:5]) + (", …" if len(held) > 5 else "")
        raise ModelError(f"{shown} is not a saved model: it has no config.json (it holds: {some or 'nothing'})")
    if not any(file.endswith(".safetensors") for file in held):
        pickles = [file for file in held if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        found = (
            f"{pickles[0]} is a pickle, which can run code as it loads, and is not read" if pickles else "no weights"
        )
        raise ModelError(f"{shown} has no .safetensors file ({found}): save the model with save_pretrained")
    model = _pretrained(str(folder), place, precision, trust, local=True)
    return Loaded(model, _tokenizer(str(folder), trust, local=True), None, name)


def _from_hub(name: str, place: torch.device, precision: torch.dtype | None, trust: bool) -> Loaded:
    # offline, the hub's client would try each file for 23 seconds and print a page before it looked into its cache
    local = not _hub_answers()
    if (cut := _cut_on_hub(name, local)) is not None:
        return Loaded(cut, _tokenizer(name, trust, local=local), None, name)
    model = _pretrained(name, place, precision, trust, local=local)
    return Loaded(model, _tokenizer(name, trust, local=local), None, name)


def _cut_on_hub(name: str, local: bool) -> nn.Module | None:
    """A model that was pushed to the hub after it was cut; None for others, and where there is none of that name."""
    try:
        with quietly():
            config, _ = transformers.PreTrainedConfig.get_config_dict(name, local_files_only=local)
    except Exception:  # _pretrained asks again, and tells why
        return None
    if not carries_record(config):
        return None
    try:
        with quietly():
            folder = snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], local_files_only=local)
            return surgery.load(Path(folder))
    except HeadscopeError:
        raise
    except Exception as error:
        raise ModelError(_why(name, error, local)) from error


def _hub_answers() -> bool:
    """Whether the hub's address can be looked up; taken for granted behind a proxy, which looks it up itself."""
    if is_offline_mode():
        return False
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _pretrained(source: str, place: torch.device, precision: torch.dtype | None, trust: bool, local: bool) -> nn.Module:
    settings: dict[str, Any] = {"trust_remote_code": trust, "local_files_only": local}
    try:
        with quietly():
            config = transformers.AutoConfig.from_pretrained(source, **settings)
            wanted = precision or (torch.float32 if place.type == "cpu" else "auto")
            model, told = _model_class(config, source, trust).from_pretrained(
                source, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True, **settings
            )
    except HeadscopeError:
        raise
    except Exception as error:
        raise ModelError(_why(source, error, local)) from error
    if missing := sorted(told["missing_keys"]):
        warnings.warn(
            f"{len(missing)} weights of {type(model).__name__} are not among the saved ones and were drawn at random "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}): what depends on them means nothing",
            stacklevel=4,
        )
    return model


def _model_class(config: Any, source: str, trust: bool) -> Any:
    """The class that was saved: a language model keeps its head, a bare encoder gets none."""
    saved = (getattr(config, "architectures", None) or [None])[0]
    if saved is None:
        return transformers.AutoModel
    own = getattr(config, "auto_map", None) or {}
    remote = next((auto for auto, target in own.items() if str(target).split(".")[-1] == saved), None)
    known = getattr(transformers, saved, None)
    if known is not None:
        return known
    if remote and trust:
        return getattr(transformers, remote)
    if remote:
        raise ModelError(
            f"{source!r} brings its own Python code for {saved}, which would run on this machine: read it, and if you "
            "trust it, ask for it with trust_remote_code=True (--trust-remote-code)"
        )
    raise ModelError(
        f"{source!r} was saved as {saved}, which transformers {transformers.__version__} does not have: "
        "load it in a function of your own and pass package.module:function"
    )


def _why(source: str, error: Exception, local: bool) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{source!r} brings its own Python code, which would run on this machine: read it, and if you trust it, "
            "ask for it with trust_remote_code=True (--trust-remote-code)"
        )
    if Path(source).is_dir():
        return f"the model in {source!r} does not load: {reason_of(error)}"
    here = f"there is no folder {source!r} (looked in {Path.cwd()})"
    if local:
        host = urlsplit(ENDPOINT).hostname
        return f"{here}, and the hub ({host}) cannot be reached from here and has no whole copy in its local cache"
    return f"{here}, and as a hub name it does not load: {reason_of(error)}"


def _tokenizer(source: str, trust: bool, local: bool) -> Any | None:
    """The tokenizer; None where there is none, also where transformers would make one up without a vocabulary."""
    try:
        with quietly():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, trust_remote_code=trust, local_files_only=local
            )
    except Exception as error:
        folder = Path(source)
        if folder.is_dir() and any(folder.glob("tokenizer*")):
            raise ModelError(f"the tokenizer in {source!r} does not load: {reason_of(error)}") from error
        return None
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _from_factory(source: str) -> Loaded:
    with importable():
        factory = find_object(source, ModelError)
        made = factory if isinstance(factory, nn.Module) else _run(source, factory)
    model, beside = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{source} returned {_kind(made)}; expected a torch.nn.Module, (module, batches) or (module, tokenizer)"
        )
    if isinstance(beside, Tokenizer):
        return Loaded(model, beside, None, source)
    if hasattr(beside, "decode"):
        raise ModelError(
            f"{source} returned a model and {_kind(beside)}, which is no tokenizer as those of transformers are: "
            "called with a text, they give {'input_ids': …}. Return batches made with it, or wrap it "
            "(transformers.PreTrainedTokenizerFast(tokenizer_object=…))"
        )
    return Loaded(model, None, None if beside is None else _checked(source, model, beside), source)


def _run(source: str, factory: Any) -> Any:
    if not callable(factory):
        raise ModelError(f"{source} is {_kind(factory)}; expected a function without arguments that returns a model")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{source} failed: {reason_of(error)}{line_of(error)}") from error


def _checked(source: str, model: nn.Module, batches: Any) -> list[Mapping[str, Any]]:
    """The batches as a list, since every pass reads them again; as dicts, whatever `headscope.analyze` takes."""
    try:
        read: list[Any] = list(feed(model, batches))
    except InputError as error:
        raise ModelError(f"the batches of {source} cannot be used: {error}") from error
    except Exception as error:
        raise ModelError(f"the batches of {source} cannot be read: {reason_of(error)}{line_of(error)}") from error
    for number, batch in enumerate(read):
        if not isinstance(batch, Mapping) or not any(isinstance(value, Tensor) for value in batch.values()):
            raise ModelError(f"batch {number} of {source} is {_kind(batch)}; expected a dict of the model's tensors")
    if not read:
        raise ModelError(f"{source} returned no batches; expected a list of dicts of the model's tensors")
    return read


def device_named(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA device if there is one, else the CPU.

    Args:
        name: "auto", or as torch spells it.

    Raises:
        InputError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except Exception as error:
        raise InputError(
            f"the device {name!r} cannot be used here: {reason_of(error)}; try 'cpu', or 'auto'"
        ) from error


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else name
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"the dtype {name!r} is not a precision of weights; use float32, bfloat16, float16 or float64")
    return dtype


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(one).__name__ for one in value)})"
    return "None" if value is None else f"a {type(value).__name__}"
