"""A block, or the head, of a quantized checkpoint as a bundle stores it: the same integers, scales and zero points."""

from __future__ import annotations

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.interop.checkpoint import PackedCheckpoint
from edge_awq.interop.linear import GROUPS, ORIGINAL, UnpackedLinear
from edge_awq.model.config import DecoderConfig
from edge_awq.model.decoder import Decoder, Weights
from edge_awq.model.family import Family
from edge_awq.model.folds import ACT_SCALE, has_act_scale
from edge_awq.model.naming import block_tensors, fused_with, split_fused
from edge_awq.quantize.awq import QuantizedBlock, to_half
from edge_awq.quantize.int4 import IntGrid, PackedLinear, dequantize, grid_for, pack_nibbles, unpack_nibbles
from edge_awq.quantize.report import BlockReport

# Linears whose inputs are, one for one, outputs of others with nothing but element-wise work between: those can put
# their outputs into any order. Attention mixes by heads and the residual stream is everybody's, so no other input can.
FEEDS = {"down": ("gate", "up")}


def stored_rows(family: Family, config: DecoderConfig, linear: str) -> torch.Tensor:
    """Which rows of its module in the checkpoint a canonical linear is, int64 [N]."""
    rows = sum(config.linear_shape(part)[0] for part in fused_with(family, linear))
    return split_fused(family, config, linear, torch.arange(rows))


def bundle_group_size(checkpoint: PackedCheckpoint) -> int:
    """The group size of a bundle that holds this checkpoint: its own, or one into which its groups split."""
    size = checkpoint.layout.group_size
    return GROUPS[0] if size % GROUPS[0] == 0 or size == -1 else GROUPS[1]


def import_block(decoder: Decoder, index: int) -> QuantizedBlock:
    """Block ``index`` of a checkpoint whose linears are packed; linears that are not stay 16 bits wide.

    Every linear is unpacked again from what will be stored and must equal what the checkpoint means, to the bit.

    Raises:
        EdgeAwqError: our format cannot represent a linear; the message names it.
    """
    checkpoint, name = decoder.checkpoint, f"blocks.{index}"
    names = block_tensors(decoder.family, checkpoint, index)
    weights = decoder.block(index)
    packed = {linear: _rows_of(checkpoint.unpack(stored), stored_rows(decoder.family, decoder.config, linear))
              for linear in decoder.family.linears if checkpoint.is_packed(stored := names[f"{linear}.weight"])}
    _settle_orders(packed, weights, names)
    tensors = {}
    for canonical, weight in weights.items():
        linear, _, kind = canonical.partition(".")
        if kind == "weight" and linear in packed:
            continue
        tensors[canonical] = to_half(f"{name}.{canonical}", weight) if weight.ndim == 2 else weight
    counts = {}
    for linear, unpacked in packed.items():
        stored, counts[linear] = _pack(names[f"{linear}.weight"], unpacked, weights[f"{linear}.weight"], checkpoint)
        tensors |= stored.tensors(linear)
    if has_act_scale(decoder.family, decoder.config):
        tensors[f"{ACT_SCALE}.weight"] = _act_scale(decoder, index)
    return QuantizedBlock(tensors, BlockReport(name, "import", imported=counts))


def _act_scale(decoder: Decoder, index: int) -> torch.Tensor:
    """Factors of the activation's outputs, [intermediate_size]; AutoAWQ stores what it divides them by.

    Raises:
        EdgeAwqError: the checkpoint has several such vectors.
    """
    size, checkpoint = decoder.config.intermediate_size, decoder.checkpoint
    prefix = decoder.family.block["prefix"].format(i=index)
    found = [name for name in checkpoint.names if name.startswith(f"{prefix}.") and name.endswith(".scales")
             and checkpoint.shape(name) == (size,)]
    if len(found) > 1:
        raise EdgeAwqError(f"tensors {', '.join(found)}: one scale per activation is expected", hint=ORIGINAL)
    return checkpoint.read(found)[found[0]].reciprocal() if found else torch.ones(size)


def import_head(decoder: Decoder) -> QuantizedBlock:
    """The head of a checkpoint that packs it, and the norm before it."""
    stored = f"{decoder.family.names['head']}.weight"
    unpacked = decoder.checkpoint.unpack(stored)
    if unpacked.order is not None:
        raise _act_order(stored)
    packed, count = _pack(stored, unpacked, decoder.head(), decoder.checkpoint)
    return QuantizedBlock(decoder.final_vectors() | packed.tensors("head"),
                          BlockReport("head", "import", imported={"head": count}))


def head_is_packed(decoder: Decoder) -> bool:
    """Whether the checkpoint quantized the head as well."""
    checkpoint = decoder.checkpoint
    return isinstance(checkpoint, PackedCheckpoint) and checkpoint.is_packed(f"{decoder.family.names['head']}.weight")


def _rows_of(linear: UnpackedLinear, rows: torch.Tensor) -> UnpackedLinear:
    if len(rows) == len(linear.q) and torch.equal(rows, torch.arange(len(rows))):
        return linear
    return UnpackedLinear(linear.q[rows], linear.scales[rows], linear.zero_points[rows], linear.order)


def _settle_orders(packed: dict[str, UnpackedLinear], weights: Weights, names: dict[str, str]) -> None:
    """Where act-order moved a linear's inputs, move the outputs that feed it in the same way; in place.

    Raises:
        EdgeAwqError: nothing can bring the inputs of a linear into its order.
    """
    for linear, unpacked in list(packed.items()):
        if (order := unpacked.order) is None:
            continue
        feeds = [feed for feed in FEEDS.get(linear, ()) if f"{feed}.weight" in weights]
        if not feeds:
            raise _act_order(names[f"{linear}.weight"])
        for feed in feeds:
            if feed in packed:
                packed[feed] = _rows_of(packed[feed], order)
            for kind in ("weight", "bias"):
                if (tensor := weights.get(f"{feed}.{kind}")) is not None:
                    weights[f"{feed}.{kind}"] = tensor[order]
        weights[f"{linear}.weight"] = weights[f"{linear}.weight"][:, order]
        packed[linear] = UnpackedLinear(unpacked.q, unpacked.scales, unpacked.zero_points)


def _act_order(stored: str) -> EdgeAwqError:
    module = stored.removesuffix(".weight")
    return EdgeAwqError(f"tensor '{module}.g_idx': act-order scatters the groups over inputs of a fixed order",
                        hint=f"quantize with desc_act=False, or with static groups; or {ORIGINAL}")


def _pack(
    name: str, unpacked: UnpackedLinear, meant: torch.Tensor, checkpoint: PackedCheckpoint
) -> tuple[PackedLinear, int]:
    """The linear as it is stored, and how many weights of it were found equal to those meant, float32 [N, K]: all.

    Groups wider than ours are split, which repeats their scales and zero points.
    """
    inputs, groups = unpacked.q.shape[1], unpacked.scales.shape[1]
    size = grid_for(name, inputs, IntGrid(4, bundle_group_size(checkpoint))).group_size
    scales, zeros = (part.repeat_interleave(inputs // groups // size, dim=1)
                     for part in (unpacked.scales, unpacked.zero_points))
    packed = PackedLinear(pack_nibbles(unpacked.q), scales, pack_nibbles(zeros), 4, size)
    same = torch.equal(unpack_nibbles(packed.qweight, inputs), unpacked.q)
    if not same or not torch.equal(dequantize(packed), meant):
        raise EdgeAwqError(f"tensor '{name}': the bundle would not hold what the checkpoint means",
                           hint="this is a fault of edge-awq; please report it with the model's name")
    return packed, meant.numel()
