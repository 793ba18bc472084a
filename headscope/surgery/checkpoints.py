"""A cut model as `save_pretrained` and trainers leave it: transformers reads weights, the config says what was cut."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from headscope.errors import StorageError
from headscope.surgery.carried import CONFIG, carried_records, mark_saved, plain_config, take_record
from headscope.surgery.edits.base import apply_edits, edits_from_json
from headscope.surgery.edits.grouping import MapGroups
from headscope.surgery.versions import saved_versions, told_versions

__all__ = ["BUILT_BY_HAND", "class_named", "load_checkpoint"]

_MOST = 3
BUILT_BY_HAND = "name package.module:factory, a function of yours that returns headscope.load(folder, model=…)"
"""What the command line advises where only the user can build the model that was cut."""


def load_checkpoint(folder: Path, model: nn.Module | None = None) -> nn.Module:
    """A cut model from a folder that `save_pretrained` wrote, in evaluation mode, in the precision that was saved.

    A warning says that it is unverified: no checksums stand beside it.

    Args:
        folder: with config.json, which carries the record, and weights in safetensors, in one file or in several.
        model: an instance of the class, for one that is not of transformers.

    Raises:
        StorageError: the class is not known, or weights and record do not fit each other.
    """
    kind, config = _class_of(folder, model)
    cut = _cutting(kind)
    try:
        # told to draw weights of other sizes anew, it says which those are; they are refused below
        loaded: Any = cut.from_pretrained(
            folder, config=config, ignore_mismatched_sizes=True, output_loading_info=True, use_safetensors=True,
            local_files_only=True,
        )  # fmt: skip
    except StorageError as error:
        raise StorageError(f"{folder}: {error}") from error
    except Exception as error:
        raise StorageError(
            f"{folder}: the weights of the cut {kind.__name__} cannot be read: {error}; {_versions(folder)}"
        ) from error
    fresh, told = loaded
    _check_fit(folder, kind, told)
    fresh.__class__ = kind
    _finish(fresh)
    warnings.warn(
        f"the cut {kind.__name__} in {folder} is unverified: save_pretrained leaves no checksums. Every weight has the "
        "size that the cut recorded in its config leaves; headscope.save writes a folder that is verified",
        stacklevel=3,
    )
    return fresh


def class_named(folder: Path, name: str, saved: Mapping[str, str]) -> Any:
    """A class of transformers.

    Args:
        folder: that holds a model of it.
        name: the class's name.
        saved: versions that wrote it.

    Raises:
        StorageError: there is none of that name.
    """
    kind = getattr(transformers, name, None)
    if kind is None:
        wrote = f"transformers {saved['transformers']}" if "transformers" in saved else "the version"
        raise StorageError(
            f"{folder} holds a {name}, which transformers {transformers.__version__} does not have",
            python=f"install {wrote}, with which it was saved, or pass model=",
            shell=f"install {wrote}, with which it was saved, or {BUILT_BY_HAND}",
        )
    return kind


def _class_of(folder: Path, model: nn.Module | None) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    try:
        saved, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
        if not saved.get("architectures"):
            raise StorageError(
                f"{folder / CONFIG} does not say of which class the cut model is: headscope.save keeps that in "
                "headscope.json, which is missing; copy the folder again, or prune and save again"
            )
        name = saved["architectures"][0]
        if model is None:
            kind = class_named(folder, name, saved_versions({}, folder / CONFIG))
        elif isinstance(model, PreTrainedModel) and type(model).__name__ == name:
            kind = type(model)
        else:
            raise StorageError(f"{folder} holds a {name}; model= is a {type(model).__name__}")
        own = kind.config_class if model is None else type(model.config)
        config = own.from_pretrained(folder, local_files_only=True)
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"{folder / CONFIG} cannot be read: {error}; {_versions(folder)}") from error
    return kind, plain_config(config)


def _cutting(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class, whose instances are cut as they are made: before `from_pretrained` compares sizes."""

    def make(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        for name, record in carried_records(self):
            apply_edits(edits_from_json(record.edits), self.get_submodule(name))

    # of the same name in the same module: transformers looks classes up by both
    return type(kind.__name__, (kind,), {"__init__": make, "__module__": kind.__module__})


def _check_fit(folder: Path, kind: type, told: Mapping[str, Any]) -> None:
    sizes = [f"{name} is {tuple(saved)}, not {tuple(own)}" for name, saved, own in sorted(told["mismatched_keys"])]
    missing, more = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    odd = [*sizes, *(f"{name} is missing" for name in missing), *(f"{name} belongs nowhere" for name in more)]
    if odd:
        few = "; ".join(odd[:_MOST]) + (f"; and {len(odd) - _MOST} more" if len(odd) > _MOST else "")
        raise StorageError(
            f"{folder}: the weights are not those of the cut {kind.__name__} that {CONFIG} records: {few}. Save "
            "the cut model again, weights and config together; for a model that is whole, take the entry headscope "
            f"out of {CONFIG}. {_versions(folder).capitalize()}"
        )


def _versions(folder: Path) -> str:
    return told_versions(saved_versions({}, folder / CONFIG))


def _finish(model: PreTrainedModel) -> None:
    """Put right what is no weight, and leave the records where they were."""
    for name, record in list(carried_records(model)):
        home = model.get_submodule(name)
        for edit in edits_from_json(record.edits):
            if isinstance(edit, MapGroups):
                # a model is made without memory, and its maps are in no file
                edit.apply(home.get_submodule(edit.module))
        take_record(home, record)
    mark_saved(model)
