"""Compiled models, and models inside wrappers that only run them: what is measured is what the plain twin gives."""

import copy
import threading

import pytest
import torch
from torch import nn

import headscope as hs
from headscope._support.holding import uncompiled
from tests import models

BATCHES = models.make_batches("bert", n_batches=2)
HEADS = ["L0H1", "L1H2"]


def run(model):
    with torch.no_grad():
        return model(**{name: value for name, value in BATCHES[0].items() if name != "document"}).last_hidden_state


def whole(model, backend="eager"):
    return torch.compile(model, backend=backend)


def by_layers(model, backend="eager"):
    for layer in model.encoder.layer:
        layer.compile(backend=backend)
    return model


def replaced_layers(model, backend="eager"):
    model.encoder.layer[1] = torch.compile(model.encoder.layer[1], backend=backend)
    return model


def compiled_forward(model, backend="eager"):
    model.encoder.layer[0].forward = torch.compile(model.encoder.layer[0].forward, backend=backend)
    return model


def in_parallel(model):
    return nn.DataParallel(model)


@pytest.mark.parametrize("wrap", [whole, by_layers, replaced_layers, compiled_forward, in_parallel])
def test_numbers_are_those_of_the_plain_twin(wrap):
    plain = models.build("bert")
    wrapped = wrap(copy.deepcopy(plain))
    before = run(wrapped)  # compiled here
    torch.testing.assert_close(before, run(plain))
    with hs.capture(wrapped, want=("pattern", "contribution")) as seen:
        run(wrapped)
    with hs.capture(plain, want=("pattern", "contribution")) as want:
        run(plain)
    assert list(seen) == list(want) == [0, 1]
    for layer in want:
        torch.testing.assert_close(seen[layer].pattern, want[layer].pattern)
        torch.testing.assert_close(seen[layer].contribution, want[layer].contribution)
    with hs.ablate(wrapped, HEADS):
        off = run(wrapped)
    with hs.ablate(plain, HEADS):
        torch.testing.assert_close(off, run(plain))
    assert (off - before).abs().max() > 1e-3, "the case is not trivial"
    for score in ("ablation", "gradient", "norm"):
        got, expected = (hs.importance(model, BATCHES, score=score).score for model in (wrapped, plain))
        torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(expected))
    assert torch.equal(run(wrapped), before)


def test_a_model_inside_is_switched_off_for_whoever_runs_the_compiled_one():
    model = models.build("bert")
    outer = whole(model)
    before = run(outer)
    with hs.ablate(model, HEADS):
        off = run(outer)
        torch.testing.assert_close(off, run(model))
    assert (off - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("wrap", "said"), [(whole, "torch.compile"), (by_layers, "torch.compile"), (in_parallel, "DataParallel")]
)
def test_it_is_said(wrap, said):
    anatomy = hs.discover(wrap(models.build("bert")))
    assert any(said in remark for remark in anatomy.remarks)
    assert anatomy.sites == hs.discover(models.build("bert")).sites


@pytest.mark.parametrize("wrap", [whole, in_parallel])
def test_a_wrapped_model_is_cut_and_saved_as_the_one_inside(wrap, tmp_path):
    plain = models.build("bert")
    smaller = hs.prune(wrap(plain), HEADS, batches=BATCHES)
    assert type(smaller) is type(plain)
    torch.testing.assert_close(run(smaller), run(hs.prune(plain, HEADS, batches=BATCHES)))
    again = hs.load(hs.save(wrap(smaller), tmp_path / "saved"))
    assert torch.equal(run(again), run(smaller))
    assert not {str(head) for head in hs.discover(wrap(again)).heads} & set(HEADS)


WORK = {
    "importance": lambda model: hs.importance(model, BATCHES),
    "compare": lambda model: hs.compare(model, model, BATCHES),
    "analyze": lambda model: hs.analyze(model, batches=BATCHES, budget=hs.Budget(held_out=0.5, passes=0)),
    "prune": lambda model: hs.prune(model, HEADS, batches=BATCHES),
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("wrap", [whole, replaced_layers, compiled_forward])
def test_nothing_is_compiled_for_any_work(wrap, work):
    torch.compiler.reset()  # it gives up on code that it has compiled eight times
    made = []

    def backend(graph, _):
        made.append(graph)
        return graph.forward

    model = wrap(models.build("bert"), backend)
    WORK[work](model)
    assert not made, "compiling takes most of a minute for a model, and again for each shape and each cut"
    run(model)
    assert made, "it is compiled, and runs as that again"


@pytest.mark.parametrize("metric", ["auto", "loss", "drift"])
def test_nothing_is_compiled_to_find_a_metric_that_fits(metric):
    torch.compiler.reset()
    made = []
    model = torch.compile(models.build("gpt2"), backend=lambda graph, _: made.append(graph) or graph.forward)
    hs.importance(model, models.make_batches("gpt2", n_batches=2), metric=metric)
    assert not made


def test_contexts_of_several_threads_leave_the_compiler_as_it_was():
    compiled = torch.compile(lambda x: torch.compiler.is_compiling() * x, backend="eager")
    assert compiled(torch.ones(())) == 1
    first, second = threading.Event(), threading.Event()

    def other():
        with uncompiled():
            first.set()
            second.wait(10)

    thread = threading.Thread(target=other)
    with uncompiled():
        thread.start()
        assert first.wait(10)
        assert compiled(torch.ones(())) == 0
    second.set()
    thread.join()
    assert compiled(torch.ones(())) == 1
