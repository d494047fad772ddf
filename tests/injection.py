"""Function-preserving outliers: the honest fixture for AWQ (small nets trained in minutes have none of their own)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from edge_awq.model.decoder import Decoder, block_tensors, load_decoder

SHARE = 0.01  # of the channels


def inject_outliers(source: Path, out: Path, factor: float, seed: int = 0) -> None:
    """Copy the checkpoint ``source`` to the folder ``out``, with outlier channels that leave its function as it was.

    At about 1 % of the channels (at least one) the gain of every norm inside a block is multiplied by ``factor`` and
    the matching input columns of the linears that it feeds are divided by it. In exact arithmetic all logits stay the
    same; plain rounding loses those columns, because the other columns of their groups set the scale.
    """
    decoder = load_decoder(source)
    tensors = _read_all(decoder)
    generator = torch.Generator().manual_seed(seed)
    for index in range(decoder.config.num_layers):
        names = block_tensors(decoder.family, decoder.checkpoint, index)
        for fold in decoder.family.fold:
            if fold.source not in decoder.family.norms:
                continue
            gain = tensors[names[f"{fold.source}.weight"]]
            channels = torch.randperm(len(gain), generator=generator)[: max(1, round(SHARE * len(gain)))]
            gain[channels] *= factor
            for linear in fold.linears:
                tensors[names[f"{linear}.weight"]][:, channels] /= factor
    out.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        shutil.copy(path, out)
    (out / "model.safetensors.index.json").unlink(missing_ok=True)
    _say_float32(out / "config.json")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def _read_all(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Every tensor that the decoder uses, by its name in the checkpoint."""
    family = decoder.family
    names = [f"{family.names[name]}.weight" for name in ("embed", "final_norm", "head")]
    for index in range(decoder.config.num_layers):
        names += block_tensors(family, decoder.checkpoint, index).values()
    return decoder.checkpoint.read(name for name in names if name in decoder.checkpoint)


def _say_float32(path: Path) -> None:
    """The copy is float32: in a 16-bit type the divided columns would lose bits, and the function with them."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2), encoding="utf-8")
