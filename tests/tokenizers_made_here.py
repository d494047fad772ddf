"""Small tokenizers of every kind that real models have, trained in a moment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "def main(argv: list[str] | None = None) -> int:", "    return 0 if argv else 1  # nothing to do",
    "The quick brown fox jumps over the lazy dog, 1234567890 times.", "größer als früher, Straße für Straße",
    "naïve café ½ \ufb01", "日本語の文章を書きます。今日は天気がいい。", "привет мир, ёлка и снег",
    "emoji 😀😀 and families 👩‍👩‍👧", "a  b   c    d", "\tindented\twith tabs", "one, two; three: (four) [five] {six}",
] * 12
# The settings that Llama 2 and Mistral 7B were trained with.
LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
         "allow_whitespace_only_pieces": True, "split_digits": True}


def train_sentencepiece(path: Path, model_type: str = "bpe", **settings: Any) -> sentencepiece.SentencePieceProcessor:
    """Write a tokenizer.model; rare characters stay out of its vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type=model_type, vocab_size=480,
        character_coverage=0.98, hard_vocab_limit=False, minloglevel=2, num_threads=1, **settings)
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def train_byte_level(special: tuple[str, ...] = ("<|begin|>", "<|end|>")) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen2 have it; the special tokens have the last ids, "<tool>" after them is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet,
                                                              show_progress=False))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def make_spaced(decoder: decoders.Decoder) -> Tokenizer:
    """A few words and the spaces of SentencePiece; one token is empty, as some vocabularies have it."""
    words = ["<unk>", "▁the", "▁", "▁▁", "fox", "▁fox", "\n", ""]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoder
    return tokenizer
