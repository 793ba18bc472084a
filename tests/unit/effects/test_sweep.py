"""The sweep against a loop by hand: hooks that know the layout, and the metric worked out from the outputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headscope.anatomy import discover
from headscope.effects.metrics import Drift, Kl, Loss, UserMetric
from headscope.effects.sweep import group_effects, head_effects, place_rows
from headscope.errors import AnatomyError, InputError, NumericalError, UnknownNameError
from headscope.heads import HeadId
from headscope.uncertainty.blocks import Blocks
from tests.families import HandWritten
from tests.models import build, make_batches

PROJECTIONS = {  # path of the output projection, heads, columns a head
    "gpt2": ("transformer.h.{}.attn.c_proj", 4, 8),
    "llama": ("model.layers.{}.self_attn.o_proj", 8, 8),
    "causal": ("blocks.{}.attention.output", 4, 8),
    "encoder": ("blocks.{}.attention.output", 4, 8),
}


def _without(
    name: str, model: nn.Module, heads: list[tuple[int, int]], batch: dict[str, Tensor], fill: Tensor | None = None
):
    path, _, dim = PROJECTIONS[name]
    handles = []
    for layer, head in heads:

        def hook(_: nn.Module, args: tuple[Tensor], layer: int = layer, head: int = head) -> tuple[Tensor]:
            entering, own = args[0].clone(), slice(dim * head, dim * (head + 1))
            entering[..., own] = 0.0 if fill is None else fill[layer][own]
            return (entering,)

        handles.append(model.get_submodule(path.format(layer)).register_forward_pre_hook(hook))
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return out


def _loss(output: object, batch: dict[str, Tensor]) -> np.ndarray:
    logits, ids, mask = output.logits.double(), batch["input_ids"], batch["attention_mask"].bool()
    rows = []
    for row in range(len(ids)):
        length = int(mask[row].sum())  # padding is on the right
        rows.append(functional.cross_entropy(logits[row, : length - 1], ids[row, 1:length]).item())
    return np.array(rows)


def _drift(output: object, intact: object, batch: dict[str, Tensor]) -> np.ndarray:
    mask = batch["attention_mask"].double()[..., None]
    new, old = ((one.last_hidden_state.double() * mask).sum(1) for one in (output, intact))
    return (1 - functional.cosine_similarity(new, old)).numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "causal"])
def test_effects_equal_a_loop_by_hand(name: str) -> None:
    model, batches = build(name), make_batches(name)
    anatomy = discover(model, {"input_ids": batches[0]["input_ids"]})
    effects = head_effects(model, batches, Loss(), anatomy)
    _, n_heads, _ = PROJECTIONS[name]
    assert [str(head) for head in effects.heads] == [f"L{layer}H{head}" for layer in (0, 1) for head in range(n_heads)]
    intact = [_loss(_without(name, model, [], batch), batch) for batch in batches]
    np.testing.assert_allclose(effects.intact, np.concatenate(intact), rtol=1e-5)
    for index, head in enumerate(effects.heads):
        after = [_loss(_without(name, model, [(head.layer, head.head)], batch), batch) for batch in batches]
        want = np.concatenate(after) - np.concatenate(intact)
        np.testing.assert_allclose(effects.values[index], want, rtol=0, atol=2e-6)
    assert np.abs(effects.values).max() > 1e-2
    assert effects.values.min() < 0 < effects.values.max()  # of random weights, some heads do harm


def test_effects_by_the_mean_equal_a_loop_by_hand() -> None:
    model, batches, text = build("llama"), make_batches("llama"), make_batches("llama", seed=9)
    means: dict[int, list[Tensor]] = {0: [], 1: []}
    for batch in text:
        kept = batch["attention_mask"].bool()
        handles = [
            model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, layer=layer, kept=kept: means[layer].append(args[0][kept].double())
            )
            for layer in means
        ]
        _without("llama", model, [], batch)
        for handle in handles:
            handle.remove()
    fill = torch.stack([torch.cat(means[layer]).mean(0).float() for layer in means])
    effects = head_effects(model, batches, Loss(), discover(model), "mean", text)
    for index in (0, 5, 11):
        head = effects.heads[index]
        after = [_loss(_without("llama", model, [(head.layer, head.head)], batch, fill), batch) for batch in batches]
        np.testing.assert_allclose(effects.values[index] + effects.intact, np.concatenate(after), rtol=1e-5)
    assert effects.mode == "mean"
    own = head_effects(model, batches, Loss(), discover(model), "mean")
    assert np.abs(own.values - effects.values).max() > 1e-4  # by default the mean is over the batches themselves


def test_a_distance_is_taken_to_the_intact_model() -> None:
    model, batches = build("encoder"), make_batches("encoder")
    anatomy = discover(model, {"input_ids": batches[0]["input_ids"]})
    effects = head_effects(model, batches, Drift(), anatomy)
    assert (effects.intact == 0).all()
    assert effects.is_distance
    for index, head in enumerate(effects.heads):
        want = [
            _drift(
                _without("encoder", model, [(head.layer, head.head)], batch),
                _without("encoder", model, [], batch),
                batch,
            )
            for batch in batches
        ]
        np.testing.assert_allclose(effects.values[index], np.concatenate(want), rtol=1e-4, atol=1e-7)
    assert (effects.values > 0).all()
    kl = head_effects(build("gpt2"), make_batches("gpt2"), Kl(), discover(build("gpt2")))
    assert (kl.values > 0).all()
    assert (kl.intact == 0).all()


def test_groups_are_removed_together() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    groups = [[HeadId(0, 1), HeadId(1, 2)], [HeadId(1, 3)], []]
    effects = group_effects(model, batches, Loss(), discover(model), groups)
    assert effects.groups == (tuple(groups[0]), tuple(groups[1]), ())
    for index, group in enumerate(groups):
        heads = [(head.layer, head.head) for head in group]
        after = np.concatenate([_loss(_without("gpt2", model, heads, batch), batch) for batch in batches])
        np.testing.assert_allclose(effects.values[index] + effects.intact, after, rtol=1e-5)
    assert (effects.values[2] == 0).all()
    nothing = group_effects(model, batches, Loss(), discover(model), [])
    assert nothing.values.shape == (0, 6)


def test_rows_know_their_documents_blocks_and_tokens() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    for batch, documents in zip(batches, ([4, 4, 8], [8, 1, 4]), strict=True):
        batch["document"] = torch.tensor(documents)
    effects = group_effects(model, batches, Loss(), discover(model), [])
    assert effects.document.tolist() == [4, 4, 8, 8, 1, 4]
    assert effects.n_documents == 3
    assert effects.n_tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)
    blocks = dict(zip(effects.document.tolist(), effects.block.tolist(), strict=True))
    assert effects.block.tolist() == [blocks[document] for document in effects.document.tolist()]
    assert len(set(blocks.values())) == 3
    assert (effects.metric, effects.unit, effects.mode) == ("loss", "nats/token", "zero")


def test_rows_are_dealt_like_those_of_the_statistics() -> None:
    documents = [torch.tensor([3, 3, 5]), torch.tensor([7, 5, 9])]
    tokens = [torch.tensor([10, 2, 7]), torch.tensor([1, 1, 8])]
    rows, blocks = place_rows(documents, tokens), Blocks()
    want = [*blocks.place(documents[0], tokens[0]).tolist(), *blocks.place(documents[1], tokens[1]).tolist()]
    assert rows.block.tolist() == want
    assert rows.n_tokens == 29
    assert rows.n_documents == 4


def test_users_functions_are_swept_with_and_without_the_intact_output() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    anatomy = discover(model)

    def away(output: object, batch: dict[str, Tensor], intact: object) -> Tensor:
        return (output.logits - intact.logits).abs().amax((1, 2))

    effects = group_effects(model, batches, UserMetric(away, takes_intact=True), anatomy, [[HeadId(0, 0)]])
    want = [
        (_without("gpt2", model, [(0, 0)], batch).logits - _without("gpt2", model, [], batch).logits).abs().amax((1, 2))
        for batch in batches
    ]
    np.testing.assert_allclose(effects.values[0], torch.cat(want), rtol=1e-5)


def test_progress_is_told_once_a_forward() -> None:
    model, told = build("gpt2"), []
    head_effects(model, make_batches("gpt2"), Loss(), discover(model), progress=lambda *step: told.append(step))
    assert told == [("ablation", 1, 8 * 2)] * (8 * 2)


def test_heads_that_are_mixed_are_left_out_and_refused_by_name() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(HandWritten("normed"), HandWritten("plain")).eval(), torch.randn(2, 5, 16)
    anatomy = discover(model, {"input": x})
    metric = UserMetric(lambda output, batch: output.square().mean((1, 2)))
    for mode in ("zero", "mean"):
        effects = head_effects(model, [{"input": x}], metric, anatomy, mode)
        assert [str(head) for head in effects.heads] == ["L1H0", "L1H1", "L1H2", "L1H3"]
    with pytest.raises(AnatomyError, match="heads of layer 0"):
        group_effects(model, [{"input": x}], metric, anatomy, [[HeadId(0, 0)]])


def test_what_cannot_be_measured_is_refused() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    anatomy = discover(model)
    with pytest.raises(InputError, match="no batch to measure on"):
        head_effects(model, [], Loss(), anatomy)
    with pytest.raises(InputError, match="no batch to measure on; a generator that was used up"):
        head_effects(model, iter(batches), Loss(), anatomy, "mean")
    with pytest.raises(UnknownNameError, match="no ablation mode 'noise'"):
        head_effects(model, batches, Loss(), anatomy, "noise")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.inf
    with pytest.raises(NumericalError, match="'loss' of the intact GPT2LMHeadModel is NaN or infinite on row 0"):
        head_effects(model, batches, Loss(), anatomy)


def test_the_model_is_as_it_was() -> None:
    model = build("gpt2").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = head_effects(model, make_batches("gpt2"), Loss(), discover(model))
    again = head_effects(model, make_batches("gpt2"), Loss(), discover(model))
    np.testing.assert_array_equal(first.values, again.values)  # without dropout, though the model was in training mode
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_module_where_infinity_begins_is_named() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    anatomy = discover(model)
    block = model.transformer.h[1].mlp
    block.register_forward_hook(lambda module, args, out: out * float("inf"))
    with pytest.raises(NumericalError, match=r"begins in the output of transformer\.h\.1"):
        head_effects(model, batches, Loss(), anatomy)
