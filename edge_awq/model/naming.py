"""Canonical tensors and the checkpoint's: which is which, what shape each must have, and how fused ones are split."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.model.checkpoint import Checkpoint
from edge_awq.model.config import DecoderConfig
from edge_awq.model.family import Family


def block_tensors(family: Family, checkpoint: Checkpoint, index: int) -> dict[str, str]:
    """Canonical tensor name -> name in the checkpoint, for block ``index``; biases only where there are any.

    Linears that the checkpoint fuses have the same name there.
    """
    prefix = family.block["prefix"].format(i=index)
    return _tensors({layer: f"{prefix}.{family.block[layer]}" for layer in (*family.norms, *family.linears)},
                    checkpoint)


def final_vectors(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """The same for the last norm, and for the head's bias where there is one."""
    names = _tensors({layer: family.names[layer] for layer in ("final_norm", "head")}, checkpoint)
    return {canonical: stored for canonical, stored in names.items() if canonical != "head.weight"}


def final_shape(config: DecoderConfig, canonical: str) -> tuple[int]:
    """Shape of one of ``final_vectors``."""
    return (config.vocab_size if canonical == "head.bias" else config.hidden_size,)


def _tensors(modules: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, str]:
    names = {}
    for layer, module in modules.items():
        names[f"{layer}.weight"] = f"{module}.weight"
        if f"{module}.bias" in checkpoint:
            names[f"{layer}.bias"] = f"{module}.bias"
    return names


def check_block(family: Family, config: DecoderConfig, checkpoint: Checkpoint, index: int) -> None:
    """Every tensor of block ``index`` is in the checkpoint, with the shape that ``config`` gives it.

    Raises:
        EdgeAwqError: one is missing, or of another shape.
    """
    for canonical, stored in block_tensors(family, checkpoint, index).items():
        layer, kind = canonical.split(".")
        if layer in family.norms:
            shape = (config.norm_size(layer),)
        else:
            together = fused_with(family, layer)
            shape = (sum(config.linear_shape(part)[0] for part in together), config.linear_shape(layer)[1])
        check_shape(checkpoint, stored, shape if kind == "weight" else shape[:1])


def check_shape(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> None:
    """The tensor ``name`` is in the checkpoint, with the ``expected`` shape."""
    found = checkpoint.shape(name)
    if found is None:
        raise EdgeAwqError(f"{checkpoint.folder}: tensor '{name}' is missing",
                           hint="the checkpoint is not complete, or config.json belongs to another model")
    if found != expected:
        raise EdgeAwqError(
            f"{checkpoint.folder}: tensor '{name}' has shape {list(found)}, but config.json says {list(expected)}",
            hint="config.json belongs to another model, or one of the two files is damaged",
        )


def fused_with(family: Family, layer: str) -> tuple[str, ...]:
    """The linears in the module that holds ``layer``, itself alone where it is not fused."""
    fused = family.fused.get(family.block[layer])
    return (layer,) if fused is None else fused.into


def split_fused(family: Family, config: DecoderConfig, layer: str, tensor: torch.Tensor) -> torch.Tensor:
    """The rows of ``layer`` in a stored weight [N, K] or bias [N]: all of them where nothing is fused with it.

    Rows of q and k come in the order in which halves of a head are rotated together. Both are moved alike, so that
    their products stay what they are.
    """
    fused = family.fused.get(family.block[layer])
    rows = tensor if fused is None else SPLITS[fused.split](config, fused.into, layer, tensor)
    return _in_halves(config, rows) if family.rotary_pairs == "interleaved" and layer in ("q", "k") else rows


def _in_halves(config: DecoderConfig, tensor: torch.Tensor) -> torch.Tensor:
    """Of each head's rotated rows 0 1 2 3 4 5: 0 2 4 1 3 5."""
    heads, size = tensor.unflatten(0, (-1, config.head_size)), config.rope.rotary_size
    return torch.cat([heads[:, 0:size:2], heads[:, 1:size:2], heads[:, size:]], dim=1).flatten(0, 1)


def _blocks(config: DecoderConfig, parts: tuple[str, ...], layer: str, tensor: torch.Tensor) -> torch.Tensor:
    """All rows of the first part, then all rows of the second, and so on."""
    sizes = [config.linear_shape(part)[0] for part in parts]
    return tensor.split(sizes)[parts.index(layer)]


def _grouped(config: DecoderConfig, parts: tuple[str, ...], layer: str, tensor: torch.Tensor) -> torch.Tensor:
    """KV head by KV head: the query heads that share it, then its key head, then its value head."""
    share = config.num_heads // config.num_kv_heads
    heads = tensor.unflatten(0, (config.num_kv_heads, share + 2, config.head_size))
    places = {"q": slice(0, share), "k": slice(share, share + 1), "v": slice(share + 1, None)}
    return heads[:, places[layer]].flatten(0, 2)


# Words of family files -> how linears lie in a fused one.
SPLITS: dict[str, Callable[[DecoderConfig, tuple[str, ...], str, torch.Tensor], torch.Tensor]] = {
    "blocks": _blocks,
    "grouped": _grouped,
}
