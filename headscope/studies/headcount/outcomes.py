"""Outcomes: what each task of a sweep says of a claim, as numbers among those of its sentence, and back in words."""

from collections.abc import Iterable, Mapping

from headscope.studies.bilingual import Both

__all__ = [
    "AS_THE_PAPER",
    "CONTRARY",
    "OPEN",
    "grouped",
    "more_seeds",
    "named",
    "numbers_of",
    "of_tasks",
    "tasks_that",
    "untold",
]

AS_THE_PAPER, CONTRARY, OPEN = 1.0, -1.0, 0.0
_TOLD, _SEEDS = "told of", "seeds of"  # before a task's name


def numbers_of(outcomes: Mapping[str, float], seeds: Mapping[str, float]) -> dict[str, float]:
    """What each task says, and how many seeds it has, as numbers of a sentence.

    Args:
        outcomes: AS_THE_PAPER, CONTRARY or OPEN, by task.
        seeds: by task.
    """
    found = {f"{_TOLD} {task}": float(sign) for task, sign in outcomes.items()}
    return found | {f"{_SEEDS} {task}": float(seeds[task]) for task in outcomes}


def of_tasks(words: Mapping[str, float], before: str) -> dict[str, float]:
    """Numbers whose names are a task's with some words before it, by task."""
    start = f"{before} "
    return {name.removeprefix(start): value for name, value in words.items() if name.startswith(start)}


def tasks_that(words: Mapping[str, float], sign: float) -> list[str]:
    """Tasks that say the same.

    Args:
        words: with those of `numbers_of`.
        sign: AS_THE_PAPER, CONTRARY or OPEN.
    """
    return [task for task, told in of_tasks(words, _TOLD).items() if told == sign]


def named(tasks: Iterable[str]) -> Both:
    """Tasks, one after another.

    >>> named(["lookups", "digits"])
    Both(en='lookups, digits', ja='lookups、digits')
    """
    each = list(tasks)
    return Both(", ".join(each), "、".join(each))


def grouped(values: Mapping[str, float], *, falling: bool = False) -> Both:
    """Numbers of tasks, each with the tasks that have it, from low to high or the other way round.

    >>> grouped({"lookups": 4, "digits": 8, "language": 4}).en
    '4 (lookups, language); 8 (digits)'
    """
    each = {
        number: named(task for task, own in values.items() if own == number)
        for number in sorted({*values.values()}, reverse=falling)
    }
    return Both(
        "; ".join(f"{number:g} ({tasks.en})" for number, tasks in each.items()),
        "、".join(f"{number:g}({tasks.ja})" for number, tasks in each.items()),
    )


def untold(words: Mapping[str, float]) -> Both:
    """Tasks that are open, each with how many seeds could not tell.

    Args:
        words: with those of `numbers_of`.
    """
    seeds = {task: f"{own:g}" for task, own in of_tasks(words, _SEEDS).items()}
    tasks = tasks_that(words, OPEN)
    return Both(
        named(f"{task} ({seeds[task]} seeds)" for task in tasks).en,
        named(f"{task}(シード{seeds[task]}個)" for task in tasks).ja,
    )


def more_seeds(words: Mapping[str, float]) -> Both:
    """What it would take to decide tasks that are open: twice the seeds.

    Args:
        words: with those of `numbers_of`.
    """
    seeds = of_tasks(words, _SEEDS)
    tasks = tasks_that(words, OPEN)
    most = 2 * max(seeds[task] for task in tasks)
    told = named(tasks)
    return Both(f"{most:g} seeds or more for {told.en}", f"{told.ja}にはシード{most:g}個以上が必要")
