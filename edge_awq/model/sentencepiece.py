"""A SentencePiece model file becomes a Hugging Face tokenizer with the same ids.

The file is a protocol buffer; the few fields needed are read here, so that neither the sentencepiece nor the protobuf
package is needed. Format: https://github.com/google/sentencepiece, src/sentencepiece_model.proto (Apache-2.0).
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edge_awq.errors import EdgeAwqError

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # SentencePiece writes spaces as this character
ANOTHER = "use a checkpoint that has a tokenizer.json"


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry; its id is its position. ``kind`` is NORMAL, UNKNOWN, CONTROL ..."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model says, as far as encoding and decoding need it; -1 stands for an id that is not there."""

    pieces: tuple[Piece, ...]
    algorithm: int
    unk_id: int
    bos_id: int
    eos_id: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model.

    Raises:
        EdgeAwqError: not a SentencePiece model, damaged, or of a kind that no tokenizer.json can express.
    """
    try:
        model = _parse(path.read_bytes())
    except (IndexError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise EdgeAwqError(f"{path}: not a SentencePiece model, or damaged ({error})",
                           hint=f"download the checkpoint again, or {ANOTHER}") from error
    if model.algorithm not in (UNIGRAM, BPE):
        raise EdgeAwqError(f"{path}: SentencePiece model type {model.algorithm} is neither Unigram nor BPE",
                           hint=ANOTHER)
    return model


def _parse(data: bytes) -> SentencePieceModel:
    fields = _read_message(data)
    pieces = tuple(_piece(_read_message(entry)) for entry in fields[1])
    trainer = _read_message(b"".join(fields[2]))
    normalizer = _read_message(b"".join(fields[3]))
    if not pieces or not fields[2]:
        raise ValueError("no vocabulary in it")
    if _last(trainer, 24, False):
        raise ValueError("whitespace as a suffix of words is not supported")
    model = SentencePieceModel(
        pieces=pieces,
        algorithm=_last(trainer, 3, UNIGRAM),
        unk_id=_signed(_last(trainer, 40, 0)),
        bos_id=_signed(_last(trainer, 41, 1)),
        eos_id=_signed(_last(trainer, 42, 2)),
        byte_fallback=bool(_last(trainer, 35, False)),
        charsmap=_last(normalizer, 2, b""),
        add_dummy_prefix=bool(_last(normalizer, 3, True)),
        remove_extra_whitespaces=bool(_last(normalizer, 4, True)),
    )
    if not 0 <= model.unk_id < len(pieces) or max(model.bos_id, model.eos_id) >= len(pieces):
        raise ValueError("a special token lies outside the vocabulary")
    if model.charsmap:
        (trie_size,) = struct.unpack_from("<I", model.charsmap)
        if trie_size % 4 or not model.charsmap[4 + trie_size :].decode():
            raise ValueError("its table of normalized characters is cut short")
    return model


def _piece(fields: dict[int, list[Any]]) -> Piece:
    (score,) = struct.unpack("<f", _last(fields, 2, b"\0\0\0\0"))
    return Piece(fields[1][-1].decode(), score, _last(fields, 3, NORMAL))


def _read_message(data: bytes) -> dict[int, list[Any]]:
    """Fields of one message by number: integers, or the bytes of fixed-size and length-delimited values."""
    fields: dict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
        else:
            if wire == 2:
                size, at = _read_varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(wire, -1)
            if size < 0 or at + size > len(data):
                raise ValueError(f"cut short or not a protocol buffer at byte {at}")
            value, at = data[at : at + size], at + size
        fields[number].append(value)
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _last(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    values = fields.get(number)
    return values[-1] if values else default


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def convert_sentencepiece(model: SentencePieceModel, continues: bool = False) -> Tokenizer:
    """A tokenizer that gives the ids of SentencePiece itself, for text without special tokens.

    Special tokens that are spelled out in the text are recognised, as chat templates need it; SentencePiece would
    split them. Known differences: a text that is exactly one user-defined symbol goes without the space before it;
    where a model normalizes (NFKC), the tokenizers library does so by grapheme cluster, SentencePiece by character.

    Args:
        continues: text after a special token goes on without the space that SentencePiece puts before the text
            (``"legacy": false`` in a tokenizer_config.json).
    """
    tokenizer = Tokenizer(_bpe(model) if model.algorithm == BPE else _unigram(model))
    tokenizer.normalizer = _normalizer(model, prepend=model.add_dummy_prefix and not continues)
    splits = []
    if model.add_dummy_prefix and continues:
        splits.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
    if model.algorithm == UNIGRAM and model.byte_fallback:
        # Unigram would take a byte piece for the text that spells its name, "<0x41>"; a cut inside prevents it.
        splits.append(pre_tokenizers.Split(Regex("(?<=<0x[0-9A-F])(?=[0-9A-F]>)"), "isolated"))
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(piece.text, normalized=False, special=True)
                                  for piece in model.pieces if piece.kind in (CONTROL, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(piece.text, normalized=True, special=False)
                          for piece in model.pieces if piece.kind == USER_DEFINED])
    return tokenizer


def _bpe(model: SentencePieceModel) -> models.BPE:
    """SentencePiece joins the neighbours whose union scores best: every split of a piece is a merge of its rank."""
    vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
    joinable = {piece.text for piece in model.pieces if piece.kind in (NORMAL, UNUSED)}
    merges = []
    for piece in sorted((piece for piece in model.pieces if piece.kind == NORMAL), key=lambda piece: -piece.score):
        cuts = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        merges += [(left, right) for left, right in cuts if left in joinable and right in joinable]
    return models.BPE(vocab, merges, unk_token=model.pieces[model.unk_id].text, fuse_unk=True,
                      byte_fallback=model.byte_fallback)


def _unigram(model: SentencePieceModel) -> models.Unigram:
    vocab = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(vocab, model.unk_id, model.byte_fallback)


def _normalizer(model: SentencePieceModel, prepend: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prepend:
        steps.append(_prepend_space([piece.text for piece in model.pieces if piece.kind == USER_DEFINED]))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _prepend_space(symbols: list[str]) -> normalizers.Normalizer:
    """SentencePiece's dummy prefix; symbols are looked up normalized, so a text that is just one stays as it is."""
    if not symbols:
        return normalizers.Prepend(SPACE)
    alone = "|".join(re.escape(symbol) for symbol in symbols)
    return normalizers.Replace(Regex(rf"\A(?=[\s\S])(?!(?:{alone})\z)"), SPACE)
