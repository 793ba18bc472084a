"""What tests of capture share: inputs with padding on either side, and hooks by hand beside what was captured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.sites import Anatomy, Site
from headscope.watching.observation import Seen, capture
from tests.models import FACTORIES, make_batches

__all__ = ["ALL", "HUGGING_FACE", "NAMES", "Hooks", "close", "counted", "make_inputs", "spread", "watched"]

ALL = ("q", "k", "v", "pattern", "z", "bias", "gated_z", "contribution", "written")
NAMES = [*FACTORIES, "fused nanogpt"]
HUGGING_FACE = ["gpt2", "llama", "bert", "gemma3"]


def make_inputs(name: str, side: str = "right") -> dict[str, Tensor]:
    batch = make_batches(name.split()[-1], 1, padded=side != "none")[0]
    batch.pop("document")
    if side == "left" and "attention_mask" in batch:
        batch["attention_mask"] = batch["attention_mask"].flip(1)
    return batch


def counted(inputs: dict[str, Tensor]) -> Tensor:
    """Which positions count, (batch, position)."""
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()


class Hooks:
    """What enters and leaves each site's output projection, by hooks of our own, in order of the calls."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.entered: dict[str, list[Tensor]] = {}
        self.left: dict[str, list[Tensor]] = {}
        self._handles = []
        for name in {site.output.module for site in anatomy.sites if site.output is not None}:
            self._handles.append(model.get_submodule(name).register_forward_hook(self._note(name)))

    def _note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.entered.setdefault(name, []).append(args[0].detach().clone())
            self.left.setdefault(name, []).append(out.detach().clone())

        return hook

    def of(self, site: Site) -> tuple[Tensor, Tensor]:
        assert site.output is not None
        return self.entered[site.output.module][site.call], self.left[site.output.module][site.call]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def watched(
    model: nn.Module, inputs: dict[str, Tensor], want: tuple[str, ...] = ALL
) -> tuple[Anatomy, Seen, Hooks, Tensor]:
    anatomy = discover(model, {"input_ids": inputs["input_ids"][:2, :7]} if not hasattr(model, "config") else None)
    hooks = Hooks(model, anatomy)
    with torch.no_grad(), capture(model, want, anatomy=anatomy) as seen:
        out = model(**inputs)
    hooks.close()
    return anatomy, seen, hooks, out if isinstance(out, Tensor) else out[0]


def spread(site: Site, tensors: Tensor) -> Tensor:
    """Key heads repeated for the query heads that read them."""
    return tensors[:, list(site.kv_of_query)]


def close(got: Tensor, want: Tensor, rows: Tensor | None = None, tolerance: float = 1e-5) -> None:
    """Equal to 1e-5; of (batch, head, position, …) only at the positions that count."""
    if rows is not None:
        got, want = got.transpose(1, 2)[rows], want.transpose(1, 2)[rows]
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
