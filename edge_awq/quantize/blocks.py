"""A block, or the head, as a bundle stores it: imported where the checkpoint is quantized already, else quantized."""

from __future__ import annotations

import torch

from edge_awq.interop.block import head_is_packed, import_block, import_head
from edge_awq.interop.checkpoint import PackedCheckpoint
from edge_awq.model.decoder import Decoder
from edge_awq.quantize.awq import QuantizedBlock, QuantizeSettings, quantize_block, quantize_head


def make_block(
    decoder: Decoder, index: int, hidden: torch.Tensor | None, settings: QuantizeSettings
) -> tuple[QuantizedBlock, torch.Tensor | None]:
    """Block ``index``, and its full-precision outputs where the next one needs them; see quantize_block()."""
    if isinstance(decoder.checkpoint, PackedCheckpoint):
        return import_block(decoder, index), None
    return quantize_block(decoder, index, hidden, settings)


def make_head(decoder: Decoder, hidden: torch.Tensor | None, settings: QuantizeSettings) -> QuantizedBlock:
    """The head and the norm before it; see quantize_head()."""
    return import_head(decoder) if head_is_packed(decoder) else quantize_head(decoder, hidden, settings)
