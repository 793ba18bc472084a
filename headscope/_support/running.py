"""Running a model: where it is, what it takes, one forward pass as every room makes it."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from headscope._support.adapters import check_one_adapter
from headscope._support.holding import uncompiled
from headscope._support.hooks import unhooking
from headscope._support.objects import OWN_BATCHES
from headscope._support.undoing import Attributes
from headscope.errors import HeadscopeError, InputError, ModelError

__all__ = [
    "ASIDE",
    "LABELS",
    "accepts",
    "arguments",
    "check_takes",
    "device_of",
    "evaluating",
    "handed",
    "in_python",
    "is_compiled",
    "is_two_sided",
    "last_logits",
    "main_inputs",
    "on_device",
    "reads_video",
    "run_model",
    "spelled_inputs",
    "unwrapped",
    "withheld",
]

ASIDE = ("document", "kept")
"""What a batch may hold that is read by headscope alone."""


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; where all are offloaded, the one that they are brought to to run.

    The CPU for a model without parameters.
    """
    first = None
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
        first = parameter.device
    brought = (getattr(getattr(module, "_hf_hook", None), "execution_device", None) for module in model.modules())
    run = next((device for device in brought if device is not None), first)
    return torch.device("cpu") if run is None else torch.device(run)


_TAKES_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
LABELS = ("labels", "label", "label_ids", "targets", "target", "y")
"""What batches call what is to be told."""


def arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What the model's forward takes, in order; that of the model inside where a wrapper (PEFT's) passes all on."""
    model = unwrapped(model)
    found = inspect.signature(model.forward).parameters
    inner = getattr(model, "get_base_model", None)
    if inner is not None and all(one.kind in _TAKES_ALL for one in found.values()):
        return arguments(inner())
    return found


_MAIN = {
    "input_ids": "row, position", "pixel_values": "row, channel, height, width",
    "pixel_values_videos": "row, frame, channel, height, width", "input_features": "row, mel bin, frame",
    "input_values": "row, sample", "decoder_input_ids": "row, position",
}  # fmt: skip


def main_inputs(model: nn.Module) -> dict[str, str]:
    """What a batch for a model holds at the least, by name, each with its axes where they are known.

    Of a model of transformers: what it reads of each kind (text, pictures, sound); of another: what its forward needs.
    """
    takes, main = arguments(model), getattr(model, "main_input_name", None)
    if main is None:
        named = [one for one in takes.values() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        needed = [one.name for one in named if one.default is one.empty] or [one.name for one in named[:1]]
        return dict.fromkeys(needed, "")
    decodes = is_two_sided(model)
    names = [name for name in _MAIN if name in takes and (decodes or name != "decoder_input_ids")]
    axes = _MAIN | ({"pixel_values": _MAIN["pixel_values_videos"]} if reads_video(model) else {})
    mains = [main] if isinstance(main, str) else main
    return {name: axes.get(name, "") for name in dict.fromkeys([*mains, *names])}


def is_two_sided(model: nn.Module) -> bool:
    """Whether a model of transformers has an encoder and a decoder, each with an input of its own."""
    return bool(getattr(getattr(unwrapped(model), "config", None), "is_encoder_decoder", False))


def reads_video(model: nn.Module) -> bool:
    """Whether pictures that a model of transformers reads are frames of a film, with an axis for them."""
    return getattr(model, "input_modalities", None) == "video"


def spelled_inputs(model: nn.Module) -> str:
    """The same in words: {'input_ids': (row, position), 'pixel_values': …}."""
    named = (f"{name!r}: " + (f"({axes})" if axes else "…") for name, axes in main_inputs(model).items())
    return "{" + ", ".join(named) + "}"


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward names this argument."""
    return name in arguments(model)


def withheld(model: nn.Module, batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in a batch that are not for the model's forward, but for a metric: what it does not take, and texts.

    A forward that takes any argument is given all; where it says which these may be, as transformers' models do, labels
    only if they are among them.

    Raises:
        InputError: the batch asks for several adapters at once.
    """
    known = arguments(model)
    check_one_adapter(batch, known)
    rest = next((one for one in known.values() if one.kind is one.VAR_KEYWORD), None)
    listed = {
        name for kind in get_args(getattr(rest, "annotation", None)) for name in getattr(kind, "__annotations__", ())
    }
    unmeant = LABELS if listed else ()

    def is_for_it(name: str, value: Any) -> bool:
        texts = value if isinstance(value, list) else [value]
        if name in known or name in listed:
            return True
        return rest is not None and name not in unmeant and not any(isinstance(one, str) for one in texts)

    return tuple(name for name, value in batch.items() if name not in ASIDE and not is_for_it(name, value))


def handed(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without what is not for the model's forward; with what is read by headscope alone."""
    aside = withheld(model, batch)
    return {name: value for name, value in batch.items() if name not in aside}


def last_logits(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The argument that keeps a language model from making logits that nobody looks at; {} for other models.

    And where the batch brings labels, by which the model makes a loss of all of them.
    """
    # a position, not a number of them: by that, Gemma 4's last layers see the last position alone
    told = {"logits_to_keep": torch.tensor([-1])}
    return told if accepts(model, "logits_to_keep") and batch.get("labels") is None else {}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that do no more than run it: torch.compile's, and those of data parallelism.

    Names of modules are those of the model inside, and its weights and hooks are the wrapper's too.

    Raises:
        InputError: it is no model.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a model is a torch.nn.Module, and this is {model!r:.60}; hs.load_model(name or folder).model loads one"
        )
    while True:
        inside = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inside, nn.Module):
            model = inside
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a module in it, runs what torch.compile makes of it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or isinstance(getattr(module, "_orig_mod", None), nn.Module)
        for module in model.modules()
    )


def in_python(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward is Python: not those that torch.jit compiled, which take no hooks."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Evaluation mode while open; what a forward leaves in the model is undone, and every module's own mode comes back.

    Buffers are lent: the model runs on copies of them, for some keep their keys and values there. Attributes, what
    stands in dicts and lists among them, and hooks are put back as they were, modules too: BigBird, given a short text,
    rebuilds itself for good. So are weights that it put others in the place of; what it wrote into them stays.

    Yields:
        What tells whether the model has rebuilt itself by then.
    """
    modules, training = in_python(model), [(module, module.training) for module in model.modules()]
    weights = [(one, one.detach()) for one in model.parameters() if type(one) is nn.Parameter and not one.is_meta]
    attributes = Attributes(modules)
    copies: dict[int, Tensor] = {}
    unhook = unhooking(modules)

    model.eval()
    try:
        for module in modules:
            for name, buffer in module._buffers.items():
                if buffer is not None and _may_change(buffer):
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
        yield lambda: attributes.are_rebuilt
    finally:
        unhook()
        for module, mode in training:
            module.training = mode
        attributes.put_back()
        for weight, before in weights:  # given other numbers by the forward itself, as averages of weights are
            if weight.data_ptr() != before.data_ptr() and weight.device == before.device:
                weight.data = before


def _may_change(buffer: Tensor) -> bool:
    """Whether a forward pass may write there: not into the codes of quantised weights, which are large."""
    return not buffer.is_meta and (buffer.is_floating_point() or buffer.ndim < 2)


def on_device(model: nn.Module, value: Any) -> Any:
    """A batch with its tensors, however deep in dicts and lists, on the model's device; such as gradients take."""
    device = device_of(model)

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor):
            barred = part.is_inference() and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            return _whole(part.clone() if barred else part).to(device)
        if isinstance(part, Mapping):
            return {name: moved(one) for name, one in part.items()}
        return type(part)(map(moved, part)) if type(part) in (list, tuple) else part

    return moved(value)


def _whole(part: Tensor) -> Tensor:
    """A slice of a longer tensor, as data[:, 1:], as a tensor of its own: a forward that calls view() takes no slice.

    Batches that are dealt out anew by documents are of their own anyway, and one verb takes what the other takes. What
    was expanded stays so: as a tensor of its own it may be large.
    """
    if part.layout is not torch.strided or 0 in part.stride():
        return part
    if part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last):
        return part
    return part.contiguous()


def run_model(model: nn.Module, batch: Mapping[str, Any], **extra: Any) -> Any:
    """The model's output on one batch, tensors moved to its device, no KV cache made.

    What is not for its forward is left out: "document", "kept", and names that it does not take. Nothing runs compiled:
    each new shape, and each cut, would be compiled anew, for most of a minute and a few passes.

    Args:
        model: the model.
        batch: its arguments by name.
        extra: further arguments; they win over the batch's.

    Raises:
        ModelError: its forward failed; the message says how, and what it was given.
    """
    aside = withheld(model, batch)
    inputs = on_device(model, {name: value for name, value in batch.items() if name not in (*ASIDE, *aside)})
    if accepts(model, "use_cache"):
        inputs.setdefault("use_cache", False)
    try:
        with uncompiled():
            return model(**(inputs | extra))
    except (HeadscopeError, MemoryError, torch.OutOfMemoryError):
        raise  # what went wrong is known, and other batches would not mend it
    except Exception as error:
        raise _told(model, inputs, aside, error) from error


def _told(model: nn.Module, inputs: Mapping[str, Any], aside: Sequence[str], error: Exception) -> ModelError:
    """What failed, and whose fault it is."""
    shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
    what = f"{type(error).__name__}: {error}"
    if _is_ours(error):
        return ModelError(
            f"headscope itself failed while {type(model).__name__} ran on {shapes}, with {what}; neither the model nor "
            "what it was given is to blame: please report it"
        )
    failed = f"a forward pass of {type(model).__name__} on {shapes} failed with {what}"
    named = [p for p in arguments(model).values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in inputs]
    if missing:
        other = f", and takes no {', '.join(aside)}" if aside else " too"
        return ModelError(
            f"{failed}; its forward needs {', '.join(missing)}{other}: batches, and an example, are dicts of its "
            "arguments"
        )
    if isinstance(error, TypeError) and "unexpected keyword" in str(error):
        taken = ", ".join(p.name for p in named)
        return ModelError(f"{failed}; batches, and an example, are dicts of its arguments, which are {taken}")
    return _advised(model, inputs, failed, error)


def _advised(model: nn.Module, inputs: Mapping[str, Any], failed: str, error: Exception) -> ModelError:
    """What failed though the names of the inputs are right, and what may help."""
    if is_two_sided(model) and "input_ids" in inputs and not any(name.startswith("decoder_") for name in inputs):
        return ModelError(
            f"{failed}; its decoder was given nothing to read: hs.text_batches(tokenizer, texts, model=model) gives "
            "text to both sides, and batches of your own hold decoder_input_ids, or labels"
        )
    if isinstance(error, IndexError) and "out of range" in str(error):
        return ModelError(
            f"{failed}; the error is the model's own: a table of it ends before, so rows are longer than it has "
            "positions for, or hold ids beyond its vocabulary",
            python="make them shorter (length= of text_batches and of Budget)",
            shell="make them shorter (--length)",
        )
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa", "headscope"):
        return ModelError(
            f"{failed}; its attention is {kernel!r}: where that does not run, set_attn_implementation('sdpa') may"
        )
    if unread := [name for name in main_inputs(model) if name not in inputs]:
        return ModelError(
            f"{failed}; it reads {', '.join(unread)} too",
            python=f"pass batches= (or example=) of dicts like {spelled_inputs(model)}",
            shell=f"{OWN_BATCHES}, dicts like {spelled_inputs(model)}",
        )
    return ModelError(f"{failed}; the error is the model's own, on what it was given")


# what the model does, as it is
_HANDS_ON = {"__torch_function__", "heard", "picked", "__call__", "_attend", "run_model"}


def _is_ours(error: Exception) -> bool:
    """Whether what failed is what headscope does beside the model: by the innermost frame that is no library's."""
    here, torch_is = Path(__file__).parents[1], str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(here):
            if frame.name in _HANDS_ON:
                continue
            # the models that come with headscope are models
            return not Path(frame.filename).is_relative_to(here / "models")
        standard = "/lib/python" in frame.filename and "site-packages" not in frame.filename
        if not standard and not frame.filename.startswith(torch_is) and "/einops/" not in frame.filename:
            return False
    return False


def check_takes(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse a batch that a second model does not take, which was made for another one.

    Raises:
        InputError: its forward pass fails on the batch.
    """
    try:
        with evaluating(model), torch.no_grad():
            run_model(model, batch)
    except ModelError as error:
        cause = error.__cause__
        raise InputError(
            f"the other model, {type(model).__name__}, does not take these batches ({type(cause).__name__}: {cause}); "
            "two models are compared on the same tokens, so they need one vocabulary and room for as many positions"
        ) from error
