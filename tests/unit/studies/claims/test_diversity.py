"""C6: decided layer by layer, by outputs and by maps; the layers that fail are named, over seeds too."""

import numpy as np
import pytest

from headscope.models.reference import example
from headscope.statistics.pair_sums import PairSums
from headscope.studies.claims import Measured
from headscope.studies.claims.diversity import Diversity, _enough, _passes
from headscope.studies.rulings import pool
from headscope.studies.subjects import Subject
from headscope.surplus.effective import effective_maps


def words(outputs: list[float], maps: list[float]) -> dict[str, float]:
    each = list(zip(outputs, maps, strict=True))
    return {
        "layers": float(len(each)),
        "outputs_pass_fit": float(outputs.count(1.0)),
        "maps_pass_fit": float(maps.count(1.0)),
        "both": float(sum(pair == (1.0, 1.0) for pair in each)),
        "neither": float(sum(pair == (0.0, 0.0) for pair in each)),
        **{f"outputs_pass:causal:{layer}": own for layer, (own, _) in enumerate(each)},
        **{f"maps_pass:causal:{layer}": own for layer, (_, own) in enumerate(each)},
        "heads": 8.0, "effective": 5.0, "maps": 3.0, "effect": 0.6, "cka": 0.2, "maps_random": 2.5,
        "untrained": 1.5, "untrained_maps": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "maps", "told"),
    [
        ([1, 1], [1, 1], "holds"),
        ([0, 0], [0, 0], "does not hold"),
        ([1, 0], [1, 1], "holds in part (outputs in 1 of 2 layers; maps in 2 of 2 layers)"),
        ([0.5, 0], [0, 0], "not decided (more text)"),
    ],
)
def test_every_layer_must_pass_by_both(outputs: list[float], maps: list[float], told: str) -> None:
    assert Diversity().decide(words([*map(float, outputs)], [*map(float, maps)])).told() == told


def test_layers_that_fail_are_named() -> None:
    said = Diversity().say(words([1.0, 0.0, 0.5], [1.0, 1.0, 0.0]))
    told = (
        "By outputs layer 1 lies below the line; by outputs layer 2 lies across the line; by maps layer 2 lies below "
    )
    assert said.en.endswith(f"{told}the line.")
    assert said.ja.endswith(
        "出力で基準に届かないのは層1、出力で基準をまたぐのは層2、マップで基準に届かないのは層2です。"
    )
    assert "the line" not in Diversity().say(words([1.0], [1.0])).en


def test_over_seeds_a_layer_that_fails_in_one_is_named() -> None:
    seeds = [
        Measured(0.6, "16 documents", {k: v for k, v in words([1.0, own], [1.0, 1.0]).items() if k != "effect"})
        for own in (1.0, 0.0)
    ]
    assert "By outputs layer 1 lies across the line" in Diversity().say(pool(seeds).words).en


def test_what_is_enough_for_few_heads() -> None:
    assert [_enough(n) for n in (2, 3, 12)] == [1.5, 2.0, 2.0]
    assert [_passes(ends, 0.5) for ends in ((0.7, 0.6, 0.8), (0.3, 0.2, 0.4), (0.5, 0.4, 0.6))] == [1.0, 0.0, 0.5]


def test_effective_maps_count_maps_that_share_no_key() -> None:
    apart = PairSums(np.array([[0.0, 40.0, 40.0], [40.0, 0.0, 0.0], [40.0, 0.0, 0.0]]), 40)  # two alike, one apart
    alone = PairSums(40.0 * (1 - np.eye(3)), 40)
    assert float(effective_maps([apart, apart]).centre) == pytest.approx(
        np.exp(-(np.log(1 / 3) + 2 * np.log(2 / 3)) / 3)
    )
    assert float(effective_maps([alone, alone]).centre) == pytest.approx(3.0)
    alike = PairSums(np.zeros((3, 3)), 40)  # half of the queries look alike: every two maps agree by one half
    values = np.array([2 / 3, 1 / 6, 1 / 6])
    assert float(effective_maps([alone, alike]).centre) == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert np.isnan(effective_maps([]).centre)


def test_agreement_of_maps_is_a_kernel() -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(16, 0.3), (20, 6))  # (query, head, key)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = lambda p: -np.nansum(np.where(p > 0, p * np.log2(p), 0.0), -1)  # noqa: E731
        mixed = (rows[:, :, None] + rows[:, None]) / 2
        apart = entropy(mixed) - (entropy(rows)[:, :, None] + entropy(rows)[:, None]) / 2
    assert np.linalg.eigvalsh(1 - apart.mean(0)).min() > -1e-12


def test_the_figure_holds_what_stands_beside() -> None:
    model, rows = example()
    measured = Diversity().measure(Subject("small", model, rows, "kl", quick=True))
    assert {"untrained", "untrained_maps", "maps_random", "maps_low"} <= {*measured.table}
    assert measured.table[["untrained", "untrained_maps", "maps_random"]].notna().all(axis=None)
    labels = {text.get_text() for ax in Diversity().draw(measured.table).axes for text in ax.get_legend().get_texts()}
    assert labels == {"trained", "untrained copies", "random tokens"}


def test_maps_of_all_layers_stand_beside_random_tokens_in_all_of_them_or_in_none() -> None:
    model, rows = example()
    subject = Subject("small", model, rows, "kl", quick=True)
    every = Diversity().measure(subject)
    assert every.words["maps_random"] == pytest.approx(every.table["maps_random"].mean())
    whole = dict(subject.random_maps)
    subject.__dict__["random_maps"] = {layer: whole[layer] for layer in [*whole][1:]}  # what was worked out already
    some = Diversity().measure(subject)
    assert some.table["maps_random"].notna().any()
    assert np.isnan(some.words["maps_random"])
    assert "random tokens" not in Diversity().say(some.words).en
