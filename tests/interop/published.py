"""Quantized checkpoints as other tools write them: from the published layouts alone, in plain numpy.

Sources: awq/modules/linear of AutoAWQ, awq/quantize/qmodule.py of llm-awq, auto_gptq/nn_modules/qlinear of AutoGPTQ.
Nothing here uses edge_awq, so that it is an oracle for edge_awq.interop.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stored import Quantized, quantize

NATURAL = (0, 1, 2, 3, 4, 5, 6, 7)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = dict[str, np.ndarray]


def words(values: np.ndarray, order: tuple[int, ...] = NATURAL) -> np.ndarray:
    """[R, 8 C] values below 16 -> int32 [R, C]; nibble i of a word is its value order[i]."""
    found = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for nibble, place in enumerate(order):
        found |= values[:, place::8].astype(np.uint32) << np.uint32(4 * nibble)
    return found.view(np.int32)


def gemm(linear: Quantized) -> Parts:
    """AutoAWQ's WQLinear_GEMM: everything transposed, eight outputs in a word."""
    return {"qweight": words(linear.q.T, AWQ_ORDER), "qzeros": words(linear.zero.T, AWQ_ORDER),
            "scales": np.ascontiguousarray(linear.scale.T)}


def gemv(linear: Quantized) -> Parts:
    """AutoAWQ's WQLinear_GEMV, and llm-awq's first row-major files: eight inputs in a word, scales padded."""
    padded = _padded(linear)
    zero, scale = (np.pad(part, [(0, 0), (0, padded - part.shape[1])]) for part in (linear.zero, linear.scale))
    return {"qweight": words(linear.q), "qzeros": words(zero), "scales": scale}


def _padded(linear: Quantized) -> int:
    """Groups of a row, padded to words of eight, and to 128 / g words."""
    size = linear.q.shape[1] // linear.scale.shape[1]
    step = 8 * max(1, 128 // size)
    return -(-linear.scale.shape[1] // step) * step


def interleaved(linear: Quantized, zeros: str = "scaled_zeros") -> Parts:
    """llm-awq's second files: four rows in turn every 64 inputs, a block of 32 inputs shuffled; zeros times scale."""
    pairs = [2 * pair + 8 * eight + one for pair in range(4) for eight in range(4) for one in range(2)]
    shuffled = [pairs[8 * (place // 8) + AWQ_ORDER[place % 8]] for place in range(32)]
    rows, inputs = linear.q.shape
    q = linear.q.reshape(rows, inputs // 32, 32)[:, :, shuffled].reshape(rows, inputs)
    found = np.zeros((rows // 4, inputs), np.uint16)
    for row in range(rows // 4):
        nibbles = np.concatenate([q[4 * row + turn, start : start + 64]
                                  for start in range(0, inputs, 64) for turn in range(4)])
        for place in range(4):
            found[row] |= nibbles[place::4].astype(np.uint16) << np.uint16(4 * place)
    pad = [(0, 0), (0, _padded(linear) - linear.scale.shape[1])]
    scaled = -(linear.scale.astype(np.float32) * linear.zero).astype(np.float16)
    return {"qweight": found.view(np.int16), "scales": np.ascontiguousarray(np.pad(linear.scale, pad).T),
            zeros: np.ascontiguousarray(np.pad(scaled, pad).T)}


def gptq(linear: Quantized, less: int = 1, order: np.ndarray | None = None) -> Parts:
    """AutoGPTQ's QuantLinear; ``less`` 1: version 1; ``order`` [K]: column k of linear.q belongs to input order[k]."""
    inputs = linear.q.shape[1]
    group = np.arange(inputs) // (inputs // linear.scale.shape[1])
    q, g_idx = linear.q, group.astype(np.int32)
    if order is not None:
        q, g_idx = np.empty_like(q), np.empty_like(g_idx)
        q[:, order], g_idx[order] = linear.q, group
    return {"qweight": np.ascontiguousarray(words(q).T), "qzeros": words((linear.zero - less).T.astype(np.uint8)),
            "scales": np.ascontiguousarray(linear.scale.T), "g_idx": g_idx}


@dataclass(frozen=True)
class Format:
    """How a tool's checkpoint differs from the float one: parts of a linear, and what config.json says."""

    parts: Callable[[Quantized], Parts]
    config: Callable[[int], dict[str, Any] | None]


def _awq(version: str) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": version}


def _gptq(version: str) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"quant_method": "gptq", "bits": 4, "group_size": size, "desc_act": False, "sym": False,
                         "checkpoint_format": version}


FORMATS = {
    "autoawq-gemm": Format(gemm, _awq("gemm")),
    "autoawq-gemv": Format(gemv, _awq("gemv")),
    "autoawq-gemv-fast": Format(lambda linear: interleaved(linear, "qzeros"), _awq("gemv_fast")),
    "llm-awq-v1": Format(gemv, lambda size: None),
    "llm-awq-v1-first": Format(gemm, lambda size: None),
    "llm-awq-v2": Format(interleaved, lambda size: None),
    "gptq": Format(gptq, _gptq("gptq")),
    "gptq-v2": Format(lambda linear: gptq(linear, 0), _gptq("gptq_v2")),
}


def round_linear(weight: torch.Tensor, group_size: int) -> Quantized:
    """A float weight rounded; zero points are at least 1, as GPTQ's first version can hold no other."""
    linear = quantize(weight.numpy(), group_size)
    return Quantized(linear.q, linear.scale, np.maximum(linear.zero, 1))


def write_checkpoint(folder: Path, kind: Format, group_size: int, head: bool = False) -> dict[str, Quantized]:
    """Quantize the linears of the float checkpoint in ``folder`` in place; returns them by module."""
    tensors = load_file(folder / "model.safetensors")
    linears = {name.removesuffix(".weight"): round_linear(tensor.float(), group_size)
               for name, tensor in tensors.items()
               if name.endswith("_proj.weight") or (head and name == "lm_head.weight")}
    for module, linear in linears.items():
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.{part}": torch.from_numpy(array) for part, array in kind.parts(linear).items()}
    save(folder, tensors, kind.config(group_size))
    return linears


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None) -> None:
    """Write the tensors, and into config.json what it says about quantization."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    table = json.loads((folder / "config.json").read_text())
    table.pop("quantization_config", None)
    table |= {"quantization_config": config} if config else {}
    (folder / "config.json").write_text(json.dumps(table))
