"""Weights that an engine takes as inputs: how each is made of tensors of the weights file when a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_awq.weights import StoredTensor, read_tensor


@dataclass(frozen=True)
class WeightInput:
    """An input of an engine: the tensors ``parts`` of the weights file, stacked along their first axis.

    Attributes:
        name: of the engine's input.
        dtype: "float32", "float16", or "int8" for packed values. Bytes are taken as they are stored, unsigned ones too;
            stored float32 becomes float16 where that is asked for.
        shape: of the input as the engine sees it; packed values count bytes.
        parts: names in the weights file; mostly neighbours there, so that they are one range. The kernels want each
            input to begin at a multiple of 16 bytes, which in the file it may not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]

    @property
    def numpy_dtype(self) -> np.dtype:
        """``dtype`` as numpy's."""
        return np.dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the input."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize


def load(weight: WeightInput, path: Path, layout: Mapping[str, StoredTensor]) -> np.ndarray:
    """The input's value; a view of the mapped file where it is one stored tensor of that type."""
    parts = [_as_type(read_tensor(path, layout[name]), weight.numpy_dtype) for name in weight.parts]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(weight.shape)


def _as_type(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return array.view(dtype) if array.dtype.itemsize == dtype.itemsize else array.astype(dtype)
