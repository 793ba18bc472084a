"""What a row of the support matrix comes to in one phrase, and reasons that are alike under one heading."""

import re
from collections.abc import Iterable

from headscope.studies.families.results import YES, Result

__all__ = ["OUTCOMES", "grouped_reasons", "heading", "outcome"]

OUTCOMES = (
    "wrong, or failed where a refusal would be right",
    "read and cut exactly",
    "read and cut exactly; something beside is no attention of this kind, or did not run",
    "read; some cuts are exact, others refused",
    "read; cuts are refused",
    "read; nothing to cut",
    "read in part; cuts are exact",
    "read in part; cuts are refused, or there is nothing to cut",
    "without attention",
    "with attention of another kind, which is named and not read",
    "built, and not run: no input was found",
    "not built",
)
# by column: what a reason says, and its heading; the first that fits
_HEADINGS: tuple[tuple[str, str, str], ...] = (
    ("built", r"config without a model", "a config without a model of its own"),
    ("built", r"requires the .* library|not found in your environment", "a package that is not installed"),
    ("built", r"too large", "too large at the smallest setting"),
    ("built", r"took more than", "took too long"),
    ("built", r"process died", "took too much memory"),
    ("built", r"config is refused|ClassValidationError", "its config refuses the sizes"),
    ("built", r"", "it cannot be built at these sizes"),
    ("forward", r"no input can be made up", "no input can be made up"),
    ("forward", r"", "its forward fails on the input that was made up"),
    ("found", r"sees? a single key", "attention to a single key"),
    ("found", r"did not run on the example", "modules that did not run on the example"),
    ("found", r"softmax does not run over the keys", "its softmax does not run over the keys"),
    ("found", r"no softmax over keys", "recurrences and linear attention"),
    ("found", r"scores are no product", "its scores are no product of queries and keys"),
    ("found", r"several products|several pieces", "its scores or its maps are put together from several"),
    ("found", r"no attention was found", "no attention"),
    ("captured", r"heads cannot be told apart in o|mixes them", "heads are mixed before the output projection"),
    ("captured", r"no linear layer", "no linear layer reads the heads' outputs"),
    ("cut", r"masking other heads changes", "nothing that comes out depends on these heads, so no cut can be proven"),
    ("cut", r"differs from head to head", "something that differs from head to head is added to its scores"),
    ("cut", r"told apart in [qkv, ]*o", "heads are mixed before the output projection"),
    ("cut", r"cannot be told apart in", "q, k or v are made of all heads together"),
    ("cut", r"is a parameter that the forward uses", "a parameter that the forward uses by itself"),
    ("cut", r"does not run any more", "something beside its layers holds numbers for each head"),
    ("cut", r"was given up|not return what it returned", "no way of cutting that was tried is exact"),
    ("cut", r"cannot be sliced", "its projections are no plain linear layers"),
    ("cut", r"run the same weights", "layers that run the same weights"),
    ("found", r"values are not summed", "its values are not summed over the axis of its softmax"),
    ("saved", r"^outputs are .* apart", "outputs differ by rounding"),
    ("trained", r"whole model cannot either", "the whole model cannot be trained so either"),
    ("saved", r"whole model cannot either", "the whole model comes back so too"),
    ("generated", r"whole model cannot either", "the whole model generates nothing so either"),
    ("cut", r"single head", "a single head"),
    ("cut", r"left .* parameters", "weights are tied"),
    ("cut", r"outputs of the pruned and of the masked model differ", "the cut is not exact"),
    ("cut", r"proven on what the layer itself gives", "the model runs a layer and returns the same without it"),
)  # fmt: skip


def outcome(row: Result) -> str:
    """What a row comes to: one of OUTCOMES.

    Args:
        row: of the table.
    """
    if "wrong" in (row.captured, row.cut) or "failed" in (row.found, row.cut):
        return OUTCOMES[0]
    if row.built != YES:
        return OUTCOMES[11]
    if row.forward != YES:
        return OUTCOMES[10]
    if not row.sites:
        return OUTCOMES[9 if row.found else 8]
    if row.captured != "exact":
        return OUTCOMES[6 if row.cut == "exact" else 7]
    if row.cut == "exact":
        return OUTCOMES[1 if row.found == "all" else 2]
    return OUTCOMES[{"in part": 3, "": 5}.get(row.cut, 4)]


def heading(column: str, reason: str) -> str:
    """Under which heading a reason stands; the reason itself where there is none, without names and numbers.

    Args:
        column: that it is of.
        reason: as the row gives it.

    >>> heading("built", "it cannot be built: ImportError: DinatModel requires the natten library")
    'a package that is not installed'
    """
    for own, pattern, words in _HEADINGS:
        if own == column and re.search(pattern, reason):
            return words
    plain = re.sub(r"\w+(\.\w+)+|\([^)]*\)|\d+(\.\d+)?(e-?\d+)?", "…", reason.split("; ")[0])
    return plain if len(plain) < 120 else f"{plain[:119]}…"


def grouped_reasons(rows: Iterable[Result], column: str) -> dict[str, list[str]]:
    """Model types whose column has a reason, by its heading, the largest group first.

    Args:
        rows: of the table.
        column: of `COLUMNS`.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        if column in row.why:
            found.setdefault(heading(column, row.why[column]), []).append(row.model_type)
    return dict(sorted(found.items(), key=lambda group: -len(group[1])))
