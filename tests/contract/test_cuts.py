"""Every cut on every layout: equal to the model with the heads' output columns zeroed by hand, and really smaller."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headscope._support.running import run_model
from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.planning import plan as make_plan
from headscope.plans import Plan
from headscope.surgery import load, prune, save
from headscope.tables import HeadTable
from headscope.watching.observation import capture
from tests import models

# by hand, as each family's source has it, independent of any anatomy: attention module, output projection beneath the
# block, query heads, key heads, dimensions of a head; heads lie side by side everywhere
LAYOUT = {
    "gpt2": ("transformer.h.{}.attn", "transformer.h.{}.attn.c_proj", 4, 4, 8),
    "llama": ("model.layers.{}.self_attn", "model.layers.{}.self_attn.o_proj", 8, 2, 8),
    "bert": ("encoder.layer.{}.attention.self", "encoder.layer.{}.attention.output.dense", 4, 4, 8),
    "gemma3": ("model.layers.{}.self_attn", "model.layers.{}.self_attn.o_proj", 4, 1, 16),
    "encoder": ("blocks.{}.attention", "blocks.{}.attention.output", 4, 4, 8),
    "causal": ("blocks.{}.attention", "blocks.{}.attention.output", 4, 4, 8),
    "nanogpt": ("h.{}.attn", "h.{}.attn.c_proj", 4, 4, 8),
}
WIDTH = 32
WITH_BIAS_ON_QKV = {"gpt2", "bert", "encoder", "causal", "nanogpt"}
GENERATING = ["gpt2", "llama", "gemma3"]


def zeroed_by_hand(name, model, heads):
    """A copy whose output projections ignore the heads."""
    _, path, _, _, dim = LAYOUT[name]
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer, head in heads:
            weight = copied.get_submodule(path.format(layer)).weight
            columns = slice(head * dim, (head + 1) * dim)
            if name == "gpt2":  # stored (in, out)
                weight[columns] = 0
            else:
                weight[:, columns] = 0
    return copied


def parameters_of(name, heads):
    """How many numbers make these heads: q, k, v (key heads once all their query heads are gone) and output columns."""
    _, _, n_heads, n_kv, dim = LAYOUT[name]
    rows = WIDTH + (name in WITH_BIAS_ON_QKV)
    queries = len(heads)
    each = n_heads // n_kv
    groups = [(layer, head // each) for layer, head in heads]
    gone_kv = len({group for group in groups if groups.count(group) == each})
    return dim * (queries * (rows + WIDTH) + 2 * gone_kv * rows)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def tensors_of(output):
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
    return [value for value in values if isinstance(value, torch.Tensor)]


def outputs(model, batch):
    with torch.no_grad():
        return tensors_of(run_model(model, batch))


def gap(a, b, batch):
    kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    gaps = [
        (x - y)[kept].abs().max().item() if x.shape[:2] == kept.shape else (x - y).abs().max().item()
        for x, y in zip(a, b, strict=True)
    ]
    return max(gaps)


def plans_of(name):
    n_heads = LAYOUT[name][2]
    return {
        "one head": [(0, 1)],
        "some of each layer": [(0, 0), (0, 2), (1, 1), (1, 2), (1, 3)],
        "a whole first layer": [(0, head) for head in range(n_heads)],
        "a whole last layer and one": [(0, 3), *((1, head) for head in range(n_heads))],
        "all but one": [(layer, head) for layer in range(2) for head in range(n_heads) if (layer, head) != (1, 1)],
    }


@pytest.fixture(params=LAYOUT)
def name(request):
    return request.param


@pytest.fixture(params=["some of each layer", "a whole first layer"])
def case(request, name):
    return name, models.build(name), models.make_batches(name), plans_of(name)[request.param]


@pytest.mark.parametrize("kind", plans_of("gpt2"))
def test_it_computes_what_the_masked_model_computes_and_is_smaller(name, kind):
    model, batches, heads = models.build(name), models.make_batches(name), plans_of(name)[kind]
    pruned = prune(model, heads, batches=batches)
    masked = zeroed_by_hand(name, model, heads)
    for batch in batches:
        want = outputs(masked, batch)
        assert gap(outputs(pruned, batch), want, batch) <= 1e-5
        assert gap(outputs(model, batch), want, batch) > 1e-3, "these heads do nothing: the case proves nothing"
    assert count(model) - count(pruned) == parameters_of(name, heads)


@pytest.mark.parametrize("size", ["5GB", 9_000], ids=["in one file", "in several"])
def test_it_comes_back_bit_identical(case, size, tmp_path):
    name, model, batches, heads = case
    pruned = prune(model, heads, batches=batches)
    original = None if name in ("gpt2", "llama", "bert", "gemma3") else models.build(name, seed=5)
    loaded = load(save(pruned, tmp_path / "saved", max_shard_size=size), model=original)
    assert (tmp_path / "saved/model.safetensors").exists() == (size == "5GB")
    assert type(loaded) is type(pruned)
    assert loaded.training == pruned.training
    for batch in batches:
        for a, b in zip(outputs(loaded, batch), outputs(pruned, batch), strict=True):
            assert torch.equal(a, b)
    for kind in ("named_parameters", "named_buffers"):
        before, after = dict(getattr(pruned, kind)()), dict(getattr(loaded, kind)())
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_heads_keep_their_numbers(case):
    name, model, batches, heads = case
    example, batch = batches[0], batches[0]
    before = discover(model, example)
    pruned = prune(model, heads, batches=batches, anatomy=before)
    after = discover(pruned, example)
    assert set(after.heads) == set(before.heads) - set(Plan(heads).heads)
    masked = zeroed_by_hand(name, model, heads)
    with capture(masked, ["z"], anatomy=before) as whole, capture(pruned, ["z"], anatomy=after) as cut, torch.no_grad():
        run_model(masked, batch)
        run_model(pruned, batch)
    for site in after.sites:  # under its old number stands the old head
        torch.testing.assert_close(cut[site.layer].z, whole[site.layer].z[:, site.head_ids], atol=1e-5, rtol=0)
    last = after.heads[-1]
    with ablate(pruned, [last], anatomy=after):
        got = outputs(pruned, batch)
    want = outputs(zeroed_by_hand(name, model, [*heads, (last.layer, last.head)]), batch)
    assert gap(got, want, batch) <= 1e-5


def test_the_model_itself_is_untouched(name):
    model, batches = models.build(name).train(), models.make_batches(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = {key: dict(vars(module)) for key, module in model.named_modules()}
    prune(model, [(0, 1), (1, 2)], batches=batches)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for key, module in model.named_modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        now = {name: value for name, value in vars(module).items() if not isinstance(value, dict)}
        assert now == {name: value for name, value in attributes[key].items() if not isinstance(value, dict)}


def test_a_pruned_model_is_pruned_again(name, tmp_path):
    model, batches = models.build(name), models.make_batches(name)
    once = prune(model, ["L0H1", "L0H3", "L1H0", "L1H2"], batches=batches)
    twice = prune(prune(model, ["L0H3", "L1H0"], batches=batches), ["L0H1", "L1H2"], batches=batches)
    assert count(once) == count(twice)
    for batch in batches:
        assert gap(outputs(once, batch), outputs(twice, batch), batch) <= 1e-6
    assert twice._headscope.removed == once._headscope.removed
    assert twice._headscope.anatomy == once._headscope.anatomy
    loaded = load(save(twice, tmp_path / "saved"), model=models.build(name))
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, batch), outputs(twice, batch), strict=True))


def test_a_copy_of_it_learns(name):
    batches = models.make_batches(name)
    pruned = copy.deepcopy(prune(models.build(name), ["L0H0", "L0H1", "L1H3"], batches=batches)).train()
    tensors_of(run_model(pruned, batches[0]))[0].square().mean().backward()
    parts = [pruned.get_submodule(LAYOUT[name][0].format(layer)) for layer in range(2)]
    grads = [p.grad for part in parts for p in part.parameters() if p.numel()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert sum(grad.abs().sum() for grad in grads) > 0


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(heads=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 7)), min_size=1, max_size=15))
@example(heads={(0, 4), (0, 5), (0, 6), (0, 7)})  # a whole group: in float32 its other order of sums shows at 1.2e-5
def test_any_heads_of_grouped_layers_can_go(heads):
    model, batches = models.build("llama").double(), models.make_batches("llama", n_batches=1)
    pruned = prune(model, heads, batches=batches)
    want = outputs(zeroed_by_hand("llama", model, heads), batches[0])
    assert gap(outputs(pruned, batches[0]), want, batches[0]) <= 1e-12
    assert count(model) - count(pruned) == parameters_of("llama", sorted(heads))


UNEVEN = {
    "some heads": [(0, 1), (0, 2), (1, 0)],
    "a whole first layer": None,
    "almost all": [(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2)],
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", UNEVEN)
@pytest.mark.parametrize("name", GENERATING)
def test_greedy_generation_with_a_cache_is_that_of_the_masked_model(name, kind, implementation):
    heads = UNEVEN[kind] or [(0, head) for head in range(LAYOUT[name][2])]
    model = models.build(name)
    pruned, masked = prune(model, heads), zeroed_by_hand(name, model, heads)
    ids = torch.randint(3, models.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padding stands left where text is to go on
    for one in (pruned, masked):
        one.set_attn_implementation(implementation)
    # no token twice: a random model would say the same one for ever, which proves little
    settings = {"max_new_tokens": 14, "do_sample": False, "no_repeat_ngram_size": 1, "pad_token_id": 0}
    settings["eos_token_id"] = None
    got = pruned.generate(input_ids=ids, attention_mask=mask, use_cache=True, **settings)
    want = masked.generate(input_ids=ids, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(got, want)
    assert torch.equal(got, masked.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings))


@pytest.mark.parametrize("name", GENERATING)
def test_it_generates_with_a_static_cache_and_by_beams(name):
    heads = [(0, head) for head in range(LAYOUT[name][2])] + [(1, 1)]
    model = models.build(name)
    pruned, masked = prune(model, heads), zeroed_by_hand(name, model, heads)
    ids = torch.randint(3, models.VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(1))
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for more in ({"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}):
        got, want = (one.generate(input_ids=ids, **settings, **more) for one in (pruned, masked))
        assert torch.equal(got, want), more


@pytest.mark.parametrize("heads", [[(0, 1), (0, 2)], [(0, 0), (0, 4)], [(0, head) for head in range(4)]], ids=str)
def test_maps_of_the_heads_left_are_those_of_the_masked_model(heads):
    model, batch = models.build("llama"), models.make_batches("llama")[0]
    pruned, masked = prune(model, [*heads, *((1, h) for h in range(8))]), zeroed_by_hand("llama", model, heads)
    for one in (pruned, masked):
        one.set_attn_implementation("eager")
    got = run_model(pruned, batch, output_attentions=True).attentions
    want = run_model(masked, batch, output_attentions=True).attentions
    kept = [head for head in range(8) if (0, head) not in heads]
    torch.testing.assert_close(got[0], want[0][:, kept], atol=1e-6, rtol=0)
    assert got[1].shape == (3, 0, 12, 12), "a layer without heads has a map of none, so that layers keep their places"


def test_half_precision_is_proven_in_float32_and_stays_half(tmp_path):
    model = models.build("llama").to(torch.bfloat16)
    pruned = prune(model, ["L0H1", "L1H0"])
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}
    batch = models.make_batches("llama")[0]
    loaded = load(save(pruned, tmp_path / "saved"))
    assert loaded.config.to_dict() == pruned.config.to_dict()
    assert {n: b.dtype for n, b in loaded.named_buffers()} == {n: b.dtype for n, b in pruned.named_buffers()}
    assert torch.equal(outputs(loaded, batch)[0], outputs(pruned, batch)[0])


def test_from_scores_to_a_folder(tmp_path):
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    anatomy = discover(model)
    nan = torch.full((anatomy.n_heads,), torch.nan).double().numpy()
    score = torch.arange(anatomy.n_heads).double().numpy()
    facts = {"fingerprint": anatomy.fingerprint, "model_class": anatomy.model_class}
    plan = make_plan(HeadTable("ablation", "nats/token", anatomy.heads, score, nan, nan, facts), share=0.25)
    assert [str(head) for head in plan.heads] == ["L0H0", "L0H1"]
    loaded = load(save(prune(model, Plan.from_json(plan.to_json()), batches=batches), tmp_path / "saved"))
    want = outputs(zeroed_by_hand("gpt2", model, [(0, 0), (0, 1)]), batches[0])
    assert gap(outputs(loaded, batches[0]), want, batches[0]) <= 1e-5
