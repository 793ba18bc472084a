"""What a sweep over the number of heads tries: tasks, counts, arms, seeds, learning rates."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import log2
from typing import Any, Self

from headscope.errors import InputError
from headscope.studies.tasks import WIDTH, kind_of

__all__ = ["ARMS", "Case", "Settings", "head_dim_of"]

ARMS: Mapping[str, str] = {
    "width": "at fixed width: a head has width / heads dimensions, so that more heads are smaller ones",
    "head_dim": "at fixed head_dim: a head keeps its dimensions, so that more heads are more weights",
}
_TUNING_SEED = 10_000  # of the runs that choose a learning rate; no other run has it


@dataclass(frozen=True, order=True)
class Case:
    """One training run.

    Attributes:
        task: its label.
        n_heads, head_dim: of every block.
        learning_rate: the highest.
        seed: of weights and batches.
        share: of the task's steps.
    """

    task: str
    n_heads: int
    head_dim: int
    learning_rate: float
    seed: int
    share: float

    def __str__(self) -> str:
        return f"{self.task}-h{self.n_heads}-d{self.head_dim}-r{self.learning_rate:g}-s{self.seed}"

    @classmethod
    def of_tuning(cls, task: str, n_heads: int, head_dim: int, learning_rate: float, share: float) -> Self:
        """One that is there to choose a learning rate."""
        return cls(task, n_heads, head_dim, learning_rate, _TUNING_SEED, share)

    @property
    def tuning(self) -> bool:
        """Whether it is there to choose a learning rate."""
        return self.seed == _TUNING_SEED


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A sweep. The full one without arguments; `quick` for a taste.

    Attributes:
        tasks: labels; see `headscope.studies.tasks.task_named`.
        heads: numbers of heads, from low to high.
        width: dimensions of the residual stream.
        head_dim: dimensions of a head in the arm where they are fixed.
        seeds: runs of each case, at least 2.
        rates: learning rates to choose from, once for each task and arm, at the lowest, a middle and the highest number
            of heads; further ones are tried where the best is the highest or the lowest. One alone is taken as it is.
        share: of each task's steps, in (0, 1].
    """

    tasks: tuple[str, ...] = ("lookups", "maps-8", "maps-16", "maps-32", "maps-64", "language", "digits")
    heads: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    width: int = WIDTH
    head_dim: int = 8
    seeds: int = 5
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.tasks or not self.heads or not self.rates:
            raise InputError("a sweep needs a task, a number of heads and a learning rate at the least")
        if min(self.heads) < 1 or list(self.heads) != sorted({*self.heads}):
            raise InputError(
                f"numbers of heads are at least 1, each named once, from low to high; they were {self.heads}"
            )
        if self.head_dim < 1:
            raise InputError(f"head_dim is at least 1; it was {self.head_dim}")
        if self.seeds < 2:
            raise InputError(f"a spread needs at least 2 seeds; there was {self.seeds}")
        if min(self.rates) <= 0 or not 0 < self.share <= 1:
            raise InputError(f"learning rates are above 0 and share is in (0, 1]; they were {self.rates}, {self.share}")
        for label in self.tasks:  # before any run
            kind_of(label)
        for n_heads in self.heads:
            head_dim_of("width", n_heads, self.width, self.head_dim)

    @classmethod
    def quick(cls) -> Self:
        """Look-ups and maps, three seeds, a third of the steps, no choice of a learning rate: a taste, no evidence."""
        return cls(tasks=("lookups", "maps-16"), heads=(1, 4, 16, 64), seeds=3, rates=(0.01,), share=0.3)

    @classmethod
    def full(cls, width: int = WIDTH) -> Self:
        """The full sweep of a width: numbers of heads that divide it, and maps no longer than it is wide.

        A head of the whole width can match any map of that length; of longer maps nobody knows.

        Args:
            width: dimensions of the residual stream.
        """
        whole = cls()
        heads = tuple(n for n in whole.heads if width % n == 0)
        tasks = tuple(label for label in whole.tasks if int(label.partition("-")[2] or 0) <= width)
        return cls(tasks=tasks, heads=heads, width=width)

    @property
    def tuned_at(self) -> tuple[int, ...]:
        """The numbers of heads at which the learning rate is chosen; none where there is no choice."""
        if len(self.rates) == 1:
            return ()
        return tuple(sorted({self.heads[0], self.heads[len(self.heads) // 2], self.heads[-1]}))

    def tuning(self) -> list[Case]:
        """Runs that choose the learning rates."""
        return sorted(
            {
                Case.of_tuning(label, n_heads, self.dim(arm, n_heads), rate, self.share)
                for label, arm, n_heads in self._places(self.tuned_at)
                for rate in self.rates
            }
        )

    def runs(self, rates: Mapping[tuple[str, int, int], float]) -> dict[tuple[str, str, int, int], Case]:
        """The runs, by task, arm, number of heads and seed; where the arms meet, one run is part of both.

        Args:
            rates: the rates chosen, by task, number of heads and head_dim.
        """
        found = {}
        for label, arm, n_heads in self._places(self.heads):
            head_dim = self.dim(arm, n_heads)
            rate = rates[label, *self._tuned_for(arm, n_heads)] if rates else self.rates[0]
            for seed in range(self.seeds):
                found[label, arm, n_heads, seed] = Case(label, n_heads, head_dim, rate, seed, self.share)
        return found

    def dim(self, arm: str, n_heads: int) -> int:
        """Dimensions of a head."""
        return head_dim_of(arm, n_heads, self.width, self.head_dim)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def _tuned_for(self, arm: str, n_heads: int) -> tuple[int, int]:
        """Heads and head_dim of the tuned place nearest to a number of heads, on a scale of doublings."""
        nearest = min(self.tuned_at, key=lambda tuned: (abs(log2(tuned / n_heads)), tuned))
        return nearest, self.dim(arm, nearest)

    def _places(self, heads: tuple[int, ...]) -> Iterator[tuple[str, str, int]]:
        return ((label, arm, n_heads) for label in self.tasks for arm in ARMS for n_heads in heads)


def head_dim_of(arm: str, n_heads: int, width: int, fixed: int) -> int:
    """Dimensions of a head in an arm.

    Raises:
        InputError: at fixed width, heads that do not divide it.
    """
    if arm == "head_dim":
        return fixed
    if width % n_heads:
        fitting = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
        raise InputError(
            f"{n_heads} heads do not divide the width {width}, so they cannot share it; numbers that do: {fitting}"
        )
    return width // n_heads
