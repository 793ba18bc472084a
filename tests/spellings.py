"""Attention as people write it by hand: one class, a way for each spelling, all the same function of the weights.

`by_hand` computes that function in float64, head by head, and shares no code with any of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DIM", "HEADS", "REFUSED", "WAYS", "WIDTH", "Spelled", "by_hand"]

WIDTH, HEADS, DIM = 24, 3, 8


class Spelled(nn.Module):
    """One attention layer, without a mask.

    Args:
        way: one of `WAYS`, or of `REFUSED`.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mix = nn.Linear(HEADS, HEADS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "_" + self.way.replace(" ", "_").replace("-", "_"))(x)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """(batch, head, position, dim)."""
        return tuple(one(x).unflatten(-1, (-1, DIM)).transpose(1, 2) for one in (self.q, self.k, self.v))

    def _join(self, z: Tensor) -> Tensor:
        return self.o(z.transpose(1, 2).flatten(2))

    def _merged(self, x: Tensor) -> tuple[Tensor, ...]:
        """(batch · head, position, dim)."""
        return tuple(one.reshape(-1, x.shape[1], DIM) for one in self._split(x))

    def _einsum(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        scores = torch.einsum("b h i d, b h j d -> b h i j", q, k) / math.sqrt(DIM)
        return self._join(torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v))

    def _einsum_heads_last(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (-1, DIM)) for one in (self.q, self.k, self.v))
        scores = torch.einsum("...ihd,...jhd->...ijh", q, k) * DIM**-0.5
        return self.o(torch.einsum("...ijh,...jhd->...ihd", scores.softmax(-2), v).flatten(-2))

    def _bmm(self, x: Tensor) -> Tensor:
        q, k, v = self._merged(x)
        z = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) * DIM**-0.5, dim=-1), v)
        return self._join(z.unflatten(0, (-1, self.q.out_features // DIM)))

    def _baddbmm(self, x: Tensor) -> Tensor:
        q, k, v = self._merged(x)
        bias = x.new_zeros(1, 1, x.shape[1])
        scores = torch.baddbmm(bias, q, k.mT, beta=1.0, alpha=DIM**-0.5)
        z = scores.softmax(-1) @ v
        return self._join(z.unflatten(0, (-1, self.q.out_features // DIM)))

    def _sequence_first(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        length, batch, _ = x.shape
        q, k, v = (one(x).reshape(length, -1, DIM).transpose(0, 1) for one in (self.q, self.k, self.v))
        z = F.softmax(torch.bmm(q * DIM**-0.5, k.transpose(1, 2)), -1) @ v
        return self.o(z.transpose(0, 1).reshape(length, batch, -1)).transpose(0, 1)

    def _head_by_head(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        made = [(q[:, h] @ k[:, h].mT / math.sqrt(DIM)).softmax(-1) @ v[:, h] for h in range(q.shape[1])]
        return self.o(torch.cat(made, dim=-1))

    def _exponential_over_its_sum(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        scores = q @ k.mT / math.sqrt(DIM)
        raised = torch.exp(scores - scores.amax(-1, keepdim=True))
        return self._join((raised / raised.sum(-1, keepdim=True)) @ v)

    def _divided_at_the_end(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        raised = torch.exp(q @ k.mT / math.sqrt(DIM))
        return self._join((raised @ v) / raised.sum(-1, keepdim=True))

    def _minus_logsumexp(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        scores = q @ k.mT / math.sqrt(DIM)
        return self._join(torch.exp(scores - scores.logsumexp(-1, keepdim=True)) @ v)

    def _products_summed(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        pattern = ((q[:, :, :, None] * k[:, :, None]).sum(-1) / math.sqrt(DIM)).softmax(-1)
        return self._join((pattern[..., None] * v[:, :, None]).sum(3))

    def _scores_upside_down(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        pattern = (k @ q.mT / math.sqrt(DIM)).softmax(-2)
        return self._join((v.mT @ pattern).mT)

    def _written_in_place(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        scores = torch.empty(*q.shape[:3], k.shape[2])
        scores[:] = q @ k.mT
        scores /= math.sqrt(DIM)
        return self._join(scores.softmax(-1) @ v)

    def _positions_and_heads_in_one(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (-1, DIM)) for one in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,bjhd->bihj", q, k).flatten(1, 2) / math.sqrt(DIM)
        pattern = scores.softmax(-1).unflatten(1, (x.shape[1], -1))
        return self.o(torch.einsum("bihj,bjhd->bihd", pattern, v).flatten(2))

    def _fused_with_merged_heads(self, x: Tensor) -> Tensor:
        z = F.scaled_dot_product_attention(*self._merged(x))
        return self._join(z.unflatten(0, (-1, self.q.out_features // DIM)))

    def _functional(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        weights = {f"{n}_proj_weight": one.weight for n, one in zip("qkv", (self.q, self.k, self.v), strict=True)}
        biases = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        out, _ = F.multi_head_attention_forward(
            y, y, y, WIDTH, HEADS, None, biases, None, None, False, 0.0, self.o.weight, self.o.bias,
            use_separate_proj_weight=True, need_weights=False, training=False, **weights,
        )  # fmt: skip
        return out.transpose(0, 1)

    # what is no attention of heads, or none that is read

    def _softmax_over_queries(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        return self._join((q @ k.mT).softmax(-2) @ v)

    def _softmax_over_heads(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        return self._join((q @ k.mT).softmax(1) @ v)

    def _linear_attention(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        return self._join(q.softmax(-1) @ (k.softmax(-2).mT @ v))

    def _talking_heads(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        pattern = (q @ k.mT).softmax(-1)
        return self._join(self.mix(pattern.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v)

    def _over_channels(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        return self._join(((q.mT @ k).softmax(-1) @ v.mT).mT)

    def _sigmoid(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        return self._join(torch.sigmoid(q @ k.mT) @ v)

    def _a_gate(self, x: Tensor) -> Tensor:
        return self.o(self.q(x).softmax(-1) * self.v(x))


WAYS = (
    "einsum", "einsum heads last", "bmm", "baddbmm", "sequence first", "head by head", "exponential over its sum",
    "divided at the end", "minus logsumexp", "products summed", "scores upside down", "written in place",
    "positions and heads in one", "fused with merged heads", "functional",
)  # fmt: skip
REFUSED = (
    "softmax over queries", "softmax over heads", "linear attention", "talking heads", "over channels", "sigmoid",
    "a gate",
)  # fmt: skip


def by_hand(model: Spelled, x: Tensor) -> dict[str, Tensor]:
    """q, k, v, pattern, z and the output, in float64."""
    x = x.double()
    found: dict[str, Tensor] = {}
    for name in "qkv":
        layer = getattr(model, name)
        flat = x @ layer.weight.double().T + layer.bias.double()
        found[name] = torch.stack([flat[..., h * DIM : (h + 1) * DIM] for h in range(HEADS)], 1)
    found["pattern"] = torch.stack(
        [torch.softmax(found["q"][:, h] @ found["k"][:, h].mT / math.sqrt(DIM), -1) for h in range(HEADS)], 1
    )
    found["z"] = torch.stack([found["pattern"][:, h] @ found["v"][:, h] for h in range(HEADS)], 1)
    joined = torch.cat([found["z"][:, h] for h in range(HEADS)], -1)
    found["output"] = joined @ model.o.weight.double().T + model.o.bias.double()
    return found
