"""How models write calls of functions, as data in ``toolformats/*.toml``.

A call is JSON: ``{"name": "f", "arguments": {...}}``, with the keys of the format. Before the first call, between two
and after the last one stand texts that the model was trained on, with markers in them that are often tokens.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from edge_awq.toml import from_table, load_toml

FOLDER = Path(__file__).parent / "toolformats"


@dataclass(frozen=True)
class ToolCall:
    """One call of a function.

    Attributes:
        name: of the function.
        arguments: a JSON object, as text.
        id: what the result must refer to.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{token_hex(12)}")


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls.

    Attributes:
        models: which ones write it, for people.
        has, lacks: texts that a chat template of such a model contains, and that it does not.
        begin, between, end: texts before the first call, between two, and after the last one; without ``between`` an
            answer has one call.
        markers: those parts of them that stand nowhere else, in pairs of opening and closing ones or alone.
        function, arguments: keys of a call's JSON.
        index: key of the call's place in the answer, where there is one.
        thinking: texts before and after what the model thinks; a call within is none.
        tools_variable: the template's name for the tools, where it does not know "tools".
        tools_in_system: where it knows neither: it takes them as JSON from the system message's "tools".
        result_role: the role of a function's result where the template writes roles as they are.
        id_length: letters and digits that the template wants an id to have.
    """

    name: str
    models: str
    has: tuple[str, ...]
    begin: str
    end: str
    between: str | None = None
    lacks: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    function: str = "name"
    arguments: str = "arguments"
    index: str | None = None
    thinking: tuple[str, ...] = ()
    tools_variable: str | None = None
    tools_in_system: bool = False
    result_role: str | None = None
    id_length: int | None = None

    @property
    def opening(self) -> str:
        """The text with which an answer's first call begins; without markers, the whole answer begins with it."""
        return self.markers[0] if self.markers else "{"

    def fits(self, template: str) -> bool:
        """Whether a chat template belongs to a model that writes calls like this."""
        return all(text in template for text in self.has) and not any(text in template for text in self.lacks)

    def head(self, name: str, index: str = "0") -> str:
        """A call's JSON up to its arguments; a "}" after them completes it."""
        start = f"{json.dumps(self.index)}: {json.dumps(index)}, " if self.index else ""
        return f"{{{start}{json.dumps(self.function)}: {json.dumps(name)}, {json.dumps(self.arguments)}: "

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model would write them."""
        texts = (f"{self.head(call.name, str(index))}{call.arguments}}}" for index, call in enumerate(calls))
        return self.begin + (self.between or "\n").join(texts) + self.end

    def split(self, text: str) -> list[str]:
        """A text in pieces: markers, and what stands between them."""
        if not self.markers:
            return [text] if text else []
        return [piece for piece in re.split(f"({'|'.join(map(re.escape, self.markers))})", text) if piece]


@functools.cache
def load_formats(folder: Path = FOLDER) -> tuple[ToolFormat, ...]:
    """All formats.

    Raises:
        EdgeAwqError: a file is not right.
    """
    return tuple(from_table(ToolFormat, load_toml(path), str(path)) for path in sorted(folder.glob("*.toml")))


def find_format(template: str) -> ToolFormat | None:
    """The format of the models that a chat template belongs to, None if it is not known."""
    return next((each for each in load_formats() if each.fits(template)), None)
