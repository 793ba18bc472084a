"""Blocks of documents: what intervals leave out one after another, and what held-out halves are made of."""

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["N_BLOCKS", "Blocks"]

N_BLOCKS = 10  # enough for a delete-m jackknife, few enough to keep one set of sums each


class Blocks:
    """Deals documents into blocks: each new one goes to the block with the fewest positions so far."""

    def __init__(self) -> None:
        self._load = [0] * N_BLOCKS
        self._block: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._block)

    def place(self, documents: Int[Tensor, " batch"], tokens: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The block of each row's document."""
        placed = []
        for document, count in zip(documents.tolist(), tokens.tolist(), strict=True):
            if document not in self._block:
                self._block[document] = min(range(N_BLOCKS), key=self._load.__getitem__)
            self._load[self._block[document]] += count
            placed.append(self._block[document])
        return torch.tensor(placed, dtype=torch.long)
