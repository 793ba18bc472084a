"""A sweep that was stopped goes on where it was: the same numbers, no pass made twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.effects.metrics import Loss, UserMetric
from headscope.effects.sweep import group_effects, head_effects
from headscope.effects.units import keeping
from headscope.errors import StorageError
from tests.models import build, make_batches


class Stop(BaseException):
    """As Ctrl-C is no Exception."""


def passes(model, action, stop_after=None):
    """How many forward passes an action made; stopped at one of them if asked."""
    made = 0

    def count(*_):
        nonlocal made
        made += 1
        if stop_after is not None and made > stop_after:
            raise Stop

    handle = model.register_forward_pre_hook(count)
    try:
        action()
    except Stop:
        pass
    finally:
        handle.remove()
    return made


@pytest.fixture
def setting():
    model, batches = build("llama"), make_batches("llama")
    return model, batches, hs.discover(model)


@pytest.mark.parametrize("stop", [1, 2, 9, 20, 30])
def test_what_was_measured_is_not_measured_again(setting, tmp_path, stop):
    model, batches, anatomy = setting
    want = head_effects(model, batches, Loss(), anatomy)
    whole = passes(model, lambda: head_effects(model, batches, Loss(), anatomy))
    got = []

    def sweep():
        with keeping(tmp_path / "kept", model):
            got.append(head_effects(model, batches, Loss(), anatomy))

    first = passes(model, sweep, stop)
    assert not got, "it was stopped"
    second = passes(model, sweep)
    assert first + second <= whole + 1 + 3 + 2  # the pass it died in, a batch begun again, whether runs are alike
    np.testing.assert_array_equal(got[0].values, want.values)
    np.testing.assert_array_equal(got[0].intact, want.intact)
    assert passes(model, sweep) == 0, "all of it is there"
    np.testing.assert_array_equal(got[1].values, want.values)


def test_what_is_taken_from_before_is_counted_once(setting, tmp_path):
    model, batches, anatomy = setting
    for expected in (0, anatomy.n_heads * len(batches)):
        with keeping(tmp_path, model) as store:
            for _ in range(2):  # again in one go: it was measured here
                head_effects(model, batches, Loss(), anatomy)
        assert store.resumed == expected


def test_progress_ends_where_it_ends_in_one_go(setting, tmp_path):
    model, batches, anatomy = setting
    told = []
    for _ in range(2):
        with keeping(tmp_path, model):
            head_effects(model, batches, Loss(), anatomy, progress=lambda stage, n, total: told.append((n, total)))
    half = sum(n for n, _ in told) // 2
    assert {total for _, total in told} == {half}


CHANGES = {
    "weights": lambda model, batches: model.lm_head.weight.data[0, 0].add_(1),
    "a setting": lambda model, batches: setattr(model.config, "rms_norm_eps", 1e-2),
    "a module's own number": lambda model, batches: setattr(model.model.norm, "variance_epsilon", 1e-2),
    "a buffer that is not saved": lambda model, batches: model.model.rotary_emb.inv_freq.mul_(0.5),
    "what a module is": lambda model, batches: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "the text": lambda model, batches: batches[0]["input_ids"][0, 0].add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_all_is_measured_anew(setting, tmp_path, change):
    model, batches, anatomy = setting
    heads = [[head] for head in anatomy.heads[:2]]

    def sweep():
        with keeping(tmp_path, model):
            return group_effects(model, batches, Loss(), anatomy, heads).values

    sweep()
    with torch.no_grad():
        CHANGES[change](model, batches)
    fresh = group_effects(model, batches, Loss(), anatomy, heads).values
    np.testing.assert_array_equal(sweep(), fresh)


@pytest.mark.parametrize("what", ["heads", "metric", "mask"])
def test_other_work_is_not_taken_for_it(setting, tmp_path, what):
    model, batches, anatomy = setting
    heads, metric = [[head] for head in anatomy.heads[:2]], Loss()
    with keeping(tmp_path, model):
        group_effects(model, batches, metric, anatomy, heads)
        if what == "heads":
            heads = heads[::-1]
        elif what == "metric":
            metric = Loss(positions=2)
        else:
            batches = [batch | {"attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]
            batches[0]["attention_mask"][0, -1] = 0
        got = group_effects(model, batches, metric, anatomy, heads).values
    np.testing.assert_array_equal(got, group_effects(model, batches, metric, anatomy, heads).values)


def test_a_metric_of_ones_own_is_measured_each_time(setting, tmp_path):
    model, batches, anatomy = setting
    scale = np.array([1.0, 1.0])

    def own(output, batch):
        return output.logits[:, 0, 0] * float(scale[0])

    def sweep():
        with keeping(tmp_path, model):
            return group_effects(model, batches, UserMetric(own, "own"), anatomy, [[anatomy.heads[0]]]).values

    first = sweep()
    scale[:] = 100
    np.testing.assert_allclose(sweep(), 100 * first, rtol=1e-4)


def test_a_spoilt_piece_is_measured_again(setting, tmp_path):
    model, batches, anatomy = setting
    with keeping(tmp_path, model):
        want = head_effects(model, batches, Loss(), anatomy).values
    for piece, text in zip(sorted((tmp_path / "pieces").iterdir()), ("{", "[]"), strict=False):
        piece.write_text(text)
    with keeping(tmp_path, model):
        np.testing.assert_array_equal(head_effects(model, batches, Loss(), anatomy).values, want)


def test_a_folder_of_another_version_is_refused(setting, tmp_path):
    model, batches, anatomy = setting
    with keeping(tmp_path, model):
        head_effects(model, batches, Loss(), anatomy)
    about = json.loads((tmp_path / "work.json").read_text())
    (tmp_path / "work.json").write_text(json.dumps(about | {"torch": "1.0"}))
    with pytest.raises(StorageError, match=r"torch: 1.0 there"), keeping(tmp_path, model):
        pass


def test_nothing_is_kept_without_a_folder(setting, tmp_path):
    model, batches, anatomy = setting
    with keeping(tmp_path, model):
        pass
    head_effects(model, batches, replace(Loss(), positions=3), anatomy)
    assert not (tmp_path / "pieces").exists()


def test_an_analysis_goes_on(setting, tmp_path):
    model, _, _ = setting
    batches = [
        {"input_ids": torch.randint(6, 50, (4, 9), generator=torch.Generator().manual_seed(n))} for n in range(4)
    ]
    budget = hs.Budget(passes=0, ablation_tokens=60)
    runs = []

    def analyze():
        runs.append(hs.analyze(model, batches=batches, budget=budget, keep=tmp_path / "kept"))

    whole = passes(model, lambda: hs.analyze(model, batches=batches, budget=budget))
    first = passes(model, analyze, whole // 2)
    assert not runs
    second = passes(model, analyze)
    assert second < 0.8 * whole, (first, second, whole)
    want = hs.analyze(model, batches=batches, budget=budget)
    assert runs[0].verdict == want.verdict
    assert "resumed" not in want.facts
    assert 0 < runs[0].facts["resumed"] < len(want.importance.heads) * len(batches)
    page = runs[0].report(tmp_path / "page").read_text("utf-8")
    assert f"without that of {runs[0].facts['resumed']} effects measured before it was stopped" in page
    np.testing.assert_array_equal(runs[0].importance.score, want.importance.score)
