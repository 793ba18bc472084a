"""Other tools that watch a model, to stand beside this one in the benchmark: the `bench` extra.

Each peer runs a copy of the model, as the tool changes what it is given (TransformerLens sets eager attention).
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["Peer", "transformer_lens"]

Peer = Callable[[Mapping[str, Any]], Any]  # takes what the model's forward takes, and watches one pass

# q, k, v, the map and z of each layer, as TransformerLens calls them
_HEADS = tuple(f"attn.hook_{name}" for name in ("q", "k", "v", "pattern", "z"))


def transformer_lens(model: nn.Module, tokenizer: Any = None) -> tuple[dict[str, Peer], str]:
    """TransformerLens' cache: of everything, as it comes; and of what belongs to heads alone.

    Args:
        model: the model.
        tokenizer: its tokenizer, which TransformerLens would fetch otherwise.

    Returns:
        The peers by name, and why there are none ("" if there are some).
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return {}, "TransformerLens is not installed: pip install headscope[bench]"
    try:
        own = copy.deepcopy(model)
        bridge = TransformerBridge.boot_transformers(type(model).__name__, hf_model=own, tokenizer=tokenizer)
    except Exception as error:  # it knows architectures by name, and fails in its own ways on the others
        return {}, f"TransformerLens does not take {type(model).__name__}: {error}"

    def cached(names: Callable[[str], bool] | None) -> Peer:
        def run(inputs: Mapping[str, Any]) -> Any:
            rest = dict(inputs)
            return bridge.run_with_cache(rest.pop("input_ids"), names_filter=names, **rest)

        return run

    return {
        "TransformerLens, everything": cached(None),
        "TransformerLens, q, k, v, maps, z": cached(lambda name: name.endswith(_HEADS)),
    }, ""
