"""Calibration: the token ids that AWQ's statistics are taken from, out of a file, built-in texts or the model itself.

16 sequences of 512 tokens suffice for AWQ (arXiv 2306.00978, section 5.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from edge_awq.errors import EdgeAwqError
from edge_awq.model.decoder import Decoder
from edge_awq.progress import Progress, Quiet
from edge_awq.quantize.own_text import sample_own_text
from edge_awq.texts import cut_windows, read_pieces

BUILT_IN, OWN = "built-in", "self"
TEXTS = Path(__file__).parent / "text"
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
    windows = cut_windows(tokenizer, _pieces(spec.source), spec.sequences, tokens, pool=POOL)
    if not windows.ids:
        raise EdgeAwqError(f"{spec.source}: no text to calibrate with",
                           hint='give a .txt file, a .jsonl file with a "text" in each line, or leave the option out')
    return _finish(decoder, spec, torch.tensor(windows.ids))


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


def _pieces(source: str) -> Iterator[str]:
    files = sorted(TEXTS.glob("*.txt")) if source == BUILT_IN else [Path(source)]
    return (piece for path in files for piece in read_pieces(path))
