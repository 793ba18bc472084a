"""The reference: torch's own attention and a NumPy loop over heads say what it must compute."""

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from headscope.errors import InputError
from headscope.models.reference import MultiHeadAttention, Transformer, example

Floats = npt.NDArray[np.float64]


def _torch_twin(attention: MultiHeadAttention, width: int, n_heads: int) -> nn.MultiheadAttention:
    twin = nn.MultiheadAttention(width, n_heads, batch_first=True, dtype=attention.query.weight.dtype)
    parts = (attention.query, attention.key, attention.value)
    twin.load_state_dict(
        {
            "in_proj_weight": torch.cat([part.weight for part in parts]),
            "in_proj_bias": torch.cat([part.bias for part in parts]),
            "out_proj.weight": attention.output.weight,
            "out_proj.bias": attention.output.bias,
        }
    )
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch_with_the_same_weights(dtype: torch.dtype, causal: bool, masked: bool) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(512, 8, causal=causal).to(dtype)
    x = torch.randn(3, 10, 512, dtype=dtype)
    kept = torch.ones(3, 10, dtype=torch.bool)
    if masked:
        kept[1, 7:] = False
        kept[2, 4:] = False
    future = torch.ones(10, 10, dtype=torch.bool).triu(1) if causal else None
    twin = _torch_twin(attention, 512, 8)
    want, want_pattern = twin(x, x, x, key_padding_mask=~kept, attn_mask=future, average_attn_weights=False)

    mask = kept[:, None, None, :] if masked else None
    query, key, _ = attention.project(x)
    torch.testing.assert_close(attention(x, mask), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention.weigh(query, key, mask), want_pattern, rtol=0, atol=1e-6)
    assert want_pattern.max() > 1.5 / 10  # the case is not trivial: maps are not uniform


def _numpy_twin(weights: dict[str, Floats], x: Floats, n_heads: int, causal: bool) -> Floats:
    """Head by head, query by query, as the paper tells it."""
    head_dim, value_dim = len(weights["query.bias"]) // n_heads, len(weights["value.bias"]) // n_heads
    outputs = []
    for head in range(n_heads):
        rows, value_rows = (slice(head * dim, (head + 1) * dim) for dim in (head_dim, value_dim))
        q = x @ weights["query.weight"][rows].T + weights["query.bias"][rows]
        k = x @ weights["key.weight"][rows].T + weights["key.bias"][rows]
        v = x @ weights["value.weight"][value_rows].T + weights["value.bias"][value_rows]
        z = np.empty_like(v)
        for i in range(len(x)):
            seen = i + 1 if causal else len(x)
            score = np.array([q[i] @ k[j] / head_dim**0.5 for j in range(seen)])
            share = np.exp(score) / np.exp(score).sum()
            z[i] = sum(share[j] * v[j] for j in range(seen))
        outputs.append(z)
    return np.concatenate(outputs, axis=1) @ weights["output.weight"].T + weights["output.bias"]


@settings(deadline=None, max_examples=25)
@given(
    n_heads=st.integers(1, 5),
    head_dim=st.integers(1, 6),
    value_dim=st.integers(1, 6),
    n_tokens=st.integers(1, 6),
    causal=st.booleans(),
)
def test_attention_equals_a_loop_over_heads(
    n_heads: int, head_dim: int, value_dim: int, n_tokens: int, causal: bool
) -> None:
    torch.manual_seed(n_heads)
    attention = MultiHeadAttention(7, n_heads, head_dim, value_dim, causal=causal).double()
    x = torch.randn(1, n_tokens, 7, dtype=torch.float64)
    weights = {name: parameter.detach().numpy() for name, parameter in attention.named_parameters()}
    want = _numpy_twin(weights, x[0].numpy(), n_heads, causal)
    np.testing.assert_allclose(attention(x)[0].detach().numpy(), want, rtol=1e-10, atol=1e-12)


def test_pattern_rows_sum_to_one_and_the_future_is_unseen() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4, causal=True).double()
    query, key, _ = attention.project(torch.randn(2, 6, 16, dtype=torch.float64))
    pattern = attention.weigh(query, key)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 6, dtype=torch.float64))
    assert torch.equal(pattern.triu(1), torch.zeros_like(pattern))


def test_a_query_that_sees_nothing_stays_finite() -> None:
    attention = MultiHeadAttention(8, 2)
    x = torch.randn(1, 4, 8)
    query, key, _ = attention.project(x)
    nothing = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(attention.weigh(query, key, nothing), torch.full((1, 2, 4, 4), 0.25))
    assert attention(x, nothing).isfinite().all()


def test_dropout_acts_in_training_only() -> None:
    attention = MultiHeadAttention(8, 2, dropout=0.5)
    x = torch.randn(1, 4, 8)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("kept_heads", [(0, 2, 3), (1,), ()])
def test_rows_and_columns_can_be_cut_by_hand(kept_heads: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole = MultiHeadAttention(24, 4, head_dim=5, value_dim=3).double()
    x = torch.randn(2, 6, 24, dtype=torch.float64)
    rows = [head * 5 + i for head in kept_heads for i in range(5)]
    columns = [head * 3 + i for head in kept_heads for i in range(3)]
    cut = copy.deepcopy(whole)
    for part, keep in ((cut.query, rows), (cut.key, rows), (cut.value, columns)):
        part.weight, part.bias = nn.Parameter(part.weight[keep]), nn.Parameter(part.bias[keep])
    cut.output.weight = nn.Parameter(cut.output.weight[:, columns])

    with torch.no_grad():  # the same heads silenced in the whole: their columns of the output projection are zero
        gone = [column for column in range(12) if column not in columns]
        before = whole(x)
        whole.output.weight[:, gone] = 0
    torch.testing.assert_close(cut(x), whole(x), rtol=0, atol=1e-12)
    assert (cut(x) - before).abs().max() > 1e-3


def test_a_causal_model_does_not_see_ahead_and_an_encoder_does() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (1, 8))
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 1) % 50
    for causal in (True, False):
        model = Transformer(50, width=16, length=8, causal=causal).eval()
        before, after = (model(tokens).last_hidden_state[0] for tokens in (ids, other))
        assert torch.equal(before[:5], after[:5]) is causal
        assert not torch.equal(before[5:], after[5:])


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(50, width=16, length=12, causal=causal).double().eval()
    short = torch.randint(0, 50, (1, 7))
    padded = torch.cat([short, torch.randint(0, 50, (1, 5))], dim=1)
    mask = torch.tensor([[1] * 7 + [0] * 5])
    alone, beside = model(short), model(padded, mask)
    torch.testing.assert_close(beside.last_hidden_state[:, :7], alone.last_hidden_state, rtol=0, atol=1e-12)
    assert beside.last_hidden_state.isfinite().all()
    assert causal or not torch.allclose(model(padded).last_hidden_state[:, :7], alone.last_hidden_state)


def test_left_padding_stays_finite() -> None:
    model = Transformer(50, width=16, length=12, causal=True).eval()
    mask = torch.tensor([[0] * 5 + [1] * 7])
    output = model(torch.randint(0, 50, (1, 12)), mask)
    assert output.logits is not None
    assert output.logits.isfinite().all()


def test_the_order_of_tokens_matters() -> None:
    torch.manual_seed(0)
    model = Transformer(50, width=16).eval()
    ids = torch.tensor([[4, 9, 21, 33]])
    forward, backward = model(ids).last_hidden_state, model(ids.flip(1)).last_hidden_state.flip(1)
    assert (forward - backward).abs().max() > 1e-2


def test_only_a_causal_model_has_logits() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert Transformer(50, width=16).eval()(ids).logits is None
    assert Transformer(50, width=16, causal=True)(ids).logits.shape == (2, 3, 50)


def _next_token_loss(model: Transformer, ids: Tensor) -> Tensor:
    return functional.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())


def test_a_causal_model_learns_to_copy_the_token_before_last() -> None:
    torch.manual_seed(0)
    model = Transformer(8, width=16, n_layers=1, n_heads=2, length=16, causal=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # x_t = x_{t-2}: the current token alone says nothing of the next, so only attention can tell
    draw = [torch.randint(0, 8, (32, 2)).repeat(1, 8) for _ in range(80)]
    for ids in draw:
        optimizer.zero_grad()
        _next_token_loss(model, ids).backward()
        optimizer.step()
    assert _next_token_loss(model, draw[-1][:, :]).item() < 1.0  # by chance: ln 8 = 2.08


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 512, "n_heads": 7}, "width 512 does not divide into 7 heads.*head_dim=.*1, 2, 4, 8"),
        ({"width": 8, "n_heads": 0}, "n_heads must be at least 1; got 0"),
        ({"width": 8, "n_heads": 2, "head_dim": 0}, "head_dim must be at least 1; got 0"),
        ({"width": 8, "n_heads": 2, "value_dim": -1}, "value_dim must be at least 1; got -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        MultiHeadAttention(**settings)


@pytest.mark.parametrize("name", ["vocabulary", "width", "n_layers", "n_heads", "length"])
def test_a_transformer_needs_at_least_one_of_everything(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1; got 0"):
        Transformer(**{"vocabulary": 10, name: 0})


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(InputError, match=r"9 tokens in a row and the model has 8 positions.*length=9"):
        Transformer(10, width=8, length=8)(torch.zeros(1, 9, dtype=torch.long))


def test_the_example_repeats_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    (model, batches), (again, batches_again) = example(), example()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(batches, batches_again, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    documents = torch.cat([batch["document"] for batch in batches])
    assert documents.tolist() == list(range(48))
    inputs = {name: value for name, value in batches[0].items() if name != "document"}
    assert model(**inputs).logits.shape == (8, 32, 50)
