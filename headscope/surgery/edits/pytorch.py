"""Cuts of PyTorch's own attention: `nn.MultiheadAttention` asserts its full width, so a narrower one runs this instead.

So do modules that hold its weights and call `F.multi_head_attention_forward` by themselves.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.anatomy.fast_path import packs
from headscope.errors import SurgeryError
from headscope.surgery.edits.base import EDITS, Edit
from headscope.surgery.edits.slicing import part_of_parameter
from headscope.surgery.forwards import replace_forward, run_inner

__all__ = ["NarrowAttention", "NarrowFunction", "PackByHand", "narrow_attention", "pack_by_hand"]

_HEADS = "_headscope_heads"
_PACKS = "_headscope_packs"
_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@EDITS.register("narrow_attention")
@dataclass(frozen=True)
class NarrowAttention(Edit):
    """Keep some heads of an `nn.MultiheadAttention`; see `narrow_attention`.

    Attributes:
        keep: positions of the heads that stay.
        heads: how many there were.
    """

    keep: tuple[int, ...]
    heads: int

    def apply(self, module: nn.Module) -> None:
        if not isinstance(module, nn.MultiheadAttention) or module.num_heads != self.heads:
            raise SurgeryError(f"{self.module} is no nn.MultiheadAttention of {self.heads} heads")
        narrow_attention(module, self.keep)


@EDITS.register("narrow_function")
@dataclass(frozen=True)
class NarrowFunction(Edit):
    """Let a module that calls `F.multi_head_attention_forward` attend with the heads that its weights are left with.

    Attributes:
        keep: places of these heads among those that it speaks of.
        heads: how many it speaks of.
    """

    keep: tuple[int, ...]
    heads: int
    while_it_runs: ClassVar[bool] = True

    def apply(self, module: nn.Module) -> None:
        replace_forward(module, _run_narrow, self.keep, self.heads)


@EDITS.register("pack_by_hand")
@dataclass(frozen=True)
class PackByHand(Edit):
    """Let an `nn.TransformerEncoder` leave zeros in the padding as before; see `pack_by_hand`."""

    def apply(self, module: nn.Module) -> None:
        if not isinstance(module, nn.TransformerEncoder):
            raise SurgeryError(f"{self.module} is no nn.TransformerEncoder")
        pack_by_hand(module)


def narrow_attention(module: nn.MultiheadAttention, kept: Sequence[int]) -> None:
    """Keep some heads of an `nn.MultiheadAttention`: its rows of q, k, v, its columns of the output projection.

    What it returns as attention weights is of the heads left: their average, or one map each.

    Args:
        module: whole, or cut before.
        kept: positions on its head axis, as it is now.
    """
    many, dim = module.num_heads, module.head_dim
    rows = torch.tensor([head * dim + place for head in kept for place in range(dim)], dtype=torch.long)
    width = many * dim
    packed = torch.cat([rows, rows + width, rows + 2 * width])
    if module.in_proj_weight is not None:
        _slice(module, "in_proj_weight", packed, 0)
    else:
        for name in _PROJECTIONS:
            _slice(module, name, rows, 0)
    _slice(module, "in_proj_bias", packed, 0)
    _slice(module, "bias_k", rows, 2)
    _slice(module, "bias_v", rows, 2)
    _slice(module.out_proj, "weight", rows, 1)
    module.out_proj.in_features = len(rows)
    before = module.__dict__.get(_HEADS, tuple(range(many)))
    module.__dict__[_HEADS] = tuple(before[head] for head in kept)
    module.__dict__.setdefault("_headscope_of", many)
    module.num_heads = len(kept)
    module._qkv_same_embed_dim = False  # by this PyTorch tells that its fast path is not for this module
    replace_forward(module, _forward)


def _slice(module: nn.Module, name: str, keep: Tensor, axis: int) -> None:
    old = module._parameters.get(name)
    if old is not None:
        setattr(module, name, part_of_parameter(old, axis, keep))


def _forward(self: Any, _: Any, /, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    bound = _SIGNATURE.bind(self, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given["is_causal"] and given["attn_mask"] is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    query, padding = given["query"], given["key_padding_mask"]
    if query.dim() == 3:
        turned = [one if self.batch_first else one.transpose(0, 1) for one in (query, given["key"], given["value"])]
        out, pattern = _attend(self, turned, given, padding)
        return (out if self.batch_first else out.transpose(0, 1)), pattern
    alone = [one.unsqueeze(0) for one in (query, given["key"], given["value"])]
    out, pattern = _attend(self, alone, given, None if padding is None else padding.unsqueeze(0))
    return out.squeeze(0), None if pattern is None else pattern.squeeze(0)


_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)


def _attend(
    self: Any, inputs: Sequence[Tensor], given: Mapping[str, Any], padding: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What `nn.MultiheadAttention` computes on (batch, position, width), with as many heads as there are."""
    q, k, v = _project(self, inputs)
    extra = [] if self.bias_k is None else [(self.bias_k, self.bias_v)]
    for more_k, more_v in extra:
        k, v = torch.cat([k, more_k.expand(len(k), -1, -1)], 1), torch.cat([v, more_v.expand(len(v), -1, -1)], 1)
    q, k, v = (one.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for one in (q, k, v))
    if self.add_zero_attn:
        k, v = (F.pad(one, (0, 0, 0, 1)) for one in (k, v))
    mask = _mask(self, q, given["attn_mask"], padding, len(extra) + self.add_zero_attn)
    dropout, pattern = self.dropout if self.training else 0.0, None
    if given["need_weights"]:
        scores = (q * self.head_dim**-0.5) @ k.mT
        pattern = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        z = pattern @ v
        pattern = pattern.mean(1) if given["average_attn_weights"] else pattern
    else:
        z = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    return F.linear(z.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias), pattern


def _project(self: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    if self.in_proj_weight is not None:
        weights = self.in_proj_weight.chunk(3)
    else:
        weights = tuple(getattr(self, name) for name in _PROJECTIONS)
    return tuple(F.linear(one, weight, bias) for one, weight, bias in zip(inputs, weights, biases, strict=True))


def _mask(self: Any, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None, added: int) -> Tensor | None:
    """Both masks as one that is added to the scores; a mask for each head is read for the heads left."""
    parts = []
    if attn_mask is not None:
        if attn_mask.dim() == 3:
            of_head = attn_mask.unflatten(0, (-1, self.__dict__["_headscope_of"]))
            attn_mask = of_head[:, list(self.__dict__[_HEADS])]
        parts.append(attn_mask)
    if padding is not None:
        parts.append(padding[:, None, None])
    floats = [
        one.to(q.dtype)
        if one.dtype != torch.bool
        else torch.zeros_like(one, dtype=q.dtype).masked_fill(one, -torch.inf)
        for one in parts
    ]
    if not floats:
        return None
    mask = floats[0] if len(floats) == 1 else floats[0] + floats[1]
    return F.pad(mask, (0, added)) if added else mask


def _run_narrow(self: nn.Module, inner: Any, keep: Sequence[int], heads: int, /, *args: Any, **kwargs: Any) -> Any:
    with _Narrow(keep, heads):
        return run_inner(self, inner, *args, **kwargs)


class _Narrow(TorchFunctionMode):
    def __init__(self, keep: Sequence[int], heads: int) -> None:
        super().__init__()
        self._keep, self._heads = tuple(keep), heads

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not F.multi_head_attention_forward:
            return function(*args, **(kwargs or {}))
        bound = _FUNCTION.bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = bound.arguments
        many = len(self._keep)
        as_module = SimpleNamespace(
            num_heads=many,
            head_dim=given["embed_dim_to_check"] // self._heads,
            in_proj_weight=None if given["use_separate_proj_weight"] else given["in_proj_weight"],
            dropout=given["dropout_p"],
            out_proj=SimpleNamespace(weight=given["out_proj_weight"], bias=given["out_proj_bias"]),
            **{name: given[name] for name in ("in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "training")},
            **{name: given[name] for name in _PROJECTIONS},
            **{_HEADS: self._keep, "_headscope_of": self._heads},
        )
        turned = [given[name].transpose(0, 1) for name in ("query", "key", "value")]
        out, pattern = _attend(as_module, turned, given, given["key_padding_mask"])
        return out.transpose(0, 1), pattern


_FUNCTION = inspect.signature(F.multi_head_attention_forward)


def pack_by_hand(encoder: nn.TransformerEncoder) -> None:
    """Let an encoder with a cut layer leave zeros where the text is padded, as its fast path does; it has none now.

    Args:
        encoder: one whose layers cannot run on the fast path any more.
    """
    if not encoder.__dict__.get(_PACKS, False):
        encoder.__dict__[_PACKS] = getattr(encoder, "use_nested_tensor", False)
        encoder.use_nested_tensor = False
        replace_forward(encoder, _encode)


def _encode(
    self: Any,
    _: Any,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    out = src
    causal = nn.modules.transformer._detect_is_causal_mask(mask, is_causal, src.shape[1 if _batch_first(self) else 0])
    for layer in self.layers:
        out = layer(out, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask)
    if packs(self, src, mask, src_key_padding_mask, nested=self.__dict__[_PACKS]):
        assert src_key_padding_mask is not None
        gone = src_key_padding_mask
        out = out.masked_fill((gone if gone.dtype == torch.bool else gone < 0)[..., None], 0.0)
    return out if self.norm is None else self.norm(out)


def _batch_first(encoder: Any) -> bool:
    return bool(encoder.layers[0].self_attn.batch_first)
