"""GPTQ's layout, of AutoGPTQ and GPTQModel.

    qweight int32 [K/8, N], eight inputs in a word; qzeros int32 [K/g, N/8], eight outputs in a word, natural order;
    scales [K/g, N]; g_idx int32 [K], the group of every input, which act-order scatters

Checkpoint format "gptq" stores zero points less one, "gptq_v2" stores them as they are.
Source: auto_gptq/nn_modules/qlinear of AutoGPTQ 0.7.1, gptqmodel/utils/model.py of GPTQModel 7.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edge_awq.errors import EdgeAwqError
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


@dataclass(frozen=True)
class Gptq:
    """zero_offset: what is added to a stored zero point."""

    group_size: int
    symmetric: bool
    zero_offset: int
    marker: ClassVar[str] = "qweight"
    optional: ClassVar[tuple[str, ...]] = ("g_idx",)

    @property
    def name(self) -> str:
        """For messages and the report."""
        return "GPTQ" if self.zero_offset else "GPTQ v2"

    def size(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(N, K)."""
        return shapes["scales"][1], shapes["qweight"][0] * 8

    def shapes(self, rows: int, inputs: int) -> dict[str, Shape]:
        """Shape of every part."""
        groups = groups_of(inputs, self.group_size)
        return {"qweight": (inputs // 8, rows), "qzeros": (groups, -(-rows // 8)), "scales": (groups, rows),
                "g_idx": (inputs,)}

    def unpack(self, module: str, parts: Mapping[str, torch.Tensor]) -> UnpackedLinear:
        """The linear; with act-order its columns are sorted by group."""
        rows = parts["scales"].shape[1]
        q = unpack_words(parts["qweight"].T.contiguous())
        stored = unpack_words(parts["qzeros"])[:, :rows]
        zeros = stored + self.zero_offset
        if wrong := int((zeros > 15).sum()):
            raise EdgeAwqError(
                f"tensor '{module}.qzeros': {wrong} of {zeros.numel()} zero points are stored as 15, which means 16 to "
                "some tools and 0 to others",
                hint=f"save the checkpoint in the format gptq_v2 (GPTQModel), or {ORIGINAL}")
        scales = exact_half(f"{module}.scales", parts["scales"])
        linear = UnpackedLinear(q, scales.T.contiguous(), zeros.T.contiguous())
        return linear if "g_idx" not in parts else in_groups(f"{module}.g_idx", linear, parts["g_idx"])


def in_groups(name: str, linear: UnpackedLinear, g_idx: torch.Tensor) -> UnpackedLinear:
    """``linear`` with every group's columns side by side; ``g_idx`` [K] is the group of each column as given.

    Columns move only where they must: whole groups in another order only move scales and zero points.

    Raises:
        EdgeAwqError: the groups are not of one size.
    """
    inputs, groups = linear.q.shape[1], linear.scales.shape[1]
    size, g_idx = inputs // groups, g_idx.long()
    if not torch.equal(torch.bincount(g_idx.clamp(0, groups), minlength=groups), torch.full((groups,), size)) or (
            int(g_idx.min()) < 0):
        raise EdgeAwqError(f"tensor '{name}': its {groups} groups do not have {size} inputs each", hint=ORIGINAL)
    blocks = g_idx.view(groups, size)
    order, columns = None, blocks[:, 0]
    if not (blocks == blocks[:, :1]).all():
        order = g_idx.argsort(stable=True)
        columns = torch.arange(groups)
    q = linear.q if order is None else linear.q[:, order]
    return UnpackedLinear(q, linear.scales[:, columns], linear.zero_points[:, columns], order)


def read_config(config: Mapping[str, Any]) -> Layout:
    """The layout that the quantization_config of a GPTQ checkpoint describes.

    Raises:
        EdgeAwqError: it is one that we do not read.
    """
    where = "quantization_config: GPTQ"
    check_bits(where, config.get("bits"))
    group_size = check_group_size(where, config.get("group_size"))
    _check_dynamic(where, group_size, check_table(f"{where}: dynamic", config.get("dynamic")))
    word = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if config.get("is_marlin_format"):
        word = "marlin"
    offsets = {"gptq": 1, "gptq_v2": 0}
    if word not in offsets:
        raise EdgeAwqError(f"{where}: checkpoint format '{word}' is not read",
                           hint=f"read: {', '.join(offsets)}; save it in one of them, or {ORIGINAL}")
    return Gptq(group_size, bool(config.get("sym")), offsets[word])


def _check_dynamic(where: str, group_size: int, dynamic: Mapping[str, Any]) -> None:
    """What differs by module: those of "-:PATTERN" were left alone, which their tensors say too; no other may differ.

    Raises:
        EdgeAwqError: some modules have bits or groups of their own.
    """
    for pattern, differs in dynamic.items():
        if pattern.startswith("-"):
            continue
        own = check_table(f"{where}: dynamic '{pattern}'", differs)
        if (bits := own.get("bits", 4)) != 4:
            raise EdgeAwqError(f"{where}: mixed bits, the modules '{pattern}' have {bits}", hint=ORIGINAL)
        if (size := own.get("group_size", group_size)) != group_size:
            raise EdgeAwqError(f"{where}: mixed group sizes, the modules '{pattern}' have {size}, others {group_size}",
                               hint=ORIGINAL)
