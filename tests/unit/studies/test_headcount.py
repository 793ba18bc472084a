"""The head-count sweep: the same table however it is run, interrupted or not; and measures that hold up by hand."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from headscope.errors import InputError, InterruptedWorkError, StorageError, UnknownNameError
from headscope.reporting.figures import count_curve, removal_curves
from headscope.studies.headcount import Settings, Sweep, sweep
from headscope.studies.headcount.measuring import ALLOWED, MEASURED, run_case
from headscope.studies.headcount.settings import Case, head_dim_of
from headscope.studies.headcount.shapes import (
    MARGIN,
    against_best,
    pooled,
    shapes,
    sized,
)
from headscope.studies.headcount.sweeping import beyond
from headscope.studies.headcount.telling import mean_table
from headscope.studies.tasks import inputs, task_named
from headscope.studies.tasks.maps import Maps
from headscope.studies.training import judge, train
from headscope.text.texts import gather_texts
from tests.reference import similarity as reference

TINY = Settings(tasks=("maps-8", "lookups"), heads=(1, 8), seeds=2, rates=(0.01, 0.03), share=0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return sweep(tmp_path_factory.mktemp("sweep") / "whole", TINY, workers=1)


def timeless(found: Sweep) -> pd.DataFrame:
    return found.runs.drop(columns="seconds")


def test_every_run_is_there_with_every_measure(whole: Sweep) -> None:
    runs = whole.runs
    assert len(runs) == 2 * 2 * 2 * 2
    assert set(MEASURED) < set(runs)
    assert runs[["error", "chance", "score_rank", "flops", "memory", "parameters"]].notna().all(axis=None)
    looked_up = runs[runs["task"] == "lookups"]
    assert looked_up[["effective_heads", "removable"]].notna().all(axis=None)
    assert runs.loc[runs["task"] == "maps-8", ["effective_heads", "cka", "removable"]].isna().all(axis=None)
    assert (runs["n_heads"] * runs["head_dim"] == 64)[runs["arm"] == "width"].all()
    assert (runs["head_dim"] == TINY.head_dim)[runs["arm"] == "head_dim"].all()


def test_one_run_serves_both_arms_where_they_meet(whole: Sweep) -> None:
    met = whole.runs[whole.runs["n_heads"] == 8].set_index(["arm", "task", "seed"])
    pd.testing.assert_frame_equal(met.loc["width"], met.loc["head_dim"])


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_table(whole: Sweep, tmp_path: Path) -> None:
    told: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        told.append(done)
        if len(told) == 7:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedWorkError, match="goes on from there"):
        sweep(tmp_path / "a", TINY, workers=1, progress=stop)
    kept = len(list((tmp_path / "a" / "pieces").iterdir()))
    assert 0 < kept <= 7
    resumed: dict[str, int] = {}

    def count(stage: str, done: int, total: int) -> None:
        resumed[stage] = resumed.get(stage, 0) + done
        assert resumed[stage] <= total

    again = sweep(tmp_path / "a", TINY, workers=2, progress=count)
    pd.testing.assert_frame_equal(timeless(again), timeless(whole))
    pd.testing.assert_frame_equal(again.removal, whole.removal)
    pd.testing.assert_frame_equal(again.rates, whole.rates)


def test_a_folder_of_another_sweep_is_refused_and_kept(tmp_path: Path) -> None:
    settings = Settings(tasks=("maps-2",), heads=(1,), seeds=2, rates=(0.01,), share=0.001)
    sweep(tmp_path / "a", settings, workers=1)
    before = sorted(path.name for path in (tmp_path / "a").rglob("*"))
    with pytest.raises(StorageError, match=r"seeds: 2 there, 3 here"):
        sweep(tmp_path / "a", Settings(**{**vars_of(settings), "seeds": 3}), workers=1)
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match="Name another folder"):
        sweep(tmp_path / "b", settings, workers=1)


def vars_of(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_tables_come_back_bit_equal(whole: Sweep, tmp_path: Path) -> None:
    whole.save(tmp_path)
    again = Sweep.load(tmp_path)
    for name in ("runs", "rates", "removal"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(whole, name), check_exact=True)
    assert again.facts == whole.facts
    assert "lookups" in repr(again)


def test_rates_are_chosen_by_the_smallest_loss(whole: Sweep) -> None:
    for _, tried in whole.rates.groupby(["task", "n_heads", "head_dim"]):
        best = tried.sort_values(["loss", "learning_rate"]).iloc[0]
        assert tried.loc[tried["chosen"], "learning_rate"].tolist() == [best["learning_rate"]]
    taken = whole.runs.drop_duplicates(["task", "n_heads", "head_dim"]).set_index(["task", "n_heads", "head_dim"])
    chosen = whole.rates[whole.rates["chosen"]].set_index(["task", "n_heads", "head_dim"])["learning_rate"]
    assert (taken["learning_rate"] == chosen.reindex(taken.index)).all()


def test_counts_between_take_the_rate_of_the_nearest_tuned_one() -> None:
    settings = Settings(tasks=("digits",), heads=(1, 2, 4, 8, 16, 32, 64))
    assert settings.tuned_at == (1, 8, 64)
    rates = {("digits", n, dim): n / 1000 for n in settings.tuned_at for dim in (64 // n, 8)}
    runs = settings.runs(rates)
    taken = [runs["digits", "width", n, 0].learning_rate for n in settings.heads]
    assert taken == [0.001, 0.001, 0.008, 0.008, 0.008, 0.064, 0.064]


def test_measures_of_a_run_hold_up_by_hand() -> None:
    task, case = task_named("lookups"), Case("lookups", 4, 16, 0.01, 0, 0.02)
    found = run_case(task, case)
    trained = train(task, 4, 16, 0.01, 0, 20)
    assert (found["loss"], found["error"]) == (trained.loss, trained.error)
    learner: Any = trained.learner
    assert found["parameters"] == sum(p.numel() for p in learner.parameters())
    batch = {name: value[:8] for name, value in task.held_out()[0].items()}
    with torch.no_grad():
        x = learner.blocks[0].attention_norm(learner.embed(**inputs(batch))).numpy().astype(np.float64)
        attention = learner.blocks[0].attention
        w_q, w_k = (layer.weight.detach().numpy().astype(np.float64) for layer in (attention.query, attention.key))
        b_q, b_k = (layer.bias.detach().numpy().astype(np.float64) for layer in (attention.query, attention.key))
    ranks, effective = [], []
    for row in x:
        for head in range(4):
            own = slice(16 * head, 16 * head + 16)
            scores = (row @ w_q[own].T + b_q[own]) @ (row @ w_k[own].T + b_k[own]).T
            values = np.linalg.svd(scores, compute_uv=False)
            shares = values / values.sum()
            shares = shares[shares > 0]
            ranks.append((values > 1e-5 * values[0]).sum())
            effective.append(np.exp(-(shares * np.log(shares)).sum()))
    assert found["score_rank"] == pytest.approx(np.mean(ranks))
    assert found["score_rank_effective"] == pytest.approx(np.mean(effective), rel=1e-3)
    share, error = found["removal"][-1]
    learner.blocks[0].attention.output.weight.data.zero_()
    assert (share, error) == (1.0, judge(task, learner, task.held_out())[1])
    fitting = [
        share for share, after in found["removal"] if after <= found["error"] + ALLOWED * (0.875 - found["error"])
    ]
    assert found["removable"] in {0.0, *fitting}


def test_likeness_before_training_is_that_of_the_weights_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    task, case = task_named("lookups"), Case("lookups", 4, 8, 0.01, 3, 0.02)
    few = [{name: value[:32] for name, value in task.held_out()[0].items()}]
    monkeypatch.setattr(type(task), "held_out", lambda *_, **__: few)
    found = run_case(task, case)
    torch.manual_seed(3)
    learner: Any = task.learner(4, 8).eval()
    seen: list[Tensor] = []
    for block in learner.blocks:
        block.attention.output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        learner(**inputs(few[0]))
    alike = []
    for own in seen:
        z = own.double().numpy().reshape(-1, 4, 8).transpose(1, 0, 2)
        alike += [reference.unbiased_cka(z[a], z[b]) for a, b in combinations(range(4), 2)]
    assert found["cka_untrained"] == pytest.approx(np.mean(alike), rel=1e-6)
    assert found["cka_untrained"] != found["cka"]


def test_costs_grow_with_heads_as_they_should(whole: Sweep) -> None:
    runs = whole.runs[whole.runs["task"] == "lookups"].drop_duplicates(["arm", "n_heads"]).set_index(["arm", "n_heads"])
    shared = runs.loc["width"]
    assert shared["parameters"].nunique() == shared["flops"].nunique() == 1
    assert shared.loc[8, "memory"] > shared.loc[1, "memory"]  # each head has a map
    assert runs.loc["head_dim"].loc[8, "parameters"] > runs.loc["head_dim"].loc[1, "parameters"]


def made(errors: dict[int, list[float]]) -> pd.DataFrame:
    rows = [
        {"task": "t", "arm": "width", "n_heads": n, "seed": seed, "error": error, "chance": 1.0, "unit": "share"}
        for n, own in errors.items()
        for seed, error in enumerate(own)
    ]
    return pd.DataFrame(rows)


def test_a_planted_optimum_is_seen() -> None:
    row = shapes(made({1: [0.50, 0.51, 0.49], 4: [0.10, 0.11, 0.10], 16: [0.30, 0.31, 0.32]})).iloc[0]
    assert (row["best"], row["good"], row["few_is"], row["many_is"]) == (4, "4", "worse", "worse")
    assert row["few"] == pytest.approx((0.5 - 0.31 / 3) / (1 - 0.31 / 3))
    assert row["few_low"] < row["few"] < row["few_high"]


def test_no_optimum_is_made_of_noise() -> None:
    """Seven tasks without any shape, 40 times: an end of any of them is called worse about as often as is allowed."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(40):
        flat = [
            made({n: list(0.3 + 0.02 * rng.standard_normal(5)) for n in (1, 2, 4, 8, 16, 32, 64)}).assign(task=task)
            for task in "abcdefg"
        ]
        found = shapes(pd.concat(flat, ignore_index=True))
        false += bool((found[["few_is", "many_is"]] == "worse").any(axis=None))
    assert false <= 6  # nominal 2 for each end, and both ends are asked


def test_the_best_itself_is_held_against_the_second() -> None:
    noisy = shapes(made({1: [0.1, 0.5, 0.3, 0.2, 0.4], 8: [0.3, 0.2, 0.5, 0.5, 0.2]})).iloc[0]
    assert (noisy["best"], noisy["few_is"]) == (1, "undecided")
    clear = shapes(made({1: [0.1, 0.1, 0.1, 0.1, 0.1], 8: [0.3, 0.2, 0.3, 0.3, 0.2]})).iloc[0]
    assert clear["few"] == pytest.approx(-0.16 / 0.9)
    assert clear["few_is"] == "as good"


def test_where_nothing_is_learnt_nothing_is_told() -> None:
    chance = made({1: [1.02, 1.03, 1.04], 8: [1.03, 1.05, 1.04]})
    row = shapes(chance).iloc[0]
    assert np.isnan([row["few"], row["many_low"]]).all()
    assert (row["few_is"], row["many_is"]) == ("undecided", "undecided")
    with pytest.raises(InputError, match="better than chance"):
        pooled(chance, "width", 0)
    learnt = made({1: [0.5, 0.5, 0.5], 8: [0.1, 0.1, 0.1]}).assign(task="learnt")
    assert pooled(pd.concat([chance, learnt]), "width", 0).centre == pytest.approx(0.4 / 0.9)


def test_of_several_tasks_together_only_the_seeds_count_that_all_have() -> None:
    many = made({1: [0.5] * 3 + [0.9] * 3, 8: [0.1] * 6}).assign(task="many")
    few = made({1: [0.1] * 3, 8: [0.1] * 3}).assign(task="few")
    spread = pooled(pd.concat([many, few]), "width", 0)
    assert spread.centre == pytest.approx(0.4 / 0.9 / 2)
    row = shapes(pd.concat([many, few])).iloc[0]
    assert (row["seeds"], row["few"]) == (6, pytest.approx(0.6 / 0.9))  # of one task all of its own


def test_maps_of_several_lengths_count_as_one_kind() -> None:
    worse = [made({1: [0.5] * 3, 8: [0.1] * 3}).assign(task=f"maps-{size}") for size in (8, 16, 32)]
    alike = made({1: [0.1] * 3, 8: [0.1] * 3}).assign(task="prose")
    assert pooled(pd.concat([*worse, alike]), "width", 0).centre == pytest.approx(0.4 / 0.9 / 2)


def test_means_by_number_of_heads_are_told_for_each_task_and_arm() -> None:
    one = pd.DataFrame({"task": "a", "arm": "width", "n_heads": [1, 1, 8], "x": [0.1, 0.3, 0.5]})
    other = one.assign(arm="head_dim", x=[0.0, 0.0, 1.0])
    nothing, less = one.assign(task="b", x=np.nan), one.assign(task="c", n_heads=8)
    table = mean_table(pd.concat([one, other, nothing, less]), "x", lambda mean: f"{mean:.0%}").en
    assert table.splitlines()[2:] == [
        "| a | fixed width | 20% | 50% |",
        "| a | fixed head_dim | 0% | 100% |",
        "| c | fixed width | – | 30% |",
    ]


def test_error_with_heads_removed_is_drawn_of_learners_at_fixed_width() -> None:
    rows = [
        {"task": task, "arm": arm, "n_heads": n, "seed": seed, "share": share, "error": n * share + 0.1 * seed}
        for task in ("a", "b")
        for arm, n in (("width", 1), ("width", 4), ("head_dim", 8))
        for seed in (0, 1)
        for share in (0.0, 1.0)
    ]
    drawn = removal_curves(pd.DataFrame(rows))
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["a", "b"]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in drawn.axes[1].lines}
    assert set(lines) == {"1", "4"}
    np.testing.assert_allclose(lines["4"], [0.05, 4.05])
    assert len({line.get_marker() for line in drawn.axes[1].lines}) == 2  # told apart without colours
    assert len({line.get_marker() for line in drawn.legends[0].get_lines()}) == 2


def test_bands_of_what_is_never_below_zero_end_there() -> None:
    rows = [
        {"task": "a", "arm": "width", "n_heads": n, "seed": seed, "x": value, "unit": ""}
        for n, values in ((1, (0.0, 0.0, 0.3)), (2, (0.1, 0.2, 0.3)), (4, (np.nan,) * 3))
        for seed, value in enumerate(values)
    ]
    ax = count_curve(pd.DataFrame(rows), "a", "x")
    band = np.asarray(ax.collections[0].get_paths()[0].vertices)
    assert band[:, 1].min() == 0
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2"]  # no place for what was never measured


def test_the_best_is_not_chosen_by_what_it_is_judged_by() -> None:
    errors = np.array([[0.5, 0.20, 0.00], [0.5, 0.20, 0.10], [0.5, 0.20, 0.35]])  # the last is best of all
    assert against_best(errors, 0).centre == pytest.approx((0.3 + 0.4 + 0.15) / 3)  # but not without the first seed
    assert against_best(errors, 1).centre == pytest.approx((0.2 + 0.1 - 0.15) / 3)


@pytest.mark.parametrize(
    ("ends", "word"),
    [((0.02, 0.03, 0.04), "worse"), ((0.001, 0.005, 0.009), "as good"), ((-0.1, 0.05, 0.2), "undecided")],
)
def test_words_for_a_difference(ends: tuple[float, float, float], word: str) -> None:
    assert sized(*ends) == word
    assert MARGIN == 0.01


def test_settings_that_do_not_fit_are_refused_with_what_would() -> None:
    with pytest.raises(InputError, match=r"3 heads do not divide the width 64.* 1, 2, 4"):
        Settings(heads=(1, 3))
    assert head_dim_of("head_dim", 3, 64, 8) == 8
    with pytest.raises(UnknownNameError, match="did you mean 'lookups'"):
        Settings(tasks=("lookup",))
    with pytest.raises(InputError, match="only maps take a number"):
        Settings(tasks=("digits-4",))
    for wrong in ({"seeds": 1}, {"heads": (4, 1)}, {"heads": ()}, {"rates": (0.0,)}, {"share": 0.0}, {"head_dim": 0}):
        with pytest.raises(InputError):
            Settings(**wrong)


def test_a_text_too_short_is_said_before_anything_is_written(tmp_path: Path) -> None:
    settings = Settings(tasks=("language",), heads=(1,), seeds=2, rates=(0.01,), share=0.01)
    with pytest.raises(InputError, match="more text"):
        sweep(tmp_path / "a", settings, texts=gather_texts("short"), workers=1)
    three = gather_texts([f"Document {number} says something, and goes on for a while. " * 9 for number in range(3)])
    with pytest.raises(InputError, match="there are 3: bring more"):
        sweep(tmp_path / "a", settings, texts=three, workers=1)
    assert not (tmp_path / "a").exists()


def test_the_range_of_rates_grows_where_the_best_is_at_its_end() -> None:
    def tried(rates: dict[float, float]) -> dict[Case, dict[str, float]]:
        return {Case("digits", 8, 8, rate, 10_000, 1.0): {"error": 0.0, "loss": loss} for rate, loss in rates.items()}

    rising = beyond(tried({0.001: 0.3, 0.003: 0.2, 0.01: 0.1}))
    assert [case.learning_rate for case in rising] == [0.03]
    falling = beyond(tried({0.001: 0.1, 0.003: 0.2, 0.01: 0.3}))
    assert [case.learning_rate for case in falling] == [0.0003]
    assert beyond(tried({0.001: 0.3, 0.003: 0.1, 0.01: 0.2})) == []


def test_a_run_that_diverges_counts_as_chance(tmp_path: Path) -> None:
    wild = Settings(tasks=("lookups",), heads=(1, 8), seeds=2, rates=(1e12,), share=0.002)
    found = sweep(tmp_path / "wild", wild, workers=1)
    assert found.runs["loss"].isna().all()
    assert (found.runs["error"] == found.runs["chance"]).all()
    assert found.removal["share"].eq(0).all()


def test_a_sweep_over_a_part_decides_nothing(whole: Sweep) -> None:
    full = {**Settings().to_json()}
    assert Sweep(whole.runs, whole.rates, whole.removal, {"settings": full}).decisive
    for part in ({"tasks": ["maps-8"]}, {"heads": [1, 64]}, {"seeds": 3}, {"share": 0.3}, {"rates": [0.01]}):
        assert not Sweep(whole.runs, whole.rates, whole.removal, {"settings": {**full, **part}}).decisive


def test_what_the_whole_is_depends_on_the_width(whole: Sweep) -> None:
    def decisive(**told: Any) -> bool:
        return Sweep(whole.runs, whole.rates, whole.removal, {"settings": told}).decisive

    narrow = Settings.full(32).to_json()
    assert narrow["heads"] == [1, 2, 4, 8, 16, 32]
    assert narrow["tasks"] == ["lookups", "maps-8", "maps-16", "maps-32", "language", "digits"]
    assert decisive(**narrow)
    assert not decisive(**{**narrow, "heads": [1, 2, 4, 8, 16]})
    assert not decisive(**{**narrow, "tasks": [task for task in narrow["tasks"] if task != "maps-32"]})
    assert not decisive(**{**narrow, "width": 64})  # of the full width it is a part
    before = {name: value for name, value in Settings().to_json().items() if name != "width"}
    assert decisive(**before)  # as sweeps were saved that knew of one width alone
    assert Settings.full() == Settings()


def test_threads_are_as_they_were(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        sweep(tmp_path / "a", Settings(tasks=("maps-8",), heads=(1,), seeds=2, rates=(0.01,), share=0.002), workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_runs_of_another_length_are_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Settings(tasks=("maps-8",), heads=(1,), seeds=2, rates=(0.01,), share=0.002)
    sweep(tmp_path / "a", few, workers=1)
    monkeypatch.setattr(Maps, "steps", 3000)
    with pytest.raises(StorageError, match="training"):
        sweep(tmp_path / "a", few, workers=1)
