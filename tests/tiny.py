"""Tiny random checkpoints, written by transformers itself: the oracle's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

BASE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,  # odd on purpose
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LONGROPE = {"rope_type": "longrope", "factor": 8.0, "rope_theta": 10000.0,
            "short_factor": [1.0 + i / 16 for i in range(16)], "long_factor": [2.0 + i / 4 for i in range(16)]}

# name -> (configuration class, what differs from BASE). One line per architecture that a family claims.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-linear-rope": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 1}),
    "tinyllama": ("LlamaConfig", {"num_attention_heads": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "mpt": ("MptConfig", {"num_attention_heads": 2, "max_seq_len": 256, "tie_word_embeddings": True}),
    "mpt-clipped": ("MptConfig", {"max_seq_len": 256, "attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.2}}),
    "mpt-112": ("MptConfig", {"hidden_size": 448, "num_hidden_layers": 1, "max_seq_len": 256}),
    "mpt-3-heads": ("MptConfig", {"hidden_size": 192, "num_attention_heads": 3, "max_seq_len": 256}),
    "falcon": ("FalconConfig", {"hidden_size": 320, "num_attention_heads": 5, "ffn_hidden_size": 256}),
    "falcon-71-heads": ("FalconConfig", {"hidden_size": 1136, "num_attention_heads": 71, "ffn_hidden_size": 64}),
    "falcon-biased": ("FalconConfig", {"bias": True, "tie_word_embeddings": True}),
    "falcon-40b": ("FalconConfig", {"new_decoder_architecture": True, "num_attention_heads": 8, "num_kv_heads": 2}),
    "falcon-11b": ("FalconConfig", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1,
                                    "num_kv_heads": 2}),
    "qwen3": ("Qwen3Config", {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "qwen3-window": ("Qwen3Config", {"head_dim": 32, "use_sliding_window": True, "sliding_window": 8,
                                     "max_window_layers": 1, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {"num_attention_heads": 8, "pad_token_id": 0}),
    "phi3-partial": ("Phi3Config", {"partial_rotary_factor": 0.5, "sliding_window": 8, "pad_token_id": 0}),
    "phi3-longrope": ("Phi3Config", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256,
                                     "pad_token_id": 0}),
    "gpt-neox": ("GPTNeoXConfig", {"num_attention_heads": 2}),
    "gpt-neox-sequential": ("GPTNeoXConfig", {"use_parallel_residual": False, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}),
    "opt": ("OPTConfig", {"ffn_dim": 192, "pad_token_id": 0, "tie_word_embeddings": True}),
    "opt-gelu": ("OPTConfig", {"ffn_dim": 256, "activation_function": "gelu", "pad_token_id": 0}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8,
                                "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
                                "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8,
                                    "num_hidden_layers": 3, "layer_types": [
                                        "sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma": ("GemmaConfig", {"head_dim": 64, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 8, "intermediate_size": 192, "num_attention_heads": 2,
                                        "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True, "num_attention_heads": 2}),
    "granite": ("GraniteConfig", {"num_attention_heads": 2, "num_key_value_heads": 1, "embedding_multiplier": 12.0,
                                  "attention_multiplier": 0.2, "residual_multiplier": 0.22, "logits_scaling": 6.0}),
    "granite4": ("GraniteMoeHybridConfig", {
        "num_attention_heads": 2, "shared_intermediate_size": 192, "num_local_experts": 0, "mamba_n_heads": 2,
        "layer_types": ["full_attention"] * 2, "position_embedding_type": "rope", "embedding_multiplier": 12.0,
        "attention_multiplier": 0.2, "residual_multiplier": 0.22, "logits_scaling": 6.0}),
    "helium": ("HeliumConfig", {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "ernie": ("Ernie4_5Config", {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1, "use_bias": True,
                                 "tie_word_embeddings": True}),
    "glm": ("GlmConfig", {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1, "pad_token_id": 0}),
    "glm4": ("Glm4Config", {"head_dim": 64, "pad_token_id": 0, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}}),
    "cohere": ("CohereConfig", {"num_attention_heads": 2, "logit_scale": 0.3, "tie_word_embeddings": True}),
    "cohere2": ("Cohere2Config", {"num_attention_heads": 2, "num_key_value_heads": 1, "logit_scale": 0.3,
                                  "sliding_window": 8, "tie_word_embeddings": True,
                                  "layer_types": ["sliding_attention", "full_attention"]}),
    "smollm3": ("SmolLM3Config", {"num_attention_heads": 2, "num_key_value_heads": 1, "no_rope_layer_interval": 2,
                                  "tie_word_embeddings": True, "pad_token_id": 0}),
    "olmo2": ("Olmo2Config", {"num_attention_heads": 2}),
    "olmo3": ("Olmo3Config", {
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                            "full_attention": {**YARN, "rope_theta": 500.0}}}),
    "exaone4": ("Exaone4Config", {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1,
                                  "sliding_window": None, "layer_types": ["full_attention"] * 2,
                                  "tie_word_embeddings": True}),
    "exaone4-hybrid": ("Exaone4Config", {"head_dim": 64, "sliding_window": 8, "sliding_window_pattern": 2}),
    "phi": ("PhiConfig", {"num_attention_heads": 2, "intermediate_size": 192}),
    "gptj": ("GPTJConfig", {"num_attention_heads": 2, "n_inner": 192, "rotary_dim": 24}),
    "nemotron": ("NemotronConfig", {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 192,
                                    "mlp_bias": True}),
    "arcee": ("ArceeConfig", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "gpt-bigcode": ("GPTBigCodeConfig", {"num_attention_heads": 2, "n_inner": 192, "tie_word_embeddings": True}),
    "seed-oss": ("SeedOssConfig", {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "ministral": ("MinistralConfig", {"head_dim": 64, "sliding_window": 8, "layer_types": [
        "full_attention", "sliding_attention"]}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
}
# Architectures whose hidden size divides into no groups, so that they are stored with 16 bits.
UNGROUPED = ("falcon-71-heads",)


def stored_gain_offset(model: transformers.PreTrainedModel) -> float:
    """1 where a stored gain w means 1 + w."""
    return float(model.config.model_type.startswith(("gemma", "nemotron")))


def make_tiny(
    folder: Path, architecture: str = "llama3", seed: int = 0, **changes: Any
) -> transformers.PreTrainedModel:
    """Write a random checkpoint of ``architecture`` into ``folder``; returns the float32 model that wrote it."""
    kind, differs = ARCHITECTURES[architecture]
    config = getattr(transformers, kind)(**{**BASE, **differs, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif parameter.ndim == 1:  # gains
                parameter.uniform_(0.5, 1.5).sub_(stored_gain_offset(model))
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model
