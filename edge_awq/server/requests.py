"""What a client asks for, checked: the bodies of OpenAI's chat completions and completions.

Source: https://platform.openai.com/docs/api-reference/chat and .../completions. A field that would change the answer
and is not supported is refused unless it has the value that changes nothing; an unknown one is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.session import Session
from edge_awq.runner.tool_use import ToolUse

Kind = Literal["chat", "text"]
_TEXT_TOKENS = 16  # of a completion without max_tokens, as the API has it; a chat's answer may fill the context
_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "ignore_eos")
_OWN = {"chat": ("messages", "max_tokens", "max_completion_tokens"), "text": ("prompt", "max_tokens")}
_TOOLS = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_retention")  # they change nothing about one answer of one model
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # not supported, but for these values
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "function_call": ("none", "auto"),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "reasoning_effort": (),
    "verbosity": (),
}


class RequestError(EdgeAwqError):
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        param: the field at fault, if it is one.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param

    def to_dict(self) -> dict[str, Any]:
        """As the API has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


@dataclass(frozen=True)
class AnswerRequest:
    """One request.

    Attributes:
        kind: "chat" answers ``prompt``, a list of messages; "text" goes on where it, text or token ids, ends.
        changes: settings for Session.settings.
        stream: the answer piece by piece. include_usage: and its numbers of tokens at the end.
    """

    kind: Kind
    prompt: Any
    changes: Mapping[str, Any]
    stream: bool
    include_usage: bool

    def encode(self, session: Session) -> list[int]:
        """The prompt as token ids.

        Raises:
            EdgeAwqError: the chat template refuses it, or it is not valid Unicode.
        """
        if self.kind == "chat":
            use = self.changes.get("tools")
            return session.encode_chat(self.prompt, tools=use and use.tools)
        return session.encode(self.prompt) if isinstance(self.prompt, str) else self.prompt


def parse(kind: Kind, body: Any, served: str) -> AnswerRequest:
    """Check a body; what the settings allow is checked where they are made.

    Args:
        served: name of the model.

    Raises:
        RequestError: names the field, its value and what is possible.
    """
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    model = given.pop("model", served)
    if model != served:
        raise RequestError(f"the model {model!r:.80} is not served here; this server has {served!r}", 404, "model")
    stream, usage = _stream(given.pop("stream", False), given.pop("stream_options", {}))
    changes = {name: given.pop(name) for name in _SETTINGS if name in given}
    if isinstance(changes.get("stop"), str):
        changes["stop"] = [changes["stop"]]
    own = {name: given.pop(name) for name in _OWN[kind] if name in given}
    if "response_format" in given:
        changes |= _form(given.pop("response_format"))
    if kind == "chat" and given.get("tools"):
        changes |= _tools(*(given.pop(name, usual) for name, usual in _TOOLS.items()))
    _check_rest(given)
    limits = [own[name] for name in ("max_completion_tokens", "max_tokens") if name in own]
    changes["max_tokens"] = limits[0] if limits else _TEXT_TOKENS if kind == "text" else None
    prompt = _messages(own.get("messages")) if kind == "chat" else _text(own.get("prompt"))
    return AnswerRequest(kind, prompt, changes, stream, usage)


def _stream(stream: Any, options: Any) -> tuple[bool, bool]:
    if not isinstance(stream, bool):
        raise RequestError(f"stream = {stream!r:.80} is not possible; use true or false", param="stream")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise RequestError(f"stream_options = {options!r:.80} is not possible; use {{\"include_usage\": true}}",
                           param="stream_options")
    return stream, bool(options.get("include_usage"))


def _form(response_format: Any) -> dict[str, Any]:
    """What the answer must be, as settings."""
    given = response_format if isinstance(response_format, dict) else {}
    described = given.get("json_schema")
    schema = described.get("schema", {}) if isinstance(described, dict) else None
    if given.get("type") == "text":
        return {}
    if given.get("type") == "json_object":
        return {"json_schema": True}
    if given.get("type") == "json_schema" and isinstance(schema, dict):
        return {"json_schema": schema}
    raise RequestError(f"response_format = {response_format!r:.80} is not possible; use the type text, json_object, or "
                       'json_schema with {"name": ..., "schema": ...}', param="response_format")


def _tools(tools: Any, choice: Any, parallel: Any) -> dict[str, Any]:
    """The functions that may be called, as a setting."""
    try:
        if not isinstance(tools, list):
            raise EdgeAwqError(f"tools = {tools!r:.80} is not possible", hint="use a list of functions")
        use = ToolUse(tuple(tools), "auto" if choice == "none" else choice, parallel)
    except EdgeAwqError as error:
        param = next((name for name in _TOOLS if error.message.startswith(f"{name} =")), "tools")
        raise RequestError(f"{error.message} ({error.hint})", param=param) from error
    return {} if choice == "none" else {"tools": use}


def _check_rest(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _IGNORED or (name in _NEUTRAL and value in _NEUTRAL[name]):
            continue
        what = f"{name} = {value!r:.80} is not supported" if name in _NEUTRAL else f"{name!r:.80} is not known"
        raise RequestError(f"{what}; leave it out", param=name)


def _messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as chat templates know them: contents are texts, and developers' instructions are the system's."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        raise RequestError('messages must be a list such as [{"role": "user", "content": "Hello"}]', param="messages")
    plain = [{**message, "role": "system" if message.get("role") == "developer" else message.get("role"),
              "content": _content(message.get("content"))} for message in messages]
    _check_calls(plain)
    return plain


def _check_calls(messages: list[dict[str, Any]]) -> None:
    """Results belong to calls that were made before."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        calls, where = message.get("tool_calls") or [], f"messages[{index}]"
        if not isinstance(calls, list) or not all(isinstance(call, dict) and isinstance(call.get("id"), str)
                                                  and call.get("type", "function") == "function" for call in calls):
            raise RequestError(f"{where}.tool_calls = {calls!r:.80} is not possible; give back those of the answer, "
                               'each {"id": ..., "type": "function", "function": {...}}', param="messages")
        called |= {call["id"] for call in calls}
        answered = message.get("tool_call_id")
        if message["role"] == "tool" and not (isinstance(answered, str) and answered in called):
            raise RequestError(f"{where}.tool_call_id = {answered!r:.80} is not the id of a call in "
                               f"the messages before it; those are: {', '.join(sorted(called)) or 'none':.200}",
                               param="messages")


def _content(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text"
                                         and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise RequestError("a message's content must be a text or a list of parts of type 'text'; this model reads nothing "
                       "else", param="messages")


def _text(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token_id) is int for token_id in prompt):
        return prompt
    raise RequestError("prompt must be one text, or one list of token ids", param="prompt")
