"""Sweeps that take up earlier ones: the same numbers as one made at once, and refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headscope.errors import InputError
from headscope.studies.headcount import Settings, measuring, sweep, sweeping
from headscope.studies.headcount.shapes import learnt_curves

TINY = Settings(tasks=("maps-8",), heads=(1, 2, 4), seeds=2, rates=(0.01, 0.03), share=0.01)


def test_a_sweep_takes_up_an_earlier_one_and_trains_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = sweep(tmp_path / "a", TINY, workers=1)
    more = replace(TINY, seeds=3)
    whole = sweep(tmp_path / "b", more, workers=1)
    trained = []
    run = sweeping.run_case
    monkeypatch.setattr(sweeping, "run_case", lambda task, case, begun: trained.append(case) or run(task, case, begun))
    again = sweep(tmp_path / "c", more, earlier=earlier, workers=1)
    assert {case.seed for case in trained} == {2}
    same = [name for name in whole.runs if name != "seconds"]
    pd.testing.assert_frame_equal(again.runs[same], whole.runs[same], check_exact=True)
    by = ["task", "n_heads", "head_dim", "learning_rate"]
    rates = [own.rates.sort_values(by, ignore_index=True) for own in (again, whole)]
    pd.testing.assert_frame_equal(*rates, check_exact=True)
    assert again.facts["earlier"]["date"] == earlier.facts["date"]
    assert again.over == "3 seeds"


def test_tasks_with_more_seeds_stand_beside_others(tmp_path: Path) -> None:
    both = replace(TINY, tasks=("maps-8", "maps-16"))
    earlier = sweep(tmp_path / "a", both, workers=1)
    more = sweep(tmp_path / "b", replace(TINY, tasks=("maps-16",), seeds=4), earlier=earlier, workers=1)
    assert more.over == "2 to 4 seeds"
    assert more.facts["settings"]["seeds"] == 2
    assert list(more.runs["task"].unique()) == ["maps-8", "maps-16"]
    assert {len(errors) for errors in learnt_curves(more.runs.assign(chance=9.0), "width", shared=True).values()} == {2}


@pytest.mark.slow
def test_what_an_earlier_version_did_not_ask_of_a_run_is_added_without_training_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, tasks=("lookups", "maps-8"), heads=(1, 2), rates=(0.01,), share=0.002)
    whole = sweep(tmp_path / "a", settings, workers=1)
    names = ["cka_untrained", "effective_heads_untrained"]
    monkeypatch.setattr(measuring, "train", lambda *_, **__: pytest.fail("it was trained again"))
    old = replace(whole, runs=whole.runs.drop(columns=names))
    pd.testing.assert_frame_equal(sweep(tmp_path / "b", settings, earlier=old, workers=1).runs, whole.runs)
    partly = whole.runs.copy()  # what another task's runs look like after one task was asked
    partly.loc[partly["n_heads"] == 2, names] = np.nan
    again = sweep(tmp_path / "c", settings, earlier=replace(whole, runs=partly), workers=1)
    pd.testing.assert_frame_equal(again.runs, whole.runs)
    added = sorted(path.stem for path in (tmp_path / "c" / "pieces").iterdir())
    assert {name.partition("-r")[0] for name in added} == {"lookups-h2-d32", "lookups-h2-d8"}  # others lacked nothing


def test_runs_that_were_trained_otherwise_are_not_taken(tmp_path: Path) -> None:
    earlier = sweep(tmp_path / "a", TINY, workers=1)
    with pytest.raises(InputError, match=r"share 0.01 there, 0.02 here; width 64 there, 32 here"):
        sweep(tmp_path / "b", replace(TINY, share=0.02, width=32), earlier=earlier, workers=1)


def test_learners_are_as_wide_as_asked(tmp_path: Path) -> None:
    narrow = sweep(tmp_path / "a", replace(TINY, width=32), workers=1)
    own = narrow.runs[(narrow.runs["arm"] == "width") & (narrow.runs["n_heads"] == 4)]
    assert own["head_dim"].unique().tolist() == [8]
    with pytest.raises(InputError, match="length is 2 to 32 tokens"):
        sweep(tmp_path / "b", replace(TINY, width=32, tasks=("maps-64",)), workers=1)


def test_numbers_of_heads_that_some_tasks_lack_are_refused_and_seeds_counted_where_they_are_fewest(
    tmp_path: Path,
) -> None:
    both = replace(TINY, tasks=("maps-8", "maps-16"), seeds=3)
    earlier = sweep(tmp_path / "a", both, workers=1)
    with pytest.raises(InputError, match=r"than for another \(maps-8: 1, 2, 4, 8; maps-16: 1, 2, 4\)"):
        sweep(tmp_path / "b", replace(TINY, tasks=("maps-8",), heads=(8,)), earlier=earlier, workers=1)
    assert not (tmp_path / "b").exists()  # nothing was trained for it
    more = sweep(tmp_path / "c", replace(both, heads=(8,), seeds=2), earlier=earlier, workers=1)
    assert more.facts["settings"]["seeds"] == 2
    curves = learnt_curves(more.runs.assign(chance=9.0), "width", shared=False)
    assert {errors.shape for errors in curves.values()} == {(2, 4)}
