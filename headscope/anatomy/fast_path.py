"""The fast path of PyTorch's own attention, off while a model is watched: it calls no forward and no hook."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.around import around
from headscope._support.holding import Held, uncheckpointed, uncompiled

__all__ = ["packs", "plainly"]


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """While open, nothing of a model runs past its modules: compiled, in checkpoints, or on PyTorch's own fast path.

    The fast path of `nn.TransformerEncoder` leaves zeros where the text is padded, where the plain way leaves numbers;
    these zeros are made here too, so that the model's output is what it was.
    """
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        stack.enter_context(uncheckpointed())
        if any(isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in model.modules()):
            for module in model.modules():
                if isinstance(module, nn.TransformerEncoder) and len(module.layers):
                    stack.enter_context(_zeros_in_padding(module))
            stack.enter_context(_SLOWLY)
        yield


_USERS: list[bool] = []  # whether the user has the fast path on, while it is held off


@contextmanager
def _slow() -> Iterator[None]:
    _USERS.append(torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(_USERS.pop())


_SLOWLY = Held(_slow)


@contextmanager
def _zeros_in_padding(encoder: nn.TransformerEncoder) -> Iterator[None]:
    sources: list[Tensor] = []

    def before(args: tuple[Any, ...]) -> None:
        sources.append(args[0] if args else torch.empty(0))

    def last(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
        # the last layer is given the masks of the encoder
        padded, mask = kwargs.get("src_key_padding_mask"), kwargs.get("src_mask")
        if padded is None or not sources or not packs(encoder, sources[-1], mask, padded):
            return None
        gone = padded if padded.dtype == torch.bool else padded < 0
        return out.masked_fill(gone[..., None], 0.0)

    with around(encoder, before=before, leave=sources.clear), around(encoder.layers[-1], after=last):
        yield


def packs(
    encoder: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    nested: bool | None = None,
    **_: Any,
) -> bool:
    """Whether an encoder drops the padding on its fast path, as the user has it; the conditions of its own forward.

    Args:
        encoder: the encoder.
        src, mask, src_key_padding_mask: what it is given.
        nested: in place of its own `use_nested_tensor`.
    """
    layer: Any = encoder.layers[0]
    padded = src_key_padding_mask
    nested = getattr(encoder, "use_nested_tensor", False) if nested is None else nested
    if (
        padded is None
        or mask is not None
        or src.ndim != 3
        or src.is_nested
        or not (_USERS or [torch.backends.mha.get_fastpath_enabled()])[0]
    ):
        return False
    if not nested or layer.training or torch.is_autocast_enabled():
        return False
    gone = padded if padded.dtype == torch.bool else padded < 0
    left_aligned = not bool((gone[:, :-1] & ~gone[:, 1:]).any())
    if getattr(encoder, "mask_check", True) and not left_aligned:
        return False
    return not (torch.is_grad_enabled() and any(p.requires_grad for p in (src, *layer.parameters())))
