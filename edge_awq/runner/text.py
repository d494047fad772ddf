"""Token ids become text while they arrive: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how SentencePiece vocabularies spell a byte
_BROKEN = "\ufffd"  # what decoders put for bytes that are no character, or not yet


class TextStream:
    """Text of a token stream, piece by piece, up to the first stop string.

    Without a stop string in it, all pieces together equal ``tokenizer.decode`` of all ids.

    Attributes:
        stopped: a stop string has come; there is no text after it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), spelled: Collection[int] = ()) -> None:
        self._pieces = Detokenizer(tokenizer, spelled)
        self._stop = StopFilter(stop)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def push(self, token_id: int) -> str:
        """Text that this token settles; often empty, when a character or a stop string may be under way."""
        text = self._stop.push(self._pieces.push(token_id))
        # A stop string need not wait for the next token, even where the decoder does.
        return text + self._stop.look_ahead(self._pieces.held().rstrip(_BROKEN))

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        return self._stop.push(self._pieces.held()) + self._stop.finish()


class Detokenizer:
    """The text of each new token, by decoding a short window again rather than everything.

    Held back: bytes that do not yet make a character, and runs of byte tokens, which decoders judge as a whole.
    """

    def __init__(self, tokenizer: Tokenizer, spelled: Collection[int] = ()) -> None:
        """``spelled``: special tokens that have their text."""
        self._tokenizer = tokenizer
        self._spelled = spelled
        self._special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._window: list[int] = []  # the tokens of the last piece, as context, and those held back
        self._known = ""  # what the context alone decodes to
        self._context = 0  # tokens of the window that are context

    def push(self, token_id: int) -> str:
        """Text that cannot change any more, "" while it may; special tokens have none."""
        token = self._tokenizer.id_to_token(token_id)
        if token_id in self._spelled:
            piece = self.held()
            self._settle()
            return piece + token
        if token is None or token_id in self._special:
            return ""
        self._window.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        piece = self.held()
        if not piece or piece.endswith(_BROKEN):
            return ""
        self._settle()
        return piece

    def held(self) -> str:
        """Text of the tokens held back, as if no token followed."""
        if len(self._window) == self._context:
            return ""
        return self._tokenizer.decode(self._window)[len(self._known) :]

    def _settle(self) -> None:
        if len(self._window) > self._context:
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._known = self._tokenizer.decode(self._window)


class StopFilter:
    """Passes text on up to the stop string that is complete first, however the text is cut into pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certainly not part of a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        if (start := self._find(text)) is not None:
            self.stopped = True
            return text[:start]
        begun = (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
        settled = len(text) - max(begun, default=0)
        self._held = text[settled:]
        return text[:settled]

    def look_ahead(self, text: str) -> str:
        """Stop if ``text``, which is not settled yet, completes a stop string; the text before it, else ""."""
        if self.stopped or (start := self._find(self._held + text)) is None:
            return ""
        self.stopped = True
        return (self._held + text)[:start]

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        return "" if self.stopped else self._held

    def _find(self, text: str) -> int | None:
        """Where the stop string begins that ends first; of several that end together the longest."""
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None
