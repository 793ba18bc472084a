"""Sizes of a tiny model by the names of a config's fields; no rule knows a model type."""

import re
import zlib
from dataclasses import dataclass
from typing import Any

__all__ = [
    "HEADS",
    "HEAD_DIM",
    "INNER",
    "KV_HEADS",
    "LAYERS",
    "PATCH",
    "PICTURE",
    "VOCABULARY",
    "WIDTH",
    "kind_of",
    "size_of",
]

WIDTH, INNER, SMALL = 64, 96, 32
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 16
VOCABULARY, POSITIONS, PICTURE, PATCH = 120, 256, 32, 8

# what a field is, with its size and the names that are known; (kind, size, names)
_KINDS: tuple[tuple[str, int, str], ...] = (
    ("width", WIDTH, """
        hidden_size d_model n_embd dim embedding_size embed_dim emb_dim n_embed d_embed embedding_dim model_dim
        word_embed_proj_dim projection_dim out_hidden_size output_hidden_size output_channels output_proj_dims
        vector_quantization_hidden_dimension ext_pw_out_channel depthwise_separable_out_channel
        encoder_hidden_size encoder_hidden_dim decoder_hidden_size decoder_hidden_dim cross_attention_dim
        text_hidden_size text_embed_dim text_dim hidden_dim_text text_config_hidden_size image_embed_dim
        vision_hidden_size vision_dim vision_embedding_dim vision_output_dim audio_hidden_size mm_hidden_size
        llm_hidden_size fusion_hidden_size projector_hidden_size adapter_hidden_size tower_hidden_size
        backbone_hidden_size qformer_hidden_size neck_hidden_size fpn_hidden_size classifier_proj_size
        pooler_output_size memory_encoder_hidden_size memory_attention_hidden_size mask_decoder_hidden_size
        speaker_embedding_dim proj_codevector_dim codevector_dim mamba_d_ssm upsample_groups d_latents
        bottleneck_features vector_quantization_hidden_dimension ext_pw_out_channel
        nemo_conv_channels depthwise_separable_out_channel hidden_size_global"""),
    ("half width", WIDTH // 2, "num_pos_feats"),  # of a place, down and across
    ("inner width", INNER, """
        intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff ffn_hidden_size mlp_dim d_inner
        shared_intermediate_size ffn_intermediate_size decoder_intermediate_size dim_feedforward pooler_hidden_size
        feed_forward_size block_ff_dim"""),
    ("rank", SMALL, """
        moe_intermediate_size moe_ffn_hidden_size shared_expert_intermediate_size expert_ffn_hidden_size
        expert_hidden_size moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank o_lora_rank lora_rank
        mamba_d_state ssm_state_size base_channels"""),
    ("layers", LAYERS, """
        num_hidden_layers n_layer n_layers num_layers layers depth num_hidden_groups encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers resampler_depth
        num_blocks memory_attention_num_layers speech_encoder_layers speech_decoder_layers text_encoder_layers
        lstm_layers generator_layers num_registers fuse_layers num_self_attends_per_block"""),
    ("heads", HEADS, """
        num_attention_heads n_head n_heads num_heads attention_heads num_attn_heads encoder_attention_heads
        decoder_attention_heads encoder_num_attention_heads decoder_num_attention_heads text_num_attention_heads
        speech_encoder_attention_heads resampler_n_heads cross_num_attention_heads memory_attention_num_attention_heads
        index_n_heads adapter_num_heads num_attention_heads_vision linear_num_key_heads linear_num_value_heads
        mamba_n_heads mamba_num_heads"""),
    ("kv heads", KV_HEADS, """
        num_key_value_heads num_kv_heads n_head_kv kv_n_heads encoder_num_key_value_heads decoder_num_key_value_heads
        resampler_num_key_value_heads multi_query_group_num"""),
    ("head width", HEAD_DIM, """
        head_dim d_kv kv_channels global_head_dim attention_head_dim v_head_dim qk_nope_head_dim linear_key_head_dim
        linear_value_head_dim index_head_dim mamba_d_head mamba_head_dim resampler_head_dim"""),
    ("rotated width", 8, "rotary_dim qk_rope_head_dim"),
    ("vocabulary", VOCABULARY, """
        vocab_size text_vocab_size decoder_vocab_size encoder_vocab_size audio_vocab_size vocab_size_per_layer_input
        entity_vocab_size"""),
    ("table", 128, "codebook_size"),
    ("table", 100, "num_embeddings"),  # of codes that are tokens of the text too
    ("table", 50, "encoder_hash_byte_group_vocab"),
    ("positions", POSITIONS, """
        max_position_embeddings n_positions max_source_positions max_target_positions max_seq_len max_sequence_length
        max_seq_length n_ctx context_len max_2d_position_embeddings relative_attention_max_distance
        original_max_position_embeddings"""),
    ("experts", 4, """
        num_experts num_local_experts n_routed_experts num_routed_experts moe_num_experts"""),
    ("experts", 2, """
        num_experts_per_tok num_experts_per_token experts_per_token num_experts_per_group moe_topk moe_k
        moe_num_shared_experts"""),
    ("groups", 1, """
        n_group topk_group n_groups mamba_n_groups first_k_dense_replace decoder_sparse_step attn_layer_offset
        n_layers_per_attn_res_block insert_layer_id loop_layer_index_start"""),
    ("groups", 2, """
        attn_layer_period expert_layer_period full_attention_interval cross_attention_freq loop_layer_index_end"""),
    ("picture", PICTURE, """
        image_size img_size pretrain_image_size input_image_size crop_size max_img_size"""),
    ("flat patch", 3 * PATCH**2, "patch_embed_hidden_size"),
    ("patch", PATCH, "patch_size index_block_size prediction_length num_filters"),
    ("box", 12, "coordinate_size"),  # four of these and two of those are as wide as the model
    ("box", 8, "shape_size"),
    ("few", 4, "index_topk mm_tokens_per_image visual_prompt_size"),
    ("several", 16, """
        num_queries num_latents latent_query_num num_position_embeddings hidden_size_per_layer_input entity_emb_size
        part_features"""),
    ("token", 0, "pad_token_id"),
    ("token", 1, "bos_token_id decoder_start_token_id"),
    ("token", 2, "eos_token_id"),
)  # fmt: skip
_KNOWN = {name: (kind, size) for kind, size, names in _KINDS for name in names.split()}
# fields that a tiny model needs a size of though the default has none
_NEEDED = {
    "num_key_value_heads", "head_dim", "vocab_size", "num_experts", "num_experts_per_tok", "n_routed_experts",
    "moe_intermediate_size", "prediction_length",
}  # fmt: skip
# tokens that stand for something that is no text, apart from each other and from the text's own
_STAND_INS = {
    "image_token_id": 110, "image_token_index": 110, "image_patch_id": 110, "video_token_id": 111,
    "video_token_index": 111,
    "audio_token_id": 112, "audio_token_index": 112,
}  # fmt: skip
_TOKENS = ("_token_id", "_token_index", "_token_idx")
_FIRST_SPARE, _SPARE = 100, 9  # ids for further tokens, between the text's and the stand-ins


@dataclass(frozen=True)
class _Pattern:
    """Fields with further names: those that are at least so large."""

    kind: str
    size: int
    least: int
    names: str
    but: str = r"$^"

    def fits(self, name: str, value: int) -> bool:
        return value >= self.least and bool(re.search(self.names, name)) and not re.search(self.but, name)


_PATTERNS = (
    _Pattern("heads", HEADS, 8, r"num_(attention_|attn_)?heads$|attention_heads$|n_heads$", r"linear|mamba"),
    _Pattern("kv heads", KV_HEADS, 2, r"num_(key_value|kv)_heads$"),
    _Pattern("head width", HEAD_DIM, 32, r"(^|_)head_dim$", r"linear"),
    _Pattern("layers", LAYERS, 3, r"num_(hidden_)?layers$|_layers$", r"per|shared"),
    _Pattern(
        "width",
        WIDTH,
        128,
        r"(hidden_size|hidden_dim|embed_dim|embedding_size|_dim|latent_channels)$",
        r"intermediate|^(qk|v_|q_|kv)|feat_dim$",
    ),
    _Pattern("positions", INNER, 512, r"^max_length$"),  # frames of sound
    _Pattern("inner width", INNER, 128, r"(intermediate_size|ffn_dim|intermediate_dim|ff_dim)$"),
)


def size_of(name: str, value: Any) -> int | None:
    """What a field of a config is set to in a tiny model; None where it stays as it is.

    Args:
        name: of the field.
        value: its default; numbers that are switched off (0) stay so.

    >>> size_of("hidden_size", 4096), size_of("hidden_size", 0), size_of("num_kv_heads", 8), size_of("lr", 3)
    (64, None, 2, None)
    """
    if value is not None and type(value) is not int:
        return None
    if name in _KNOWN:
        off = (value is None and name not in _NEEDED) or (value == 0 and "token" not in name)
        return None if off else _KNOWN[name][1]
    if name in _STAND_INS:
        return _STAND_INS[name]
    if value is None:
        return None
    if name.endswith(_TOKENS) and value >= VOCABULARY - 10:
        return _FIRST_SPARE + zlib.crc32(name.encode()) % _SPARE
    return next((pattern.size for pattern in _PATTERNS if pattern.fits(name, value)), None)


def kind_of(name: str) -> str:
    """What a field with a known name is of: "width", "inner width", "heads", "kv heads", "layers" …; "" for others."""
    return _KNOWN.get(name, ("", 0))[0]
