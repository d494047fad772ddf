"""AutoAWQ's layouts, and llm-awq's, from which they came.

    gemm                  qweight int32 [K, N/8], qzeros int32 [K/g, N/8], scales [K/g, N]; eight outputs in a word
    gemv, llm-awq v1      qweight int32 [N, K/8], qzeros int32 [N, w], scales [N, 8 w]; eight inputs in a word
    gemv_fast, llm-awq v2 qweight int16 [N/4, K], zeros and scales float16 [8 w, N]; zeros are -scale * zero point

w is K/g in words of eight, rounded up to whole words and to 128 / g of them; what is beyond K/g is padding.
Source: awq/modules/linear of AutoAWQ 0.2.9, awq/quantize/qmodule.py and tinychat/offline-weight-repacker.py of llm-awq.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.interop.linear import (
    GROUPS,
    ORIGINAL,
    Layout,
    Shape,
    UnpackedLinear,
    check_bits,
    check_group_size,
    exact_half,
    groups_of,
    unpack_words,
)

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs in a word of gemm, from the lowest nibble


def padded_words(inputs: int, group_size: int) -> int:
    """Words of eight zero points in a row of gemv."""
    step = 1 if group_size == -1 else max(1, 128 // group_size)
    words = -(-groups_of(inputs, group_size) // 8)
    return -(-words // step) * step


@dataclass(frozen=True)
class Gemm:
    """Eight neighbouring outputs in a word, in ORDER."""

    group_size: int
    name: str = "AutoAWQ GEMM"
    symmetric: ClassVar[bool] = False
    marker: ClassVar[str] = "qweight"
    optional: ClassVar[tuple[str, ...]] = ()

    def size(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(N, K)."""
        return shapes["scales"][1], shapes["qweight"][0]

    def shapes(self, rows: int, inputs: int) -> dict[str, Shape]:
        """Shape of every part."""
        groups, words = groups_of(inputs, self.group_size), -(-rows // 8)
        return {"qweight": (inputs, words), "qzeros": (groups, words), "scales": (groups, rows)}

    def unpack(self, module: str, parts: Mapping[str, torch.Tensor]) -> UnpackedLinear:
        """The linear."""
        rows = parts["scales"].shape[1]
        q, zeros = (unpack_words(parts[part], ORDER)[:, :rows] for part in ("qweight", "qzeros"))
        scales = exact_half(f"{module}.scales", parts["scales"])
        return UnpackedLinear(q.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous())


@dataclass(frozen=True)
class Gemv:
    """Eight neighbouring inputs in a word, in their order."""

    group_size: int
    name: str = "AutoAWQ GEMV"
    symmetric: ClassVar[bool] = False
    marker: ClassVar[str] = "qweight"
    optional: ClassVar[tuple[str, ...]] = ()

    def size(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(N, K)."""
        return shapes["scales"][0], shapes["qweight"][1] * 8

    def shapes(self, rows: int, inputs: int) -> dict[str, Shape]:
        """Shape of every part."""
        words = padded_words(inputs, self.group_size)
        return {"qweight": (rows, inputs // 8), "qzeros": (rows, words), "scales": (rows, words * 8)}

    def unpack(self, module: str, parts: Mapping[str, torch.Tensor]) -> UnpackedLinear:
        """The linear, without the padding."""
        q = unpack_words(parts["qweight"])
        groups = groups_of(q.shape[1], self.group_size)
        scales = exact_half(f"{module}.scales", parts["scales"])[:, :groups]
        return UnpackedLinear(q, scales.contiguous(), unpack_words(parts["qzeros"])[:, :groups].contiguous())


@dataclass(frozen=True)
class Interleaved:
    """Four rows in turn, every 64 inputs; inputs in blocks of 32 are shuffled for a kernel that reads 16 bytes."""

    group_size: int
    zeros: str = "qzeros"
    name: str = "AutoAWQ GEMV fast"
    symmetric: ClassVar[bool] = False
    marker: ClassVar[str] = "qweight"
    optional: ClassVar[tuple[str, ...]] = ()

    def size(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(N, K)."""
        return shapes["scales"][1], shapes["qweight"][1]

    def shapes(self, rows: int, inputs: int) -> dict[str, Shape]:
        """Shape of every part."""
        groups = padded_words(inputs, self.group_size) * 8
        return {"qweight": (rows // 4, inputs), self.zeros: (groups, rows), "scales": (groups, rows)}

    def unpack(self, module: str, parts: Mapping[str, torch.Tensor]) -> UnpackedLinear:
        """The linear; zero points are found again exactly, or refused."""
        q = _deinterleaved(parts["qweight"])
        groups = groups_of(q.shape[1], self.group_size)
        scales = exact_half(f"{module}.scales", parts["scales"])[:groups].T.contiguous()
        scaled = exact_half(f"{module}.{self.zeros}", parts[self.zeros])[:groups].T
        return UnpackedLinear(q, scales, _zero_points(f"{module}.{self.zeros}", scaled, scales))


def _deinterleaved(words: torch.Tensor) -> torch.Tensor:
    """int16 [N/4, K] -> uint8 [N, K].

    A row of words holds, for every 64 inputs, 16 words of each of its four rows in turn. The four nibbles of a word
    are neighbours of a block of 32 inputs, in which 8 a + 2 b + c lies at 8 b + 4 c + a for a, b < 4 and c < 2.
    """
    quarter, inputs = words.shape
    nibbles = ((words.to(torch.int32)[..., None] >> torch.arange(0, 16, 4, dtype=torch.int32)) & 15).to(torch.uint8)
    rows = nibbles.view(quarter, inputs // 64, 4, 64).transpose(1, 2)  # [N/4, row, K/64, 64]
    blocks = rows.reshape(quarter * 4, inputs // 32, 4, 2, 4)  # [N, K/32, b, c, a]
    return blocks.permute(0, 1, 4, 2, 3).reshape(quarter * 4, inputs)


def _zero_points(name: str, scaled: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Zero points [N, K/g] uint8 of scaled = -scale * zero point, which was rounded to float16 once.

    Raises:
        EdgeAwqError: a value is no such product for a whole number of 0 to 15.
    """
    exact = -scaled.double() / scales.double()
    zeros = exact.nan_to_num(nan=0.0, posinf=-1.0, neginf=-1.0).round()
    same = (scales * zeros.clamp(0, 15).half()).neg() == scaled  # the float16 product, as the tools form it
    if wrong := int((~same | (zeros < 0) | (zeros > 15)).sum()):
        raise EdgeAwqError(f"tensor '{name}': {wrong} of {scaled.numel()} values are not -scale times a zero point of "
                           "0 to 15", hint=ORIGINAL)
    return zeros.to(torch.uint8).contiguous()


def read_config(config: Mapping[str, Any]) -> Layout:
    """The layout that the quantization_config of an AWQ checkpoint describes.

    Raises:
        EdgeAwqError: it is one that we do not read.
    """
    check_bits("quantization_config: AWQ", config.get("bits", config.get("w_bit")))
    group_size = check_group_size("quantization_config: AWQ", config.get("group_size", config.get("q_group_size")))
    word = str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()
    if str(config.get("backend")) == "llm-awq":
        word = "llm-awq"
    layouts = {"gemm": Gemm(group_size), "gemv": Gemv(group_size), "gemv_fast": Interleaved(group_size),
               "llm-awq": Interleaved(group_size, "scaled_zeros", "llm-awq v2")}
    if word not in layouts:
        raise EdgeAwqError(f"quantization_config: AWQ packing '{word}' is not read",
                           hint=f"read: {', '.join(layouts)}; or {ORIGINAL}")
    return layouts[word]


def find_llm_awq(shapes: Mapping[str, Shape]) -> Layout | None:
    """The layout of llm-awq's files, which say nothing about themselves: only one fits the shapes of a linear's parts.

    The group size comes from the shapes too.
    """
    kinds = ((Interleaved, "scaled_zeros", "llm-awq v2"),) if "scaled_zeros" in shapes else (
        (Gemv, "llm-awq v1"), (Gemm, "llm-awq, first packing"))
    for size in GROUPS:
        for kind, *words in kinds:
            layout = kind(size, *words)
            rows, inputs = layout.size(shapes)
            expected = layout.shapes(rows, inputs)
            if inputs % size == 0 and all(shapes.get(part) == shape for part, shape in expected.items()):
                return layout
    return None
