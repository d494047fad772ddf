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
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
}


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
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model
