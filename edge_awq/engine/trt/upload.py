"""Weights on their way from the weights file to the GPU, piece by piece through one small page-locked buffer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_awq.engine.trt.cuda import Cuda
from edge_awq.errors import EdgeAwqError
from edge_awq.weights import DTYPES, GET_AGAIN, StoredTensor, read_layout

if TYPE_CHECKING:
    from edge_awq.engine.trt.weight_input import WeightInput

PIECE_BYTES = 16 << 20


def upload_weights(cuda: Cuda, weights: Iterable[WeightInput], path: Path) -> dict[WeightInput, int]:
    """Put each weight into device memory, those of the same content once; returns the addresses.

    The file is read, not mapped: where CPU and GPU share memory, pages that were uploaded are dropped from the page
    cache, which does not drop mapped ones.

    Raises:
        EdgeAwqError: a tensor is missing or has another size, or the GPU has no memory left.
    """
    layout = read_layout(path)
    staging = cuda.host_array((PIECE_BYTES,), np.uint8)
    file = os.open(path, os.O_RDONLY)
    try:
        places: dict[tuple[str, tuple[str, ...]], int] = {}
        addresses = {}
        for weight in weights:
            if content(weight) not in places:
                places[content(weight)] = _upload(cuda, weight, layout, (file, staging))
            addresses[weight] = places[content(weight)]
        return addresses
    finally:
        os.close(file)


def content(weight: WeightInput) -> tuple[str, tuple[str, ...]]:
    """What a weight is made of: passes call the same bytes what they like."""
    return weight.dtype, weight.parts


def _upload(cuda: Cuda, weight: WeightInput, layout: Mapping[str, StoredTensor], source: tuple[int, np.ndarray]) -> int:
    file, staging = source
    parts = [_stored(name, layout) for name in weight.parts]
    target = np.dtype(weight.dtype)
    nbytes = sum(part.nbytes // DTYPES[part.dtype].itemsize * target.itemsize for part in parts)
    if nbytes != weight.nbytes:
        raise EdgeAwqError(f"{weight.name}: the weights file has {nbytes} bytes, the engine takes {weight.nbytes}",
                           hint="edge-awq compile --fresh makes the engine anew")
    address = start = cuda.alloc(nbytes)
    for part in parts:
        for offset, piece in _pieces(file, part, staging):
            converted = _as_type(piece, DTYPES[part.dtype], target)
            cuda.upload(start, converted)
            cuda.synchronize()  # the buffer is used again
            start += converted.nbytes
            if cuda.gpu.integrated:
                os.posix_fadvise(file, offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
    return address


def _stored(name: str, layout: Mapping[str, StoredTensor]) -> StoredTensor:
    if name not in layout:
        raise EdgeAwqError(f"tensor '{name}' is missing in the weights file", hint=GET_AGAIN)
    return layout[name]


def _pieces(file: int, part: StoredTensor, staging: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(place in the file, bytes) of consecutive pieces of a stored tensor, each valid until the next."""
    done = 0
    while done < part.nbytes:
        piece = staging[: min(len(staging), part.nbytes - done)]
        read = 0
        while read < len(piece):
            count = os.preadv(file, [piece[read:]], part.offset + done + read)
            if count == 0:
                raise EdgeAwqError(f"tensor '{part.name}' is cut short in the weights file", hint=GET_AGAIN)
            read += count
        yield part.offset + done, piece
        done += len(piece)


def _as_type(piece: np.ndarray, stored: np.dtype, target: np.dtype) -> np.ndarray:
    """Bytes as they are, or floats of one size as those of another."""
    return piece if stored.itemsize == target.itemsize else piece.view(stored).astype(target)
