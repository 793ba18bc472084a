"""Rulings: what claims come to, on the reference or on a named model; saved, read back, shown as a table."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from math import hypot, isnan, nan
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from headscope._support.folders import new_folder
from headscope._support.shown import Shown
from headscope._support.tabular import read_table, write_table
from headscope.errors import HeadscopeError, InputError, InterruptedWorkError, StorageError
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import CLAIMS, EXACT, Measured, SweepClaim, Verdict, claim_named, undecided
from headscope.uncertainty.intervals import mean_spread

__all__ = ["Ruling", "Rulings", "own_folder", "packed", "pool", "read_claims", "rule", "unpacked"]

Floats = npt.NDArray[np.float64]

_TABLES = "tables"  # folder of what is behind the claims
_NUMBERS = ("effect", "low", "high")
_IN_JAPANESE = {"where": "where_ja", "sentence": "sentence_ja", "follows": "follows_ja"}
_COLUMNS = [
    "claim", "kind", "about", "says", "verdict", "where", *_NUMBERS, "unit", "over", "sentence", "follows", "command",
    *_IN_JAPANESE.values(),
]  # fmt: skip
_WORDS = tuple(name for name in _COLUMNS if name not in _NUMBERS)


@dataclass(frozen=True, eq=False)
class Ruling:
    """What one claim comes to.

    Attributes:
        claim: its name, as "C7".
        kind: one of `headscope.studies.claims.KINDS`.
        about: what it is about, in a few words.
        says: what the paper says.
        verdict: in a word, and where or with what it would take.
        effect, low, high: the number that stands for the claim, and its 95% interval; NaN where there is none.
        unit: of the effect, in words.
        over: what the interval is over.
        sentence: what was found.
        follows: what was found of what readers infer from the claim.
        command: what shows it.
        table: what the figure is drawn from.
        numbers: that verdict and sentences were made of, by name; none where the claim could not be asked.
    """

    claim: str
    kind: str
    about: str
    says: str
    verdict: Verdict
    effect: float
    low: float
    high: float
    unit: str
    over: str
    sentence: Both
    command: str
    follows: Both = NOTHING
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Rulings(Shown):
    """What claims come to for one subject.

    Attributes:
        subject: what was asked: "reference", or a model's name.
        rulings: in the order of the claims' numbers.
        facts: versions, machine, text, date; JSON values only.
    """

    subject: str
    rulings: tuple[Ruling, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, claim: str) -> Ruling:
        for ruling in self.rulings:
            if ruling.claim == claim:
                return ruling
        raise KeyError(claim)

    def __contains__(self, claim: object) -> bool:
        return any(ruling.claim == claim for ruling in self.rulings)

    @property
    def slug(self) -> str:
        """The subject as it stands in names of files and folders."""
        return _slug(self.subject)

    def asked_with(self, options: str, of_sweeps: str = "", name: str | None = None) -> Self:
        """The same with further options in the commands, and under another name.

        Args:
            options: of every command.
            of_sweeps: of those of claims that are asked of a sweep.
            name: the other name.
        """
        rulings = []
        for one in self.rulings:
            before, after = (own_folder(one.claim, subject) for subject in (self.subject, name or self.subject))
            swept = of_sweeps if isinstance(claim_named(one.claim), SweepClaim) else ""
            line = " ".join(filter(None, (one.command.replace(f"--out {before}", f"--out {after}"), options, swept)))
            rulings.append(replace(one, command=line))
        return replace(self, subject=name or self.subject, rulings=tuple(rulings))

    def to_frame(self) -> pd.DataFrame:
        """A row a claim.

        Columns: claim, kind, about, says, verdict, where, effect, low, high, unit, over, sentence, follows, command;
        and where, sentence and follows in Japanese: where_ja, sentence_ja, follows_ja.
        """
        return pd.DataFrame([_row(ruling) for ruling in self.rulings], columns=_COLUMNS)

    def _tables(self) -> dict[str, pd.DataFrame]:
        shown = self.to_frame()[["claim", "about", "verdict", "where", *_NUMBERS, "over"]]
        return {f"claims of the paper, asked of {self.subject}": shown}

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write claims (a row a claim) and the table behind each as .csv, .parquet and .json into a new folder.

        Raises:
            StorageError: the folder has other content and `force` is off.
        """
        with new_folder(folder, force=force) as new:
            self.write(new)

    def write(self, folder: Path) -> None:
        """`save` into a folder that may be there already."""
        folder.mkdir(exist_ok=True)
        about = {"subject": self.subject, "facts": dict(self.facts)}
        numbers = {one.claim: _as_text(one.numbers) for one in self.rulings}
        write_table(folder, "claims", self.to_frame(), {**about, "numbers": numbers})
        (folder / _TABLES).mkdir(exist_ok=True)
        for ruling in self.rulings:
            if not ruling.table.empty:
                write_table(folder / _TABLES, ruling.claim, ruling.table, {"claim": ruling.claim, **about})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal.

        Verdicts and sentences are made anew from the saved numbers, by today's rules and in today's words.

        Raises:
            StorageError: it is no such folder, or a part of it is spoilt.
        """
        try:
            frame, about = read_claims(Path(folder))
        except StorageError as error:
            again = "`headscope claims MODEL --out FOLDER` makes such a folder, without MODEL that of the reference"
            raise StorageError(str(error), shell=again) from error
        tables = Path(folder) / _TABLES
        numbers: Mapping[str, Mapping[str, str]] = about.get("numbers", {})
        rulings = tuple(
            _today(_ruling(row, _behind(tables, row["claim"]), numbers.get(row["claim"], {})))
            for row in frame.to_dict("records")
        )
        return cls(about["subject"], rulings, about["facts"])


_ANOTHER_MODEL = Both("a model that can be asked", "測定できるモデルが必要")
_OTHER_TEXT = Both("more or other text", "別のテキストか、より多くのテキストが必要")
_OTHER_RUNS = Both("other training runs", "別の学習結果が必要")
_MORE_DOCUMENTS = Both("more documents, for an interval", "区間を求めるには文書が足りない")


def rule(name: str, claim: Any, evidence: Callable[[], Iterable[Any]], command: str) -> Ruling:
    """Measure a claim and decide it.

    Args:
        name: of the claim, as "C7".
        claim: the claim, of whichever kind.
        evidence: what its `measure` takes: one of each training seed, or one alone.
        command: what shows it.

    A model that cannot be asked leaves the claim undecided, and the sentence says why.

    Raises:
        InterruptedWorkError: evidence was being made, and was stopped; what is finished of it is kept.
        StorageError: evidence that was made before cannot be read, or is of other work.
    """
    about = {
        "claim": name, "kind": claim.kind, "about": claim.about.en, "says": claim.says.en, "unit": claim.unit.en,
        "command": command,
    }  # fmt: skip
    try:
        each = [claim.measure(one) for one in evidence()]
        measured = pool(each, worst=not claim.interval)
    except (InterruptedWorkError, StorageError):
        raise  # nothing that the claim or the model is to blame for
    except HeadscopeError as error:
        nothing = float("nan")
        own = _OTHER_TEXT if isinstance(error, InputError) else _ANOTHER_MODEL
        takes = undecided(own if claim.of_a_model else _OTHER_RUNS)
        return Ruling(
            **about, verdict=takes, effect=nothing, low=nothing, high=nothing, over="",
            sentence=Both(str(error), f"測定できませんでした:{error}"),
        )  # fmt: skip
    assert "seeds" not in measured.words, "that name is for how many were pooled"
    measured = replace(measured, low=_within(measured.low, claim), high=_within(measured.high, claim))
    made = Ruling(
        **about, verdict=undecided(_MORE_DOCUMENTS), effect=measured.effect, low=measured.low, high=measured.high,
        over=measured.over, sentence=NOTHING, table=measured.table,
        numbers={**measured.words, "seeds": float(len(each))},
    )  # fmt: skip
    return _retold(made)


def packed(ruling: Ruling) -> dict[str, Any]:
    """A ruling as JSON values, every number bit-equal; see `unpacked`."""
    row = {name: repr(float(cell)) if name in _NUMBERS else cell for name, cell in _row(ruling).items()}
    return {"row": row, "numbers": _as_text(ruling.numbers), "table": ruling.table.to_csv(index=False)}


def unpacked(piece: Mapping[str, Any]) -> Ruling:
    """The ruling that `packed` packed, told by today's rules and in today's words."""
    row = {name: float(cell) if name in _NUMBERS else cell for name, cell in piece["row"].items()}
    table = _cells(StringIO(piece["table"])) if piece["table"].strip() else pd.DataFrame()
    return _today(_ruling(row, table, piece["numbers"]))


def read_claims(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that `Rulings.write` wrote, and what they are about; columns as of `Rulings.to_frame`.

    Raises:
        StorageError: there are none, or they are spoilt.
    """
    frame, about = read_table(folder, "claims", {*_COLUMNS}, _WORDS)
    # a column of words that are all empty is read as one of numbers
    return frame.astype(dict.fromkeys(_WORDS, object)).fillna(dict.fromkeys(_WORDS, "")), about


def pool(each: Sequence[Measured], *, worst: bool = False) -> Measured:
    """What was measured over several training seeds: means, with intervals over the seeds.

    All seeds share one text, which the spread over seeds knows nothing of: the mean half-width of the models' own
    intervals, of those that have one, is added to that over seeds as independent errors are, by the root of squares.
    So are further numbers pooled that have ends, NAME with NAME_low and NAME_high.

    Args:
        each: one of each seed. Numbers whose names begin with "largest" or "least" are pooled as that, those with
            "which" not at all, others as means.
        worst: the effect is a largest difference: the largest of all is kept, in place of their mean, without interval.
    """
    if len(each) == 1:
        return each[0]
    columns = {name: np.array([one.numbers[name] for one in each]) for name in each[0].numbers}
    numbers = {name: _gather(name, values) for name, values in columns.items()}
    for name in columns:
        ends = f"{name}_low", f"{name}_high"
        if {*ends} <= {*columns}:
            pooled = _with_ends(columns[name], *(columns[end] for end in ends))
            numbers |= dict(zip((name, *ends), pooled, strict=True))
    table = pd.concat([one.table.assign(training_seed=seed) for seed, one in enumerate(each)], ignore_index=True)
    over = EXACT if all(one.over == EXACT for one in each) else f"{len(each)} seeds"
    effects, lows, highs = (np.array([getattr(one, name) for one in each]) for name in _NUMBERS)
    if worst:
        return Measured(float(effects.max()), over, numbers, table)
    middle, low, high = _with_ends(effects, lows, highs)
    return Measured(middle, over, numbers, table, low, high)


def _with_ends(values: Floats, lows: Floats, highs: Floats) -> tuple[float, float, float]:
    """The mean over seeds, with an interval in which they vary and each model's own interval counts too."""
    spread = mean_spread(values, np.arange(len(values)))
    middle, (low, high) = float(spread.centre), (float(end) for end in spread.interval())
    known = ~np.isnan(highs - lows)
    if known.any():
        below, above = (float(gap[known].mean()) for gap in (values - lows, highs - values))
        low, high = middle - hypot(middle - low, below), middle + hypot(high - middle, above)
    return middle, low, high


def _over_seeds(seeds: int, claim: Any) -> Both:
    if not claim.interval:
        return Both(
            f"In each of {seeds} models, trained with different seeds:",
            f"学習シードを変えて学習した{seeds}個のモデルの結果です。",
        )
    return Both(
        f"Means of {seeds} models, trained with different seeds (counts are means too; of largest values the largest "
        "is told):",
        f"学習シードを変えて学習した{seeds}個のモデルの平均です(個数も平均、最大値は{seeds}個のうち最大の値)。",
    )


def _row(ruling: Ruling) -> dict[str, Any]:
    """As a row of a table, a column a language."""
    parts = {"where": ruling.verdict.where, "sentence": ruling.sentence, "follows": ruling.follows}
    row = {name: getattr(ruling, name) for name in _COLUMNS if hasattr(ruling, name)}
    row |= {"verdict": ruling.verdict.word, **{name: part.en for name, part in parts.items()}}
    return row | {_IN_JAPANESE[name]: part.ja for name, part in parts.items()}


def _retold(ruling: Ruling) -> Ruling:
    """With verdict and sentences made from its numbers; as it is where it has none, or the claim is not known."""
    if not ruling.numbers or ruling.claim not in CLAIMS:
        return ruling
    claim, words = claim_named(ruling.claim), ruling.numbers
    seeds = int(words["seeds"])
    untold = claim.interval and (isnan(ruling.low) or isnan(ruling.high))
    sentence = claim.say(words)
    return replace(
        ruling,
        verdict=undecided(_MORE_DOCUMENTS) if untold else claim.decide(words),
        sentence=_over_seeds(seeds, claim) + sentence if seeds > 1 else sentence,
        follows=claim.follow(words),
    )


def _today(ruling: Ruling) -> Ruling:
    """A saved ruling by today's rules and in today's words."""
    try:
        return _retold(ruling)
    except KeyError as missing:
        raise StorageError(
            f"{ruling.claim} was measured by an earlier version of headscope, which did not save the number {missing} "
            "that its sentence needs today; measure it again",
            shell=ruling.command,
        ) from missing


def _as_text(numbers: Mapping[str, float]) -> dict[str, str]:
    """Numbers for JSON, which has no NaN and no infinity; bit-equal when they are read."""
    return {name: repr(float(value)) for name, value in numbers.items()}


def _ruling(row: Mapping[str, Any], table: pd.DataFrame, numbers: Mapping[str, str]) -> Ruling:
    """The other way round."""
    where, sentence, follows = (Both(row[name], row[ja]) for name, ja in _IN_JAPANESE.items())
    own = {name: row[name] for name in _COLUMNS if name not in {*_IN_JAPANESE, *_IN_JAPANESE.values(), "verdict"}}
    verdict, known = Verdict(row["verdict"], where), {name: float(value) for name, value in numbers.items()}
    return Ruling(**own, verdict=verdict, sentence=sentence, follows=follows, table=table, numbers=known)


def _gather(name: str, values: Floats) -> float:
    """The largest, the least or the mean, by the name; what tells which one it is has none."""
    if name.startswith("which") or np.isnan(values).all():
        return nan
    if name.startswith("largest"):
        return float(np.nanmax(values))
    return float(np.nanmin(values)) if name.startswith("least") else float(values.mean())


def own_folder(claim: str, subject: str) -> str:
    """Where the command that asks a subject one claim writes to: nowhere that another one does."""
    return f"claims-{claim}-{_slug(subject)}"


def _slug(subject: str) -> str:
    return re.sub(r"[^\w]+", "-", subject)


def _within(end: float, claim: Any) -> float:
    least, most = claim.bounds
    return nan if isnan(end) else min(max(end, least), most)


def _behind(folder: Path, claim: str) -> pd.DataFrame:
    if not (folder / f"{claim}.csv").exists():
        return pd.DataFrame()
    try:
        return _cells(folder / f"{claim}.csv")
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {folder / claim}.csv: {error}") from error


def _cells(source: Any) -> pd.DataFrame:
    """A table as it was written, floats bit-equal."""
    return pd.read_csv(source, dtype=str, keep_default_na=False).apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    """A column of cells as whole numbers or floats, bit-equal to what was written, where they are; else as text."""
    for kind in (int, float):
        try:
            return column.map(lambda cell, kind=kind: kind(cell) if cell or kind is int else np.nan)
        except ValueError:
            continue
    return column
