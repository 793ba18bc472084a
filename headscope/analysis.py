"""The whole story in one call: `analyze` finds, watches, scores and judges; `Analysis` holds every table, no model."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor, nn

from headscope._support.environment import versions
from headscope._support.folders import new_folder
from headscope._support.progress import Progress, part_of
from headscope._support.running import device_of
from headscope._support.shown import Shown
from headscope._support.tabular import write_table
from headscope.anatomy import discover
from headscope.anatomy.finite import check_weights
from headscope.anatomy.uncuttable import uncuttable
from headscope.effects.metrics import Metric
from headscope.effects.units import keeping
from headscope.errors import InputError, StorageError
from headscope.heads import Heads
from headscope.models.loading import Loaded
from headscope.planning.candidates import list_candidates, load_candidates
from headscope.planning.choosing import measure_removal
from headscope.planning.removal import Removal
from headscope.planning.rises import Rise
from headscope.plans import Plan
from headscope.reporting import render
from headscope.reporting.glance import foremost, main_figure
from headscope.sites import Anatomy
from headscope.studies.asking import ask_model
from headscope.studies.claims import CLAIMS
from headscope.studies.rulings import read_claims
from headscope.studies.subjects import DRAWS, Subject
from headscope.tables import HeadTable, PairTable
from headscope.text.feeding import Batches
from headscope.text.splits import Part, sample_batches, split_documents
from headscope.verdict.amounts import too_little
from headscope.verdict.gathering import Evidence, gather, watch_untrained
from headscope.verdict.judging import Bench, judge
from headscope.verdict.preparation import Budget, Source, affordable_tokens, prepare
from headscope.verdict.trying import try_cut
from headscope.verdict.verdicts import Verdict
from headscope.verdict.warnings import warnings_of

__all__ = ["Analysis", "analyze"]


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Shown):
    """Everything that one analysis found. Saved and loaded as one folder; reading it needs no model.

    Attributes:
        anatomy: the model's heads.
        scores: HeadTables "ablation", "gradient", "norm", "replaceability", "needed"; those that cannot be had are left
            out, and `facts["left_out"]` says why.
        pairs: PairTables "cka", "cosine"; across the model where it is small, else within layers; none where heads can
            be switched off and not be watched.
        candidates: a row per head, the first to cut first; see `headscope.planning.candidates.list_candidates`.
        removal: what removing the first so many of them costs, together; see `headscope.planning.removal.Removal`.
        verdict: measured on documents that chose nothing.
        claims: a row for each claim of the paper that was put to the model: claim, about, says, verdict, effect, low,
            high, unit, over, sentence; empty for one that was saved before there were any.
        facts: model, text, versions, seeds, time: "seconds" by stage; "resumed", of an analysis that went on, how many
            effects were there from before, whose time is not among these seconds.
    """

    anatomy: Anatomy
    scores: Mapping[str, HeadTable]
    pairs: Mapping[str, PairTable]
    candidates: pd.DataFrame
    removal: Removal
    verdict: Verdict
    facts: Mapping[str, Any] = field(default_factory=dict)
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def importance(self) -> HeadTable:
        """Exact ablation by zero."""
        return self.scores["ablation"]

    @property
    def replaceability(self) -> HeadTable:
        """How much of what varies in each head the others of its layer give, held out."""
        return self.scores["replaceability"]

    @property
    def similarity(self) -> PairTable:
        """Unbiased linear CKA of z."""
        return self.pairs["cka"]

    @property
    def budget(self) -> float:
        """What the chosen heads were allowed to cost together, in the metric's unit."""
        return self.verdict.max_loss_rise

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know first; see `headscope.verdict.warnings`."""
        return warnings_of(self.verdict, self.anatomy, self.facts)

    def refused(self, heads: Heads) -> str:
        """Why these heads cannot be cut, as far as is known: told by the anatomy, or tried; "" where nothing is.

        Args:
            heads: in any spelling.
        """
        tried = Plan.of(heads, self.anatomy).heads == self.verdict.chosen
        return uncuttable(self.anatomy, heads) or (self.verdict.refused if tried else "")

    def report(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write index.html, tables/ and figures/ into a new folder; returns the page's path."""
        return Path(render(self, folder, force=force))

    def _said(self) -> list[str]:
        return [*self.warnings, self.verdict.found]

    def _picture(self) -> str:
        return main_figure(self)

    def _tables(self) -> dict[str, pd.DataFrame]:
        return foremost(self)

    def _narrow(self) -> dict[str, pd.DataFrame]:
        return foremost(self, sentences=False)

    def _more(self) -> list[str]:
        return [
            'the whole page: run.report("report"); every head: run.candidates, run.importance.to_frame()',
            "which heads to cut: hs.plan(run), hs.plan(run, heads=n) or hs.plan(run, max_loss_rise='2%')",
        ]

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the analysis into a new folder: JSON, CSV and Parquet files.

        Raises:
            StorageError: the folder has other content and `force` is off.
        """
        with new_folder(folder, force=force) as new:
            (new / "anatomy.json").write_text(self.anatomy.to_json(), encoding="utf-8")
            about = {
                "format": _FORMAT,
                "scores": list(self.scores),
                "pairs": list(self.pairs),
                "verdict": self.verdict.to_json(),
                "facts": dict(self.facts),
            }
            for kind, tables in (("scores", self.scores), ("pairs", self.pairs)):
                (new / kind).mkdir()
                for table in tables.values():
                    table.save(new / kind)
            write_table(new, "candidates", self.candidates, {})
            self.removal.save(new)
            if not self.claims.empty:
                write_table(new, "claims", self.claims, {})
            (new / "analysis.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote.

        Raises:
            StorageError: the folder holds no analysis, or a part of it is missing or unreadable.
        """
        folder = Path(folder)
        if not (folder / "analysis.json").exists() and (folder / "run" / "analysis.json").exists():
            folder /= "run"  # the command line writes the analysis beside its report
        if not (folder / "analysis.json").is_file():
            raise StorageError(f"{folder} holds no analysis; name what `headscope analyze --out` or run.save wrote")
        try:
            about = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
            _check_format(folder, about)
            anatomy = Anatomy.from_json((folder / "anatomy.json").read_text(encoding="utf-8"))
            candidates = load_candidates(folder)
            verdict = Verdict.from_json(about["verdict"])
            removal = replace(Removal.load(folder), budget=verdict.max_loss_rise)
            scores = {name: HeadTable.load(folder / "scores", name) for name in about["scores"]}
            pairs = {name: PairTable.load(folder / "pairs", name) for name in about["pairs"]}
            claims = pd.DataFrame()
            if (folder / "claims.csv").exists():
                claims, _ = read_claims(folder)
        except StorageError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{folder} does not hold a whole analysis: {error}; run `headscope analyze` again"
            ) from error
        return cls(anatomy, scores, pairs, candidates, removal, verdict, about["facts"], claims)


_FORMAT = 3  # of a saved analysis; in 2 replaceability was of the whole contribution, and 1 chose heads in another way


def _check_format(folder: Path, about: Mapping[str, Any]) -> None:
    if about["format"] == _FORMAT:
        return
    model = shlex.quote(str(about["facts"].get("source", "MODEL")))
    out = shlex.quote(str(folder.parent if folder.name == "run" else folder))
    raise StorageError(
        f"{folder} was saved by another version of headscope (format {about['format']}, and this one reads {_FORMAT}): "
        "what it holds was chosen and measured in another way. Make it again, with the text and the options that made "
        f"it: headscope analyze {model} --out {out} --force"
    )


def analyze(
    model: str | Path | nn.Module | Loaded,
    tokenizer: Any = None,
    texts: Any = None,
    batches: Batches | None = None,
    *,
    metric: str | Metric | Callable[..., Tensor] = "auto",
    budget: Budget | None = None,
    name: str = "",
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Find which attention heads a model needs.

    Args:
        model: a model; or what `headscope.load_model` takes (hub name, folder, "module:factory") or gave.
        tokenizer: for text; taken from the model's folder where a name is given.
        texts: documents (an iterable of str, or what `headscope.read_texts` returns); None for the default corpus.
        batches: in place of text: what the model takes, in a list, a loader or a dataset: dicts of tensors with an
            optional "document" (batch,), tensors, or (input, labels).
        metric: what importance is measured by; see `headscope.importance`.
        budget: how much text is looked at, and whether the paper's claims are put to the model too.
        name: what the model is called in tables and on pages; by default as its folder, its hub name or its class.
        keep: a folder that effects are written into as they are measured, so that a call that was stopped goes on from
            there when it is made again; it may go once the analysis is there.
        progress: told of each step; see `headscope.Progress`.

    Returns:
        Every table, the candidates and the verdict.

    Raises:
        HeadscopeError: anything that would make the numbers wrong or meaningless; see `headscope.errors`.
    """
    budget = Budget() if budget is None else budget
    if not isinstance(budget, Budget):
        raise InputError(f"budget is a hs.Budget, as hs.Budget(max_loss_rise='2%'); got {budget!r:.60}")
    clock = _Clock()
    with clock.stage("load"):
        source = prepare(model, tokenizer, texts, batches, budget, name)
        check_weights(source.model)
    with nullcontext() if keep is None else keeping(keep, source.model) as store:
        run = _analysis(source, metric, budget, clock, progress)
    if store is None or not store.resumed:
        return run
    return replace(run, facts={**run.facts, "resumed": store.resumed})


def _analysis(
    source: Source,
    metric: str | Metric | Callable[..., Tensor],
    budget: Budget,
    clock: "_Clock",
    progress: Progress | None,
) -> Analysis:
    with clock.stage("probe"):
        anatomy = discover(source.model, source.batches[0])
        judged_by = source.resolve(metric, anatomy)
    chosen_on, held_out = split_documents(source.batches, budget.held_out, budget.seed)
    tokens = budget.ablation_tokens or affordable_tokens(source.model, anatomy)
    sample = sample_batches(chosen_on, tokens, budget.seed)
    rise = Rise.read(budget.max_loss_rise)
    beside = _untrained(source.model, chosen_on, anatomy, budget, clock, progress)
    with clock.stage("evidence"):
        evidence = beside(gather(source.model, chosen_on, sample, judged_by, anatomy, budget.seed, progress))
    with clock.stage("choice"):
        removal = measure_removal(source.model, sample, judged_by, anatomy, evidence.effects, rise, progress)
    bench = _bench(source, held_out, judged_by, 2 * tokens, budget)
    with clock.stage("verdict"):
        verdict, removal = judge(source.model, source.name, anatomy, evidence, removal, bench, progress)
        there_are = len(chosen_on.documents), len(held_out.documents)
        short = too_little(evidence, verdict.n_documents, there_are, budget.held_out, bench.text_unit)
    with clock.stage("cut"):
        cut = try_cut(source.model, verdict.chosen, anatomy, bench.batches[0])
    subject = Subject(
        source.name, source.model, chosen_on, judged_by, budget.seed, False, evidence, anatomy,
        draws=DRAWS if budget.null else 0,
    )  # fmt: skip
    claims = _claims(subject, clock, progress) if budget.claims else pd.DataFrame()
    facts = {
        **source.facts,
        "documents_watched": len(chosen_on.documents),
        "documents_chosen_on": evidence.effects.n_documents,
        "documents_judged_on": verdict.n_documents,
        "ablation_tokens": evidence.effects.n_tokens,
        **_settings(budget, judged_by),
        **_told(evidence, cut),
        **_environment(source.model, anatomy),
        "seconds": clock.seconds,
    }
    verdict = replace(verdict, too_little=short, refused=cut.get("refused", ""))
    return _assembled(anatomy, evidence, removal, verdict, facts, claims)


def _untrained(
    model: nn.Module, batches: Part, anatomy: Anatomy, budget: Budget, clock: "_Clock", progress: Progress | None
) -> Callable[[Evidence], Evidence]:
    """What puts an untrained copy beside; made first, so that a model without is refused before anything took long."""
    if not budget.null:
        return lambda evidence: evidence
    with clock.stage("untrained"):
        return watch_untrained(model, batches, anatomy, budget.seed, part_of(progress, "untrained"))


def _assembled(
    anatomy: Anatomy, evidence: Evidence, removal: Removal, verdict: Verdict, facts: Any, claims: pd.DataFrame
) -> Analysis:
    candidates = list_candidates(
        evidence.scores, evidence.pairs.get("cka"), evidence.stand_ins, verdict.lines, removal.order,
        len(verdict.chosen),
    )  # fmt: skip
    return Analysis(anatomy, evidence.scores, evidence.pairs, candidates, removal, verdict, facts, claims)


def _told(evidence: Evidence, cut: Mapping[str, Any]) -> dict[str, Any]:
    """What was left out, a reason once, and what the cut model was measured to be."""
    reasons: dict[str, list[str]] = {}
    for name, why in evidence.left_out.items():
        reasons.setdefault(why, []).append(name)
    told = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return {**({"left_out": told} if told else {}), **({"cut": dict(cut)} if cut else {})}


def _bench(source: Source, held_out: Part, metric: Metric, tokens: int, budget: Budget) -> Bench:
    batches = sample_batches(held_out, tokens, budget.seed)
    return Bench(batches, metric, budget.random_sets(len(batches)), budget.seed, source.facts["text_unit"])


def _claims(subject: Subject, clock: "_Clock", progress: Progress | None) -> pd.DataFrame:
    with clock.stage("claims"):
        brief = [name for name, claim in CLAIMS.items() if claim.brief]
        return ask_model(subject, brief, progress=progress).to_frame()


def _settings(budget: Budget, metric: Metric) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "seed": budget.seed,
        "max_loss_rise": budget.max_loss_rise,
    }


def _environment(model: nn.Module, anatomy: Anatomy) -> dict[str, Any]:
    return {
        **({"remarks": "; ".join(anatomy.remarks)} if anatomy.remarks else {}),
        "model_class": anatomy.model_class,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_layers": len(anatomy.sites),
        "n_heads": anatomy.n_heads,
        "device": str(device_of(model)),
        "dtype": str(next((p.dtype for p in model.parameters()), torch.float32)).removeprefix("torch."),
        "versions": versions(),
        "peak_memory_mb": _peak_memory(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _peak_memory() -> float | None:
    """Largest resident size of this process so far, in MB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
