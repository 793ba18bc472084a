"""The record of a cut in the config of a model of transformers, so that it goes wherever `save_pretrained` goes."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from headscope.anatomy.records import leave_record, record_within
from headscope.errors import StorageError
from headscope.plans import Record

__all__ = [
    "ABOUT",
    "CONFIG",
    "carried_records",
    "carries_record",
    "leave_marks",
    "mark_saved",
    "plain_config",
    "take_record",
    "without_records",
]

ABOUT, CONFIG = "headscope.json", "config.json"
"""What `headscope.save` writes of a model, and what transformers does."""

_ENTRY, _FORMAT = "headscope", 1
_WEIGHTS = "transformers_weights"  # the file that from_pretrained is to read: it refuses a name that is none
_NONE_FIT = "heads were cut out of this model by headscope, so load it with headscope.load(folder)"


def take_record(model: nn.Module, record: Record) -> None:
    """Leave the record of all its cuts on a model, and in the configs of it and of those of transformers inside it.

    Such a model's `save_pretrained` says from then on how the folder is loaded.

    Args:
        model: the pruned model.
        record: of all its cuts.
    """
    leave_record(model, record)
    seen: dict[int, bool] = {}
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        config = module.config
        if id(config) not in seen:  # a model and the one inside its head share theirs
            own = record_within(record, name)
            seen[id(config)] = bool(own.edits)
            config.__dict__.pop(_ENTRY, None)
            if own.edits:
                # as text: a config is printed and written with a line for each number in it
                setattr(config, _ENTRY, {"format": _FORMAT, "record": json.dumps(own.to_json())})
        if seen[id(config)]:
            mark_saved(module)


def mark_saved(model: PreTrainedModel) -> None:
    """Let a model's `save_pretrained` leave marks in the folder; see `leave_marks`."""
    model.__dict__["save_pretrained"] = functools.partial(_save_pretrained, model)


def _save_pretrained(
    model: PreTrainedModel, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
) -> None:
    type(model).save_pretrained(model, save_directory, is_main_process, *args, **kwargs)
    if is_main_process and (Path(save_directory) / CONFIG).is_file():  # adapters are saved without one
        leave_marks(Path(save_directory))
        # its checksums are of what was there before
        (Path(save_directory) / ABOUT).unlink(missing_ok=True)


def leave_marks(folder: Path) -> None:
    """Say in a folder with a cut model of transformers how it is loaded: to people, and to plain `from_pretrained`.

    The sizes differ from the config's, which is an error there, unless it was told to draw such weights anew. This is
    one even then.

    Args:
        folder: with a config.json; a README that names headscope.load already stays as it is.
    """
    config = folder / CONFIG
    marked = json.loads(config.read_text("utf-8")) | {_WEIGHTS: _NONE_FIT}
    config.write_text(json.dumps(marked, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    readme = folder / "README.md"
    before = readme.read_text("utf-8") if readme.is_file() else ""
    if "headscope.load" not in before:
        readme.write_text(f"{before}\n{_README}" if before else _README, encoding="utf-8")


_README = """# A model with fewer attention heads

Heads were cut out of this model, so its weights are smaller than config.json says, and plain `from_pretrained` refuses
them. With headscope installed, load it by

```python
import headscope

model = headscope.load("the path of this folder")
```

`headscope inspect FOLDER` shows which heads are left.
"""


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config itself, without what keeps `from_pretrained` away."""
    config.__dict__.pop(_WEIGHTS, None)
    return config


def without_records(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON values, without what it, or one inside it, says of cuts."""
    return {
        name: without_records(value) if isinstance(value, dict) else value
        for name, value in data.items()
        if name not in (_ENTRY, _WEIGHTS)
    }


def carries_record(data: Mapping[str, Any]) -> bool:
    """Whether a config, as JSON values, or one inside it, says what was cut."""
    return _ENTRY in data or any(carries_record(value) for value in data.values() if isinstance(value, dict))


def carried_records(model: nn.Module) -> Iterator[tuple[str, Record]]:
    """What the configs of a model say that was cut: dotted names of modules, and records as seen from there.

    Args:
        model: of transformers, or around such models; whole or cut.

    Raises:
        StorageError: an entry that cannot be read, or that does not name modules of this model.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        entry = getattr(getattr(module, "config", None), _ENTRY, None)
        if not isinstance(module, PreTrainedModel) or entry is None:
            continue
        if not any(f"{name}.".startswith(f"{outer}.") or not outer for outer in found):
            found.append(name)
            home, record = _at_home(module, _read(module, entry))
            yield ".".join(part for part in (name, home) if part), record


def _read(model: nn.Module, entry: Any) -> Record:
    version = entry.get("format") if isinstance(entry, dict) else None
    if version != _FORMAT:
        raise StorageError(
            f"the config of {type(model).__name__} says in format {version!r} what was cut; this headscope reads "
            f"format {_FORMAT}: update headscope"
        )
    try:
        return Record.from_json(json.loads(entry["record"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"what the config of {type(model).__name__} says of the cut is incomplete ({error!r}); was it edited by "
            "hand? Save the cut model again"
        ) from error


def _at_home(model: PreTrainedModel, record: Record) -> tuple[str, Record]:
    """Where a record's names start: a bare model was cut and got a head since, or lost the one it was cut with."""
    base = model.base_model_prefix
    for home, own in (("", record), (base, record), ("", record_within(record, base))):
        root = dict(model.named_modules()).get(home)
        known = {name for name, _ in root.named_modules()} if root is not None else set()
        if own.edits and all(edit["module"] in known for edit in own.edits):
            return home, own
    odd = record.edits[0]["module"] if record.edits else "nothing"
    raise StorageError(
        f"{type(model).__name__} is not the model that was cut: the record in its config names {odd}, which it does "
        "not have; was the config taken from another model?"
    )
