"""Weights of a Hugging Face folder, read a few tensors at a time; nothing in a checkpoint is ever executed."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edge_awq.errors import EdgeAwqError

# File of all weights, or index of the files that share them; the first that exists is read.
LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
ALONE = ("*.safetensors", "*.pt")  # older GPTQ tools and llm-awq: one file, of any name
PICKLES = (".bin", ".pt")
DOWNLOAD_AGAIN = "download the checkpoint again"


class Checkpoint:
    """The tensors of one folder by name.

    A shard is open only while ``read`` copies from it, so that no mapping of a many-gigabyte file stays resident.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._shards: dict[str, Path] = {}
        for shard, expected in _find_shards(folder).items():
            found = _shapes(shard)
            if missing := sorted((expected or set()) - set(found)):
                raise EdgeAwqError(f"{shard}: tensor '{missing[0]}' is named by the index but not in the file",
                                   hint=DOWNLOAD_AGAIN)
            self._shapes.update(found)
            self._shards.update(dict.fromkeys(found, shard))

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    @property
    def names(self) -> Collection[str]:
        """Every tensor that the files hold."""
        return self._shapes.keys()

    def keeps_float(self, name: str) -> bool:
        """Whether a quantized checkpoint left this weight unquantized on purpose; here nothing is quantized yet."""
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards, each once."""
        return tuple(sorted(set(self._shards.values())))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor; None when the checkpoint has none of that name."""
        return self._shapes.get(name)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Copies of the named tensors as float32.

        Raises:
            EdgeAwqError: a tensor is missing, cut short, or holds NaN or infinity.
        """
        tensors = {}
        for shard, wanted in self._by_shard(names).items():
            for name, tensor in _read(shard, wanted, torch.float32).items():
                if not torch.isfinite(tensor).all():
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise EdgeAwqError(f"{shard}: tensor '{name}' holds {bad} values that are NaN or infinite",
                                       hint="the checkpoint is damaged, or saved in too small a type; get another copy")
                tensors[name] = tensor
        return tensors

    def read_stored(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Copies of the named tensors as they are stored, whatever they hold.

        Raises:
            EdgeAwqError: a tensor is missing, or cut short.
        """
        tensors = {}
        for shard, wanted in self._by_shard(names).items():
            tensors |= _read(shard, wanted, None)
        return tensors

    def _by_shard(self, names: Iterable[str]) -> dict[Path, list[str]]:
        by_shard: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            if name not in self._shards:
                raise EdgeAwqError(f"{self.folder}: tensor '{name}' is missing", hint=DOWNLOAD_AGAIN)
            by_shard[self._shards[name]].append(name)
        return by_shard


def _find_shards(folder: Path) -> dict[Path, set[str] | None]:
    """Shards of the folder, each with the tensor names that an index promises in it."""
    for single, index in LAYOUTS:
        if (folder / single).is_file():
            return {folder / single: None}
        if (folder / index).is_file():
            return _read_index(folder / index)
    alone = [path for pattern in ALONE for path in folder.glob(pattern)]
    if len(alone) == 1:
        return {alone[0]: None}
    expected = ", ".join(name for layout in LAYOUTS for name in layout)
    raise EdgeAwqError(f"{folder}: no weights; looked for {expected}", hint="download the checkpoint completely")


def _read_index(path: Path) -> dict[Path, set[str] | None]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(name), str(file)) for name, file in weight_map.items()]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise EdgeAwqError(f"{path}: not a valid shard index: {error!r}", hint=DOWNLOAD_AGAIN) from error
    shards: dict[Path, set[str] | None] = {}
    for name, file in entries:
        if Path(file).name != file or file in ("", ".", ".."):
            raise EdgeAwqError(f"{path}: tensor '{name}' points outside the folder, to '{file}'",
                               hint="do not use this checkpoint; its index is broken or malicious")
        shard = path.parent / file
        if not shard.is_file():
            raise EdgeAwqError(f"{path.parent}: shard {file} is missing", hint="the download is not complete; go on")
        shards.setdefault(shard, set()).add(name)
    return shards


def _shapes(shard: Path) -> dict[str, tuple[int, ...]]:
    if shard.suffix in PICKLES:
        return {name: tuple(tensor.shape) for name, tensor in _load_pickle(shard).items()}
    try:
        with safe_open(shard, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EdgeAwqError(f"{shard}: not a whole safetensors file ({error})", hint=DOWNLOAD_AGAIN) from error


def _read(shard: Path, names: list[str], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Copies as ``dtype``, or as they are stored."""
    if shard.suffix in PICKLES:
        tensors = _load_pickle(shard)
        return {name: tensors[name].to(dtype or tensors[name].dtype, copy=True) for name in names}
    try:
        with safe_open(shard, framework="pt") as file:
            tensors = ((name, file.get_tensor(name)) for name in names)
            return {name: tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in tensors}
    except (SafetensorError, OSError) as error:
        raise EdgeAwqError(f"{shard}: cannot be read ({error})", hint=DOWNLOAD_AGAIN) from error


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, marked as torch's, which transformers insists on.

    Raises:
        EdgeAwqError: it cannot be written.
    """
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:
        raise EdgeAwqError(f"{path}: cannot be written ({error})",
                           hint="free space on that disk, or choose another place") from error


def _load_pickle(shard: Path) -> dict[str, torch.Tensor]:
    """Map a .bin file; ``weights_only`` refuses any pickle that would run code."""
    try:
        try:
            tensors = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written by torch < 1.6: not a zip, cannot be mapped
            tensors = torch.load(shard, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EdgeAwqError(f"{shard}: the pickle holds more than tensors and was not loaded",
                           hint="it may want to run code; use a safetensors version of the model") from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise EdgeAwqError(f"{shard}: not a whole PyTorch file ({error})", hint=DOWNLOAD_AGAIN) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise EdgeAwqError(f"{shard}: a table of tensors is expected", hint="use a safetensors version of the model")
    return tensors
