"""Observe: every position that counts reaches every statistic once, in its block, and nothing else stays."""

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Self

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import headscope as hs
from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError, InputError, NumericalError
from headscope.sites import Site
from headscope.statistics import STATISTICS, Statistic
from headscope.uncertainty.blocks import N_BLOCKS, Blocks
from headscope.watching.observation import capture, observe
from tests.families import HandWritten, build_further
from tests.models import build, make_batches
from tests.spellings import WIDTH, Spelled

MASKED = ["gpt2", "llama", "bert", "gemma3", "encoder", "causal"]


class _Recorder(Statistic):
    """Sums of one tensor by layer and block, in float64, and what it was told."""

    def __init__(self, of: str = "z", also: tuple[str, ...] = ()) -> None:
        self.of, self.also = of, also
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.ends = 0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.of, *self.also})

    def update(self, site: Site, tensors: Mapping[str, Tensor], kept: Tensor, block: Tensor) -> None:
        self.calls.append((site.layer, tuple(tensors)))
        tensor = tensors[self.of].double().transpose(1, 2)
        assert kept.shape == tensor.shape[:2]
        assert block.shape == (len(tensor),)
        for row, number in enumerate(block.tolist()):
            own = tensor[row][kept[row]]
            key = (site.layer, number)
            self.sums[key] = self.sums.get(key, 0) + own.sum(0)
            self.counts[key] = self.counts.get(key, 0) + len(own)

    def end_batch(self) -> None:
        self.ends += 1

    def total(self, layer: int) -> tuple[Tensor, int]:
        own = [key for key in self.sums if key[0] == layer]
        return sum(self.sums[key] for key in own), sum(self.counts[key] for key in own)

    def merge(self, other: Self) -> None:
        raise NotImplementedError

    def compute(self) -> Any:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        raise NotImplementedError


def _by_hand(
    model: nn.Module, batches: list[dict[str, Tensor]], of: str, layer: int, skip: int = 0
) -> tuple[Tensor, int]:
    """The sum over counted positions, row by row: each row is run alone, cut to its length, without any padding."""
    total, count = 0, 0
    anatomy = discover(model, {"input_ids": batches[0]["input_ids"]})
    for batch in batches:
        for row, ids in enumerate(batch["input_ids"]):
            length = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else len(ids)
            with torch.no_grad(), capture(model, (of,), [layer], anatomy=anatomy) as seen:
                model(input_ids=ids[None, :length])
            own = seen[layer].tensors[of][0].double().transpose(0, 1)[skip:]
            total, count = total + own.sum(0), count + len(own)
    return total, count


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("name", [*MASKED, "nanogpt"])
def test_sums_are_those_of_rows_run_alone_without_padding(name: str, skip: int) -> None:
    model, batches = build(name), make_batches(name)
    statistic = _Recorder("z")
    seen = observe(model, batches, [statistic], skip_first=skip)
    for layer in (0, 1):
        want, count = _by_hand(model, batches, "z", layer, skip)
        got, counted = statistic.total(layer)
        assert counted == count == seen.n_tokens
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert want.abs().max() > 1
    assert (seen.n_documents, seen.n_batches, statistic.ends) == (6, 2, 2)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_other_numbers_in_the_padding_change_nothing(name: str) -> None:
    model, batches = build(name), make_batches(name)
    other = [
        {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 5)} for batch in batches
    ]
    assert any((a["input_ids"] != b["input_ids"]).any() for a, b in zip(batches, other, strict=True))
    first, second = _Recorder("gated_z"), _Recorder("gated_z")
    assert observe(model, batches, [first]) == observe(model, other, [second])
    for key, want in first.sums.items():
        torch.testing.assert_close(second.sums[key], want, rtol=0, atol=1e-5)


def test_padding_on_the_left_counts_as_little() -> None:
    model, batches = build("bert"), make_batches("bert")
    for batch in batches:
        batch["attention_mask"] = batch["attention_mask"].flip(1)
        # BERT numbers positions from the left, padding included; say where the text starts
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    statistic = _Recorder("z")
    seen = observe(model, batches, [statistic])
    want = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert statistic.total(1)[1] == want == seen.n_tokens
    mirrored = [
        {"input_ids": batch["input_ids"][row : row + 1, int(12 - batch["attention_mask"][row].sum()) :]}
        for batch in batches
        for row in range(3)
    ]
    alone = _Recorder("z")
    observe(model, mirrored, [alone])
    torch.testing.assert_close(statistic.total(1)[0], alone.total(1)[0], rtol=1e-4, atol=1e-4)


def test_every_statistic_gets_exactly_what_it_needs() -> None:
    first, second = _Recorder("q", also=("pattern",)), _Recorder("v")
    observe(build("llama"), make_batches("llama", 1), [first, second])
    assert [(layer, set(names)) for layer, names in first.calls] == [(0, {"q", "pattern"}), (1, {"q", "pattern"})]
    assert second.calls == [(0, ("v",)), (1, ("v",))]


def test_a_document_stays_in_one_block_over_rows_and_batches() -> None:
    batches = make_batches("gpt2", n_batches=3, padded=False)
    for batch, documents in zip(batches, ([5, 5, 9], [9, 5, 2], [2, 2, 2]), strict=True):
        batch["document"] = torch.tensor(documents)
    statistic = _Recorder("z")
    seen = observe(build("gpt2"), batches, [statistic])
    assert seen.n_documents == 3
    assert seen.n_tokens == 9 * 12
    counts = {block: count for (layer, block), count in statistic.counts.items() if layer == 0}
    assert sorted(counts.values()) == [2 * 12, 3 * 12, 4 * 12]


def test_rows_without_a_document_are_documents_of_their_own() -> None:
    batches = [{key: value for key, value in batch.items() if key != "document"} for batch in make_batches("gpt2")]
    seen = observe(build("gpt2"), batches, [_Recorder()])
    assert seen.n_documents == 6


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50)), min_size=1, max_size=60))
def test_blocks_are_balanced_and_faithful(rows: list[tuple[int, int]]) -> None:
    blocks, placed = Blocks(), {}
    for document, count in rows:
        (block,) = blocks.place(torch.tensor([document]), torch.tensor([count])).tolist()
        assert 0 <= block < N_BLOCKS
        assert placed.setdefault(document, block) == block
    assert len(blocks) == len(placed)
    # whole documents of one size are dealt evenly
    even = Blocks()
    counts = torch.bincount(even.place(torch.arange(35), torch.full((35,), 7)), minlength=N_BLOCKS)
    assert counts.max() - counts.min() <= 1


def test_batches_may_be_a_generator_and_are_taken_one_at_a_time() -> None:
    made: list[int] = []

    def stream() -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(make_batches("causal", n_batches=3)):
            made.append(number)
            yield batch

    seen_at = []
    statistic = _Recorder()
    seen = observe(build("causal"), stream(), [statistic], progress=lambda *told: seen_at.append((*told, len(made))))
    assert seen.n_batches == 3
    assert seen_at == [("watching", 1, 0, number) for number in (1, 2, 3)]


class _Watchful(_Recorder):
    """Keeps no tensor, and looks whether those of earlier updates are still alive."""

    def __init__(self, of: str) -> None:
        super().__init__(of)
        self.held: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def update(self, site: Site, tensors: Mapping[str, Tensor], kept: Tensor, block: Tensor) -> None:
        self.alive.append(sum(ref() is not None for ref in self.held))
        self.held.append(weakref.ref(tensors[self.of]))


@pytest.mark.parametrize("name", ["llama", "nanogpt"])
@pytest.mark.parametrize("of", ["pattern", "contribution"])
def test_no_map_outlives_its_layer(name: str, of: str) -> None:
    model, batches = build(name), make_batches(name, n_batches=4)
    anatomy = discover(model, {"input_ids": batches[0]["input_ids"]})
    statistic = _Watchful(of)
    gc.disable()  # nothing may hang on a cycle
    try:
        observe(model, batches, [statistic], anatomy=anatomy)
    finally:
        gc.enable()
    assert len(statistic.held) == 8
    assert max(statistic.alive) <= 1  # the one before may still be on the stack


def test_nan_is_named_by_layer() -> None:
    model, batches = build("llama"), make_batches("llama")
    anatomy = discover(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(
        NumericalError, match=r"layer 1 \(model.layers.1.self_attn\): v holds NaN or infinity in batch 0"
    ):
        observe(model, batches, [_Recorder("v")], anatomy=anatomy)
    with pytest.raises(NumericalError, match=r"model.layers.1.self_attn.v_proj.weight"):
        observe(model, batches, [_Recorder("v")])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_nan_in_the_padding_alone_is_no_error() -> None:
    model = HandWritten("plain", causal=False).eval()
    x = torch.randn(2, 5, 16)
    x[1, 3:] = torch.nan

    class Masked(nn.Module):
        """Rows are cut to what counts before they are mixed; the padding stays NaN."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = model

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.attention(x)

    masked = Masked()
    anatomy = discover(masked, {"x": torch.randn(2, 5, 16), "attention_mask": torch.ones(2, 5)})
    kept = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    # q of a position depends on that position alone
    seen = observe(masked, [{"x": x, "attention_mask": kept}], [_Recorder("q")], anatomy=anatomy)
    assert seen.n_tokens == 8
    with pytest.raises(NumericalError, match=r"layer 0 \(attention\): q holds NaN"):
        observe(masked, [{"x": x, "attention_mask": torch.ones(2, 5)}], [_Recorder("q")], anatomy=anatomy)


def test_each_side_of_an_encoder_decoder_counts_by_its_own_mask() -> None:
    model = build_further("bart")
    ids = torch.arange(14).reshape(2, 7) + 3
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        "decoder_input_ids": ids[:, :5],
        "decoder_attention_mask": torch.tensor([[1] * 5, [1] * 2 + [0] * 3]),
    }
    anatomy = discover(model)
    assert [site.kind for site in anatomy.sites] == ["self", "causal", "cross"]
    z, v = _Recorder("z"), _Recorder("v")
    observe(model, [batch], [z, v], anatomy=anatomy)
    assert [z.total(layer)[1] for layer in range(3)] == [11, 7, 7]
    # a cross site's values are the encoder's, and so is their padding
    assert [v.total(layer)[1] for layer in range(3)] == [11, 7, 11]

    norm = hs.importance(model, [batch], "norm").to_frame()
    assert norm.groupby("layer")["n_tokens"].first().tolist() == [11, 7, 7]
    curve = hs.redundancy(model, [batch]).curve
    assert curve.groupby("layer")["n_tokens"].first().tolist() == [11, 7, 7]
    for memory in ("2GB", 140_000):  # in one pass, and a layer in each
        of_v = hs.similarity(model, [batch], of="v", memory=memory)
        assert of_v.to_frame().groupby(of_v.to_frame()["head_a"].str[:2])["n_tokens"].first().tolist() == [11, 7, 11]
    assert "layer_tokens" not in hs.similarity(build("gpt2"), make_batches("gpt2")).facts


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_the_first_positions_that_count_are_skipped_wherever_padding_stands(skip: int) -> None:
    model, ids = build("gpt2"), torch.arange(14).reshape(2, 7) + 3
    left = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    recorder = _Recorder("q")
    observe(model, [{"input_ids": ids, "attention_mask": left}], [recorder], skip_first=skip)
    with capture(model, ("q",)) as seen:
        model(input_ids=ids, attention_mask=left)
    q = seen[0].q.double().transpose(1, 2)
    assert recorder.total(0)[1] == 12 - 2 * skip
    torch.testing.assert_close(recorder.total(0)[0], q[0, 2 + skip :].sum(0) + q[1, skip:].sum(0))


def test_what_cannot_be_observed_is_refused() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    for documents in (torch.zeros(2, dtype=torch.long), torch.zeros(3), "one"):
        with pytest.raises(InputError, match=r"document is a tensor of \(3,\) whole numbers"):
            observe(model, [{**batches[0], "document": documents}], [_Recorder()])
    with pytest.raises(InputError, match="skip_first is a whole number"):
        observe(model, batches, [_Recorder()], skip_first=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no batch"):
        observe(model, [], [_Recorder()])
    with pytest.raises(InputError, match="at least one statistic"):
        observe(model, batches, [])
    with pytest.raises(InputError, match=r"skip_first is a whole number of positions, from 0; it was -1"):
        observe(model, batches, [_Recorder()], skip_first=-1)
    with pytest.raises(InputError, match="no position counts in 2 batches past the first 12 of a row"):
        observe(model, batches, [_Recorder()], skip_first=12)
    with pytest.raises(InputError, match="a batch is a dict of tensors as the model takes them"):
        observe(model, [object()], [_Recorder()])


def test_the_model_is_as_it_was_also_after_a_failure() -> None:
    class Failing(_Recorder):
        def end_batch(self) -> None:
            raise ZeroDivisionError

    model = build("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        observe(model, make_batches("gpt2"), [Failing()])
    observe(model, make_batches("gpt2"), [_Recorder()])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_logits_are_not_made_where_the_model_can_be_asked() -> None:
    model, shapes = build("llama"), []
    model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    anatomy = discover(model)
    shapes.clear()
    observe(model, make_batches("llama"), [_Recorder()], anatomy=anatomy)
    assert shapes == [(3, 1, 60)] * 2


def test_text_without_a_position_that_counts_is_refused() -> None:
    model, batches = build("gpt2"), make_batches("gpt2", padded=False)
    with pytest.raises(InputError, match="no position counts"):
        observe(model, batches, [STATISTICS["moments"]()], skip_first=99)


class _TwoWays(nn.Module):
    """A text side that always runs, and a picture side that runs where there is a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.picture = Spelled("einsum"), Spelled("bmm")

    def forward(self, x: Tensor, pixels: Tensor | None = None) -> Tensor:
        return self.text(x) + (0 if pixels is None else self.picture(pixels).mean(1, keepdim=True))


def test_a_layer_that_was_found_and_does_not_run_is_an_error_and_no_empty_table() -> None:
    torch.manual_seed(0)
    model, x = _TwoWays().eval(), torch.randn(2, 5, WIDTH)
    anatomy = discover(model, {"x": x, "pixels": torch.randn(2, 7, WIDTH)})
    assert [site.module_name for site in anatomy.sites] == ["text", "picture"]
    with pytest.raises(InputError, match=r"layer 1 \(picture\) of _TwoWays did not run on these batches"):
        observe(model, [{"x": x}], [_Recorder()], anatomy=anatomy)
    with (
        pytest.raises(AnatomyError, match=r"_TwoWays ran, and picture.o did not, so nothing was switched off there"),
        torch.no_grad(),
        ablate(model, ["L1H0"], anatomy=anatomy),
    ):
        model(x)
    with (
        pytest.raises(AnatomyError, match=r"none of its attention layers was heard: layer 1 \(picture\)"),
        capture(model, ("z",), [1], anatomy=anatomy),
    ):
        model(x)
    with pytest.raises(ZeroDivisionError), capture(model, ("z",), [1], anatomy=anatomy):
        model(x)
        1 / 0  # noqa: B018 - the user's own error comes through
    with ablate(model, ["L0H0"], anatomy=anatomy):
        model(x)
