"""C9: decided from planted numbers; untrained models are not said to have learnt it; a copy is named."""

from collections.abc import Iterator
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from headscope.anatomy.untrained import untrained_copy
from headscope.studies.claims import HOLDS
from headscope.studies.claims.alike import Alike, _means
from headscope.studies.headcount.trends import more_alike, quality
from headscope.studies.subjects import Subject
from headscope.studies.tasks import inputs
from headscope.studies.tasks.language import Language
from headscope.text.batches import row_lengths
from headscope.uncertainty.blocks import Blocks
from headscope.uncertainty.intervals import Spread, mean_spread
from tests import models
from tests.words import same_numbers

PRESENT = {
    "heads": 12.0, "above": 3.0, "below": 4.0, "across": 5.0, "mean": 0.4, "mean_low": 0.3, "mean_high": 0.5,
    "chance": -0.2, "constant": 0.2, "restored": 0.5, "untrained": 0.8, "more": -0.4, "more_low": -0.5,
    "more_high": 0.3, "which_layer": 1.0, "which_head": 4.0, "top": 0.9, "top_low": 0.85, "removable": 0.07,
    "distance": 0.0, "tokens": 74.0, "untrained_chance": -0.05,
}  # fmt: skip


LEARNT = {"more_low": 0.1, "more_high": 0.3}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "holds in part"),
        (LEARNT, "holds"),
        ({**LEARNT, "above": 1.0}, "holds in part"),
        ({"mean_low": -0.1}, "not decided"),
        ({"mean_low": 0.1, "chance": 0.2}, "not decided"),
        ({"mean_low": -0.4, "mean_high": -0.01}, "does not hold"),
        ({"mean_low": 0.1, "mean_high": 0.2, "chance": 0.25}, "does not hold"),
        ({**LEARNT, "chance": nan}, "holds"),
        ({"untrained": nan, "more_low": nan, "more_high": nan}, "not decided"),
        ({"more_high": -0.1}, "holds in part"),
    ],
)
def test_it_is_decided_against_nothing_and_chance(change: dict[str, float], word: str) -> None:
    assert Alike().decide({**PRESENT, **change}).word == word


@pytest.mark.parametrize(
    ("change", "en", "ja"),
    [
        ({"more_high": -0.3}, "training lowers it", "学習後はむしろ減っています"),
        (LEARNT, "training made heads redundant", "学習がヘッドを冗長にしました"),
        ({}, "cannot be told", "判断できません"),
    ],
)
def test_what_training_did_is_told_by_untrained_copies(change: dict[str, float], en: str, ja: str) -> None:
    told = Alike().follow({**PRESENT, **change})
    assert en in told.en
    assert ja in told.ja
    assert "train" not in Alike().follow({**PRESENT, "untrained": nan}).en


def test_both_languages_have_the_same_numbers() -> None:
    for change in ({}, {"top_low": nan}, {"untrained_chance": -0.18}, {"untrained_chance": nan}):
        told = Alike().say({**PRESENT, **change})
        assert same_numbers(told)
        assert ("Little text costs the trained model more" in told.en) is ("untrained_chance" not in change)
    position, copies = (Alike().say({**PRESENT, "untrained_chance": chance}) for chance in (0.33, -0.9))
    assert "at the same positions, give 33%, in the trained model −20%" in position.en
    assert "Little text costs the copies more than the trained model: heads of other documents give −90%" in copies.en
    assert same_numbers(position)
    assert same_numbers(copies)
    assert same_numbers(Alike().follow(PRESENT))


def test_layers_above_their_copies_are_named_where_others_lie_below() -> None:
    rows = [(0, 0.4, 0.2), (0, 0.3, 0.2), (1, 0.4, 0.8), (2, 0.9, 0.7)]
    table = pd.DataFrame(rows, columns=["layer", "replaceability", "untrained"]).assign(chance=0.0, constant=0.1)
    told = Alike().tabled(table)
    assert "in layers 0, 2 it is more" in told.en
    assert "層0、2では複製より高い値です" in told.ja
    assert "it is more" not in Alike().tabled(table[table["layer"] != 1]).en
    assert "it is more" not in Alike().tabled(table[table["layer"] == 1]).en


def test_a_model_is_held_against_what_a_further_copy_would_come_to() -> None:
    """A prediction interval: copies vary among themselves, and all of them with the text."""

    def heads(values: list[float], error: float) -> Spread:
        blocks = np.array([[value + step for value in values] for step in (-error, error, -error, error)])
        return mean_spread(blocks.T, np.arange(4))

    found = _means(heads([0.4, 0.6], 0.03), [heads([one, one], 0.0) for one in (0.7, 0.8, 0.9)])
    text = np.std([0.47, 0.53, 0.47, 0.53], ddof=1) / 2  # of the mean head, over four blocks
    half = np.hypot(student.ppf(0.975, 2) * 0.1 * np.sqrt(1 + 1 / 3), student.ppf(0.975, 3) * text)
    assert (found["mean"], found["untrained"]) == pytest.approx((0.5, 0.8))
    assert (found["more_low"], found["more_high"]) == pytest.approx((-0.3 - half, -0.3 + half))
    alone = _means(heads([0.4, 0.6], 0.03), [])
    assert np.isnan([alone["untrained"], alone["more_low"]]).all()


def untrained_subjects(seeds: int) -> Iterator[Subject]:
    """Untrained copies of the reference, on its own text."""
    task = Language()
    torch.manual_seed(0)
    first, batches = task.learner(8, 8), task.held_out()
    for seed in range(seeds):
        yield Subject("reference", untrained_copy(first, 100 + seed), batches, "kl", seed=7 * seed)


def plant(subject: Subject) -> None:
    """Head 2 of layer 1 becomes a copy of head 5, turned and scaled."""
    attention: Any = subject.model.blocks[1].attention  # type: ignore[union-attr,index]
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value):
            linear.weight[16:24] = linear.weight[40:48]
            if linear.bias is not None:
                linear.bias[16:24] = linear.bias[40:48]
        attention.output.weight[:, 16:24] = 2 * attention.output.weight[:, 40:48]


def check_untrained(seeds: int) -> int:
    """How many untrained copies are said, anywhere, to be redundant by training; each with a planted copy named."""
    claim, said = Alike(), 0
    for subject in untrained_subjects(seeds):
        words = measured(claim, subject)
        told = " ".join(say(words.words).en for say in (claim.headline, claim.say, claim.follow))
        said += claim.decide(words.words) == HOLDS or "made heads redundant" in told
        plant(subject)
        again = measured(claim, Subject("reference", subject.model, subject.batches, "kl", draws=0))
        own = again.table[again.table["layer"] == 1].set_index("head")
        copies, others = own.loc[[2, 5]], own.drop([2, 5])
        assert copies["replaceability_low"].min() > others["replaceability_high"].max()
        told = claim.say(again.words).en
        assert "They give most of L1H2: 100%" in told or "They give most of L1H5: 100%" in told
    return said


def measured(claim: Alike, subject: Subject) -> Any:
    """Without what the ablation would add, which is not what is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headscope.studies.claims.alike._removable", lambda _: nan)
        return claim.measure(subject)


@pytest.mark.slow
def test_untrained_models_are_not_said_to_have_learnt_it() -> None:
    assert check_untrained(2) == 0


@pytest.mark.slow
def test_of_twenty_untrained_models_one_at_the_most_is_said_to_have_learnt_it() -> None:
    assert check_untrained(20) <= 1


def test_what_the_others_give_equals_least_squares_by_hand() -> None:
    subject = next(untrained_subjects(1))
    found = measured(Alike(), Subject("reference", subject.model, subject.batches, "kl", draws=0))
    rows, documents = [], []
    for batch in subject.batches:
        z = subject.look("z", batch=inputs(batch))[0].z.transpose(1, 2).flatten(2)  # (row, position, heads × dims)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        rows.append(z[mask].double().numpy())
        documents.append(batch["document"][:, None].expand(mask.shape)[mask].numpy())
    z, own = np.concatenate(rows), slice(24, 32)  # of head 3
    block = _dealt(subject)
    side = np.array([block[document] % 2 for document in np.concatenate(documents).tolist()])
    first: Any = subject.model.blocks[0]  # type: ignore[union-attr,index]
    out = first.attention.output.weight.detach().double().numpy()[:, own]
    missed = varying = 0.0
    for half in (0, 1):
        fit, judge = z[side == half], z[side != half]
        fit, judge = fit - fit.mean(0), judge - fit.mean(0)
        slope = np.linalg.lstsq(np.delete(fit, own, axis=1), fit[:, own], rcond=None)[0]
        left = judge[:, own] - np.delete(judge, own, axis=1) @ slope
        missed += float(np.square(left @ out.T).sum())
        varying += float(np.square(judge[:, own] @ out.T).sum())
    assert found.table.iloc[3]["replaceability"] == pytest.approx(1 - missed / varying, abs=0.02)


def _dealt(subject: Subject) -> dict[int, int]:
    """The block that each document was dealt to, by the place of the block among those that hold anything."""
    blocks, found = Blocks(), {}
    for batch in subject.batches:
        placed = blocks.place(batch["document"], row_lengths(batch))
        found |= dict(zip(batch["document"].tolist(), placed.tolist(), strict=True))
    filled = sorted({*found.values()})
    return {document: filled.index(block) for document, block in found.items()}


def test_trends_are_named_by_task() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"task": task, "arm": "width", "n_heads": n, "seed": seed, "cka": value + 0.001 * rng.standard_normal()}
        for task, values in {"a": (0.2, 0.5), "b": (0.5, 0.2)}.items()
        for n, value in zip((2, 8), values, strict=True)
        for seed in range(5)
    ]
    told = more_alike(pd.DataFrame(rows))
    assert "at fixed width it rises (a), falls (b)." in told.en
    assert "上がる(a)、下がる(b)" in told.ja
    shapes = pd.DataFrame({"task": ["a", "b", "c"], "arm": "width", "many_is": ["worse", "as good", "undecided"]})
    said = quality(shapes)
    assert "at fixed width it falls (a), does not fall (b), cannot be told (c)." in said.en
    assert "幅固定:下がる(a)、下がらない(b)、判断できない(c)。" in said.ja


def test_likeness_is_told_beside_that_before_training() -> None:
    rng = np.random.default_rng(0)
    trained, before = {"a": (0.2, 0.5), "b": (0.5, 0.2)}, {"a": (0.4, 0.4), "b": (0.9, 0.3)}
    rows = [
        {"task": task, "arm": "width", "n_heads": n, "seed": seed, "cka": own, "cka_untrained": fresh}
        for task in trained
        for n, value, drawn in zip((2, 8), trained[task], before[task], strict=True)
        for seed, (own, fresh) in enumerate(zip(*_near(value, drawn, rng), strict=True))
    ]
    told = more_alike(pd.DataFrame(rows))
    assert "In the same learners before training: at fixed width it falls (b), cannot be told (a)." in told.en
    assert "beside what they were before it: at fixed width more alike (a), less alike (b)." in told.en
    assert "学習後のヘッドは次のとおりです。幅固定:より似ている(a)、より似ていない(b)。" in told.ja
    assert "| a | fixed width | 0.20 (0.40) | 0.50 (0.40) |" in told.en


def _near(value: float, drawn: float, rng: np.random.Generator) -> list[np.ndarray]:
    return [middle + 0.001 * rng.standard_normal(5) for middle in (value, drawn)]


def test_a_head_that_is_alone_in_its_layer_counts_nowhere() -> None:
    config = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config)).eval()
    batches = models.make_batches("gpt2", n_batches=4)
    lonely = hs.prune(model, ["L0H0", "L0H1", "L0H2"], batches=batches)
    measured = Alike().measure(Subject("small", lonely, batches, "kl", quick=True, draws=2))
    assert measured.words["heads"] == 4
    assert measured.words["mean"] == pytest.approx(measured.table["replaceability"].mean())
    assert measured.effect == pytest.approx((measured.table["replaceability"] > 0.5).mean())
