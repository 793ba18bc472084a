"""Asking: claims put to the reference or to a named model, each with the evidence that it takes."""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from headscope._support.environment import machine, today, versions
from headscope._support.kept import Kept
from headscope._support.progress import Progress, part_of
from headscope._support.running import device_of
from headscope._support.tabular import read_table
from headscope.anatomy.untrained import UNTRAINED, drawn_by
from headscope.errors import InputError, StorageError
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, CostClaim, SweepClaim, claim_named, undecided
from headscope.studies.headcount import Settings, Sweep, sweep
from headscope.studies.rulings import Rulings, own_folder, packed, rule, unpacked
from headscope.studies.scaling import COSTS, Scaling, scale_costs, scale_model
from headscope.studies.subjects import Subject, reference_subjects

__all__ = ["REFERENCE", "ask_model", "ask_reference", "names_of"]

REFERENCE = "reference"
_WHOLE_SWEEP = Both("the whole sweep, five seeds or more", "スイープ全体(シード5個以上)が必要")
_SEEDS, _QUICK_SEEDS = 5, 3  # of the reference, where claims about a trained model are asked of it

_WHY = "why_not_untrained"  # a fact: why a model has no untrained copies


def names_of(claims: Iterable[str] | None) -> list[str]:
    """Names of claims in the order of their numbers; all where none is named.

    Raises:
        UnknownNameError: one does not exist; the message lists those that do.
    """
    chosen = set(CLAIMS) if claims is None else {CLAIMS.name_of(claim_named(name)) for name in claims}
    return [name for name in CLAIMS if name in chosen]


def ask_model(
    subject: Subject,
    claims: Iterable[str] | None = None,
    *,
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> Rulings:
    """Put to a trained model those claims that can be asked of one.

    Args:
        subject: the model and its text.
        claims: names; without it all but those about how a model should be trained.
        keep: a folder for claims that are decided; asked again with the same folder, they are taken from there.
        progress: told of each claim.

    Raises:
        InputError: a claim was named that takes many training runs, or layers of many sizes.
        StorageError: the folder to keep them in holds claims of another model, text or version.
    """
    named = names_of(claims)
    asked = [name for name in named if CLAIMS[name].of_a_model]
    if claims is not None and (others := [name for name in named if name not in asked]):
        raise InputError(
            f"{', '.join(others)}: asked of layers and models of many sizes, not of one trained model; leave the model "
            "out to ask the reference"
        )
    kept = None if keep is None else Kept(keep, {"claims": {**subject.facts, "quick": subject.quick}})
    rulings, why = [], ""
    for name in asked:
        piece = None if kept is None else kept.get(name)
        if piece is None:
            claim = CLAIMS[name]()
            command = _command(subject.name, name, subject.quick)
            rulings.append(rule(name, claim, partial(_taken, claim, subject), command))
            why = why or subject.why_not_untrained
            if kept is not None:
                kept.put(name, {**packed(rulings[-1]), _WHY: why})
        else:
            rulings.append(unpacked(piece))
            why = why or piece[_WHY]
        if progress is not None:
            progress("claims", 1, len(asked))
    place = machine(str(device_of(subject.model)))
    facts = {**subject.facts, "versions": versions(), "date": today(), "machine": place, "quick": subject.quick}
    if why:
        facts[_WHY] = why
    elif any(CLAIMS[name].beside_untrained for name in asked):
        facts[UNTRAINED] = drawn_by(subject.model)
    return Rulings(subject.name, tuple(rulings), facts)


def ask_reference(
    evidence: str | Path,
    claims: Iterable[str] | None = None,
    *,
    timings: str | Path | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> Rulings:
    """Put claims to the reference transformer: trained ones, layers of many sizes, and a sweep over numbers of heads.

    Args:
        evidence: folder of the sweep's finished runs, where it is looked for first; made where a claim takes it. What
            is there is read before anything else is trained, and a sweep that was begun is finished first.
        claims: names; all without it.
        timings: folder of what `analyses/cost_scaling.py` wrote, taken in place of new timings.
        quick: fewer seeds, shorter training, and a sweep that decides nothing: minutes in place of hours.
        progress: told of each step.

    Raises:
        StorageError: the timings or the sweep cannot be read, or the folder holds other work.
    """
    names = names_of(claims)
    sources = _Sources(Path(evidence), None if timings is None else Path(timings), quick, progress)
    sources.read(names)
    rulings = []
    for name in names:
        claim = CLAIMS[name]()
        command = _command("", name, quick)
        if timings is not None and isinstance(claim, CostClaim):
            costs = f"costs-{name}"
            timing = f"python analyses/cost_scaling.py --device {sources.timed_on} --out {costs}"
            command = f"{timing} && {_command('', name, quick, costs)}"
        made = rule(name, claim, partial(sources.of, claim), command)
        if isinstance(claim, SweepClaim) and made.verdict.word != "not decided" and not sources.sweep.decisive:
            made = replace(made, verdict=undecided(_WHOLE_SWEEP), numbers={})
        rulings.append(made)
        if progress is not None:
            progress("claims", 1, len(names))
    facts = {"versions": versions(), "date": today(), "machine": machine(), "quick": quick, **sources.facts}
    return Rulings(REFERENCE, tuple(rulings), facts)


def _taken(claim: Any, subject: Subject) -> list[Any]:
    """What a claim is measured on, where it is put to one model."""
    return [scale_model(subject) if isinstance(claim, CostClaim) else subject]


class _Sources:
    """Evidence on the reference, each kind made once and only where it is asked for."""

    def __init__(self, folder: Path, timings: Path | None, quick: bool, progress: Progress | None) -> None:
        self._folder, self._timings, self._quick, self._progress = folder, timings, quick, progress
        self.facts: dict[str, Any] = {}

    def read(self, names: Iterable[str]) -> None:
        """Read what these claims find made already: what is wrong with it is told before hours of other work."""
        if self._timings is not None:
            _ = self._saved
        if self._folder.exists() and any(isinstance(CLAIMS[name](), SweepClaim) for name in names):
            _ = self.sweep

    def of(self, claim: Any) -> list[Any]:
        """What a claim is measured on."""
        if isinstance(claim, SweepClaim):
            return [self.sweep]
        return [self.costs] if isinstance(claim, CostClaim) else self.subjects

    @cached_property
    def timed_on(self) -> str:
        """The kind of device that timings are of."""
        return str(self._saved[1]["facts"]["settings"]["device"]) if self._timings is not None else "cpu"

    @cached_property
    def sweep(self) -> Sweep:
        if Sweep.saved(self._folder):
            found = Sweep.load(self._folder)
        else:
            settings = Settings.quick() if self._quick else Settings()
            found = sweep(self._folder, settings, progress=self._progress)
            if not self._quick:
                found.save(self._folder)
        self.facts["sweep"] = dict(found.facts)
        return found

    @cached_property
    def costs(self) -> pd.DataFrame:
        if self._timings is not None:
            costs, about = self._saved
            self.facts["costs"], self.facts["machine"] = about["facts"]["settings"], about["facts"]["machine"]
            return costs
        scaling = Scaling.quick() if self._quick else Scaling()
        self.facts["costs"] = {**vars(scaling)}
        return scale_costs(scaling, part_of(self._progress))

    @cached_property
    def _saved(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        assert self._timings is not None
        try:
            return read_table(self._timings, "costs", set(COSTS), COSTS)
        except StorageError as error:
            made_by = shlex.join(["python", "analyses/cost_scaling.py", "--out", str(self._timings)])
            raise StorageError(str(error), shell=f"`{made_by}` makes such a folder") from error

    @cached_property
    def subjects(self) -> list[Subject]:
        seeds = _QUICK_SEEDS if self._quick else _SEEDS
        found = []
        for subject in reference_subjects(seeds, self._quick):
            found.append(subject)
            if self._progress is not None:
                self._progress("training the reference", 1, seeds)
        self.facts["subject"] = {**found[0].facts, "seed": f"0 to {seeds - 1}"}
        return found


def _command(model: str, claim: str, quick: bool, costs: str = "") -> str:
    """What asks the reference ("") or a model one claim, into a folder that no other command on its page writes to."""
    options = [*([model] if model else []), *(["--costs", costs] if costs else []), "--claim", claim]
    options += [*(["--quick"] if quick else []), "--out", own_folder(claim, model or REFERENCE)]
    return shlex.join(["headscope", "claims", *options])
