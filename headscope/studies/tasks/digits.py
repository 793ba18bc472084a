"""Digits: handwritten ones, to be named from their pixels; a real labelled task that needs no download."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headscope.studies.tasks import TASKS, Learner, Task
from headscope.text.batches import Batch

__all__ = ["Digits"]

_PATCH, _PATCHES, _CLASSES = 2, 16, 10
_HELD_OUT, _TUNING = 540, 180  # of 1,797 images


@TASKS.register("digits")
class Digits(Task):
    """Scikit-learn's 8 × 8 digits, cut into 16 patches of 2 × 2: a small vision transformer.

    The error is the share of 540 held-out images that are named wrong; by chance 9/10.

    Source: Alpaydin and Kaynak 1998, the UCI repository's optical recognition of handwritten digits; the cut into
        patches: Dosovitskiy et al. 2021, arXiv:2010.11929.
    """

    n_layers: ClassVar[int] = 2
    steps: ClassVar[int] = 600
    rows: ClassVar[int] = 64
    unit: ClassVar[str] = "share wrong"
    question: ClassVar[str] = "Does a real task, which heads are not needed for one by one, care?"

    @property
    def chance(self) -> float:
        """9 of 10 images are named wrong."""
        return 1 - 1 / _CLASSES

    def learner(self, n_heads: int, head_dim: int) -> nn.Module:
        """Two blocks between patches and a softmax over ten digits, read from the mean of the patches."""
        return Learner(_Patches(self.width), _Named(self.width), self.width, self.n_layers, n_heads, head_dim)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Images drawn with replacement."""
        generator = torch.Generator().manual_seed(seed)
        pixels, digits = _images()[0]
        while True:
            drawn = torch.randint(len(pixels), (self.rows,), generator=generator)
            yield {"pixel_values": pixels[drawn], "digits": digits[drawn]}

    def held_out(self, tuning: bool = False) -> Sequence[Batch]:
        """540 images that are never trained on; 180 others for tuning."""
        pixels, digits = _images()[2 if tuning else 1]
        parts = zip(pixels.split(128), digits.split(128), strict=True)
        return [{"pixel_values": some, "digits": theirs} for some, theirs in parts]

    def loss(self, output: Float[Tensor, "row digit"], batch: Batch) -> Float[Tensor, " row"]:
        """Cross-entropy, nats."""
        return cross_entropy(output, batch["digits"], reduction="none")

    def error(self, output: Float[Tensor, "row digit"], batch: Batch) -> Float[Tensor, " row"]:
        """1 for an image that is named wrong."""
        return (output.argmax(-1) != batch["digits"]).float()


@cache
def _images() -> list[tuple[Tensor, Tensor]]:
    """Images to train on, held out, and to tune on: pixels in [0, 1] (image, 1, 8, 8), the same share of each digit."""
    found = load_digits()
    pixels, digits = torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target)
    pixels, held_out, digits, held_out_digits = train_test_split(
        pixels, digits, test_size=_HELD_OUT, random_state=0, stratify=digits
    )
    pixels, tuning, digits, tuning_digits = train_test_split(
        pixels, digits, test_size=_TUNING, random_state=0, stratify=digits
    )
    return [(pixels, digits), (held_out, held_out_digits), (tuning, tuning_digits)]


class _Patches(nn.Module):
    """A linear map of each patch's pixels, and where it stands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, _PATCH, stride=_PATCH)
        self.positions = nn.Parameter(torch.randn(_PATCHES, width) * 0.02)

    def forward(
        self, pixel_values: Float[Tensor, "row 1 y x"], digits: Tensor | None = None
    ) -> Float[Tensor, "row patch width"]:
        patches: Tensor = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return patches + self.positions


class _Named(nn.Module):
    """A softmax over digits, from the mean of the patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, _CLASSES)

    def forward(self, x: Float[Tensor, "row patch width"]) -> Float[Tensor, "row digit"]:
        named: Tensor = self.linear(x.mean(1))
        return named
