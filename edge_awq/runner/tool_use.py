"""Which functions a model may call in an answer, and whether it must: tools as OpenAI's API describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_awq.errors import EdgeAwqError

CHOICES = ("auto", "required")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_TOOL = '{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}'


@dataclass(frozen=True)
class ToolUse:
    """Functions that an answer may call.

    Attributes:
        tools: each {"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}.
        choice: "auto" leaves it to the model, "required" wants a call, and
            {"type": "function", "function": {"name": ...}} one of that function.
        parallel: whether there may be several calls.
    """

    tools: tuple[Mapping[str, Any], ...]
    choice: str | Mapping[str, Any] = "auto"
    parallel: bool = True

    def __post_init__(self) -> None:
        names = [_check_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools)]
        if not names:
            raise EdgeAwqError("tools = [] leaves nothing to call", hint=f"leave tools out, or give some: {_TOOL}")
        if double := _first_double(names):
            raise EdgeAwqError(f"tools: the function {double!r} is there twice", hint="give each a name of its own")
        if not isinstance(self.parallel, bool):
            raise EdgeAwqError(f"parallel_tool_calls = {self.parallel!r:.80} is not possible", hint="use true or false")
        if self.choice not in CHOICES and _chosen(self.choice) not in names:
            raise EdgeAwqError(
                f"tool_choice = {self.choice!r:.120} is not possible", hint=f'use "{CHOICES[0]}", "{CHOICES[1]}", or '
                f'{{"type": "function", "function": {{"name": ...}}}} with one of {", ".join(names)}')

    @property
    def is_forced(self) -> bool:
        """Whether the answer is a call."""
        return self.choice != CHOICES[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that may be called."""
        return tuple(self.schemas)

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """What the arguments of each function that may be called must be; not more than the schema names."""
        only = None if self.choice in CHOICES else _chosen(self.choice)
        functions = (tool["function"] for tool in self.tools)
        return {each["name"]: _arguments(each.get("parameters")) for each in functions if only in (None, each["name"])}


def _check_tool(tool: Any, where: str) -> str:
    """The name of a tool that is one."""
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        raise EdgeAwqError(f"{where} = {tool!r:.80} is not possible", hint=f"use functions: {_TOOL}")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise EdgeAwqError(f"{where}: function.name is missing in {tool!r:.80}", hint=f"write it as {_TOOL}")
    if not _NAME.fullmatch(name):
        raise EdgeAwqError(f"{where}: the name {name!r:.80} is not possible",
                           hint="use 1 to 64 letters, digits, underscores and dashes")
    if not isinstance(function.get("description", ""), (str, type(None))):
        raise EdgeAwqError(f"{where}: description = {function['description']!r:.80} of {name!r} is not possible",
                           hint="use a text")
    parameters = function.get("parameters")
    if parameters is not None and (not isinstance(parameters, Mapping)
                                   or parameters.get("type", "object") != "object"):
        raise EdgeAwqError(f"{where}: parameters = {parameters!r:.80} of {name!r} are no JSON schema of an object",
                           hint='use a schema such as {"type": "object", "properties": {"city": {"type": "string"}}}')
    return name


def _first_double(names: Sequence[str]) -> str | None:
    return next((name for index, name in enumerate(names) if name in names[:index]), None)


def _chosen(choice: Any) -> str | None:
    """The name of the function that must be called."""
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _arguments(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    if parameters is None:
        return _NO_PARAMETERS
    closed = {"additionalProperties": False} if parameters.get("properties") is not None else {}
    return {"type": "object", **closed, **parameters}
