"""How many heads does a task want? The same small transformer with few heads and many, in two arms."""

from headscope.cli import script
from headscope.cli.options import Reading
from headscope.cli.studying import Sweeping


def main(sweeping: Sweeping, reading: Reading = Reading()) -> None:
    """Choose learning rates, train every learner, measure it; hours for the whole, minutes with --quick.

    Example: python analyses/head_count_sweep.py --quick --out heads
    """
    print(sweeping.sweep(reading.texts()))


if __name__ == "__main__":
    script(main)
