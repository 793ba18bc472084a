"""Capture on real models: MiniLM where the demo extra is installed, Gemma 3 270M behind its marker."""

import pytest
import torch

from headscope._support.running import run_model
from headscope.anatomy import discover
from headscope.watching.observation import capture
from tests.contract.test_real_cuts import TEXT, loaded
from tests.watched import ALL, Hooks


@pytest.mark.parametrize("name", ["minilm", pytest.param("gemma", marks=pytest.mark.gemma)])
def test_what_is_captured_is_what_the_model_did(name):
    source = loaded(name)
    model = source.model
    batch = dict(source.tokenizer(TEXT, padding=True, return_tensors="pt"))
    kept = batch["attention_mask"].bool()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    anatomy = discover(model)
    assert anatomy.n_heads == 72
    with torch.no_grad():
        unwatched = run_model(model, batch)[0]
        hooks = Hooks(model, anatomy)
        with capture(model, ALL, anatomy=anatomy) as seen:
            watched = run_model(model, batch)[0]
        hooks.close()
        model.set_attn_implementation("eager")  # the model's own softmax, for once
        maps = run_model(model, batch, output_attentions=True).attentions
    assert torch.equal(watched, unwatched)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for site in anatomy.sites:
        got, (entered, left) = seen[site.layer], hooks.of(site)
        rows = {key: got.tensors[key].transpose(1, 2)[kept] for key in ("pattern", "z", "contribution")}
        own = maps[site.layer].transpose(1, 2)[kept]
        assert (rows["pattern"] - own).abs().max() <= 1e-5
        groups = list(site.kv_of_query)
        scores = got.q @ got.k[:, groups].transpose(-2, -1) * site.scaling + got.bias
        again = scores.softmax(-1).transpose(1, 2)[kept]
        assert (rows["pattern"] - again).abs().max() <= 1e-5
        z = (got.pattern @ got.v[:, groups]).transpose(1, 2)[kept]
        assert (rows["z"] - z).abs().max() <= 1e-5 * max(1.0, float(z.abs().max()))
        assert torch.equal(got.z.transpose(1, 2).flatten(2), entered)
        bias = model.get_submodule(site.output.module).bias
        total = rows["contribution"].sum(1) + (0 if bias is None else bias)
        assert (total - left[kept]).abs().max() <= 1e-5 * max(1.0, float(left[kept].abs().max()))
