"""What a module is called: whether its class bears the name of attention, and a name for what is seen elsewhere."""

import re

from torch import nn

__all__ = ["is_called_attention", "may_listen"]

_ATTENTION = re.compile(r"attention|attn|multi_?head|mha$", re.IGNORECASE)
_ELSEWHERE = re.compile(r"cross_?att|encoder_(decoder_)?att|enc_?dec|multihead_attn", re.IGNORECASE)


def is_called_attention(module: nn.Module) -> bool:
    """Whether the name of a module's class says that it is attention.

    >>> is_called_attention(nn.MultiheadAttention(4, 2)), is_called_attention(nn.Linear(4, 2))
    (True, False)
    """
    return bool(_ATTENTION.search(type(module).__name__))


def may_listen(model: nn.Module) -> bool:
    """Whether the name of a part says that it attends to what another model made, as of a decoder beside an encoder.

    >>> [may_listen(nn.ModuleDict({name: nn.Linear(4, 2)})) for name in ("encoder_attn", "attn")]
    [True, False]
    """
    return any(_ELSEWHERE.search(name.rpartition(".")[2]) for name, _ in model.named_modules())
