"""Numbers as a person reads them: three significant digits, a real minus sign, a dash for what is not defined."""

import math
from collections.abc import Iterable, Sequence

__all__ = [
    "MISSING",
    "brief",
    "brief_list",
    "count",
    "duration",
    "fixed",
    "interval",
    "markdown_table",
    "number",
    "percent",
    "power_of_ten",
    "quantity",
    "thousands",
]

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits; powers of ten from 1e-4 downwards and from 1e6 upwards.

    >>> number(0.0123456), number(-0.5), number(12345.6), number(0.0000321), number(float("nan"))
    ('0.0123', '−0.500', '12,346', '3.21×10⁻⁵', '–')
    """
    if math.isnan(value):
        return MISSING
    sign = "−" if value < 0 else ""
    if math.isinf(value):
        return f"{sign}∞"
    if value == 0:
        return "0"
    # rounded first, so that 0.09996 counts its digits as 0.1
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 < power < 6:
        return f"{sign}{abs(value):,.{max(digits - 1 - power, 0)}f}"
    return f"{sign}{mantissa}×{power_of_ten(power)}"


def percent(share: float, digits: int = 1) -> str:
    """A share in percent, with so many digits after the point.

    >>> percent(0.1234), percent(-0.0501), percent(-0.0001), percent(float("nan")), percent(-0.124, 0)
    ('12.3%', '−5.0%', '0.0%', '–', '−12%')
    """
    if math.isnan(share):
        return MISSING
    rounded = round(100 * share, digits) + 0.0  # −0.0 is 0.0
    return f"{rounded:.{digits}f}%".replace("-", "−")


def brief(value: float) -> str:
    """Two significant digits, no more than two of them after the point: four characters where the size is middling.

    >>> brief(0.104), brief(-2.64), brief(93.8), brief(0.001), brief(float("nan"))
    ('0.10', '−2.6', '94', '0.00', '–')
    """
    if math.isnan(value):
        return MISSING
    size = float(f"{abs(value):.1e}")
    digits = 2 if size < 1 else 1 if size < 10 else 0
    text = f"{size:,.{digits}f}"
    return f"−{text}" if value < 0 and float(text.replace(",", "")) else text


def brief_list(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence, the first few of them where they are many.

    >>> brief_list(["L0H1", "L0H2"]), brief_list(list("abcdefg"), most=3)
    ('L0H1, L0H2', 'a, b, c and 4 more')
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def fixed(value: float, digits: int = 3) -> str:
    """A number with so many digits after the point, for columns of numbers near one.

    >>> fixed(0.84149), fixed(-0.0004), fixed(float("nan"))
    ('0.841', '0.000', '–')
    """
    text = f"{abs(value):.{digits}f}"
    if math.isnan(value):
        return MISSING
    return f"−{text}" if value < 0 and float(text) else text


def thousands(values: Iterable[float]) -> int:
    """Power of ten, a multiple of three, that brings the median size of `values` to between 1 and 1000; 0 for none.

    >>> thousands([0.0021, 0.03, 0.0004]), thousands([5.0]), thousands([])
    (-3, 0, 0)
    """
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    return 3 * math.floor(math.log10(sizes[len(sizes) // 2]) / 3) if sizes else 0


def power_of_ten(power: int) -> str:
    """10 to that power.

    >>> power_of_ten(-3)
    '10⁻³'
    """
    return f"10{str(power).translate(_SUPERSCRIPT)}"


def interval(low: float, high: float) -> str:
    """The two ends of an interval; "" where there is none.

    >>> interval(-0.1, 0.25), interval(float("nan"), 1.0)
    ('−0.100 to 0.250', '')
    """
    return "" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"


def quantity(value: float, unit: str, digits: int = 3) -> str:
    r"""A number with its unit, held together by a no-break space.

    >>> quantity(0.0123, "nats/token"), quantity(0.0123, "")
    ('0.0123\xa0nats/token', '0.0123')
    """
    text = number(value, digits)
    return f"{text}\u00a0{unit}" if unit and text != MISSING else text


def count(value: int, noun: str = "", plural: str = "") -> str:
    """A whole number with its thousands apart, and the noun in the form that fits.

    >>> count(66304), count(1, "head"), count(12, "head"), count(2, "axis", "axes")
    ('66,304', '1 head', '12 heads', '2 axes')
    """
    if not noun:
        return f"{value:,}"
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time span in the unit that fits it.

    >>> duration(0.0321), duration(4.2), duration(83), duration(7260)
    ('32 ms', '4.2 s', '1 min 23 s', '2 h 1 min')
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table in Markdown.

    >>> print(markdown_table(("a", "b"), [("1", "x|y")]))
    | a | b |
    | --- | --- |
    | 1 | x\|y |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
