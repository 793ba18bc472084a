"""Model types that stand for many: one for each way in which attention is laid out, and those that everybody knows."""

from collections.abc import Mapping

__all__ = ["MECHANISMS", "QUICK", "WELL_KNOWN"]

MECHANISMS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("bert", "distilbert", "modernbert"),
    "decoder": ("gpt2", "opt", "gptj"),
    "query heads that share keys": ("llama", "qwen2", "mistral"),
    "norms of q and k, head by head": ("qwen3", "stablelm"),
    "norms of q and k over all heads": ("olmo2",),
    "sliding windows beside full attention": ("gemma3_text",),
    "encoder and decoder": ("bart",),
    "encoder and decoder with a relative bias": ("t5",),
    "cross attention alone": ("blip_2_qformer",),
    "queries that are learnt": ("idefics2_perceiver",),
    "a picture": ("vit", "dinov2"),
    "a picture with a relative bias": ("beit", "swin"),
    "a picture in stages": ("segformer", "pvt"),
    "a picture and a text": ("clip", "llava", "blip"),
    "a video": ("videomae",),
    "sound": ("whisper", "wav2vec2", "audio-spectrogram-transformer"),
    "sound with a gated relative bias": ("wavlm",),
    "one module for all layers": ("albert", "zamba2"),
    "keys shared across layers": ("gemma3n_text",),
    "keys and values from a latent": ("deepseek_v3", "minicpm3"),
    "a gate before the output": ("qwen3_next",),
    "a sink in the softmax": ("gpt_oss",),
    "attention beside a recurrence": ("jamba", "bamba"),
    "experts": ("mixtral", "qwen3_moe"),
    "q, k and v in blocks of one layer": ("phi3", "gpt_bigcode"),
    "q, k and v of each head side by side": ("gpt_neox", "persimmon"),
    "written by hand": ("falcon", "bloom", "mpt", "mpnet", "gpt_neo"),
    "written by hand, with relative positions": ("deberta-v2", "xlnet", "roformer"),
    "sums of two maps": ("diffllama",),
    "a norm before the output": ("bitnet",),
    "of PyTorch": ("siglip_vision_model",),
    "not softmax(q·kᵀ)·v": ("longformer", "convbert", "mamba", "fnet"),
}
QUICK: tuple[str, ...] = tuple(name for names in MECHANISMS.values() for name in names)

WELL_KNOWN: Mapping[str, str] = {
    "bert": "BERT", "roberta": "RoBERTa", "distilbert": "DistilBERT", "deberta-v2": "DeBERTa-v2",
    "modernbert": "ModernBERT", "gpt2": "GPT-2", "gpt_neox": "GPT-NeoX", "opt": "OPT", "bloom": "BLOOM",
    "falcon": "Falcon", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen 2", "qwen3": "Qwen 3",
    "gemma3_text": "Gemma 3", "phi3": "Phi-3", "gpt_oss": "gpt-oss", "t5": "T5", "bart": "BART", "vit": "ViT",
    "clip": "CLIP", "whisper": "Whisper", "wav2vec2": "Wav2Vec2",
}  # fmt: skip
