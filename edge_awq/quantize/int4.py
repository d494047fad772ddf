"""Group quantization of a weight matrix to unsigned 4-bit (or 8-bit) integers: pure maths over tensors.

A weight is ``(q - zero_point) * scale``; q and zero_point are unsigned integers, and the scale is one fp16 value per
group of ``group_size`` weights along K. Every integer is chosen with the scale as it is stored, so that nothing is
rounded a second time. Min-max ranges as in llm-awq (arXiv 2306.00978), except that a range always includes zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edge_awq.errors import EdgeAwqError

HALF_MAX = 65504.0
HALF_SMALLEST = 2.0**-24  # fp16 counts in steps of this below HALF_SMALLEST_NORMAL
HALF_SMALLEST_NORMAL = 2.0**-14
CHUNK_ELEMENTS = 1 << 20  # 4 MB of float32: temporaries stay in the cache


@dataclass(frozen=True)
class IntGrid:
    """bits: 4 or 8 per weight; group_size: weights that share a scale; symmetric: every zero point is the middle."""

    bits: int
    group_size: int
    symmetric: bool = False

    @property
    def top(self) -> int:
        """The largest integer."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric group."""
        return 2 ** (self.bits - 1)


@dataclass(frozen=True)
class PackedLinear:
    """A quantized weight [N, K] as it is stored; g = group_size.

    Attributes:
        qweight: uint8 [N, K/2] for 4 bits (low nibble first), [N, K] for 8.
        scales: float16 [N, K/g].
        zero_points: uint8 [N, ceil(K/g/2)] for 4 bits (low nibble first, pad nibble 0), [N, K/g] for 8.
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    bits: int
    group_size: int

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The stored tensors of the linear ``name``."""
        return {f"{name}.{kind}": getattr(self, kind) for kind in ("qweight", "scales", "zero_points")}

    def rows(self, rows: slice) -> PackedLinear:
        """Some of the rows, as views."""
        return PackedLinear(self.qweight[rows], self.scales[rows], self.zero_points[rows], self.bits, self.group_size)


def grid_for(name: str, inputs: int, grid: IntGrid) -> IntGrid:
    """``grid`` itself, or with groups of 64 where K = ``inputs`` does not divide by its group size.

    Raises:
        EdgeAwqError: K does not divide by 64 either.
    """
    for group_size in (grid.group_size, 64):
        if inputs % group_size == 0:
            return IntGrid(grid.bits, group_size, grid.symmetric)
    raise EdgeAwqError(
        f"{name}: K = {inputs} inputs do not divide into groups of 64",
        hint="build with --precision fp16, which does not quantize",
    )


def row_chunks(rows: int, width: int, elements: int = CHUNK_ELEMENTS) -> Iterator[slice]:
    """Slices over the rows of a [rows, width] matrix, each of about so many elements."""
    step = max(1, elements // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def group_ranges(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of each group [..., g], each [...]; both widened to include zero."""
    low, high = torch.aminmax(groups, dim=-1)
    return low.clamp_(max=0), high.clamp_(min=0)


def scales_and_zeros(low: torch.Tensor, high: torch.Tensor, grid: IntGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32, but exact in fp16 unless beyond its range) and zero point (float32 whole number) of each range.

    A scale is never zero, and a subnormal one is rounded up, so that its range is covered: a group of zeros, or of
    values too small for fp16, needs no special case.
    """
    covers_both = torch.maximum(high / (grid.middle - 1), low / -grid.middle)
    scale = covers_both if grid.symmetric else (high - low) / grid.top
    subnormal = (scale / HALF_SMALLEST).ceil_().clamp_(min=1) * HALF_SMALLEST
    scale = torch.where(scale < HALF_SMALLEST_NORMAL, subnormal, scale.half().float())
    if grid.symmetric:
        return scale, torch.full_like(scale, grid.middle)
    return scale, (low / -scale).round_().clamp_(0, grid.top)


def quantize(
    name: str,
    weight: torch.Tensor,
    grid: IntGrid,
    ranges: tuple[torch.Tensor, torch.Tensor] | None = None,
    integers: torch.Tensor | None = None,
) -> tuple[PackedLinear, int]:
    """Quantize ``weight`` [N, K] float32 of the linear ``name``; also returns how many weights were clipped.

    Args:
        ranges: low and high of every group, each [N, K/g]; by default the smallest and the largest weight, which
            clips nothing.
        integers: uint8 [N, K] that were chosen for these ranges; by default the nearest.

    Raises:
        EdgeAwqError: a scale lies beyond fp16.
    """
    rows, width = weight.shape
    parts = []
    clipped = 0
    for chunk in row_chunks(rows, width):
        groups = weight[chunk].unflatten(1, (-1, grid.group_size))  # [n, K/g, g]
        low, high = group_ranges(groups) if ranges is None else (bound[chunk] for bound in ranges)
        scale, zero = scales_and_zeros(low, high, grid)
        if float(scale.max()) > HALF_MAX:
            raise EdgeAwqError(f"{name}: weights up to {float(groups.abs().max()):.3g} need a scale beyond fp16",
                               hint="the checkpoint is damaged; get another copy")
        nearest = (groups / scale[..., None]).round_().add_(zero[..., None])
        if ranges is not None:
            clipped += int(((nearest < 0) | (nearest > grid.top)).sum())
        chosen = nearest.clamp_(0, grid.top).to(torch.uint8).flatten(1) if integers is None else integers[chunk]
        parts.append((_pack(chosen, grid), scale.half(), _pack(zero.to(torch.uint8), grid)))
    qweight, scales, zero_points = (torch.cat(column) for column in zip(*parts, strict=True))
    return PackedLinear(qweight, scales, zero_points, grid.bits, grid.group_size), clipped


def rounded(weight: torch.Tensor, grid: IntGrid) -> torch.Tensor:
    """What ``dequantize`` gives back after ``quantize`` of ``weight`` [N, K], without packing: [N, K] float32."""
    groups = weight.unflatten(1, (-1, grid.group_size))
    scale, zero = (values[..., None] for values in scales_and_zeros(*group_ranges(groups), grid))
    return (groups / scale).round_().add_(zero).clamp_(0, grid.top).sub_(zero).mul_(scale).flatten(1)


def dequantize(packed: PackedLinear) -> torch.Tensor:
    """The weight [N, K] float32 that ``packed`` stands for, exactly."""
    rows, num_groups = packed.scales.shape
    width = num_groups * packed.group_size
    weight = torch.empty(rows, num_groups, packed.group_size)
    for chunk in row_chunks(rows, width):
        part = packed.rows(chunk)
        integers, zeros = part.qweight, part.zero_points
        if packed.bits == 4:
            integers, zeros = unpack_nibbles(integers, width), unpack_nibbles(zeros, num_groups)
        values = weight[chunk].copy_(integers.unflatten(1, (num_groups, -1)))
        values.sub_(zeros[..., None].float()).mul_(part.scales[..., None].float())
    return weight.flatten(1)


def _pack(values: torch.Tensor, grid: IntGrid) -> torch.Tensor:
    return pack_nibbles(values) if grid.bits == 4 else values


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns] of values below 16 -> uint8 [rows, ceil(columns / 2)], low nibble first, pad nibble 0."""
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Inverse of ``pack_nibbles``: uint8 [rows, columns]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, :columns]
