"""A chat: what was said so far, and how much of it the model can still see."""

from __future__ import annotations

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.session import Session

_ROOM = 4  # an answer has at least a quarter of the context, unless max_tokens asks for less
_KEPT = 2  # half of the context is kept once the oldest turns go, so that not every further turn moves the beginning


class Conversation:
    """Messages of a user and a model in turn. What was said last always stays; the oldest turns go when room is short.

    Attributes:
        messages: instructions, and the turns that were answered.
        forgotten: messages that had to go when the last prompt was made.
    """

    def __init__(self, session: Session, system: str | None = None, max_tokens: int | None = None) -> None:
        """Begin a chat.

        Args:
            system: instructions, which always stay.
            max_tokens: of an answer; None for as many as the context has room for.

        Raises:
            EdgeAwqError: the model has no chat template, or none that takes instructions.
        """
        self._session = session
        self._instructions = [] if system is None else [{"role": "system", "content": system}]
        context = session.engine.context
        self._limit = context - min(max_tokens or context, context // _ROOM)
        self._kept = min(self._limit, context // _KEPT)
        self.messages = list(self._instructions)
        self._asked: list[dict[str, str]] = []
        self.forgotten = 0
        self._encode([{"role": "user", "content": "Hello"}])

    def ask(self, text: str) -> list[int]:
        """What the user says, part of the chat once it is answered; returns the token ids of the prompt it makes.

        Raises:
            EdgeAwqError: the model has no chat template, it refuses these messages, or they have no room.
        """
        turns = [*self.messages[len(self._instructions) :], {"role": "user", "content": text}]
        ids = self._encode(turns)
        before = len(turns)
        if len(ids) > self._limit:
            while len(turns) > 1 and len(ids) > self._kept:
                turns = turns[2:]
                ids = self._encode(turns)
        if len(ids) > self._session.engine.context:
            raise EdgeAwqError(f"this message makes a prompt of {len(ids)} tokens, and the context has room for "
                               f"{self._session.engine.context}", hint="say it in fewer words")
        self.forgotten = before - len(turns)
        self._asked = turns
        return ids

    def answered(self, text: str) -> None:
        """What the model said to what was asked last, also where it was broken off."""
        self.messages = [*self._instructions, *self._asked, {"role": "assistant", "content": text}]

    def clear(self) -> None:
        """Begin anew."""
        self.messages = list(self._instructions)

    def _encode(self, turns: list[dict[str, str]]) -> list[int]:
        return self._session.encode_chat([*self._instructions, *turns])
