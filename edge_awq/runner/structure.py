"""Answers of a form: JSON of a schema, or a text that a regular expression matches.

llguidance (https://github.com/guidance-ai/llguidance) says before every token which ones can come next; the others are
ruled out. JSON has one space after commas and colons and no others, so that no model goes on and on with spaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_awq.errors import EdgeAwqError
from edge_awq.lazy import require

if TYPE_CHECKING:
    from edge_awq.runner.vocabulary import Vocabulary

ANY_OBJECT = {"type": "object"}
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_BITS = 32  # of a word of llguidance's masks


class Structure:
    """What one answer must be, and how far it is."""

    def __init__(self, matcher: Any, vocab_size: int, tokenizer_size: int) -> None:
        """Wrap an LLMatcher whose grammar is sound."""
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._mask = np.zeros(-(-max(vocab_size, tokenizer_size) // _BITS), np.int32)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def restrict(self, logits: np.ndarray) -> np.ndarray:
        """Logits [vocab_size] float32 with -inf for every token that cannot come next."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        possible = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._vocab_size]
        return np.where(possible, logits, np.float32(-np.inf))

    def follow(self, ids: Sequence[int]) -> bool:
        """Several tokens at once; False: the answer cannot go on like this, and this object is of no more use."""
        return self._matcher.try_consume_tokens(list(ids)) == len(ids)

    def accept(self, token_id: int) -> None:
        """The next token.

        Raises:
            EdgeAwqError: the grammar has become too complex.
        """
        if not self._matcher.consume_token(token_id):
            raise EdgeAwqError(f"the answer's form cannot be followed any further: {_said(self._matcher)}",
                               hint="use a simpler schema or regular expression")


class Structures:
    """Makes structures for one model; its vocabulary is read once, which takes a second where it is large."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        """For logits [vocab_size].

        Raises:
            EdgeAwqError: llguidance is not installed, or does not know this kind of tokenizer.
        """
        self._guidance = require("llguidance", "structured")
        self._vocab_size = vocab_size
        self._tokenizer_size = max(vocab_size, vocabulary.tokenizer.get_vocab_size())
        try:
            self._tokenizer = self._guidance.LLTokenizer(vocabulary.tokenizer.to_str(), n_vocab=self._tokenizer_size,
                                                         eos_token=list(vocabulary.eos_ids) or None)
        except ValueError as error:
            raise EdgeAwqError(f"answers of a form are not possible with this model's tokenizer: {error}",
                               hint="leave the schema or regular expression out") from error

    def of_schema(self, schema: Mapping[str, Any], setting: str = "json_schema") -> Structure:
        """JSON of a schema, https://json-schema.org, for which ``setting`` asked.

        Raises:
            EdgeAwqError: the schema is wrong, or has what llguidance does not know.
        """
        try:
            grammar = self._guidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SPACES)
        except (ValueError, RecursionError) as error:
            raise EdgeAwqError(f"{setting} is not possible: {error}", hint="nest it less deeply") from error
        return self._of(grammar, setting)

    def of_regex(self, regex: str) -> Structure:
        """A text that ``regex``, in the syntax of Rust's regex crate, matches from its beginning to its end.

        Raises:
            EdgeAwqError: it is no regular expression.
        """
        return self._of(self._guidance.LLMatcher.grammar_from_regex(regex), "regex")

    def of_grammar(self, lark: str, setting: str) -> Structure:
        """What a grammar in llguidance's variant of Lark describes; ``setting`` asked for it.

        Raises:
            EdgeAwqError: a schema in it has what llguidance does not know.
        """
        return self._of(self._guidance.LLMatcher.grammar_from_lark(lark), setting)

    def knows(self, schema: Mapping[str, Any]) -> bool:
        """Whether ``of_schema`` takes it."""
        try:
            self.of_schema(schema)
        except EdgeAwqError:
            return False
        return True

    def tokenize(self, text: str) -> list[int]:
        """Tokens, none of them special, that spell a text."""
        return self._tokenizer.tokenize_str(text)

    def _of(self, grammar: str, setting: str) -> Structure:
        matcher = self._guidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise EdgeAwqError(f"{setting} is not possible: {_said(matcher)}",
                               hint="correct it, or leave that part out")
        return Structure(matcher, self._vocab_size, self._tokenizer_size)


def _said(matcher: Any) -> str:
    return " ".join(matcher.get_error().split())
