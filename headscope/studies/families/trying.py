"""One model type, tried: a tiny model, its sites, captures, cuts and what a cut model still does, as one row."""

import functools
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from headscope.anatomy import discover
from headscope.anatomy.examples import make_example
from headscope.errors import AnatomyError, HeadscopeError
from headscope.sites import Anatomy
from headscope.studies.families.afterwards import CHECKS, check_afterwards
from headscope.studies.families.building import build
from headscope.studies.families.capturing import check_captured
from headscope.studies.families.cutting import sites_to_cut, try_cuts
from headscope.studies.families.outputs import complaint_of, takes_more, with_settings
from headscope.studies.families.results import NO, YES, Cut, Result
from headscope.studies.families.telling import first_sentence

__all__ = ["FURTHER", "Example", "try_type"]

FURTHER = ("generated", "exported")
"""What takes long, and is tried where it is asked for."""

Example = Callable[[nn.Module], Mapping[str, Any]]

_UNREAD = "not read: "
_ATTENTIVE = "no attention was recognised"  # something looks like it


def try_type(
    model_type: str, *, further: Collection[str] = (), example: Example | None = None, seed: int = 0
) -> Result:
    """Build a tiny model of a type and try on it what headscope does with a model.

    Args:
        model_type: as transformers calls it.
        further: of "generated" and "exported", what is tried too, which takes a second and some seconds.
        example: what makes an input for a model; headscope's own where it is None.
        seed: of the weights.

    Returns:
        A row of the support matrix; each "no" has its reason.

    Raises:
        InputError: there is no such type.
    """
    begun = time.monotonic()
    example = functools.partial(make_example, tried=True) if example is None else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models that are built in odd ways, which is no matter of this study
        row = _row_of(model_type, further, example, seed)
    return Result(**row, seconds=round(time.monotonic() - begun, 1))


def _row_of(model_type: str, further: Collection[str], example: Example, seed: int) -> dict[str, Any]:
    given: dict[str, Any] = {}

    def complain(model: nn.Module) -> str:
        try:
            given["inputs"] = with_settings(model, example(model))
        except HeadscopeError as error:
            return ". ".join([f"no input can be made up: {error}", *getattr(error, "__notes__", ())])
        except Exception as error:  # what makes inputs is tried here too
            return f"making up an input failed with {type(error).__name__}: {error}"
        complaint = complaint_of(model, given["inputs"])
        if complaint and takes_more(model, given["inputs"]):  # a cache that does not fit a config of two halves
            without = {**given["inputs"], "use_cache": False}
            if not complaint_of(model, without):
                given["inputs"], complaint = without, ""
        return complaint

    built = build(model_type, seed, complain)
    row: dict[str, Any] = {"model_type": model_type, "why": {}}
    if built.model is None:
        row["why"]["built"] = _first_word(built.complaints)
    else:
        row |= {"class_name": type(built.model).__name__, "built": YES, "forward": YES if built.runs else NO}
        if built.runs:
            _try_model(row, built.model, given["inputs"], further)
        else:
            row["why"]["forward"] = _first_word(built.against)
    return row


def _first_word(complaints: tuple[str, ...]) -> str:
    """The complaint of the usual variant: later ones try what may not fit the type at all."""
    return first_sentence(complaints[0]) if complaints else ""


def _try_model(row: dict[str, Any], model: nn.Module, inputs: Mapping[str, Any], further: Collection[str]) -> None:
    """Fill the row of a model that runs."""
    for weight in model.parameters():
        weight.requires_grad_(weight.is_floating_point())
    anatomy = _find(row, model, inputs)
    if anatomy is None:
        return
    capturing = check_captured(model, anatomy, inputs)
    _note(row, "captured", capturing.status, capturing.why)
    if not sites_to_cut(model, anatomy):
        _note(row, "cut", "", "its attention has a single head")
        return
    tried = [*try_cuts(model, anatomy, inputs)]
    cuts = tuple(one.cut for one in tried)
    row["cuts"] = cuts
    _note(row, "cut", _together(cuts), "; ".join(dict.fromkeys(cut.why for cut in cuts if cut.why)))
    pruned = next((one.pruned for one in reversed(tried) if one.cut.status == "exact"), None)
    if pruned is not None:
        names = tuple(name for name in CHECKS if name in further or name not in FURTHER)
        for name, (answer, why) in check_afterwards(model, pruned, inputs, names).items():
            _note(row, name, answer, why)


def _find(row: dict[str, Any], model: nn.Module, inputs: Mapping[str, Any]) -> Anatomy | None:
    """The sites, noted; None where there is none."""
    try:
        anatomy = discover(model, inputs)
    except AnatomyError as error:
        if _ATTENTIVE in str(error):
            _note(row, "found", "none", first_sentence(str(error)))
        else:
            row["why"]["found"] = first_sentence(str(error))
        return None
    except HeadscopeError as error:
        _note(row, "found", "none", first_sentence(str(error)))
        return None
    except Exception as error:
        _note(row, "found", "failed", f"{type(error).__name__}: {first_sentence(str(error))}")
        return None
    routes = [site.route for site in anatomy.sites]
    row |= {
        "sites": len(anatomy.sites),
        "routes": {route: routes.count(route) for route in dict.fromkeys(routes)},
        "kinds": tuple(dict.fromkeys(site.kind for site in anatomy.sites)),
    }
    unread = [remark.removeprefix(_UNREAD) for remark in anatomy.remarks if remark.startswith(_UNREAD)]
    _note(row, "found", "some" if unread else "all", "; ".join(unread))
    return anatomy


def _together(cuts: tuple[Cut, ...]) -> str:
    """One word for several cuts: the worst there is, unless nothing but refusals stands beside exact ones."""
    each = {cut.status for cut in cuts}
    if each == {"exact"}:
        return "exact"
    if "exact" in each and each <= {"exact", "refused", "unproven"}:
        return "in part"
    return next(status for status in ("wrong", "failed", "unproven", "refused") if status in each)


def _note(row: dict[str, Any], column: str, status: str, why: str) -> None:
    row[column] = status
    if why:
        row["why"][column] = why
