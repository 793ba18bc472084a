"""What do length and heads cost? Time, memory and operations of attention, in training and inference."""

from dataclasses import replace
from typing import Annotated

import typer

from headscope._support.tabular import write_table
from headscope.cli import script
from headscope.cli.options import Device, Folder
from headscope.cli.printing import progress_told
from headscope.models.loading import device_named
from headscope.reporting.figures import cost_curves
from headscope.studies.growing import growth
from headscope.studies.scaling import PARTS, Scaling, scale_costs


def main(
    folder: Folder,
    quick: Annotated[bool, typer.Option("--quick", help="narrower, shorter, fewer rounds: a minute")] = False,
    rounds: Annotated[int | None, typer.Option(help="how often each is timed", show_default="10, or 5")] = None,
    device: Device = "auto",
) -> None:
    """Time layers of many sizes in turns, and fit how their costs grow.

    Example: python analyses/cost_scaling.py --out costs
    """
    folder.check()
    place = device_named(device)
    scaling = Scaling.quick() if quick else Scaling() if place.type == "cpu" else Scaling.large()
    scaling = replace(scaling, rounds=rounds or scaling.rounds, device=str(place))
    with progress_told() as step:
        costs = scale_costs(scaling, progress=step)
    grown = growth(costs)
    with folder.new() as new:
        for name, table in (("costs", costs), ("growth", grown)):
            write_table(new, name, table, {"facts": scaling.facts})
        for part in PARTS:
            for against in ("length", "heads"):
                cost_curves(costs, part, against).savefig(new / f"{part}_{against}.png", dpi=150)
    print(grown.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    script(main)
