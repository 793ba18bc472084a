"""The tensors of a model in safetensors, in one file or in several, and back into a model of the same names."""

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from headscope.errors import InputError
from headscope.surgery.kept import kept_tensors

__all__ = ["TENSORS", "Written", "check_size", "few_of", "put_weights", "write_weights"]

TENSORS = ".safetensors"
"""What names of files with tensors end in."""

_WEIGHTS, _INDEX = f"model{TENSORS}", f"model{TENSORS}.index.json"  # as transformers calls them


class Written(NamedTuple):
    """What `write_weights` wrote.

    Attributes:
        files: their names, that of the index among them where there are several.
        tied: for each further name of a tensor the one under which it is stored.
        kept: names of tensors that are neither parameters nor buffers.
    """

    files: list[str]
    tied: dict[str, str]
    kept: list[str]


def write_weights(model: nn.Module, folder: Path, most: int | str) -> Written:
    """Write every parameter and buffer, and tensors that modules keep beside them: no more in memory than a file holds.

    Args:
        model: the model.
        folder: where the files go.
        most: what `check_size` lets through; a tensor that is larger has a file of its own.
    """
    beside = {name: one.tensor.detach() for name, one in kept_tensors(model).items() if not one.tensor.is_meta}
    if odd := [name for name, tensor in beside.items() if not _is_storable(tensor)]:
        warnings.warn(
            f"{few_of(odd)}: safetensors holds no tensors of that kind, and these are no buffers either, so they are "
            "not saved; a model that is loaded has what its class, or model=, makes of them",
            stacklevel=4,
        )
        beside = {name: tensor for name, tensor in beside.items() if name not in odd}
    tensors, tied = _distinct(_state(model) | beside)
    # of their sizes alone: tensors that lie in one piece of memory are copied apart, so they may go to different files
    sizes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=most)
    for file, names in (split.filename_to_tensors or {_WEIGHTS: []}).items():
        save_file({name: _apart(tensors[name]) for name in names}, folder / file)
    files = [*split.filename_to_tensors] or [_WEIGHTS]
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        files.append(_INDEX)
    return Written(files, tied, sorted(beside))


def put_weights(
    files: Iterable[Path], model: nn.Module, tied: Mapping[str, str], kept: Collection[str] = ()
) -> list[str]:
    """Put what `write_weights` wrote into a model.

    Of tensors that are neither parameters nor buffers those are put in that the model has in the same size.

    Args:
        files: in safetensors.
        model: changed in place; its own tensors may be without memory.
        tied: further names of tensors.
        kept: names of those that are neither parameters nor buffers.

    Returns:
        Those of `kept` that the model has not in that size: some may be what a forward kept for the next one.

    Raises:
        ValueError: names or shapes that are not those of the model.
    """
    files, wanted = list(files), _state(model)
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as held:
            names = held.keys()
            found.update((name, tuple(held.get_slice(name).get_shape())) for name in names)
    if odd := sorted(({*found, *tied} - {*kept}) ^ wanted.keys()):
        raise ValueError(f"{len(odd)} weights do not match the model, {odd[0]} among them")
    for name, own in wanted.items():
        if name in found and found[name] != own.shape:
            raise ValueError(f"{name} is {found[name]} where the model has {tuple(own.shape)}")
    others: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in load_file(file).items():
            # in memory of its own: where it lies in the file, numbers may be added up in another order
            if name in kept:
                others[name] = tensor.clone()
            else:
                _put(model, name, tensor.clone())
    for name, source in tied.items():
        if name not in kept:
            _tie(model, name, source)
    return _put_beside(model, {name: tied.get(name, name) for name in kept}, others)


def check_size(most: Any) -> None:
    """Refuse what is no size of a file.

    Raises:
        InputError: neither bytes nor text like "5GB".
    """
    try:
        if type(most) not in (int, str) or (isinstance(most, int) and most < 1):
            raise ValueError
        split_torch_state_dict_into_shards({"": torch.empty(1, device="meta")}, max_shard_size=most)
    except (ValueError, TypeError):
        raise InputError(
            f"max_shard_size is a number of bytes, or text like '5GB' or '500MB'; {most!r} is neither"
        ) from None


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name that it has."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, each once, and for each further name of one of them that name."""
    first: dict[Any, str] = {}
    tensors, tied = {}, {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        tensors[name] = tensor
    return tensors, tied


def _apart(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: safetensors refuses views that share memory in part."""
    own = tensor.cpu().contiguous()
    return own.clone() if own.data_ptr() == tensor.data_ptr() else own


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module, old = model.get_submodule(path), _tensor(model, name)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=old.requires_grad)
    else:
        module._buffers[leaf] = tensor


def _put_beside(model: nn.Module, kept: Mapping[str, str], others: Mapping[str, Tensor]) -> list[str]:
    """Put tensors where a model keeps such; those of one source are one again, a parameter or a buffer too."""
    places, made, left = kept_tensors(model), dict[str, Tensor](), []
    for name, source in kept.items():
        old = places[name].tensor if name in places else None
        saved = others[source] if source in others else _tensor(model, source)
        if old is None or (old.shape, old.dtype) != (saved.shape, saved.dtype):
            left.append(name)
            continue
        if source in others and isinstance(old, nn.Parameter):
            saved = made.setdefault(source, nn.Parameter(saved, old.requires_grad))
        elif source in others:
            saved = made.setdefault(source, saved.requires_grad_(old.requires_grad))
        places[name].put(saved)
    return left


def few_of(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


_MOST = 3


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def _is_storable(tensor: Tensor) -> bool:
    try:
        save({"": torch.empty(1, dtype=tensor.dtype)})
    except Exception:  # safetensors has no name for it, in whatever way it says so
        return False
    return tensor.layout is torch.strided


def _tie(model: nn.Module, name: str, source: str) -> None:
    (path, _, leaf), (source_path, _, source_leaf) = name.rpartition("."), source.rpartition(".")
    module, other = model.get_submodule(path), model.get_submodule(source_path)
    for own, others in ((module._parameters, other._parameters), (module._buffers, other._buffers)):
        if leaf in own:
            own[leaf] = others[source_leaf]  # type: ignore[assignment]
