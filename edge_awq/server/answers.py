"""What a client gets: the objects of OpenAI's API, whole or piece by piece, with speed and energy beside them."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from edge_awq.runner.generate import Token
from edge_awq.runner.metrics import RunSummary
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
        self._common = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, summary: RunSummary, last: Token) -> dict[str, Any]:
        """The answer in one object."""
        content = ({"message": {"role": "assistant", "content": summary.text}} if self._kind == "chat"
                   else {"text": summary.text})
        return {**self._common, "object": self._whole, "choices": [_choice(content, last.finish_reason)],
                **_numbers(summary)}

    def begin(self) -> dict[str, Any]:
        """What stands before the first piece of a chat's answer."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, token: Token) -> dict[str, Any]:
        """The text that a token settled, and why the answer ends if it does."""
        if self._kind == "text":
            return self._chunk({"text": token.text}, token.finish_reason)
        return self._chunk({"delta": {"content": token.text} if token.text else {}}, token.finish_reason)

    def usage(self, summary: RunSummary) -> dict[str, Any]:
        """What ends a stream where the numbers were asked for."""
        return {**self._common, "object": self._piece, "choices": [], **_numbers(summary)}

    def _chunk(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {**self._common, "object": self._piece, "choices": [_choice(content, reason)]}


def event(table: dict[str, Any]) -> bytes:
    """One server-sent event, https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"data: {json.dumps(table, ensure_ascii=False)}\n\n".encode()


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": _REASONS.get(reason)}


def _numbers(summary: RunSummary) -> dict[str, Any]:
    values = summary.to_dict()
    return {"usage": {"prompt_tokens": summary.prompt_tokens, "completion_tokens": summary.tokens,
                      "total_tokens": summary.prompt_tokens + summary.tokens,
                      "prompt_tokens_details": {"cached_tokens": summary.reused_tokens}},
            "edge_awq": {name: values[name] for name in _OURS}}
