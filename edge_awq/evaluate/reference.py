"""A file of what a reference foretells, so that it need not run where, or whenever, a bundle is evaluated.

It is an .npz (uncompressed, so read window by window): "ids" int32 [windows, tokens], "opening", "name" and "text", and
for window i "log_p_<i>" float16 [foretold tokens, V], the reference's log probabilities.

Half floats round a log probability by at most 2^-11 of itself. The rows are normalized again when they are read, so
that what remains of it in a mean KL is of second order: below 1e-6 nats where log probabilities are those of language.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_awq.bundle import replacing_file
from edge_awq.distributions import log_softmax
from edge_awq.errors import EdgeAwqError
from edge_awq.texts import Windows

CHUNK = 64  # tokens whose logits are in memory at once
_AGAIN = "write it again with edge-awq eval --reference MODEL --save FILE"


@dataclass(frozen=True)
class Passage:
    """What is evaluated on.

    Attributes:
        text: where it is from.
    """

    windows: Windows
    text: str

    @property
    def first(self) -> int:
        """The first position whose next token is foretold: the last of the opening, else the first token."""
        return max(self.windows.opening - 1, 0)

    @property
    def window_tokens(self) -> int:
        """Tokens of a window, opening included."""
        return len(self.windows.ids[0])

    def targets(self, index: int) -> np.ndarray:
        """The tokens of window ``index`` that are foretold."""
        return np.array(self.windows.ids[index][self.first + 1 :])


@dataclass(frozen=True)
class Reference:
    """A file that ``write_reference`` wrote.

    Attributes:
        name: of the reference model.
    """

    path: Path
    name: str
    passage: Passage
    vocab_size: int

    def halves(self, index: int) -> np.ndarray:
        """Log probabilities [foretold tokens, V] float16 of window ``index``, for ``from_halves``."""
        with np.load(self.path) as members:
            return members[f"log_p_{index}"]


def to_halves(log_p: np.ndarray) -> np.ndarray:
    """Log probabilities as they are stored; -inf is what is less likely than e^-65504."""
    with np.errstate(over="ignore"):
        return log_p.astype(np.float16)


def from_halves(halves: np.ndarray) -> np.ndarray:
    """Stored log probabilities [tokens, V] as float32 that make up distributions again."""
    return log_softmax(halves.astype(np.float32))


def write_reference(path: Path, name: str, passage: Passage, found: Iterable[np.ndarray]) -> None:
    """Write the file, window by window; it stands under its name only when it is whole.

    Args:
        found: log probabilities [foretold tokens, V] float16 of one window after the other.
    """
    with replacing_file(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        _write(archive, "ids", np.array(passage.windows.ids, np.int32))
        for entry, value in (("opening", passage.windows.opening), ("name", name), ("text", passage.text)):
            _write(archive, entry, np.array(value))
        for index, halves in enumerate(found):
            _write(archive, f"log_p_{index}", halves)


def read_reference(path: Path) -> Reference:
    """What ``write_reference`` wrote, all but the numbers themselves.

    Raises:
        EdgeAwqError: it is something else, or not whole.
    """
    try:
        with np.load(path) as members:
            ids = members["ids"].tolist()
            passage = Passage(Windows(ids, int(members["opening"])), str(members["text"]))
            if missing := {f"log_p_{index}" for index in range(len(ids))} - set(members.files):
                raise KeyError(min(missing))
            return Reference(path, str(members["name"]), passage, members["log_p_0"].shape[1])
    except (KeyError, ValueError, IndexError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise EdgeAwqError(f"{path} is not a reference, or damaged ({error})", hint=_AGAIN) from error


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
