"""A small input for the probe: made up for models that say what they take, else a corner of a batch."""

from typing import Any

import torch
from torch import Tensor, nn

from headscope.errors import AnatomyError
from headscope.text.batches import Batch, n_rows

__all__ = ["make_example", "probe_example"]

_ROWS, _LENGTH, _DECODER_LENGTH = 2, 7, 5  # all different, and unlike usual head counts: no two axes look alike
_PROBE_ROWS, _PROBE_TOKENS = 2, 16  # at most, of a user's batch


def make_example(model: nn.Module) -> dict[str, Tensor]:
    """Two rows of seeded random tokens (or pixels) for a Hugging Face model.

    Raises:
        AnatomyError: the model does not say what it takes; the message tells to pass `example=`.
    """
    name = getattr(model, "main_input_name", None)
    config = getattr(model, "config", None)
    if name is None or config is None:
        raise AnatomyError(
            f"{type(model).__name__} does not say what it takes; pass example= (or batches=, or anatomy= from "
            "discover with an example): a dict of tensors, as its forward takes them, with two rows and a few tokens"
        )
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids":
        return _text(config, generator)
    if name == "pixel_values":
        size = _field(config, "image_size", 32)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (_ROWS, _field(config, "num_channels", 3), height, width)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    raise AnatomyError(f"{type(model).__name__} takes {name!r}, which cannot be made up; pass example={{{name!r}: …}}")


def probe_example(model: nn.Module, batch: Batch) -> dict[str, Any] | None:
    """What to probe a model with: None where it can be made up (models of transformers), else a corner of a batch."""
    if getattr(model, "main_input_name", None) in ("input_ids", "pixel_values"):
        return None
    n_rows(batch)
    ids = batch.get("input_ids")
    length = ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else None

    def corner(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        value = value[:_PROBE_ROWS]
        return value[:, :_PROBE_TOKENS] if value.ndim == 2 and value.shape[1] == length else value

    return {name: corner(value) for name, value in batch.items() if name != "document"}


def _text(config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(_field(text, "vocab_size", _field(config, "vocab_size", 2)))
    pad = _field(text, "pad_token_id", None)

    def tokens(length: int) -> Tensor:
        drawn = torch.randint(0, vocabulary, (_ROWS, length), generator=generator)
        # some models make their position ids (or their mask) from where the pad token stands
        return torch.where(drawn == pad, (drawn + 1) % vocabulary, drawn) if pad is not None else drawn

    example = {"input_ids": tokens(_LENGTH), "attention_mask": torch.ones(_ROWS, _LENGTH, dtype=torch.long)}
    if getattr(config, "is_encoder_decoder", False):
        example["decoder_input_ids"] = tokens(_DECODER_LENGTH)
    return example


def _field(config: Any, name: str, default: Any) -> Any:
    # a config may raise instead of answering (AmbiguousGlobalPerLayerAttributeError), so no getattr with a default
    try:
        return getattr(config, name)
    except Exception:
        return default
