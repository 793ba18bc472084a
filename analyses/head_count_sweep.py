"""How many heads does a task want? The same small transformer with few heads and many, in two arms.

python analyses/head_count_sweep.py --out heads
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import script
from headscope.cli.printing import progress_told
from headscope.studies.headcount import Settings, draw, sweep


def main(
    out: Annotated[Path, typer.Option(help="output folder; finished runs are kept there, and the script goes on")],
    task: Annotated[list[str] | None, typer.Option(help="one of the tasks; repeatable")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a taste: fewer heads, seeds and steps")] = False,
) -> None:
    """Choose learning rates, train every learner, measure it; hours for the whole, minutes with --quick."""
    settings = Settings.quick() if quick else Settings()
    settings = replace(settings, tasks=tuple(task or settings.tasks))
    with progress_told() as step:
        found = sweep(out, settings, progress=step)
    found.save(out)
    draw(found, out)
    print(found)


if __name__ == "__main__":
    script(main)
