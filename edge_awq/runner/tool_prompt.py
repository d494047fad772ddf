"""A model's chat template is told of tools, of calls in the conversation so far, and of what came of them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.tool_format import ToolCall, ToolFormat, find_format, load_formats
from edge_awq.runner.vocabulary import Vocabulary

_PROBE = "zz_probe_zz"  # no template says this by itself
_PROBE_TOOL = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {
    "type": "object", "properties": {}}}}
_ASKED = [{"role": "user", "content": "Hello"}]
_SHORT_ID = re.compile("[a-zA-Z0-9]+")


class ToolPrompt:
    """What one model's chat template does with tools, found out by rendering."""

    def __init__(self, vocabulary: Vocabulary, model: str) -> None:
        """Nothing is found out before it is needed.

        Args:
            model: its name, for errors.
        """
        self._vocabulary = vocabulary
        self._model = model

    @functools.cached_property
    def form(self) -> ToolFormat:
        """How the model writes calls.

        Raises:
            EdgeAwqError: its chat template says nothing of calls, or it writes them in another way.
        """
        if self._known is None:
            known = ", ".join(form.models for form in load_formats())
            raise EdgeAwqError(f"the chat template of {self._model!r} writes calls of functions in a form that is not "
                               "known", hint=f"leave tools out, or use a model that calls as one of these: {known}")
        return self._known

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None,
               **options: Any) -> list[int]:
        """Token ids of a conversation; calls have their arguments as JSON text or as a table.

        Raises:
            EdgeAwqError: the chat template fails, or uses no tools; or arguments are no JSON object.
        """
        if _has_calls(messages):
            messages = self._with_calls(messages)
        if not tools:
            return self._vocabulary.encode_chat(messages, **options)
        if self._place is None:
            raise EdgeAwqError(f"the chat template of {self._model!r} does not use tools",
                               hint="leave tools out, or use a model that was trained to call functions")
        messages, placed = _put(self._place, messages, tools)
        variables = {**placed.pop("variables", {}), **(options.pop("variables", None) or {})}
        return self._vocabulary.encode_chat(messages, variables=variables, **placed, **options)

    @functools.cached_property
    def _known(self) -> ToolFormat | None:
        chat = self._vocabulary.chat
        return None if chat is None else find_format(chat.source([]))

    @functools.cached_property
    def _place(self) -> str | None:
        """Where the template looks for tools: "tools", another variable, "" for the system message; None: nowhere."""
        places = ["tools"]
        if self._known is not None:
            places += [self._known.tools_variable] if self._known.tools_variable else []
            places += [""] if self._known.tools_in_system else []
        return next((place for place in places if _PROBE in self._render(*_put(place, _ASKED, [_PROBE_TOOL]))), None)

    @functools.cached_property
    def _writes_calls(self) -> bool:
        """Whether the template writes the calls of an assistant's message."""
        call = {"id": "0" * 9, "type": "function", "function": {"name": _PROBE, "arguments": {}}}
        try:
            return _PROBE in self._render([*_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}], {})
        except EdgeAwqError:
            return True  # it looks at them, and wants something else

    def _render(self, messages: Sequence[Mapping[str, Any]], options: dict[str, Any]) -> str:
        chat = self._vocabulary.chat
        return "" if chat is None else chat.render(messages, **options)

    def _with_calls(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Calls and results as the template takes them."""
        form = self._known
        tabled = [_with_tables(message, form.id_length if form else None) for message in messages]
        return tabled if self._writes_calls else [_as_text(message, self.form) for message in tabled]


def _has_calls(messages: Any) -> bool:
    return isinstance(messages, Sequence) and any(
        isinstance(message, Mapping) and ("tool_calls" in message or "tool_call_id" in message) for message in messages)


def _put(place: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
         ) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The messages, and options for ChatTemplate.render, with the tools in their place."""
    if place == "tools":
        return list(messages), {"tools": tools}
    if place:
        return list(messages), {"variables": {place: tools}}
    has_system = bool(messages) and messages[0].get("role") == "system"
    system = messages[0] if has_system else {"role": "system", "content": ""}
    listed = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    return [{**system, "tools": listed}, *messages[has_system:]], {}


def _with_tables(message: Mapping[str, Any], id_length: int | None) -> dict[str, Any]:
    """A message whose calls have tables as arguments, which templates want, and ids of that length."""
    changed = {name: value for name, value in message.items() if name != "tool_calls"}
    if id_length and isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = _fitting(message["tool_call_id"], id_length)
    calls = message.get("tool_calls")
    if not calls:
        return changed  # templates ask whether the entry is there
    changed["tool_calls"] = [_with_table(call, id_length) for call in calls]
    changed["content"] = message.get("content") or ""  # templates add texts to it
    return changed


def _with_table(call: Any, id_length: int | None) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise EdgeAwqError(f"a message's tool_calls hold {call!r:.80}",
                           hint='write each as {"id": ..., "function": {"name": ..., "arguments": ...}}')
    given = function.get("arguments")
    try:
        arguments = json.loads(given or "{}") if isinstance(given, (str, type(None))) else given
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        raise EdgeAwqError(f"arguments = {given!r:.80} of a call of {function['name']!r:.80} are no JSON object",
                           hint="give back what the model answered")
    ids = {"id": _fitting(call["id"], id_length)} if id_length and isinstance(call.get("id"), str) else {}
    return {"type": "function", **call, **ids, "function": {**function, "arguments": arguments}}


def _fitting(call_id: str, length: int) -> str:
    """An id as it is, or another one that is always the same for it."""
    is_fit = len(call_id) == length and _SHORT_ID.fullmatch(call_id)
    return call_id if is_fit else hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:length]


def _as_text(message: dict[str, Any], form: ToolFormat) -> dict[str, Any]:
    """For templates that know contents and roles only."""
    if message.get("role") == "tool" and form.result_role:
        return {**message, "role": form.result_role}
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    written = form.write([ToolCall(each["name"], json.dumps(each["arguments"], ensure_ascii=False))
                          for each in functions])
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join(filter(None, (message["content"], written)))}
