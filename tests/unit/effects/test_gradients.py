"""Gate gradients against finite differences of a gate by hand, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.gradients import gate_gradients
from headscope.effects.metrics import Drift, Kl, Loss, MaskedLoss, Metric, UserMetric
from headscope.errors import InputError, MetricError
from headscope.heads import HeadId
from headscope.scoring.rating import importance
from headscope.sites import Anatomy
from tests.families import HandWritten, build_further
from tests.models import build, make_batches

SIZE = 1e-4  # of a step of the gate: errors of its square in the model's curvature, of eps / its square in rounding


def _anatomy(model: nn.Module, batches: list[dict[str, Tensor]]) -> Anatomy:
    return discover(model, {key: value for key, value in batches[0].items() if key in ("input_ids", "x")})


def _gated(model: nn.Module, anatomy: Anatomy, head: HeadId, gate: float, run: Callable[[], object]) -> object:
    """The model's output with one head's columns turned up or down by a hook."""
    site = anatomy.site(head.layer)
    columns, turn = list(site.output.heads[head.head]), [0]

    def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        entering = args[0].clone()
        if turn[0] == site.call:
            entering[..., columns] = gate * entering[..., columns]
        turn[0] += 1
        return (entering,)

    handle = model.get_submodule(site.output.module).register_forward_pre_hook(hook)
    with torch.no_grad():
        out = run()
    handle.remove()
    return out


def _differences(
    model: nn.Module, batches: list[dict[str, Tensor]], metric: Metric, anatomy: Anatomy, size: float = SIZE
) -> np.ndarray:
    """(head, row): ∂metric/∂ξ, or for a distance ½ ∂²metric/∂ξ², by central differences."""
    heads = [head for site in anatomy.sites if site.prunable for head in site.heads]
    columns = []
    for batch in batches:
        inputs = {key: value for key, value in metric.inputs(model, batch).items() if key != "document"}

        def run(inputs: dict[str, Tensor] = inputs) -> object:
            return model(**inputs)

        intact = _gated(model, anatomy, heads[0], 1.0, run)
        rows = []
        for head in heads:
            up, down = (metric.measure(_gated(model, anatomy, head, 1 + s * size, run), batch, intact) for s in (1, -1))
            rows.append((up + down) / (2 * size**2) if metric.is_distance else (up - down) / (2 * size))
        columns.append(torch.stack(rows))
    return torch.cat(columns, dim=1).numpy()


@pytest.mark.parametrize("name", ["gpt2", "causal", "nanogpt"])
def test_first_order_terms_equal_finite_differences(name: str) -> None:
    model, batches = build(name).double(), make_batches(name)
    anatomy = _anatomy(model, batches)
    slopes = gate_gradients(model, batches, Loss(), anatomy)
    want = _differences(model, batches, Loss(), anatomy)
    assert slopes.values.shape == want.shape == (anatomy.n_heads, 6)
    assert slopes.heads == anatomy.heads
    np.testing.assert_allclose(slopes.values, want, rtol=1e-5, atol=1e-6)
    assert np.abs(want).max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_first_order_terms_of_models_that_norm_in_single_precision(name: str) -> None:
    model, batches = build(name).double(), make_batches(name)
    anatomy = _anatomy(model, batches)
    # a longer step, for rounding in float32 divided by it, and so a larger share of the third derivative
    want = _differences(model, batches, Loss(), anatomy, size=2e-2)
    np.testing.assert_allclose(gate_gradients(model, batches, Loss(), anatomy).values, want, rtol=2e-3, atol=2e-3)
    assert np.abs(want).max() > 0.1


def test_positions_are_the_same_as_those_that_the_metric_scores() -> None:
    model, batches, metric = build("gpt2").double(), make_batches("llama"), Loss(positions=3, seed=1)
    anatomy = _anatomy(model, batches)
    want = _differences(model, batches, metric, anatomy)
    np.testing.assert_allclose(gate_gradients(model, batches, metric, anatomy).values, want, rtol=1e-5, atol=1e-6)


def test_users_functions_of_encoders_and_of_gated_attention() -> None:
    metric = UserMetric(lambda output, batch: output[0].square().flatten(1).sum(1) / 100)
    model, batches = build("bert").double(), make_batches("bert", 1)
    anatomy = _anatomy(model, batches)
    want = _differences(model, batches, metric, anatomy)
    np.testing.assert_allclose(gate_gradients(model, batches, metric, anatomy).values, want, rtol=1e-5, atol=1e-6)

    torch.manual_seed(0)
    gated = HandWritten("gated").double().eval()
    batches = [{"x": torch.randn(3, 5, 16, dtype=torch.float64)}]
    own = UserMetric(lambda output, batch: output.square().sum((1, 2)))
    anatomy = _anatomy(gated, batches)
    want = _differences(gated, batches, own, anatomy)
    np.testing.assert_allclose(gate_gradients(gated, batches, own, anatomy).values, want, rtol=1e-5, atol=1e-6)
    assert np.abs(want).min() > 1e-4


def test_each_call_of_a_shared_module_has_a_gate_of_its_own() -> None:
    model, batches = build_further("albert").double(), make_batches("bert", 1)
    # weighed, since a layer norm stands last and its outputs add up to nothing
    metric = UserMetric(lambda output, batch: (output[0] * torch.linspace(-1, 1, 32)).sum((1, 2)))
    anatomy = discover(model)
    slopes = gate_gradients(model, batches, metric, anatomy)
    want = _differences(model, batches, metric, anatomy)
    np.testing.assert_allclose(slopes.values, want, rtol=1e-5, atol=1e-6)
    assert np.abs(slopes.values[:4] - slopes.values[4:8]).max() > 1e-2


def test_the_sum_of_a_layers_slopes_is_that_of_the_layer_as_a_whole() -> None:
    """Where attention is the last nonlinear thing, turning all heads down is turning their sum down."""
    torch.manual_seed(0)
    model, x = HandWritten("plain").double().eval(), torch.randn(3, 5, 16, dtype=torch.float64)
    metric = UserMetric(lambda output, batch: output.sum((1, 2)))
    slopes = gate_gradients(model, [{"x": x}], metric, discover(model, {"x": x}))
    with torch.no_grad():
        want = (model(x) - model.o.bias).sum((1, 2))
    np.testing.assert_allclose(slopes.values.sum(0), want, rtol=1e-6)


@pytest.mark.parametrize(("name", "metric"), [("encoder", Drift()), ("bert", Drift()), ("causal", Kl()),
                                              ("llama", Kl(positions=4))])  # fmt: skip
def test_second_order_terms_of_distances_converge_to_half_the_curvature(name: str, metric: Metric) -> None:
    model, batches = build(name).double(), make_batches(name, 1)
    anatomy, n = _anatomy(model, batches), 400
    terms = gate_gradients(model, batches, metric, anatomy, directions=n).values
    want = _differences(model, batches, metric, anatomy)
    assert (terms >= 0).all()
    # of the square of a nearly normal number the relative standard error is √(2 / n): 7% here
    error = np.sqrt(2 / n)
    used = want > 1e-6
    assert used.mean() > 0.9
    ratio = terms[used] / want[used]
    assert np.abs(ratio - 1).max() < 6 * error
    assert abs(ratio.mean() - 1) < 2 * error
    few = gate_gradients(model, batches, metric, anatomy, directions=4).values[used] / want[used]
    assert np.abs(few - 1).mean() > 2 * np.abs(ratio - 1).mean()


def test_directions_repeat_for_the_same_seed() -> None:
    model, batches = build("encoder"), make_batches("encoder")
    anatomy = _anatomy(model, batches)
    random_state = torch.get_rng_state()
    one, two, other = (gate_gradients(model, batches, Drift(), anatomy, seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_rows_know_their_documents_and_the_metric() -> None:
    model, batches, told = build("gpt2"), make_batches("gpt2"), []
    batches[1]["document"] = torch.tensor([0, 0, 9])
    slopes = gate_gradients(model, batches, Loss(), discover(model), progress=lambda *step: told.append(step))
    assert slopes.document.tolist() == [0, 1, 2, 0, 0, 9]
    assert slopes.block[0] == slopes.block[3] == slopes.block[4]
    assert slopes.n_documents == 4
    assert slopes.n_tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert (slopes.metric, slopes.unit, slopes.is_distance) == ("loss", "nats/token", False)
    assert told == [("gradients", 1, 2)] * 2


def test_a_head_that_the_metric_does_not_depend_on_has_slope_zero() -> None:
    model, batches = build("gpt2"), make_batches("gpt2", 1)
    metric = UserMetric(lambda output, batch: output.hidden_states[1].sum((1, 2)))  # after block 0
    metric_inputs = {**batches[0], "output_hidden_states": True}
    slopes = gate_gradients(model, [metric_inputs], metric, discover(model))
    assert np.abs(slopes.values[:4]).min() > 0
    assert (slopes.values[4:] == 0).all()


def test_heads_that_are_mixed_are_left_out() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(HandWritten("normed"), HandWritten("plain")).eval(), torch.randn(2, 5, 16)
    metric = UserMetric(lambda output, batch: output.square().mean((1, 2)))
    slopes = gate_gradients(model, [{"input": x}], metric, discover(model, {"input": x}))
    assert [str(head) for head in slopes.heads] == ["L1H0", "L1H1", "L1H2", "L1H3"]


def test_a_metric_without_a_gradient_is_refused() -> None:
    model, batches = build("gpt2"), make_batches("gpt2")
    anatomy = discover(model)

    def errors(output: object, batch: dict[str, Tensor]) -> Tensor:
        return (output.logits[:, :-1].argmax(-1) != batch["input_ids"][:, 1:]).float().mean(1)

    with pytest.raises(MetricError, match="'errors' has no gradient; use a score that needs none, such as ablation"):
        gate_gradients(model, batches, UserMetric(errors, "errors"), anatomy)
    away = UserMetric(lambda output, batch, intact: (output.logits - intact.logits).sum((1, 2)), takes_intact=True)
    with pytest.raises(MetricError, match="looks at the intact model's output"):
        gate_gradients(model, batches, away, anatomy)
    with pytest.raises(InputError, match="no batch to measure on"):
        gate_gradients(model, [], Loss(), anatomy)
    with pytest.raises(MetricError, match="MaskedLoss"):
        gate_gradients(model, batches, MaskedLoss(), anatomy)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_it_works_inside_any_gradient_mode_and_leaves_no_gradient_behind(around: Callable[[], object]) -> None:
    model, batches = build("gpt2").train(), make_batches("gpt2")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    anatomy = discover(model)
    want = gate_gradients(model, batches, Loss(), anatomy)
    with around():
        got = gate_gradients(model, batches, Loss(), anatomy)
    np.testing.assert_array_equal(got.values, want.values)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class _Stopped(nn.Module):
    """A tiny GPT whose last block sees what comes before without its gradient, in part or rounded."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = build("nanogpt"), how

    def forward(self, input_ids: Tensor) -> Tensor:
        inner = self.inner
        x = inner.wte(input_ids) + inner.wpe(torch.arange(input_ids.shape[1]))
        x = inner.h[0](x)
        seen = {"detached": x.detach(), "rounded": x + ((8 * x).round() / 8 - x).detach()}.get(self.how, x)
        return inner.lm_head(inner.ln_f(x + inner.h[1](seen) - seen))


@pytest.mark.parametrize("metric", ["loss", "drift"])
@pytest.mark.parametrize("how", ["", "detached", "rounded"])
def test_gradients_that_do_not_tell_what_a_small_change_does_say_so(how: str, metric: str) -> None:
    model, batches = _Stopped(how).eval(), make_batches("nanogpt")
    table = importance(model, batches, score="gradient", metric=metric)
    if how:
        assert table.facts["caution"].startswith("turned down a little, heads change the metric by 0.")
        assert "part of the way has no gradient of its own" in repr(table)
    else:
        assert "caution" not in table.facts


class _Pairs(nn.Module):
    """What a model says of a text, set against what it says of every other one, and a loss of all before it."""

    def __init__(self, how: str, loss: bool) -> None:
        super().__init__()
        self.inner, self.loss = _Stopped(how), loss

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        said = self.inner(input_ids)
        pooled = said.mean(1)
        alike = pooled @ pooled.mT
        return (alike.logsumexp(1).mean(), alike, said) if self.loss else (alike, said)


def _against_the_others(output: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
    alike = output[-2]
    return -alike.log_softmax(1).diagonal()


@pytest.mark.parametrize("metric", [Drift(), UserMetric(_against_the_others, "against the others")])
@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("how", ["", "detached"])
def test_gradients_of_rows_set_against_each_other_are_tried_in_all(how: str, loss: bool, metric: Metric) -> None:
    model, batches = _Pairs(how, loss).eval(), make_batches("nanogpt")
    gap = gate_gradients(model, batches, metric, discover(model, batches[0])).gap
    assert gap > 0.4 if how else gap < 0.01


def test_what_rounding_hides_is_not_claimed() -> None:
    model, batches = build("gpt2").bfloat16(), make_batches("gpt2")
    found = gate_gradients(model, batches, Loss(), discover(model))
    assert np.isnan(found.gap)
    assert gate_gradients(model.float(), batches, Loss(), discover(model)).gap < 2e-3
