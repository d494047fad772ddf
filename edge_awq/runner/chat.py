"""Chat templates: a conversation becomes the prompt that the model was trained on, as transformers renders it.

A template is a program from the checkpoint, so it runs in jinja2's sandbox and sees nothing but plain data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_awq.errors import EdgeAwqError
from edge_awq.model.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER_CONFIG, read_table, token_text

DEFAULT, WITH_TOOLS = "default", "tool_use"  # names that transformers gives a meaning
_PLAIN_PROMPT = "give a plain prompt instead"


@dataclass(frozen=True)
class ChatTemplate:
    """The templates of a model by name, and the special tokens that they may write, such as ``bos_token``."""

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation; its special tokens are spelled out, so encode it without adding any.

        Args:
            messages: each with "role" and "content", oldest first.
            add_generation_prompt: end with what begins the model's answer.
            tools: JSON schemas of functions that the model may call.
            variables: further names that this model's template knows, such as "enable_thinking".

        Raises:
            EdgeAwqError: the messages are malformed, or the template fails on them or refuses them.
        """
        source = self.source(tools)
        values = {**self.special_tokens, **(variables or {})}
        try:
            return _ENVIRONMENT.from_string(source).render(
                messages=_plain(messages), tools=_plain_data(tools), documents=None,
                add_generation_prompt=add_generation_prompt, **_plain_data(values),
            )
        except EdgeAwqError:
            raise
        except Exception as error:  # a template is a program; it may fail in any way
            reason = str(error) or type(error).__name__
            raise EdgeAwqError(f"the model's chat template fails on these messages: {reason}",
                               hint=f"mind the roles and their order, or {_PLAIN_PROMPT}") from error

    def source(self, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The template that renders conversations with these tools.

        Raises:
            EdgeAwqError: there are several, and none is the default.
        """
        wanted = WITH_TOOLS if tools is not None and WITH_TOOLS in self.sources else DEFAULT
        if wanted not in self.sources:
            raise EdgeAwqError("the model has several chat templates and none is called 'default': "
                               + ", ".join(sorted(self.sources)), hint=_PLAIN_PROMPT)
        return self.sources[wanted]


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a model's folder: chat_template.jinja, else that in tokenizer_config.json, else None.

    Raises:
        EdgeAwqError: a file is damaged or the entry is neither a template nor a list of named ones.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_table(path) if path.is_file() else {}
    special_tokens = _special_tokens(folder, config)
    if (folder / CHAT_TEMPLATE).is_file():
        try:
            return ChatTemplate({DEFAULT: (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")}, special_tokens)
        except UnicodeDecodeError as error:
            raise EdgeAwqError(f"{folder / CHAT_TEMPLATE}: not UTF-8 text ({error})",
                               hint="build the bundle again") from error
    entry = config.get("chat_template")
    if entry is None:
        return None
    try:
        sources = {DEFAULT: entry} if isinstance(entry, str) else {named["name"]: named["template"] for named in entry}
    except (TypeError, KeyError) as error:
        raise EdgeAwqError(f"{path}: chat_template is neither a text nor a list of named texts",
                           hint="correct tokenizer_config.json and build the bundle again") from error
    return ChatTemplate(sources, special_tokens)


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like; older models keep some in a file of their own."""
    older = read_table(folder / SPECIAL_TOKENS) if (folder / SPECIAL_TOKENS).is_file() else {}
    table = {**older, **config}
    return {name: text for name in table if name.endswith("_token") and (text := token_text(table, name))}


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain data; entries that are None count as absent, which templates expect."""
    well_formed = isinstance(messages, Iterable) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages)
    if not well_formed or not messages:
        raise EdgeAwqError("a conversation is a list of messages, each with a role",
                           hint='for example [{"role": "user", "content": "Hello"}]')
    return [{key: value for key, value in message.items() if value is not None} for message in _plain_data(messages)]


def _plain_data(value: Any) -> Any:
    """A copy made of nothing but JSON types: a template cannot reach a live object through it."""
    try:
        return json.loads(json.dumps(value, default=_refuse))
    except (TypeError, ValueError, RecursionError) as error:
        raise EdgeAwqError(f"a conversation is made of texts, numbers, lists and tables ({error})",
                           hint="turn other objects into text first") from error


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"{type(value).__name__} is none of these")


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it only renders."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """jinja2's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
