#!/usr/bin/env python3
"""The benchmark's model in the formats of the peers, each made by the peer's own tools.

Run by bench_cpu.py with the interpreter that has these tools:  bench_models.py gguf|genai CHECKPOINT OUT
Free of edge_awq and torch, which that environment may lack.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Module in a checkpoint -> tensor in a GGUF file. Rows of q and k are not reordered to llama.cpp's rotary pairing:
# the weights are random, so only the answer would differ, not the speed.
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of tokens in a GGUF vocabulary


def write_gguf_q4_0(checkpoint: Path, out: Path) -> None:
    """A Q4_0 file by llama.cpp's own quantizer, which gives the head Q6_K."""
    import llama_cpp

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        half, whole = Path(folder) / "f16.gguf", Path(folder) / "q4_0.gguf"
        write_gguf_f16(checkpoint, half)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        if llama_cpp.llama_model_quantize(str(half).encode(), str(whole).encode(), ctypes.byref(params)) != 0:
            raise SystemExit("llama.cpp could not quantize the model")
        whole.rename(out)


def write_gguf_f16(checkpoint: Path, out: Path) -> None:
    """All tensors as float16, norms as float32, one tensor in memory at a time."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, config["vocab_size"])
    for name, values in stored_tensors(checkpoint):
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, values in stored_tensors(checkpoint):
        writer.write_tensor_data(values)
    writer.close()


def _add_vocabulary(writer: object, size: int) -> None:
    """Names for every token, in SentencePiece's manner; the benchmark feeds ids and never reads text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    kinds += [NORMAL] * (size - len(names))
    names += [f"token{number}" for number in range(len(names), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def stored_tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF name and values of every tensor, in a fixed order; matrices float16, norms float32."""
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
            for name in sorted(set(header) - {"__metadata__"}):
                entry = header[name]
                first, last = entry["data_offsets"]
                file.seek(start + first)
                bits = np.frombuffer(file.read(last - first), np.uint16).astype(np.uint32)  # bfloat16
                values = (bits << 16).view(np.float32).reshape(entry["shape"])
                yield gguf_name(name), values if values.ndim == 1 else values.astype(np.float16)


def gguf_name(name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` -> ``blk.3.attn_q.weight``."""
    module, kind = name.rsplit(".", 1)
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    _, _, block, rest = module.split(".", 3)
    return f"blk.{block}.{BLOCK[rest]}.{kind}"


def write_genai_int4(checkpoint: Path, out: Path) -> None:
    """What the model builder of onnxruntime-genai makes by default for int4 on a CPU: symmetric, groups of 32."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / "model"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", made,
                   "-p", "int4", "-e", "cpu", "-c", Path(folder) / "cache"]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("onnxruntime-genai's model builder failed; it needs torch, transformers and onnx_ir")
        made.rename(out)


if __name__ == "__main__":
    {"gguf": write_gguf_q4_0, "genai": write_genai_int4}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
