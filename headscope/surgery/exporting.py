"""A cut model as a plain one: a folder that transformers loads by itself, and that is proven by loading it."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headscope._support.folders import new_folder
from headscope._support.running import device_of, unwrapped
from headscope._support.silence import quietly
from headscope.anatomy.examples import make_example
from headscope.anatomy.records import record_of
from headscope.errors import HeadscopeError, StorageError
from headscope.plans import Record
from headscope.surgery.carried import without_records
from headscope.surgery.head_counts import Kept, Rebuilding, kept_by_layer
from headscope.surgery.storage import attention_names, check_whole, loads_alone
from headscope.surgery.verification import difference, in_precision, inputs_in, output_of, recording
from headscope.surgery.weights import check_size
from headscope.text.batches import Batch
from headscope.text.feeding import feed_one

__all__ = ["export"]

_TOLERANCE = 1e-5
_MOST_WORDS, _MOST_PROOFS = 6, 3
_KEEP = {
    "python": "headscope.save keeps any cut, and headscope.load reads it",
    "shell": "without --export any cut is written",
}
_SLICES = {"slice_output", "slice_input", "set_attribute"}


def export(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    example: Any = None,
    force: bool = False,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a cut model of transformers as a plain one: `from_pretrained` loads the folder where headscope is not.

    That takes a cut that the model's config can tell: equally many heads from every layer that one of its integers
    counts, and a config that takes so many. Which integers change is found by building models; then the folder is
    proven: it is loaded by plain `from_pretrained`, must hold every weight bit for bit, and must compute what the cut
    model computes, by the same attention function, within 1e-5. Heads are numbered anew in what is loaded, and nothing
    there tells that it was cut.

    Args:
        model: cut by `prune`; left as it is.
        folder: where it is to stand; appears whole or not at all.
        tokenizer: a tokenizer of transformers to save beside it.
        example: arguments of the model's forward, to compare on; made up for models of text and of pictures.
        force: whether a folder with content is replaced.
        max_shard_size: bytes in one file of weights, or text like "500MB".

    Returns:
        The folder.

    Raises:
        InputError: `max_shard_size` is no size.
        StorageError: the folder has other content and `force` is off; a model that is whole, or not of transformers; a
            cut that its config cannot tell, with the reason; or what was written does not compute the same.
    """
    model = unwrapped(model)
    check_size(max_shard_size)
    layers = kept_by_layer(_checked(model))
    _check_layers(layers)
    assert isinstance(model, PreTrainedModel)
    rebuilding = Rebuilding(model, layers, without_records(model.config.to_dict()))
    example = make_example(model) if example is None else feed_one(model, example)
    with new_folder(folder, force=force) as new, quietly():
        _write_proven(model, rebuilding, example, new, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
    return Path(folder)


def _checked(model: nn.Module) -> Record:
    """What was cut, of a model that can be exported at all."""
    kind = type(model).__name__
    record = record_of(model)
    if not loads_alone(model):
        raise StorageError(
            f"{kind} is not a class of transformers, whose plain from_pretrained could build it by its name", **_KEEP
        )
    if record is None or not record.removed:
        raise StorageError(f"no head was cut out of this {kind}; a whole model is written by its own save_pretrained")
    check_whole(model)
    return record


def _check_layers(layers: Sequence[Kept]) -> None:
    """Refuse what no config can tell, whatever the class."""
    emptied = [str(one.site.layer) for one in layers if not one.query_heads]
    if emptied:
        which = f"layer {emptied[0]} has" if len(emptied) == 1 else f"layers {_listed(emptied)} have"
        raise StorageError(f"{which} no head left, and no config of transformers builds such a layer", **_KEEP)
    for one in layers:
        if not one.even:
            *first, last = map(str, one.per_key_head)
            raise StorageError(
                f"L{one.site.layer}: {', '.join(first)} and {last} query heads per key head, where a plain model has "
                "equally many; take whole groups of query heads, or equally many from each",
                **_KEEP,
            )


def _check_reached(model: nn.Module, layers: Sequence[Kept], example: Batch) -> None:
    """Refuse a proof that would not run what was cut."""
    names = {one.site.module_name: one.site.layer for one in layers if one.cut}
    with recording(model, {*names}) as seen:
        output_of(model, example)
    missed = next((name for name in names if name not in seen), None)
    if missed is not None:
        raise StorageError(
            f"layer {names[missed]} ({missed}) was cut, and does not run on the example, which proves nothing of it",
            python="pass example= with what it takes",
            shell=_KEEP["shell"],
        )


def _uneven(layers: Sequence[Kept]) -> StorageError:
    keys_told = len({(one.query_heads, one.key_heads) for one in layers}) > len({one.query_heads for one in layers})

    def left(one: Kept) -> str:
        heads = f"{one.query_heads} head{'s' if one.query_heads > 1 else ''}"
        return f"{heads} on {one.key_heads} key head{'s' if one.key_heads > 1 else ''}" if keys_told else heads

    words = []
    for what, group in itertools.groupby(layers, left):
        numbers = [one.site.layer for one in group]
        alone = len(numbers) == 1
        words.append(f"layer {numbers[0]} keeps {what}" if alone else f"layers {numbers[0]}–{numbers[-1]} keep {what}")
    return StorageError(
        f"{_listed(words)}: export needs equally many in every layer that one number of the config counts",
        python="hs.plan(scores, uniform=True) takes as many from each; hs.save keeps any cut, and hs.load reads it",
        shell="`headscope plan --score … --uniform` takes as many from each; without --export any cut is written",
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:_MOST_WORDS]) + (
        f" and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
    )


def _write_proven(
    model: PreTrainedModel, rebuilding: Rebuilding, example: Batch, folder: Path, most: int | str
) -> None:
    """Write the first plain model that proves to be the cut one."""
    why = ""
    fitting = rebuilding.fitting() if rebuilding.tells_layers_apart else ()
    for data in itertools.islice(fitting, _MOST_PROOFS):
        _check_reached(model, rebuilding.layers, example)
        why = _written(model, rebuilding, data, folder, most) or _read_back(model, example, folder)
        if not why:
            return
        for path in folder.iterdir():
            path.unlink()
    why = why or rebuilding.objection()
    if not why:
        raise _uneven(rebuilding.layers)
    edits = record_of(model).edits  # type: ignore[union-attr]
    odd = next((edit for edit in edits if edit["edit"] not in _SLICES), None)
    more = "" if odd is None else f" (the cut needed more than slices, too: {odd['edit']} in {odd['module']})"
    raise StorageError(f"the cut {type(model).__name__} cannot be written as a plain one: {why}{more}", **_KEEP)


def _written(
    model: PreTrainedModel, rebuilding: Rebuilding, data: Mapping[str, Any], folder: Path, most: int | str
) -> str:
    """Write a plain model with the cut one's weights; what keeps it from that, "" where nothing does."""
    try:
        plain = rebuilding.build(data)
        _hand_over(model, plain)
        plain.save_pretrained(folder, max_shard_size=most)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk that is full, say
            raise
        return f"save_pretrained fails ({error})"
    return ""


def _read_back(model: PreTrainedModel, example: Batch, folder: Path) -> str:
    """Load a folder as anybody would; what is wrong with it, "" where nothing is."""
    try:
        loaded = type(model).from_pretrained(folder, local_files_only=True)
        names = attention_names(model)
        if attention_names(loaded) != names:
            loaded.set_attn_implementation(names or {})
    except Exception as error:
        return f"from_pretrained fails on it ({error})"
    moved: nn.Module = loaded
    return _lost(model, loaded) or _differs(model, moved.to(device_of(model)), example)


def _hand_over(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Put the weights of one model, not copies of them, into another one of the same names."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        module = plain.get_submodule(path)
        home: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
        home[leaf] = tensor
    if getattr(model, "generation_config", None) is not None:
        plain.generation_config = copy.deepcopy(model.generation_config)


def _lost(model: nn.Module, loaded: nn.Module) -> str:
    """The first weight that did not come back bit for bit, in words."""
    before, after = model.state_dict(), loaded.state_dict()
    odd = sorted(before.keys() ^ after.keys())
    if odd:
        return f"{odd[0]} does not come back"
    name = next((name for name, tensor in before.items() if not _same(tensor, after[name])), None)
    return "" if name is None else f"{name} comes back with other numbers"


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    # as bits: what is NaN stays NaN
    bits = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)


def _differs(model: nn.Module, loaded: nn.Module, example: Batch) -> str:
    gap = 0.0
    try:
        for dtype in (torch.float32, torch.float64):  # rounding alone may exceed the tolerance in float32
            batch = inputs_in(example, dtype)
            want, got = (output_of(in_precision(one, dtype), batch) for one in (model, loaded))
            gap = difference(want, got, batch)
            if gap <= _TOLERANCE:
                return ""
    except HeadscopeError as error:
        return f"what is loaded does not run ({error})"
    return f"what is loaded gives other outputs, by {gap:.2e} (allowed {_TOLERANCE:.0e}){_made_anew(model, loaded)}"


def _made_anew(model: nn.Module, loaded: nn.Module) -> str:
    """The first table that is in no file, and that loading makes otherwise than the cut model has it; in words."""
    after = dict(loaded.named_buffers())
    for name, own in model.named_buffers():
        if name in after and not _same(own, after[name]):
            said = f"; {name} is made anew as a model is loaded, and "
            if own.dtype == after[name].dtype:
                return said + "comes out otherwise than the cut model has it"
            return said + (
                f"is {after[name].dtype} there, {own.dtype} in the cut model: cut one that was loaded with dtype=, not "
                "cast afterwards"
            )
    return ""
