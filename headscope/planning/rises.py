"""Budgets: how far a metric may rise, as a person writes it."""

from dataclasses import dataclass
from math import inf
from typing import Self

from headscope.errors import InputError

__all__ = ["Rise"]


@dataclass(frozen=True)
class Rise:
    """An allowed rise of a metric.

    Attributes:
        amount: at least 0.
        relative: a share of the intact model's value; of a distance, which is 0 there, the distance itself.
    """

    amount: float
    relative: bool

    def __str__(self) -> str:
        return f"{100 * self.amount:g}%" if self.relative else f"{self.amount:g}"

    @classmethod
    def read(cls, given: "float | str | Rise") -> Self:
        """From a number in the metric's unit, or a text like "1%".

        Raises:
            InputError: it is neither, or below 0.

        >>> Rise.read("1%"), Rise.read(0.02)
        (Rise(amount=0.01, relative=True), Rise(amount=0.02, relative=False))
        """
        if isinstance(given, Rise):
            return cls(given.amount, given.relative)
        relative = isinstance(given, str) and given.strip().endswith("%")
        try:
            amount = float(str(given).strip().removesuffix("%")) / (100 if relative else 1)
        except ValueError:
            amount = -1.0
        if isinstance(given, bool) or not 0 <= amount < inf:
            raise InputError(
                f"max_loss_rise is a number of the metric's unit, at least 0, or a share like '1%'; got {given!r}"
            )
        return cls(amount, relative)

    def above(self, intact: float, is_distance: bool) -> float:
        """The rise in the metric's unit.

        Args:
            intact: the metric of the intact model.
            is_distance: whether the metric is a distance to the intact model.

        >>> Rise.read("1%").above(3.0, is_distance=False), Rise.read("1%").above(0.0, is_distance=True)
        (0.03, 0.01)
        """
        return self.amount * abs(intact) if self.relative and not is_distance else self.amount
