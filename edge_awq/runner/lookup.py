"""Prompt-lookup decoding: what followed the last time the same words were there is run along as a guess.

A pass over a few tokens reads the weights once, as a pass over one does. So where a text repeats itself (code, quotes,
summaries), a right guess is a token for nothing. Guesses never decide anything: the engine's logits after every token
are handed out only if that token is the one that was drawn from them on the host. So the tokens are those of decoding
one by one, as far as the engine's logits do not depend on how many tokens run at once; those that an engine itself
draws (SamplingEngine) are others for the same seed.

Source: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding; verification as in Leviathan et al. 2023,
https://arxiv.org/abs/2211.17192, for a draft that is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edge_awq.engine.base import AllLogitsEngine

NGRAMS = (3, 2)  # tokens that must be the same, the longest first; after one alone, anything may follow


class History:
    """All tokens so far, and what followed each pair and triple of them last."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._follower: dict[tuple[int, ...], int] = {}  # n-gram -> place of what followed it last

    def __len__(self) -> int:
        return len(self._tokens)

    def push(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            for size in NGRAMS:
                if len(self._tokens) >= size:
                    self._follower[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        kept = self._tokens[:length]
        self._tokens, self._follower = [], {}
        self.push(kept)

    def guess(self, token: int, count: int) -> list[int]:
        """``count`` tokens that may follow when ``token`` comes next; none where there is nothing to go by."""
        for size in NGRAMS:
            ngram = (*self._tokens[len(self._tokens) - size + 1 :], token)
            if len(ngram) == size and (start := self._follower.get(ngram)) is not None:
                since = [*self._tokens[start:], token]
                return [since[place % len(since)] for place in range(count)]  # what ends at the end goes round
        return []


class LookupEngine:
    """An engine that runs guesses along; see edge_awq.engine.base.Engine. It chooses no tokens: guesses need logits.

    Attributes:
        guessed, right: tokens that were run along, and those of them that were drawn then.
    """

    def __init__(self, engine: AllLogitsEngine, most_guesses: int) -> None:
        """Wrap ``engine``; ``most_guesses`` tokens are run beside one at most."""
        self.context, self.vocab_size = engine.context, engine.vocab_size
        self.guessed = self.right = 0
        self._engine, self._most_guesses = engine, most_guesses
        self._history = History()
        self._ahead: dict[int, tuple[int, np.ndarray]] = {}  # place -> the guess for it, and the logits after that

    @property
    def length(self) -> int:
        """Tokens that were asked for; more may be in the engine's cache, fewer once a call was broken off."""
        return min(len(self._history), self._engine.length)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache; returns logits [vocab_size] float32 after the last."""
        self._drop_guesses()
        logits = self._engine.prefill(ids)
        self._history.push(ids)
        return logits

    def step(self, token_id: int) -> np.ndarray:
        """Append one token; returns logits [vocab_size] float32, which the next call may overwrite."""
        guess, logits = self._ahead.get(self.length, (None, None))
        if guess == token_id:
            self.right += 1
        else:
            self._drop_guesses()
            logits = self._run(token_id)
        self._history.push([token_id])
        return logits

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        self._drop_guesses()
        self._engine.truncate(length)
        self._history.truncate(length)

    def close(self) -> None:
        """Release the runtime's memory; the engine cannot be used afterwards."""
        self._engine.close()

    def _run(self, token_id: int) -> np.ndarray:
        room = self.context - self.length - 1
        guesses = self._history.guess(token_id, min(self._most_guesses, room))
        if not guesses:
            return self._engine.step(token_id)
        logits = self._engine.logits([token_id, *guesses])
        self.guessed += len(guesses)
        self._ahead = dict(enumerate(zip(guesses, logits[1:], strict=True), self.length + 1))
        return logits[0]

    def _drop_guesses(self) -> None:
        """The engine's cache holds what was asked for, and no more."""
        self._ahead = {}
        length = self.length
        if self._engine.length != length:
            self._engine.truncate(length)
        if len(self._history) != length:
            self._history.truncate(length)
