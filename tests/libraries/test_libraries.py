"""Models of other libraries, small and random: every attention found, the numbers right, heads cut exactly.

Run where the libraries are installed (`pip install -e ".[libraries]"`); each is skipped where it is not.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.sites import Anatomy
from headscope.surgery import prune
from headscope.watching.observation import capture

Made = tuple[nn.Module, dict[str, Any]]
_PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))


def _timm(name: str, **settings: Any) -> Made:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    return timm.create_model(name, num_classes=5, **settings), {"x": _PIXELS}


def _timm_vit() -> Made:
    return _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4)


def _timm_deit() -> Made:
    return _timm("deit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4)


def _timm_swin() -> Made:
    return _timm(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 4),
        window_size=4,
    )  # fmt: skip


def _timm_eva() -> Made:
    return _timm("eva02_tiny_patch14_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4)


def _timm_cait() -> Made:
    return _timm("cait_xxs24_224", img_size=32, patch_size=8, depth=1, embed_dim=48, num_heads=4, depth_token_only=1)


def _vit_pytorch() -> Made:
    library = pytest.importorskip("vit_pytorch", exc_type=ImportError)
    model = library.ViT(image_size=32, patch_size=8, num_classes=5, dim=48, depth=2, heads=4, mlp_dim=64, dim_head=12)
    return model, {"img": _PIXELS}


def _vit_pytorch_simple() -> Made:
    library = pytest.importorskip("vit_pytorch", exc_type=ImportError)
    model = library.SimpleViT(image_size=32, patch_size=8, num_classes=5, dim=48, depth=2, heads=4, mlp_dim=64)
    return model, {"img": _PIXELS}


def _x_transformers(kind: str, **settings: Any) -> Made:
    library = pytest.importorskip("x_transformers", exc_type=ImportError)
    layers = getattr(library, kind)(dim=48, depth=2, heads=4, attn_dim_head=12, **settings)
    return library.TransformerWrapper(num_tokens=60, max_seq_len=32, attn_layers=layers), {"x": _IDS}


def _x_encoder() -> Made:
    return _x_transformers("Encoder")


def _x_decoder() -> Made:
    return _x_transformers("Decoder", rotary_pos_emb=True)


def _x_flash() -> Made:
    return _x_transformers("Decoder", attn_flash=True)


def _x_grouped() -> Made:
    return _x_transformers("Decoder", attn_kv_heads=2)


def _torchvision_vit() -> Made:
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    model = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)  # zero when it is new
    return model, {"x": _PIXELS}


def _torchvision_swin() -> Made:
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    model = models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[1, 1], num_heads=[2, 4], window_size=[4, 4], num_classes=5
    )
    return model, {"x": _PIXELS}


def _open_clip() -> Made:
    library = pytest.importorskip("open_clip", exc_type=(ImportError, RuntimeError))
    vision = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 9, "vocab_size": 60, "width": 48, "heads": 4, "layers": 2}
    return library.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text), {"image": _PIXELS, "text": _IDS}


# by name: what builds it, and its layers
MODELS: dict[str, tuple[Callable[[], Made], int]] = {
    "timm ViT": (_timm_vit, 2),
    "timm DeiT": (_timm_deit, 2),
    "timm Swin": (_timm_swin, 2),
    "timm EVA-02": (_timm_eva, 2),
    "vit-pytorch ViT": (_vit_pytorch, 2),
    "vit-pytorch SimpleViT": (_vit_pytorch_simple, 2),
    "x-transformers encoder": (_x_encoder, 2),
    "x-transformers decoder": (_x_decoder, 2),
    "x-transformers flash": (_x_flash, 2),
    "x-transformers grouped": (_x_grouped, 2),
    "torchvision ViT": (_torchvision_vit, 2),
    "torchvision Swin": (_torchvision_swin, 2),
    "open_clip": (_open_clip, 4),
}


def _first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, dict) else list(output)
    return torch.cat([_first(value) for value in values if isinstance(value, Tensor) and value.ndim > 1], dim=-1)


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Any], Anatomy]:
    build, layers = MODELS[request.param]
    torch.manual_seed(0)
    model, example = build()
    model.eval()
    anatomy = discover(model, example)
    assert len(anatomy.sites) == layers
    assert not [remark for remark in anatomy.remarks if "not read" in remark]
    return model, example, anatomy


def test_every_attention_is_read_right_and_nothing_changes(
    made: tuple[nn.Module, dict[str, Any], Anatomy],
) -> None:
    model, example, anatomy = made
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(site.output.module).register_forward_hook(
            lambda module, args, out, name=site.output.module: outs.update({name: out})
        )
        for site in anatomy.sites
        if site.output is not None and site.output.is_module and not site.output.module.endswith("out_proj")
    ]
    with torch.no_grad():
        alone = _first(model(**example))
        with capture(model, ("q", "k", "v", "pattern", "z", "contribution"), anatomy=anatomy) as seen:
            watched = _first(model(**example))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(watched, alone, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for site in anatomy.sites:
        own = seen[site.layer]
        v = own.v[:, list(site.kv_of_query)]
        torch.testing.assert_close(own.pattern @ v, own.z, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(own.pattern.sum(-1), torch.ones_like(own.pattern.sum(-1)))
        if site.output is not None and site.output.module in outs:
            bias = model.get_submodule(site.output.module).bias
            total = own.contribution.sum(1) + (0 if bias is None else bias)
            torch.testing.assert_close(total.flatten(), outs[site.output.module].flatten(), atol=1e-5, rtol=1e-4)


def test_talking_heads_are_named_and_not_read() -> None:
    model, example = _timm_cait()
    anatomy = discover(model.eval(), example)
    assert [site.module_name for site in anatomy.sites] == ["blocks_token_only.0.attn"]
    assert any(
        "blocks.0.attn (TalkingHeadAttn) looks like attention, but its scores are mixed before" in one
        for one in anatomy.remarks
    )


def test_a_head_is_cut_exactly(made: tuple[nn.Module, dict[str, Any], Anatomy]) -> None:
    model, example, anatomy = made
    heads = [f"L{anatomy.sites[-1].layer}H1"]
    with torch.no_grad(), ablate(model, heads, anatomy=anatomy):
        want = _first(model(**example))
    assert not torch.allclose(want, _first(model(**example)))
    smaller = prune(model, heads, anatomy=anatomy, example=example)
    with torch.no_grad():
        torch.testing.assert_close(_first(smaller(**example)), want, atol=1e-5, rtol=1e-4)
    assert discover(smaller, example).n_heads == anatomy.n_heads - 1
