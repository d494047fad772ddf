"""attention(x @ Q.T, x @ K.T, x @ V.T)  ->  attention(x @ [Q; K; V].T), packed

A bound on the elements of q, k and v, the same for all three, becomes one of the whole. The merged weights are stacked
when a model is loaded; in a build's weights file they are neighbours, so that nothing is moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, extras, give, has_one_reader, matmul_of, matmul_weights, producer, remove
from edge_awq.engine.trt.names import ATTENTION


def apply(draft: Draft) -> None:
    """Make one matmul of q, k and v wherever nothing but a bound stands between them and the attention."""
    for node in draft.nodes(ATTENTION):
        heads = list(node.inputs[:3])
        clips = [producer(tensor, "Clip") for tensor in heads]
        matmuls = [matmul_of(tensor if clip is None else clip.inputs[0])
                   for tensor, clip in zip(heads, clips, strict=True)]
        if reason := _why_not(draft, heads, clips, matmuls):
            draft.decline("qkv", node, reason)
            continue
        whole = gs.Variable(joined_name(matmuls))
        matmul = merged(draft, matmuls)
        matmul.outputs = [whole]
        if clips[0] is not None:
            whole = draft.standard("Clip", f"{matmul.name}_clipped", [whole, *clips[0].inputs[1:]])
        for old in (*matmuls, *(clip for clip in clips if clip is not None)):
            remove(old)
        node.inputs = [whole, *node.inputs[3:]]
        node.attrs["packed_qkv"] = 1


def joined_name(matmuls: Sequence[gs.Node]) -> str:
    """blocks.0.q, blocks.0.k -> blocks.0.q+k."""
    first, *others = (matmul.name for matmul in matmuls)
    return "+".join([first, *(name.rpartition(".")[2] for name in others)])


def why_not_alike(matmuls: Sequence[gs.Node]) -> str:
    """Why these matmuls cannot be one with their rows stacked, or an empty text."""
    first, *others = matmuls
    names = ", ".join(matmul.name for matmul in matmuls)
    if any(other.inputs[0] is not first.inputs[0] for other in others):
        return f"{names} do not multiply the same tensor"
    if any((other.op, other.attrs.get("group_size")) != (first.op, first.attrs.get("group_size")) for other in others):
        return f"{names} are stored in different formats"
    if any(set(extras(other)) != set(extras(first)) for other in others):
        return f"some of {names} have a bias, some have none"
    return ""


def merged(draft: Draft, matmuls: Sequence[gs.Node], **attributes: int) -> gs.Node:
    """One matmul of those that are alike, with a bias at most; it has no output yet."""
    name, first = joined_name(matmuls), matmuls[0]
    weights = [draft.stack(parts, f"{name}.{parts[0].name.rpartition('.')[2]}")
               for parts in zip(*map(matmul_weights, matmuls), strict=True)]
    given = {key: first.attrs[key] for key in ("K", "group_size") if key in first.attrs}
    features = sum(matmul.attrs["N"] for matmul in matmuls)
    matmul = draft.plugin(first.op, name, [first.inputs[0], *weights], [], N=features, **given, **attributes)
    if "bias" in extras(first):
        give(matmul, bias=draft.stack([extras(each)["bias"] for each in matmuls], f"{name}.bias"))
    return matmul


def _why_not(draft: Draft, heads: list[gs.Tensor], clips: list[gs.Node | None],
             matmuls: list[gs.Node | None]) -> str:
    for tensor, clip, matmul in zip(heads, clips, matmuls, strict=True):
        if matmul is None:
            return f"'{tensor.name}' is made by {tensor.inputs[0].op}, not by a matmul"
        between = [tensor] if clip is None else [tensor, clip.inputs[0]]
        if not all(has_one_reader(each, draft.graph) for each in between):
            return f"'{tensor.name}' has other readers"
        if set(extras(matmul)) - {"bias"} or matmul.attrs.get("activation"):
            return f"{matmul.name} is more than a product with a bias"
    if len({_bounds(clip) for clip in clips}) > 1:
        return "q, k and v have different bounds"
    return why_not_alike(matmuls)


def _bounds(clip: gs.Node | None) -> tuple[float, ...] | None:
    return None if clip is None else tuple(float(bound.values) for bound in clip.inputs[1:])
