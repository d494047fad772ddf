"""What a plugin-free graph is made for."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from edge_awq.errors import EdgeAwqError

LOWERING_VERSION = 1  # grows when the same canonical graph is lowered to a different one
OPSET = 24  # the first with TensorScatter
IR_VERSION = 12  # what came with opset 24
TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}


@dataclass(frozen=True)
class StandardOptions:
    """What the graph computes in and holds.

    Attributes:
        context: tokens that the KV cache holds; a fixed size, as TensorRT updates a cache in place only then.
        activations: a key of TYPES, also the type of the caches; TensorRT has fused attention for 16 bits only.
    """

    context: int
    activations: str = "float16"

    def __post_init__(self) -> None:
        if self.activations not in TYPES:
            raise EdgeAwqError(f"activations = {self.activations!r} is not possible",
                               hint=f"use one of: {', '.join(TYPES)}")
        if self.context < 1:
            raise EdgeAwqError(f"context = {self.context} is not possible", hint="use 1 or more tokens")

    @property
    def element_type(self) -> int:
        """ONNX's number of the activations' type."""
        return TYPES[self.activations]
