"""A model in a folder, pruned or whole: safetensors for weights, JSON for what it is and what was cut. No pickle."""

import copy
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from headscope._support.environment import versions
from headscope._support.folders import new_folder
from headscope._support.running import unwrapped
from headscope.anatomy.records import record_of
from headscope.errors import StorageError
from headscope.plans import Record
from headscope.surgery.carried import ABOUT, CONFIG, carries_record, leave_marks, plain_config, take_record
from headscope.surgery.checkpoints import BUILT_BY_HAND, class_named, load_checkpoint
from headscope.surgery.edits.base import apply_edits, edits_from_json
from headscope.surgery.edits.slicing import SliceInput, SliceOutput
from headscope.surgery.kept import kept_tensors
from headscope.surgery.versions import saved_versions, told_versions
from headscope.surgery.weights import TENSORS, Written, check_size, few_of, put_weights, write_weights

__all__ = ["attention_names", "check_whole", "holds_cut", "load", "loads_alone", "save"]

# formats: headscope before a later one was there still reads those before it
_ONE_FILE, _SEVERAL, _BESIDE = 1, 2, 3
_GENERATION = "generation_config.json"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    force: bool = False,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a model into a new folder from which `load` brings it back bit-identical. A whole model is saved as well.

    The folder holds model.safetensors (parameters, buffers whether or not the model calls them persistent, and tensors
    that modules keep beside these, in attributes, lists and dicts), or for a large model several such files and their
    index, headscope.json (class, what was cut, versions, checksums) and for a model of transformers its config: head
    counts in it are those of before the cut, since few families could be built with others (`export` writes them where
    they can). Plain `from_pretrained` refuses it, and a README says that `headscope.load` reads it.

    Args:
        model: the model; pruned or not.
        folder: where it is to stand; appears whole or not at all.
        tokenizer: a tokenizer of transformers to save beside it.
        force: whether a folder with content is replaced.
        max_shard_size: bytes in one file of weights, or text like "500MB"; a tensor that is larger has a file alone.

    Returns:
        The folder.

    Raises:
        InputError: `max_shard_size` is no size.
        StorageError: the folder has other content and `force` is off; or the model holds state that is no tensor,
            weights that are elsewhere, or adapters around a layer that was cut.
    """
    model = unwrapped(model)
    odd = [name for name in model.state_dict() if name.endswith("_extra_state")]
    if odd:
        raise StorageError(f"{type(model).__name__} keeps state beside its tensors ({odd[0]}), which cannot be saved")
    check_size(max_shard_size)
    check_whole(model)
    with new_folder(folder, force=force) as new:
        written = write_weights(model, new, max_shard_size)
        files = [*written.files, *_save_configs(model, new)]
        if CONFIG in files and record_of(model) is not None:
            leave_marks(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        about = _describe(model, written) | {"sha256": {name: _sha256(new / name) for name in files}}
        text = json.dumps(about | {"digest": _digest(about)}, indent=1)
        (new / ABOUT).write_text(text + "\n", encoding="utf-8")
    return Path(folder)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Bring back a cut model, on the CPU: what `save` wrote, or what `save_pretrained` wrote of a cut model.

    What `save` wrote comes back bit-identical: class, weights, precision, mode and head numbers. Checksums are verified
    first; then the class is built anew, the cuts are made again and the weights put in. A checkpoint of transformers
    (a trainer's too) has no checksums, and a warning says so; its weights come back as `from_pretrained` brings them,
    in evaluation mode, and must have the sizes that the cut recorded in its config leaves.

    Args:
        folder: the folder.
        model: for a class that is not of transformers, an instance of the original (whole, any weights); it is copied,
            not changed.

    Returns:
        The model, with the record of what was cut from it.

    Raises:
        StorageError: the folder is missing, incomplete, altered, or of another version; or a model is needed to build
            from, or does not fit; or weights that do not fit the cut.
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file() and holds_cut(folder):
        return load_checkpoint(folder, model)
    about = _read(folder)
    _verify_files(folder, about)
    fresh = _build(folder, about) if model is None else _copied(folder, about, model)
    record = _record(folder, about)
    with _blaming(folder, about, "the saved cut does not fit the model"):
        if record is not None:
            apply_edits(edits_from_json(record.edits), fresh)
            take_record(fresh, record)
    with _blaming(folder, about, "the weights do not fit the model"):
        files = [folder / name for name in about["sha256"] if name.endswith(TENSORS)]
        left = put_weights(files, fresh, about["tied"], about.get("kept", ()))  # missing in formats before the third
    if left:
        warnings.warn(
            f"{few_of(left)}: saved, tensors that are no buffers, and what is loaded has none of that name and size; "
            "what it has stays. If a forward does not make them anew, pass model= as it was when it was saved",
            stacklevel=2,
        )
    _check_filled(fresh)
    fresh.train(about["training"])  # not in one line: some modules' own train() forgets to return the module
    return fresh


def holds_cut(folder: Path) -> bool:
    """Whether a folder is one for `load`: of `save`, or of transformers with a config that says what was cut."""
    if (folder / ABOUT).is_file():
        return True
    try:
        data = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and carries_record(data)


def check_whole(model: nn.Module) -> None:
    """Refuse what `load` could not bring back."""
    kind = type(model).__name__
    away = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if away is not None:
        raise StorageError(f"{away} of {kind} is offloaded (device_map) and cannot be saved; load the model whole")
    record = record_of(model)
    for edit in edits_from_json(record.edits) if record is not None else ():
        layer = model.get_submodule(edit.module)
        if isinstance(edit, SliceOutput | SliceInput) and layer._parameters.get("weight") is None:
            raise StorageError(
                f"{edit.module} ({type(layer).__name__}) of {kind} was cut and wrapped since, as adapters do, so the "
                "cut could not be made again around them; merge them, or save the cut model without them "
                "(headscope.save, before they are added) and them with their own save_pretrained"
            )


def _describe(model: nn.Module, written: Written) -> dict[str, Any]:
    kind = type(model)
    record = record_of(model)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return {
        "headscope_model": _BESIDE if written.kept else _ONE_FILE if len(written.files) == 1 else _SEVERAL,
        "versions": versions(),
        "class": kind.__name__,
        "module": kind.__module__,
        "transformers": _is_of_transformers(kind),
        "attention": attention_names(model),
        "training": model.training,
        "dtype": " ".join(dtypes),
        "record": None if record is None else record.to_json(),
        "tied": written.tied,
        "kept": written.kept,
    }


def loads_alone(model: nn.Module) -> bool:
    """Whether `load` brings a model back that `save` wrote without an instance of the original: one of transformers."""
    return _is_of_transformers(type(unwrapped(model)))


def _is_of_transformers(kind: type) -> bool:
    """Whether the class can be found again by its name alone."""
    return issubclass(kind, transformers.PreTrainedModel) and getattr(transformers, kind.__name__, None) is kind


def attention_names(model: nn.Module) -> dict[str, Any] | None:
    """Which attention function a model of transformers runs, by sub-config; its config.json does not say."""
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        return None
    parts = {"": config} | {name: getattr(config, name, None) for name in config.sub_configs}
    return {name: part._attn_implementation for name, part in parts.items() if part is not None}


def _save_configs(model: Any, new: Path) -> list[str]:
    if not _is_of_transformers(type(model)):
        return []
    model.config.save_pretrained(new)
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return [CONFIG]
    generation.save_pretrained(new)
    return [CONFIG, _GENERATION]


def _read(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{folder} holds no {ABOUT}, so headscope.save did not write it, and its {CONFIG} says of no cut; "
            "a whole model of transformers loads with its own from_pretrained"
        ) from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / ABOUT} cannot be read ({error}); {_AGAIN}") from error
    version = about.get("headscope_model") if isinstance(about, dict) else None
    if type(version) is not int:
        raise StorageError(f"{folder / ABOUT} does not say its format: it was altered after it was saved; {_AGAIN}")
    if version not in range(_ONE_FILE, _BESIDE + 1):
        wrote = saved_versions(about if isinstance(about, dict) else {}, folder / CONFIG).get("headscope")
        todo = "update headscope" if version > _BESIDE else "load it with the headscope that saved it"
        raise StorageError(
            f"{folder} is of format {version!r}{f', of headscope {wrote}' if wrote else ''}; this headscope "
            f"({versions()['headscope']}) reads formats {_ONE_FILE} to {_BESIDE}: {todo}"
        )
    digest = about.pop("digest", None)
    if digest != _digest(about):
        raise StorageError(f"{folder / ABOUT} was altered after it was saved; {_AGAIN}")
    return about


_AGAIN = "copy the folder again from where it was whole, or prune and save again"


def _verify_files(folder: Path, about: Mapping[str, Any]) -> None:
    for name, expected in about["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise StorageError(f"{path} is missing; {_AGAIN}")
        found = _sha256(path)
        if found != expected:
            raise StorageError(
                f"{path} is truncated or was altered: its checksum is {found[:12]}…, and {expected[:12]}… was saved; "
                f"{_AGAIN}"
            )


def _build(folder: Path, about: Mapping[str, Any]) -> nn.Module:
    if not about["transformers"]:
        raise StorageError(
            f"{folder} holds a {about['class']} (of {about['module']}), which is not of transformers, so its name "
            "alone does not build it",
            python=f"pass model=, an instance of it as it was before the cut, with any weights: "
            f"hs.load({str(folder)!r}, model={about['class']}(…))",
            shell=BUILT_BY_HAND,
        )
    kind = class_named(folder, about["class"], saved_versions(about, folder / CONFIG))
    # without memory, as transformers builds them itself: every parameter and buffer is put in from the file
    with _blaming(folder, about, f"{about['class']} cannot be built"), torch.device("meta"):
        config = plain_config(kind.config_class.from_pretrained(folder))
        fresh = kind._from_config(config, attn_implementation=about["attention"])
    if (folder / _GENERATION).is_file() and _GENERATION in about["sha256"]:
        fresh.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return fresh


def _record(folder: Path, about: Mapping[str, Any]) -> Record | None:
    try:
        return None if about["record"] is None else Record.from_json(about["record"])
    except (KeyError, TypeError, ValueError) as error:
        told = told_versions(saved_versions(about, folder / CONFIG))
        raise StorageError(
            f"{folder / ABOUT}: what was cut is not told as this headscope tells it ({type(error).__name__}: {error}). "
            f"{told.capitalize()}; load it with the headscope that saved it, or prune and save again"
        ) from error


def _copied(folder: Path, about: Mapping[str, Any], model: nn.Module) -> nn.Module:
    if type(model).__name__ != about["class"]:
        raise StorageError(f"{folder} holds a {about['class']}; model= is a {type(model).__name__}")
    if record_of(model) is not None:
        raise StorageError("model= is pruned itself; pass an instance of the original, whole, with any weights")
    return copy.deepcopy(model)


def _check_filled(model: nn.Module) -> None:
    lost = next((name for name, one in kept_tensors(model).items() if one.tensor.is_meta), None)
    if lost is not None:
        raise StorageError(
            f"{lost} is a tensor but no buffer, so it was not saved", python="pass model=", shell=BUILT_BY_HAND
        )


@contextmanager
def _blaming(folder: Path, about: Mapping[str, Any], what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        told = told_versions(saved_versions(about, folder / CONFIG))
        raise StorageError(
            f"{folder}: {what}: {error}; wrong model=, or another version? {told.capitalize()}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
