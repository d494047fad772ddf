"""Constants as TensorRT wants them, converted from the bytes of a bundle's weights file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

# (stored, wanted) -> the bit that turns unsigned into signed, in every byte.
FLIPPED = {(TensorProto.UINT4, TensorProto.INT4): 0x88, (TensorProto.UINT8, TensorProto.INT8): 0x80}


def read_bytes(tensor: TensorProto, weights: Path) -> np.ndarray:
    """The bytes of a constant that lies in the file ``weights``, a read-only uint8 view of the mapped file."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(weights, np.uint8, "r", int(place["offset"]), int(place["length"]))


def convert(stored: np.ndarray, stored_as: int, wanted: int) -> np.ndarray:
    """Bytes of element type ``stored_as`` as bytes of the type ``wanted``: floats are rounded, integers re-centred."""
    if stored_as == wanted:
        return stored
    if (stored_as, wanted) in FLIPPED:
        return stored ^ np.uint8(FLIPPED[stored_as, wanted])
    old, new = (helper.tensor_dtype_to_np_dtype(kind) for kind in (stored_as, wanted))
    return stored.view(old).astype(new).view(np.uint8)
