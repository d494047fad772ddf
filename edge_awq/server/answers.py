"""What a client gets: the objects of OpenAI's API, whole or piece by piece, with speed and energy beside them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from edge_awq.runner.generate import Token
from edge_awq.runner.metrics import RunSummary
from edge_awq.runner.tool_format import ToolCall
from edge_awq.server.requests import Kind

DONE = b"data: [DONE]\n\n"
_NAMES = {"chat": ("chatcmpl", "chat.completion", "chat.completion.chunk"),
          "text": ("cmpl", "text_completion", "text_completion")}
_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
_OURS = ("prefill_tok_s", "decode_tok_s", "ttft_s", "energy")  # units in edge_awq.runner.metrics


class Reply:
    """The objects that answer one request; they share an id, a time and the model's name."""

    def __init__(self, kind: Kind, model: str) -> None:
        prefix, self._whole, self._piece = _NAMES[kind]
        self._kind = kind
        self._calls = 0  # in pieces so far
        self._common = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, summary: RunSummary, last: Token, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """The answer in one object."""
        called = {"tool_calls": [_call(call) for call in calls]} if calls else {}
        message = {"role": "assistant", "content": summary.text or (None if calls else ""), **called}
        content = {"message": message} if self._kind == "chat" else {"text": summary.text}
        reason = _reason(last.finish_reason, bool(calls))
        return {**self._common, "object": self._whole, "choices": [_choice(content, reason)], **_numbers(summary)}

    def begin(self) -> dict[str, Any]:
        """What stands before the first piece of a chat's answer."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def pieces(self, token: Token) -> list[dict[str, Any]]:
        """The calls that a token completed, the text that it settled, and why the answer ends if it does."""
        chunks = []
        for call in token.calls:
            chunks.append(self._chunk({"delta": {"tool_calls": [{"index": self._calls, **_call(call)}]}}, None))
            self._calls += 1
        if token.text or token.finish_reason:
            content = ({"text": token.text} if self._kind == "text" else
                       {"delta": {"content": token.text} if token.text else {}})
            chunks.append(self._chunk(content, _reason(token.finish_reason, self._calls > 0)))
        return chunks

    def usage(self, summary: RunSummary) -> dict[str, Any]:
        """What ends a stream where the numbers were asked for."""
        return {**self._common, "object": self._piece, "choices": [], **_numbers(summary)}

    def _chunk(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {**self._common, "object": self._piece, "choices": [_choice(content, reason)]}


def event(table: dict[str, Any]) -> bytes:
    """One server-sent event, https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"data: {json.dumps(table, ensure_ascii=False)}\n\n".encode()


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}


def _reason(ours: str | None, has_calls: bool) -> str | None:
    reason = _REASONS.get(ours)
    return "tool_calls" if has_calls and reason == "stop" else reason


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _numbers(summary: RunSummary) -> dict[str, Any]:
    values = summary.to_dict()
    return {"usage": {"prompt_tokens": summary.prompt_tokens, "completion_tokens": summary.tokens,
                      "total_tokens": summary.prompt_tokens + summary.tokens,
                      "prompt_tokens_details": {"cached_tokens": summary.reused_tokens}},
            "edge_awq": {name: values[name] for name in _OURS}}
