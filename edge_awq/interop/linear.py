"""A quantized linear as plain integers, between any two layouts, and the words on which every layout is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from edge_awq.errors import EdgeAwqError

ORIGINAL = "give the original 16-bit checkpoint, which edge-awq quantizes itself"
GROUPS = (128, 64)  # what the kernels have, the best first

Shape = tuple[int, ...]


@dataclass(frozen=True)
class UnpackedLinear:
    """(q - zero_point) * scale of another tool's checkpoint, as it stands there; g = K / the scales' columns.

    Attributes:
        q: uint8 [N, K], values below 16.
        scales: float16 [N, K/g].
        zero_points: uint8 [N, K/g], values below 16.
        order: int64 [K], column k belongs to input order[k] (act-order); None: every column to its own input.
    """

    q: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    order: torch.Tensor | None = None

    def value(self) -> torch.Tensor:
        """The weight [N, K] float32, exactly, with its columns in the order of the inputs."""
        groups = self.q.unflatten(1, (self.scales.shape[1], -1)).float()
        weight = groups.sub_(self.zero_points[..., None].float()).mul_(self.scales[..., None].float()).flatten(1)
        if self.order is None:
            return weight
        found = torch.empty_like(weight)
        found[:, self.order] = weight
        return found


class Layout(Protocol):
    """How a tool stores its linears: each is a few tensors named ``<module>.<part>``.

    Attributes:
        name: for messages and the report.
        group_size: weights that share a scale along K; -1: all K of them.
        symmetric: whether the format holds no zero points.
        marker: the part that every packed linear has.
        optional: parts that a linear may lack.
    """

    name: str
    group_size: int
    symmetric: bool
    marker: str
    optional: tuple[str, ...]

    def size(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(N, K) of a linear whose marker and scales have these shapes by part."""
        ...

    def shapes(self, rows: int, inputs: int) -> dict[str, Shape]:
        """The shape that every part of an [N, K] linear must have."""
        ...

    def unpack(self, module: str, parts: Mapping[str, torch.Tensor]) -> UnpackedLinear:
        """The linear ``module``.

        Raises:
            EdgeAwqError: it holds values that our format cannot represent; the message names the tensor.
        """
        ...


def groups_of(inputs: int, group_size: int) -> int:
    """Groups along K; a last one that is not full counts."""
    return 1 if group_size == -1 else -(-inputs // group_size)


def unpack_words(words: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """int32 [R, C] -> uint8 [R, 8 C] of their nibbles; the i-th lowest of a word is its element order[i]."""
    shifts = torch.empty(8, dtype=torch.int32)
    shifts[list(order)] = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).to(torch.uint8).flatten(1)


def exact_half(name: str, scales: torch.Tensor) -> torch.Tensor:
    """``scales`` as float16 without any rounding.

    Raises:
        EdgeAwqError: one of them is no float16 value, or not finite.
    """
    if not torch.isfinite(scales).all():
        raise EdgeAwqError(f"tensor '{name}' holds NaN or infinity",
                           hint="the checkpoint is damaged; get another copy")
    half = scales.half()
    if wrong := int((half.double() != scales.double()).sum()):
        raise EdgeAwqError(f"tensor '{name}': {wrong} of {scales.numel()} scales ({scales.dtype}) are no float16 "
                           "values, so an import would not be exact", hint=ORIGINAL)
    return half


def check_group_size(name: str, group_size: object) -> int:
    """``group_size`` of a checkpoint: -1, or a multiple of 64, which splits into the groups that the kernels have.

    Raises:
        EdgeAwqError: it is something else.
    """
    if isinstance(group_size, int) and not isinstance(group_size, bool) and (
            group_size == -1 or (group_size > 0 and group_size % GROUPS[-1] == 0)):
        return group_size
    raise EdgeAwqError(f"{name}: group size {group_size!r} is not supported; the kernels have groups of 128 and 64",
                       hint=f"quantize with groups of 128, or {ORIGINAL}")


def check_bits(name: str, bits: object) -> None:
    """Refuse a checkpoint of other than 4 bits."""
    if bits != 4:
        raise EdgeAwqError(f"{name}: {bits!r} bits per weight are not supported, only 4", hint=ORIGINAL)


def check_table(name: str, table: object) -> Mapping[str, Any]:
    """``table`` of a checkpoint's config, which may be left out: None is an empty one.

    Raises:
        EdgeAwqError: it is something else.
    """
    if isinstance(table, Mapping) or table is None:
        return table or {}
    raise EdgeAwqError(f"{name} = {table!r}, a table is expected", hint="download config.json again")
