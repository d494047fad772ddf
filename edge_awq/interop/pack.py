"""Integers into other tools' layouts: what autoawq.py and compressed.py unpack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_awq.interop.autoawq import ORDER, Gemm
from edge_awq.interop.compressed import FORMAT, PackQuantized
from edge_awq.interop.linear import Layout, UnpackedLinear


@dataclass(frozen=True)
class Writer:
    """How a checkpoint is written.

    Attributes:
        layout: reads back what ``pack`` writes.
        pack: linear -> its tensors by part; N divides by ``row_step``.
        config: modules that stay 16 bits wide -> the quantization_config.
    """

    layout: Layout
    pack: Callable[[UnpackedLinear], dict[str, torch.Tensor]]
    config: Callable[[Sequence[str]], dict[str, Any]]
    row_step: int


def pack_words(values: torch.Tensor, order: Sequence[int] = range(8)) -> torch.Tensor:
    """uint8 [R, 8 C] of values below 16 -> int32 [R, C]; the i-th lowest nibble of a word is its element order[i]."""
    ordered = values.unflatten(1, (-1, 8))[:, :, list(order)].long()
    words = (ordered << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words < 1 << 31, words, words - (1 << 32)).int()


def autoawq(group_size: int, symmetric: bool) -> Writer:
    """AutoAWQ's GEMM layout, which always has zero points."""

    def pack(linear: UnpackedLinear) -> dict[str, torch.Tensor]:
        return {"qweight": pack_words(linear.q.T, ORDER), "qzeros": pack_words(linear.zero_points.T, ORDER),
                "scales": linear.scales.T.contiguous()}

    def config(kept: Sequence[str]) -> dict[str, Any]:
        return {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm",
                "modules_to_not_convert": list(kept)}

    return Writer(Gemm(group_size), pack, config, row_step=8)


def compressed_tensors(group_size: int, symmetric: bool) -> Writer:
    """compressed-tensors, pack-quantized; without zero points where all of them are the middle."""

    def pack(linear: UnpackedLinear) -> dict[str, torch.Tensor]:
        parts = {"weight_packed": pack_words(linear.q), "weight_scale": linear.scales,
                 "weight_shape": torch.tensor(linear.q.shape)}
        if symmetric:
            return parts
        missing = -len(linear.zero_points) % 8
        padded = torch.nn.functional.pad(linear.zero_points, (0, 0, 0, missing))
        return parts | {"weight_zero_point": pack_words(padded.T).T.contiguous()}

    def config(kept: Sequence[str]) -> dict[str, Any]:
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size, "symmetric": symmetric,
                   "dynamic": False, "actorder": None, "observer": "minmax"}
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {"quant_method": "compressed-tensors", "format": FORMAT, "quantization_status": "compressed",
                "config_groups": {"group_0": scheme}, "ignore": list(kept), "kv_cache_scheme": None}

    return Writer(PackQuantized(group_size, symmetric), pack, config, row_step=1)


WRITERS: Mapping[str, Callable[[int, bool], Writer]] = {
    "autoawq": autoawq,
    "compressed-tensors": compressed_tensors,
}
