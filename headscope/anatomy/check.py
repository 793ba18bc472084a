"""The contract of what is captured, checked on the probe: equations that must hold between the tensors of one call.

softmax(scaling·q·kᵀ + bias) is the map, up to a sink; its rows sum to 1 or less; map · v is z; what the heads add and
the bias are what the output projection gives. A tensor of an equation that does not hold is refused where it is asked
for, with the equation and the gap.
"""

from typing import Any

import torch
from torch import Tensor

from headscope.anatomy.operations import floats_in
from headscope.anatomy.route import Call
from headscope.errors import AnatomyError
from headscope.sites import heads_read

__all__ = ["check_call", "for_each_head", "gap_of", "output_gap", "rounding_of", "scaling_of", "tolerance"]

_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same may lie apart, of the largest number."""
    return _TOLERANCES.get(dtype, 5e-2)


def check_call(call: Call, scaling: float, kv_of_query: tuple[int, ...]) -> dict[str, str]:
    """What of a call is not what it is said to be.

    Args:
        call: as a route told it.
        scaling: what multiplies q·kᵀ; NaN where it is not one number.
        kv_of_query: for each query head, the key head that it reads, where these are fewer.

    Returns:
        By tensor, why it cannot be had.
    """
    with torch.no_grad():
        q, k, v, z = (tensor.detach() for tensor in (call.q, call.k, call.v, call.z))
        try:
            pattern = call.pattern().detach()
        except AnatomyError as error:
            return dict.fromkeys(("pattern", "bias", "q", "k"), str(error))
        k, v = (for_each_head(tensor, kv_of_query) for tensor in (k, v))
        # under autocast some of them are coarser than others, and what they are made of is
        allowed = max(tolerance(one.dtype) for one in (q, k, v, z, *_automatic(q)))
        return {**_scores(call, q, k, pattern, scaling, allowed), **_map(pattern, v, z, allowed)}


def _automatic(like: Tensor) -> list[Tensor]:
    """An empty tensor as autocast would make it, where it is on."""
    kind = like.device.type
    return [like.new_empty(0, dtype=torch.get_autocast_dtype(kind))] if torch.is_autocast_enabled(kind) else []


def for_each_head(tensor: Tensor, kv_of_query: tuple[int, ...]) -> Tensor:
    """Keys or values (batch, head, position, dim) as each query head reads them; see `headscope.sites.heads_read`."""
    many = tensor.shape[1]
    return tensor if many == len(kv_of_query) else tensor[:, heads_read(many, kv_of_query)]


def _map(pattern: Tensor, v: Tensor, z: Tensor, allowed: float) -> dict[str, str]:
    found = {}
    over = float(pattern.sum(-1).max()) - 1 if pattern.numel() else 0.0
    if over > allowed or float(pattern.min()) < -allowed:
        found["pattern"] = f"the rows of its map sum to as much as {1 + over:.2g}"
    if pattern.shape[-1] != v.shape[2]:
        found |= dict.fromkeys(("pattern", "v"), "its map and its values have different numbers of keys")
        return found
    gap = gap_of(pattern.to(v.dtype) @ v, z)
    if not gap <= allowed:
        found |= dict.fromkeys(("pattern", "v"), f"map · v is {gap:.1e} of its size away from z")
    return found


def _scores(call: Call, q: Tensor, k: Tensor, pattern: Tensor, scaling: float, allowed: float) -> dict[str, str]:
    bare = None if call.scores is None else call.scores.bare
    if q.shape[-1] != k.shape[-1] or pattern.shape[-2:] != (q.shape[2], k.shape[2]):
        return dict.fromkeys(("q", "k", "bias"), "its map is not made of these queries and keys alone")
    product = q @ k.mT
    if bare is not None and not (gap := gap_of(product, bare)) <= allowed:
        return dict.fromkeys(("q", "k", "bias"), f"q·kᵀ is {gap:.1e} of its size away from the model's own scores")
    try:
        exact = torch.promote_types(q.dtype, torch.float32)
        bias = call.bias(scaling).detach().to(exact)
    except AnatomyError as error:
        return dict.fromkeys(("q", "k", "bias"), str(error))
    if scaling != scaling:
        return {"bias": "what is done to q·kᵀ before the softmax is more than a factor and a sum"}
    scores = scaling * product.to(exact)
    scores = scores if call.cap is None else call.cap * torch.tanh(scores / call.cap)
    scores = scores + bias
    seen = scores.amax(-1, keepdim=True) > -1e4  # a row without keys is whatever the model makes of it
    total = pattern.to(exact).sum(-1, keepdim=True)
    own = torch.where(seen, scores.softmax(-1) * total, 0)  # with a sink, the rest of a row is the sink's
    gap = float((own - torch.where(seen, pattern.to(exact), 0)).abs().nan_to_num(1.0).max()) if own.numel() else 0.0
    if not gap <= allowed:
        return {"bias": f"softmax(scaling·q·kᵀ + bias) is {gap:.1e} away from its map"}
    return {}


def gap_of(made: Tensor, want: Tensor) -> float:
    """The largest difference, of the largest number; masked places aside."""
    if made.shape != want.shape:
        return float("inf")
    exact = torch.promote_types(want.dtype, torch.float32)
    made, want = made.detach().to(exact), want.detach().to(exact)
    finite = want.isfinite() & (want.abs() < 1e4) if want.numel() else want.isfinite()
    if not bool(finite.any()):
        return 0.0
    size = max(float(want[finite].abs().max()), 1e-12)
    return float((made - want)[finite].abs().max()) / size


def output_gap(one: Any, other: Any) -> float:
    """The largest difference between two outputs, of the largest number; infinity where they are of other shapes."""
    pairs = list(zip(floats_in(one), floats_in(other), strict=False))
    if any(a.shape != b.shape for a, b in pairs) or len(floats_in(one)) != len(floats_in(other)):
        return float("inf")
    sizes = [float(a.nan_to_num(0, 0, 0).abs().max()) for a, _ in pairs if a.numel()]
    gaps = [float((a.double() - b.double()).nan_to_num(0, 0, 0).abs().max()) for a, b in pairs if a.numel()]
    return max(gaps, default=0.0) / max(*sizes, 1e-12) if sizes else 0.0


def rounding_of(output: Any) -> float:
    """How far two ways of computing an output may lie apart, of the largest number."""
    return max((tolerance(tensor.dtype) for tensor in floats_in(output)), default=0.0)


def scaling_of(call: Call) -> float:
    """The factor between q·kᵀ and the softmax's input, read off their graph where the route cannot tell."""
    if call.scores is None:
        return call.scaling
    logits, product, factor = call.scores.logits, call.scores.product, call.scores.factor
    if not product.requires_grad:
        return call.scaling
    if logits is product:
        return factor
    if not logits.requires_grad:
        return float("nan")
    (gradient,) = torch.autograd.grad(logits.sum(), product, retain_graph=True, allow_unused=True)
    if gradient is None:
        return float("nan")
    moves = gradient != 0
    if logits.shape == product.shape:
        moves &= logits > -1e4  # masked scores stand at some model's own floor
    factors = gradient[moves]
    if factors.numel() == 0 or not torch.allclose(factors, factors[0], rtol=1e-5, atol=0):
        return float("nan")
    return factor * float(factors[0])
