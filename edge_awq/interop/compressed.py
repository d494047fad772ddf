"""compressed-tensors' layout ``pack-quantized`` with 4-bit integers, as llm-compressor writes it.

    weight_packed int32 [N, K/8], eight inputs in a word; weight_scale [N, K/g]; weight_shape int64 [2] = N, K;
    weight_zero_point int32 [N/8, K/g], eight outputs in a word, where the scheme has zero points; weight_g_idx [K]

Values are signed and stored 8 higher, so the nibbles are unsigned values as ours; so are zero points.
Source: compressed_tensors/compressors/pack_quantized of compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.interop.gptq import in_groups
from edge_awq.interop.linear import (
    ORIGINAL,
    Layout,
    Shape,
    UnpackedLinear,
    check_bits,
    check_group_size,
    check_table,
    exact_half,
    groups_of,
    unpack_words,
)

FORMAT = "pack-quantized"
MIDDLE = 8  # the zero point of every symmetric group


@dataclass(frozen=True)
class PackQuantized:
    """Eight neighbouring inputs in a word, in their order."""

    group_size: int
    symmetric: bool
    name: ClassVar[str] = "compressed-tensors pack-quantized"
    marker: ClassVar[str] = "weight_packed"
    optional: ClassVar[tuple[str, ...]] = ("weight_g_idx",)

    def size(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(N, K)."""
        rows, words = shapes["weight_packed"]
        return rows, words * 8

    def shapes(self, rows: int, inputs: int) -> dict[str, Shape]:
        """Shape of every part."""
        groups = groups_of(inputs, self.group_size)
        zeros = {} if self.symmetric else {"weight_zero_point": (-(-rows // 8), groups)}
        return {"weight_packed": (rows, inputs // 8), "weight_scale": (rows, groups), "weight_shape": (2,), **zeros,
                "weight_g_idx": (inputs,)}

    def unpack(self, module: str, parts: Mapping[str, torch.Tensor]) -> UnpackedLinear:
        """The linear; with act-order its columns are sorted by group."""
        q = unpack_words(parts["weight_packed"])
        if parts["weight_shape"].tolist() != list(q.shape):
            raise EdgeAwqError(f"tensor '{module}.weight_shape' says {parts['weight_shape'].tolist()}, but "
                               f"weight_packed holds {list(q.shape)}", hint="download the checkpoint again")
        scales = exact_half(f"{module}.weight_scale", parts["weight_scale"])
        zeros = torch.full(scales.shape, MIDDLE, dtype=torch.uint8)
        if not self.symmetric:
            zeros = unpack_words(parts["weight_zero_point"].T.contiguous())[:, : len(q)].T.contiguous()
        linear = UnpackedLinear(q, scales, zeros)
        g_idx = parts.get("weight_g_idx")
        return linear if g_idx is None else in_groups(f"{module}.weight_g_idx", linear, g_idx)


def read_config(config: Mapping[str, Any]) -> Layout:
    """The layout that a compressed-tensors quantization_config describes.

    Raises:
        EdgeAwqError: it is one that we do not read.
    """
    where = "quantization_config: compressed-tensors"
    groups = check_table(f"{where}: config_groups", config.get("config_groups"))
    layouts = {name: _read_group(f"{where}, {name}", check_table(f"{where}: {name}", group), config.get("format"))
               for name, group in groups.items()}
    if config.get("transform_config"):
        raise EdgeAwqError(f"{where}: weights are transformed (transform_config)", hint=ORIGINAL)
    if not layouts:
        raise EdgeAwqError(f"{where}: no config_groups", hint="download config.json again")
    first, *others = layouts.values()
    if any(other != first for other in others):
        raise EdgeAwqError(f"{where}: {', '.join(layouts)} differ in group size or symmetry", hint=ORIGINAL)
    return first


def _read_group(where: str, group: Mapping[str, Any], default_format: object) -> PackQuantized:
    weights = check_table(f"{where}: weights", group.get("weights"))
    check_bits(where, weights.get("num_bits"))
    form = group.get("format") or default_format
    if form != FORMAT or weights.get("type", "int") != "int":
        raise EdgeAwqError(f"{where}: format '{form}' of type '{weights.get('type')}' is not read",
                           hint=f"read: {FORMAT} of type int; or {ORIGINAL}")
    if group.get("input_activations"):
        raise EdgeAwqError(f"{where}: activations are quantized too, which W4A16 kernels do not do", hint=ORIGINAL)
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise EdgeAwqError(f"{where}: strategy '{strategy}' is not read", hint=f"read: group, channel; or {ORIGINAL}")
    group_size = -1 if strategy == "channel" else weights.get("group_size")
    return PackQuantized(check_group_size(where, group_size), bool(weights.get("symmetric", True)))
