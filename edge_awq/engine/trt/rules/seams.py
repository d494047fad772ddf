"""Where a plugin and a standard op meet, or a weight is stored otherwise: Cast

Plugins take and give float16 activations; what is left of standard ops computes in float32, as in the canonical graph.
TensorRT fuses such ops and their casts into one kernel. A cast of a cast back is none.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from edge_awq.engine.trt.draft import Draft, extras
from edge_awq.engine.trt.names import ATTENTION, DOMAIN, EXTRAS, MATMUL_WEIGHTS, NORMS, SAMPLE

FLOATS = ("float16", "float32")
PASS_ON = ("Reshape", "Slice", "Gather", "Shape")  # give what they take
CODES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


def apply(draft: Draft) -> None:
    """Give every node the types that it takes."""
    draft.graph.cleanup().toposort()
    types: dict[str, str] = {}
    for tensor in draft.graph.tensors().values():
        if tensor.dtype is not None and not tensor.inputs:
            types[tensor.name] = np.dtype(tensor.dtype).name
    for node in list(draft.graph.nodes):
        wanted = _wanted(node, types)
        node.inputs = [_cast(draft, types, tensor, want) for tensor, want in zip(node.inputs, wanted, strict=True)]
        types.update({tensor.name: _given(node, tensor, types) for tensor in node.outputs})
    for output in draft.graph.outputs:
        if output.dtype == np.float32 and types[output.name] == "float16":
            draft.decline("seams", output.inputs[0], "its float16 result is an output of the graph")
            output.dtype = np.dtype("float16")
    draft.graph.cleanup().toposort()


def _wanted(node: gs.Node, types: dict[str, str]) -> list[str]:
    """The types of a node's inputs; as they are for those that take any."""
    given = [types[tensor.name] for tensor in node.inputs]
    if node.domain == DOMAIN:
        return _plugin_types(node)
    if node.op in (*PASS_ON, "Cast"):
        return given
    return ["float32" if each in FLOATS else each for each in given]


def _plugin_types(node: gs.Node) -> list[str]:
    if node.op in MATMUL_WEIGHTS:
        return ["float16", *MATMUL_WEIGHTS[node.op], *(EXTRAS[name] for name in extras(node))]
    if node.op == ATTENTION:
        heads = 1 if node.attrs.get("packed_qkv") else 3
        cache = ["int8", "int8", "float32", "float32"] if node.attrs.get("kv_bits") == 8 else ["float16", "float16"]
        tables = len(node.inputs) - heads - len(cache) - 1
        return [*["float16"] * heads, *cache, "", *["float32"] * tables]
    if node.op in NORMS:
        return ["float16", *["float32"] * (len(node.inputs) - 1)]
    return ["float32", "float32", "", ""] if node.op == SAMPLE else ["float32"]


def _given(node: gs.Node, output: gs.Tensor, types: dict[str, str]) -> str:
    if node.op == ATTENTION and output is not node.outputs[0]:
        return np.dtype(output.dtype).name  # of the cache
    if node.domain == DOMAIN:
        is_float32 = node.attrs.get("fp32_output")
        return "int64" if node.op == SAMPLE else "float32" if is_float32 else "float16"
    if node.op == "Shape":
        return "int64"
    if node.op == "Cast":
        return {code: name for name, code in CODES.items()}[node.attrs["to"]]
    return types[node.inputs[0].name]


def _cast(draft: Draft, types: dict[str, str], tensor: gs.Tensor, want: str) -> gs.Tensor:
    have = types[tensor.name]
    if have == want or have not in FLOATS:
        return tensor
    if tensor.inputs and tensor.inputs[0].op == "Cast" and types[tensor.inputs[0].inputs[0].name] == want:
        return tensor.inputs[0].inputs[0]
    name = f"{tensor.name}.{want}"
    for reader in tensor.outputs:
        if reader.op == "Cast" and reader.outputs and reader.outputs[0].name == name:
            return reader.outputs[0]
    types[name] = want
    if draft.is_weight(tensor) and not draft.options.weights_inside:
        return draft.as_type(tensor, want)
    return draft.standard("Cast", name, [tensor], to=CODES[want])
