"""Calibration: the token ids that AWQ's statistics are taken from, out of a file, built-in texts or the model itself.

16 sequences of 512 tokens suffice for AWQ (arXiv 2306.00978, section 5.3).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from edge_awq.errors import EdgeAwqError
from edge_awq.model.decoder import Decoder
from edge_awq.progress import Progress, Quiet
from edge_awq.quantize.own_text import sample_own_text

BUILT_IN, OWN = "built-in", "self"
TEXTS = Path(__file__).parent / "text"
PIECE_CHARACTERS = 1 << 16  # text is read and tokenized in pieces of this size
LINE_CHARACTERS = 1 << 22  # the longest line of a jsonl file
POOL = 16  # a file is read up to this many times the tokens needed; sequences are spread evenly over what was read


@dataclass(frozen=True)
class CalibrationSpec:
    """What is asked for: ``source`` is BUILT_IN, OWN (the model samples its own text) or the path of a file."""

    source: str = BUILT_IN
    sequences: int = 16
    tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """What there is.

    Attributes:
        ids: token ids, int64 [sequences, tokens].
        source: where the text is from.
        note: how it falls short of what was asked for; None when it does not.
    """

    ids: torch.Tensor
    source: str
    note: str | None = None


def calibrate(decoder: Decoder, tokenizer: Tokenizer, spec: CalibrationSpec,
              progress: Progress | None = None) -> Calibration:
    """Token ids for calibration; sequences are no longer than the model's positions.

    Each sequence starts with what the tokenizer puts before a text (BOS, mostly), as every prompt will.

    Raises:
        EdgeAwqError: the file is missing, empty, not UTF-8 or not valid jsonl; the tokenizer belongs to another
            model; or the model does not fit into memory (OWN).
    """
    _check_vocabulary(decoder, tokenizer)
    tokens = min(spec.tokens, decoder.config.max_positions)
    if spec.source == OWN:
        return _finish(decoder, spec, sample_own_text(decoder, spec.sequences, tokens, spec.seed,
                                                      progress or Quiet()))
    # A copy, because tokenizer.json may ask for truncation or padding, and the caller's object is not ours to change.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    opening = tokenizer.encode("").ids[: tokens - 1]
    body = tokens - len(opening)
    found = _encode(_read_pieces(spec.source), tokenizer, limit=POOL * spec.sequences * body)
    if not found:
        raise EdgeAwqError(f"{spec.source}: no text to calibrate with",
                           hint='give a .txt file, a .jsonl file with a "text" in each line, or leave the option out')
    body = min(body, len(found))
    rows = [opening + found[start : start + body] for start in _spread(len(found), body, spec.sequences)]
    return _finish(decoder, spec, torch.tensor(rows))


def _spread(available: int, length: int, count: int) -> list[int]:
    """Starts of at most ``count`` windows of ``length`` that do not overlap, spread evenly over ``available``."""
    windows = available // length
    count = min(count, windows)
    return [length * (i * windows // count) for i in range(count)]


def _check_vocabulary(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Whether the model has every token of the vocabulary; tokens that somebody added, padding mostly, may lie beyond.

    A smaller vocabulary is usual: models round theirs up.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    _check_highest(decoder, max(vocabulary.values(), default=0))


def _check_highest(decoder: Decoder, highest: int) -> None:
    vocab_size = decoder.config.vocab_size
    if highest >= vocab_size:
        raise EdgeAwqError(f"{decoder.folder}: token id {highest} of the tokenizer, {vocab_size} tokens in the model",
                           hint="tokenizer.json belongs to another model; download the checkpoint again")


def _finish(decoder: Decoder, spec: CalibrationSpec, ids: torch.Tensor) -> Calibration:
    _check_highest(decoder, int(ids.max()))
    sequences, tokens = ids.shape
    note = None
    if (sequences, tokens) != (spec.sequences, spec.tokens):
        note = f"{sequences} sequences of {tokens} tokens instead of {spec.sequences} of {spec.tokens}"
    return Calibration(ids, spec.source, note)


def _encode(pieces: Iterable[str], tokenizer: Tokenizer, limit: int) -> list[int]:
    """Token ids of the pieces, without special tokens, until there are ``limit``."""
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if len(ids) >= limit:
            break
    return ids[:limit]


def _read_pieces(source: str) -> Iterator[str]:
    if source == BUILT_IN:
        return (piece for path in sorted(TEXTS.glob("*.txt")) for piece in _read_text(path))
    path = Path(source)
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_text(path)


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
        return EdgeAwqError(f"{path}: cannot be read: {error.strerror}", hint="check the path of the calibration file")
    return EdgeAwqError(f"{path}: not UTF-8 text: {error.reason}", hint="convert the file to UTF-8")
