"""An answer's text becomes what the model says and the functions that it calls, piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Iterator
from dataclasses import replace
from typing import Any

from edge_awq.runner.generate import Token
from edge_awq.runner.tool_format import ToolCall, ToolFormat

_JSON = json.JSONDecoder(strict=False)  # models put line breaks into texts


class Opening:
    """Finds where the first call begins, outside of what the model thinks.

    Attributes:
        found: it has come.
        rest: then the text from it on, as far as it is there.
    """

    def __init__(self, form: ToolFormat, thinking: bool = False) -> None:
        """Nothing is there yet.

        Args:
            thinking: the prompt ends within thoughts.
        """
        self._form = form
        self._thinking = thinking
        self._held = ""  # white space, and what may be the beginning of a marker
        self._is_text = False  # an answer without markers that began otherwise
        self.found = False
        self.rest = ""

    def push(self, text: str) -> str:
        """The text that certainly stands before the first call, without white space at its end."""
        self._held += text
        if not self._form.markers:
            return self._push_start()
        before = ""
        while (place := self._next()) is not None:
            start, marker = place
            if marker == self._form.opening:
                self.found, self.rest = True, self._held[start:]
                return (before + self._held[:start]).rstrip()
            before += self._held[: start + len(marker)]
            self._held = self._held[start + len(marker) :]
            self._thinking = not self._thinking
        return self._release(before)

    def finish(self) -> str:
        """What was held back for a call that did not come."""
        return "" if self.found else self._held

    def _push_start(self) -> str:
        begun = self._held.lstrip()
        self._is_text = self._is_text or bool(begun and not begun.startswith(self._form.opening))
        if begun and not self._is_text:
            self.found, self.rest = True, begun
            return ""
        if not begun and not self._is_text:
            return ""
        text, self._held = self._held, ""
        return text

    def _sought(self) -> tuple[str, ...]:
        if self._thinking:
            return self._form.thinking[1:]
        return (self._form.opening, *self._form.thinking[:1])

    def _next(self) -> tuple[int, str] | None:
        """Where the next marker that matters now is, and which."""
        found = [(start, text) for text in self._sought() if (start := self._held.find(text)) >= 0]
        return min(found, default=None)

    def _release(self, before: str) -> str:
        text = before + self._held
        begun = (size for marker in self._sought() for size in range(1, len(marker)) if text.endswith(marker[:size]))
        settled = len(text[: len(text) - max(begun, default=0)].rstrip())
        self._held = text[settled:]
        return text[:settled]


class CallSplitter:
    """Takes an answer apart. What begins as a call and is none of a known function stays text, as it was written."""

    def __init__(self, form: ToolFormat, names: Collection[str], thinking: bool = False) -> None:
        """Nothing is there yet.

        Args:
            names: the functions.
            thinking: the prompt ends within thoughts.
        """
        self._form = form
        self._names = names
        self._opening = Opening(form, thinking)
        between = [*map(re.escape, form.markers), r"[\s\[\],;]"]
        self._between = re.compile(f"(?:{'|'.join(between)})*")
        self._text = ""  # from the first call on, or from the end of the last one that was read
        self._is_read = False  # a call was

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """The text that is certainly no call, and calls that are complete."""
        if self._opening.found:
            self._text += text
        else:
            text = self._opening.push(text)
            if not self._opening.found:
                return text, []
            self._text = self._opening.rest
            return text, self._read()
        return "", self._read() if "}" in text else []

    def finish(self) -> str:
        """Text that turned out to be no call."""
        if not self._opening.found:
            return self._opening.finish()
        end = self._between.match(self._text).end()
        skipped, rest = self._text[:end], self._text[end:]
        if not rest or any(marker.startswith(rest) for marker in self._form.markers):  # cut off in it
            return ""
        start = skipped.find(self._form.opening)
        return self._text[start:] if start >= 0 else rest if self._is_read else self._text

    def _read(self) -> list[ToolCall]:
        calls = []
        while True:
            start = self._between.match(self._text).end()
            try:
                value, end = _JSON.raw_decode(self._text, start)
            except (ValueError, RecursionError):  # not complete, or no JSON
                return calls
            call = self._call(value)
            if call is None:
                return calls
            calls.append(call)
            self._is_read = True
            self._text = self._text[end:]

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or value.get(self._form.function) not in self._names:
            return None
        given = value.get(self._form.arguments, {})
        try:
            arguments = _JSON.decode(given) if isinstance(given, str) else given  # some write them as a text
        except (ValueError, RecursionError):
            return None
        if not isinstance(arguments, dict):
            return None
        return ToolCall(value[self._form.function], json.dumps(arguments, ensure_ascii=False))


def split_calls(tokens: Generator[Token, None, None], splitter: CallSplitter) -> Iterator[Token]:
    """The same tokens, with texts that hold no calls, and calls with the token that completed each."""
    try:
        for token in tokens:
            text, calls = splitter.push(token.text)
            if token.finish_reason is not None:
                text += splitter.finish()
            yield replace(token, text=text, calls=tuple(calls))
    finally:
        tokens.close()
