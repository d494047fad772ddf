"""Texts to calibrate and to evaluate with: read from files, and cut into windows of token ids. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from edge_awq.errors import EdgeAwqError

PIECE_CHARACTERS = 1 << 16  # text is read and tokenized in pieces of this size
LINE_CHARACTERS = 1 << 22  # the longest line of a jsonl file


@dataclass(frozen=True)
class Windows:
    """Pieces of a text, all of one length, none overlapping another.

    Attributes:
        ids: token ids of each; every window begins with the opening.
        opening: how many tokens the tokenizer puts before a text: BOS, mostly.
    """

    ids: list[list[int]]
    opening: int


def cut_windows(tokenizer: Tokenizer, pieces: Iterable[str], count: int, tokens: int, pool: int = 1) -> Windows:
    """At most ``count`` windows of ``tokens``; none where there is no text, a shorter one where there is little.

    Args:
        tokens: of a window, opening included.
        pool: windows are spread evenly over up to this many times the text that they need.
    """
    # A copy, because tokenizer.json may ask for truncation or padding, and the caller's object is not ours to change.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    opening = tokenizer.encode("").ids[: tokens - 1]
    body = tokens - len(opening)
    found = _encode(pieces, tokenizer, limit=pool * count * body)
    body = min(body, len(found))
    starts = _spread(len(found), body, count) if found else []
    return Windows([opening + found[start : start + body] for start in starts], len(opening))


def read_pieces(path: Path) -> Iterator[str]:
    """The text of a file, or of the objects with a "text" in the lines of a .jsonl file, piece by piece.

    Raises:
        EdgeAwqError: the file cannot be read, is not UTF-8 or not valid jsonl.
    """
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_text(path)


def _spread(available: int, length: int, count: int) -> list[int]:
    """Starts of at most ``count`` windows of ``length`` that do not overlap, spread evenly over ``available``."""
    windows = available // length
    count = min(count, windows)
    return [length * (i * windows // count) for i in range(count)]


def _encode(pieces: Iterable[str], tokenizer: Tokenizer, limit: int) -> list[int]:
    """Token ids of the pieces, without special tokens, until there are ``limit``."""
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if len(ids) >= limit:
            break
    return ids[:limit]


def _read_text(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while piece := file.read(PIECE_CHARACTERS):
                yield piece
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _read_jsonl(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(LINE_CHARACTERS):
                number += 1
                if line.strip():
                    yield _text_of(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise EdgeAwqError(f"{where}: not valid JSON: {error}",
                           hint="each line of a .jsonl file is one object; plain text goes into a .txt file") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise EdgeAwqError(f'{where}: an object with a string "text" is expected', hint='for example {"text": "..."}')
    return record["text"]


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> EdgeAwqError:
    if isinstance(error, OSError):
        return EdgeAwqError(f"{path}: cannot be read: {error.strerror}", hint="check the path of the text file")
    return EdgeAwqError(f"{path}: not UTF-8 text: {error.reason}", hint="convert the file to UTF-8")
