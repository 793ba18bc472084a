"""What do length and heads cost? Time, memory and operations of attention, in training and inference.

python analyses/cost_scaling.py --out costs
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from headscope._support.environment import machine
from headscope._support.folders import check_free, new_folder
from headscope.cli import refusing
from headscope.cli.printing import progress_bar
from headscope.reporting.figures import cost_curves
from headscope.studies.scaling import PARTS, Scaling, growth, scale_costs
from headscope.tables import write_table


def main(
    out: Annotated[Path, typer.Option(help="output folder")],
    quick: Annotated[bool, typer.Option("--quick", help="narrower, shorter, fewer rounds: a minute")] = False,
    rounds: Annotated[int | None, typer.Option(help="how often each is timed", show_default="10, or 5")] = None,
    device: Annotated[str, typer.Option(help="cpu; or cuda, where sizes are larger")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Time layers of many sizes in turns, and fit how their costs grow."""
    check_free(out, force=force)
    scaling = Scaling.quick() if quick else Scaling() if device == "cpu" else Scaling.large()
    scaling = replace(scaling, rounds=rounds or scaling.rounds, device=device)
    with progress_bar() as step:
        costs = scale_costs(scaling, progress=step)
    grown = growth(costs)
    with new_folder(out, force=force) as new:
        for name, table in (("costs", costs), ("growth", grown)):
            write_table(new, name, table, {"facts": {"settings": vars(scaling), "machine": machine(device)}})
        for part in PARTS:
            for against in ("length", "heads"):
                cost_curves(costs, part, against).savefig(new / f"{part}_{against}.png", dpi=150)
    print(grown.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
