"""C15: cuts as a mask would make them, planted weights that tell and that do not, and the rule."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from headscope.models.reference import MultiHeadAttention, Transformer, TransformerOutput, example
from headscope.reporting.figures import styling
from headscope.studies.claims import Measured
from headscope.studies.claims.edges import Edges
from headscope.studies.cuts import Place, exchanged, single_rows
from headscope.studies.rulings import pool
from headscope.studies.subjects import Subject
from tests.words import same_numbers

CLAIM = Edges()


def make_subject(model: nn.Module, metric: Any = "auto") -> Subject:
    return Subject("small", model, example()[1], metric, quick=True)


class Planted(nn.Module):
    """One head whose weights and values are as they are told: every query sees the same.

    Args:
        scores: how far scores reach from the first token of the vocabulary to the last.
        lengths: of the values, from the first to the last, each in a direction of its own.
    """

    def __init__(self, scores: float, lengths: tuple[float, float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        place = torch.linspace(0, 1, 50)
        values = nn.functional.normalize(torch.randn(50, 31), dim=1)
        values = values * (lengths[0] + (lengths[1] - lengths[0]) * place)[:, None]
        self.tokens = nn.Embedding.from_pretrained(torch.cat([place[:, None], values], dim=1))
        self.attention = MultiHeadAttention(32, 1)
        for layer in (self.attention.query, self.attention.key, self.attention.value, self.attention.output):
            layer.weight.data.zero_()
            layer.bias.data.zero_()
        self.attention.query.bias.data[0] = scores * 32**0.5
        self.attention.key.weight.data[0, 0] = 1.0
        self.attention.value.weight.data = torch.diag(torch.tensor([0.0] + [1.0] * 31))
        self.attention.output.weight.data = torch.eye(32)

    def forward(self, input_ids: Tensor) -> TransformerOutput:
        x = self.tokens(input_ids)
        return TransformerOutput(x + self.attention(x), None)


def ask(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(50, generator=generator)[:32] for _ in range(8)])
    return CLAIM.measure(Subject("planted", model.eval(), [{"input_ids": ids}], quick=True))


@pytest.fixture(scope="module")
def causal() -> Measured:
    return CLAIM.measure(make_subject(example()[0]))


def test_weights_on_tokens_that_count_for_more_hold() -> None:
    """Weights that differ by a twentieth, so that their size is next to nothing; the values behind them tenfold."""
    measured = ask(Planted(0.05, (1, 10)))
    assert measured.numbers["own"] > 0.9
    assert abs(measured.numbers["other"]) < 0.2
    assert measured.low > 0.5
    assert CLAIM.decide(measured.words).told() == "holds"


def test_weights_of_very_different_sizes_tell_nothing_but_their_size() -> None:
    measured = ask(Planted(6.0, (1, 1)))
    assert measured.numbers["own"] > 0.95
    assert measured.numbers["other"] > 0.95
    assert CLAIM.decide(measured.words).told() == "holds in part (for how far the output moves)"


def test_small_weights_on_what_counts_for_more_do_not_hold() -> None:
    measured = ask(Planted(0.05, (10, 1)))
    assert measured.high < -0.5
    assert CLAIM.decide(measured.words).told() == "does not hold"


def test_an_edge_is_cut_as_a_mask_would_cut_it() -> None:
    """One layer, one head: hiding a key from one query is what the mask of the model itself can do."""
    torch.manual_seed(0)
    model = Transformer(50, width=16, n_layers=1, n_heads=1, length=32).eval()
    subject = make_subject(model, spread_of)
    row = CLAIM.measure(subject).table.iloc[0]
    tokens = next(own for document, own in single_rows(subject, 8) if document == row["document"])
    query, n_tokens = int(row["query"]), tokens["input_ids"].shape[1]
    with torch.no_grad():
        block: Any = model.blocks[0]
        x = model.tokens(tokens["input_ids"]) + model.positions(torch.arange(n_tokens))
        weights = block.attention.weigh(*block.attention.project(block.attention_norm(x))[:2])[0, 0, query]
        whole = model(tokens["input_ids"])
        lengths, targets = [], []
        for key in range(n_tokens):
            mask = torch.ones(1, 1, n_tokens, n_tokens, dtype=torch.bool)
            mask[0, 0, query, key] = False
            y = x + block.attention(block.attention_norm(x), mask)
            cut = TransformerOutput(model.norm(y + block.feedforward(block.feedforward_norm(y))), None)
            lengths.append(float((cut.last_hidden_state - whole.last_hidden_state).norm()))
            targets.append(float(spread_of(cut, tokens) - spread_of(whole, tokens)))
    for name, effects in (("own", lengths), ("target", targets)):
        ranks = (np.argsort(np.argsort(values)) for values in (weights.numpy(), np.array(effects)))
        assert row[name] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)


def spread_of(output: Any, batch: Any) -> Tensor:
    """A metric that falls as well as rises."""
    first = output.last_hidden_state[:, :, 0].double()
    return first.mean(1) if "input_ids" in batch else first


def test_no_query_is_counted_twice() -> None:
    """Four draws of five queries in each row."""
    ids = torch.stack([torch.arange(5) + row for row in range(8)])
    subject = Subject("planted", Planted(0.05, (1, 10)).eval(), [{"input_ids": ids, "document": torch.arange(8) // 2}])
    table = CLAIM.measure(subject).table
    places = table[["row", "layer", "head", "query"]]
    assert not places.duplicated().any()
    assert table.groupby("row").size().tolist() == [4] * 8
    assert table.groupby("document")["row"].nunique().tolist() == [2] * 4  # rows of one document are told apart


def test_draws_end_where_every_query_was_drawn() -> None:
    subject = make_subject(Transformer(50, width=16, n_layers=1, n_heads=1, length=32, causal=True).eval())
    row = {"input_ids": subject.few["input_ids"][:1, :7]}  # three queries of five keys or more
    seen, rng = subject.look("pattern", "v", "z", batch=row), np.random.default_rng(0)
    taken: list[Place] = []
    for _ in range(3):
        place = Place.draw(seen, subject.anatomy.sites, row, rng, taken)
        assert place is not None
        taken.append(place)
    assert {place.query for place in taken} == {4, 5, 6}
    assert Place.draw(seen, subject.anatomy.sites, row, rng, taken) is None


def test_a_loss_is_what_the_target_is_held_against_and_a_distance_says_so(causal: Measured) -> None:
    assert causal.numbers["distance"] == 0
    assert "the effect on the loss it is" in CLAIM.say(causal.words).en
    encoder = CLAIM.measure(make_subject(Transformer(50, width=16, n_layers=1, n_heads=1, length=32).eval()))
    assert encoder.numbers["distance"] == 1
    assert "the effect on the distance to its intact output" in CLAIM.say(encoder.words).en
    for measured in (causal, encoder):
        assert same_numbers(CLAIM.say(measured.words))


class Judged(nn.Module):
    """A model that returns a loss of its own for a row, so that cuts are made one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Transformer(50, width=16, n_layers=1, n_heads=2, length=32)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.inner(input_ids).last_hidden_state
        found = {"last_hidden_state": hidden}
        return found if labels is None else found | {"loss": (hidden[..., 0] - labels).square().mean()}


def test_a_loss_of_the_models_own_is_taken_row_by_row() -> None:
    rows = [{**batch, "labels": batch["input_ids"] / 50} for batch in example()[1]]
    rows = [{name: value for name, value in batch.items() if name != "attention_mask"} for batch in rows]
    subject = Subject("judged", Judged().eval(), rows, "loss", quick=True)
    assert subject.judged_by.name == "loss"
    measured = CLAIM.measure(subject)
    assert measured.numbers["distance"] == 0
    assert np.isfinite(measured.table["target"]).all()


def planted(effect: float, half: float, target: float = 0.5) -> dict[str, float]:
    words = {"effect": effect, "low": effect - half, "high": effect + half, "documents": 20.0}
    return words | {"target_low": target - 0.05, "target": target, "own_low": 0.4}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (planted(0.2, 0.09), "holds"),
        (planted(0.2, 0.09, target=0.14), "holds in part (for the output, not the metric)"),
        (planted(0.2, 0.09, target=-0.3), "holds in part (for the output, not the metric)"),
        (planted(0.0, 0.09), "does not hold"),
        (planted(-0.3, 0.1), "does not hold"),
        (planted(0.0, 0.09) | {"own_low": 0.6}, "holds in part (for how far the output moves)"),
        (planted(0.0, 0.2), "not decided (about 71 documents)"),  # 20 × (0.2 × 1.960 / 2.093 / 0.1)²
        (planted(0.2, 0.15), "not decided (about 40 documents)"),
        (planted(0.05, 0.7) | {"documents": 2.0}, "not decided (about 10 documents)"),  # Student's t is 12.7 there
        (planted(0.1, 0.05), "not decided (more than 1000 documents)"),
        (planted(0.09, 0.2), "not decided (more than 1000 documents)"),
        (planted(0.0, 0.2) | {"seeds": 5.0}, "not decided (10 seeds or more)"),
    ],
)
def test_the_difference_decides_and_then_the_loss(words: dict[str, float], told: str) -> None:
    assert CLAIM.decide(words).told() == told


def test_no_interval_is_told_where_there_is_none(causal: Measured) -> None:
    unknown = dict.fromkeys(("low", "high", "target_low", "target_high"), float("nan"))
    said = CLAIM.say(causal.words | unknown)
    assert "nan" not in said.en + said.ja
    assert same_numbers(said)


def test_the_headline_says_that_larger_weights_move_more_only_where_they_do(causal: Measured) -> None:
    words = causal.words | {"own": 0.7, "other": 0.2, "effect": 0.5, "target": -0.1, "distance": 0.0}
    assert CLAIM.headline(words | {"own_low": 0.6}).en.startswith("Cutting a token with a larger weight moves")
    assert CLAIM.headline(words | {"own_low": 0.1}).en.startswith("The rank correlation of a token's weight")
    assert "with the rise of the loss the rank correlation is −0.10" in CLAIM.headline(words | {"own_low": 0.6}).en


def test_how_large_the_difference_can_be_is_told(causal: Measured) -> None:
    said = CLAIM.follow(causal.words | {"other": 0.94})
    assert "could be 0.06 at the most" in said.en
    assert "No weights could have passed" in said.en
    assert "No weights" not in CLAIM.follow(causal.words | {"other": 0.5}).en


def test_over_seeds_all_of_them_tell_of_the_loss(causal: Measured) -> None:
    other = CLAIM.measure(make_subject(Transformer(50, width=16, n_layers=1, n_heads=1, length=32, causal=True).eval()))
    pooled = pool([causal, other])
    each = [one.numbers["target"] for one in (causal, other)]
    assert pooled.numbers["target"] == pytest.approx(np.mean(each))
    half = 12.706 * abs(each[0] - each[1]) / 2  # of two seeds
    assert pooled.numbers["target_high"] - pooled.numbers["target"] >= half * 0.999
    with styling():
        figure = CLAIM.draw(pooled.table)
    assert isinstance(figure, Figure)
    diamonds = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert len(diamonds) == 2 * 4  # a mean for each seed and each row


def test_the_figure_shows_each_pair_and_the_interval_that_decides(causal: Measured) -> None:
    with styling():
        ax = CLAIM.draw(causal.table).axes[0]
    means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"]
    assert means == pytest.approx([causal.numbers["own"], causal.numbers["other"], causal.effect,
                                   causal.numbers["target"]])  # fmt: skip
    ends = [segment[:, 0] for one in ax.collections for segment in one.get_segments()]  # type: ignore[attr-defined]
    assert any(end == pytest.approx([causal.low, causal.high]) for end in ends)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [len(causal.table)] * 4
    joined = [line for line in ax.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]
    assert len(joined) >= len(causal.table)


def test_another_key_is_another_key() -> None:
    order = exchanged(9, np.random.default_rng(0))
    assert sorted(order) == list(range(9))
    assert (order != np.arange(9)).all()
