"""A whole model through the quantizer, and the decoder that the stored tensors mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edge_awq.model.config import DecoderConfig
from edge_awq.model.decoder import Decoder, embed_tokens, logits
from edge_awq.quantize.awq import QuantizeSettings, quantize_block, quantize_head
from edge_awq.quantize.report import BlockReport
from edge_awq.target import QuantSpec
from stored import StoredDecoder

AWQ = QuantizeSettings("w4a16", "awq", QuantSpec(group_size=128, symmetric=False, head_bits=8))
BEST = QuantizeSettings("w4a16", "best", QuantSpec(group_size=128, symmetric=False, head_bits=8))
RTN = QuantizeSettings("w4a16", "rtn", QuantSpec(group_size=128, symmetric=False, head_bits=8))


@dataclass(frozen=True)
class QuantizedModel:
    """tensors: by name in the weights file; decoder: what they mean; reports: of the blocks, then of the head."""

    tensors: dict[str, torch.Tensor]
    decoder: StoredDecoder
    reports: tuple[BlockReport, ...]


def quantize_model(decoder: Decoder, ids: torch.Tensor, settings: QuantizeSettings) -> QuantizedModel:
    """Quantize every block and the head; ids [sequences, tokens] calibrate."""
    hidden = embed_tokens(decoder.config, decoder.embedding(), ids) if settings.needs_calibration else None
    tensors, reports = dict(decoder.embedding()), []
    for index in range(decoder.config.num_layers):
        block, hidden = quantize_block(decoder, index, hidden, settings)
        tensors |= {f"blocks.{index}.{name}": tensor for name, tensor in block.tensors.items()}
        reports.append(block.report)
    head = quantize_head(decoder, hidden, settings)
    tensors |= head.tensors
    meant = {"head.weight": decoder.embed()} if decoder.tied_head else {}
    meant |= float_weights(tensors, decoder.config)
    stored = StoredDecoder(decoder.folder, decoder.family, decoder.config, decoder.checkpoint, meant)
    return QuantizedModel(tensors, stored, (*reports, head.report))


def float_weights(tensors: dict[str, torch.Tensor], config: DecoderConfig) -> dict[str, torch.Tensor]:
    """What stored tensors mean, float32 by "<linear>.weight"; written from the description of the format alone."""
    weights = {name: tensor.float() for name, tensor in tensors.items() if name.endswith((".weight", ".bias"))}
    for name in (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        q, scale, zero = (tensors[f"{name}.{kind}"].numpy() for kind in ("qweight", "scales", "zero_points"))
        inputs = config.linear_shape(name.rpartition(".")[2])[1]
        if q.shape[1] != inputs:
            q, zero = _nibbles(q)[:, :inputs], _nibbles(zero)[:, : scale.shape[1]]
        zero, scale = (np.repeat(part.astype(np.float64), inputs // scale.shape[1], axis=1) for part in (zero, scale))
        weights[f"{name}.weight"] = torch.from_numpy(((q - zero) * scale).astype(np.float32))
    return weights


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed % 16, packed // 16], axis=-1).reshape(len(packed), -1)


def divergence(found: Decoder, expected: Decoder, ids: torch.Tensor) -> float:
    """Mean over all positions of KL(expected || found) in nats, for ids [sequences, tokens]."""
    p, q = (logits(decoder, ids).double().log_softmax(-1) for decoder in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).mean())
