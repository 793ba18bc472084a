"""Text from a cut model: the model itself, or one with a head for text of the same config, where it has none."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from headscope.anatomy import discover
from headscope.anatomy.examples import make_example
from headscope.anatomy.uncuttable import torn
from headscope.effects.ablation import ablate
from headscope.heads import HeadId
from headscope.sites import Anatomy
from headscope.studies.families.building import shake
from headscope.surgery import prune

__all__ = ["generated_text", "with_head_for_text"]

_TOKENS = 3
_NOT_FOR_TEXT = ("use_cache", "decoder_input_ids", "labels")
_MAPPINGS = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")


def generated_text(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """A few tokens that a model adds to each row of an input, the likeliest each time.

    Args:
        model: one that can.
        inputs: arguments of its forward.
    """
    taken = {name: value for name, value in inputs.items() if name not in _NOT_FOR_TEXT}
    if "encoder_hidden_states" in taken:
        taken["use_cache"] = False  # a decoder by itself may keep the keys of both its attentions in one place
    with torch.no_grad():
        made: Any = model.generate(**taken, max_new_tokens=_TOKENS, do_sample=False)  # type: ignore[operator]
    tokens: Tensor = getattr(made, "sequences", made)
    return tokens


def with_head_for_text(model: PreTrainedModel, seed: int = 0) -> str | None:
    """Whether a cut of the same model with a head for text generates what the masked one does: why not, or "".

    Args:
        model: a bare one.
        seed: of the weights.

    Returns:
        None where transformers maps its config to no class that generates.
    """
    mappings = (getattr(modeling_auto, name) for name in _MAPPINGS)
    name = next((own[model.config.model_type] for own in mappings if model.config.model_type in own), None)
    kind = getattr(transformers, name, None) if name else None
    if kind is None or not kind.can_generate():
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = kind._from_config(copy.deepcopy(model.config)).eval().float()
    shake(whole, seed)
    told = whole.generation_config
    if whole.config.is_encoder_decoder and told.decoder_start_token_id is None and told.bos_token_id is None:
        told.decoder_start_token_id = 0  # checkpoints say it, defaults do not
    inputs = make_example(whole)
    if "input_ids" not in inputs:
        return None
    anatomy = discover(whole, inputs)
    heads = _one_of_each_layer(anatomy)
    with ablate(whole, heads, anatomy=anatomy):
        want = generated_text(whole, inputs)
    made = generated_text(prune(whole, heads, anatomy=anatomy, example=inputs), inputs)
    return "" if torch.equal(made, want) else "a cut model generates other text than the masked one"


def _one_of_each_layer(anatomy: Anatomy) -> list[HeadId]:
    """The second head of every layer that may lose it."""
    able = [site.heads[1] for site in anatomy.sites if site.prunable and site.n_heads > 1]
    return able if not torn(anatomy, able) else able[-1:]
