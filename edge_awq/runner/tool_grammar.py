"""Calls that are right whatever the model is: a grammar for llguidance, of a format and the functions' schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.structure import ANY_OBJECT, SPACES, Structure, Structures
from edge_awq.runner.text import Detokenizer
from edge_awq.runner.tool_format import ToolFormat
from edge_awq.runner.tool_stream import CallSplitter, Opening
from edge_awq.runner.tool_use import ToolUse

_PLACE = "(place)"
MOST_CALLS = 16  # of one answer, as small models may go on for ever
_TERMINALS = r"""
SPACE: /[ \n]/
INDEX: /[0-9]{1,2}/
TEXT: /(.|\n)*/
"""


def marker_ids(tokenizer: Tokenizer, form: ToolFormat) -> dict[str, int]:
    """The markers, and what stands around thoughts, that are tokens of their own."""
    added = tokenizer.get_added_tokens_decoder()
    ids = {text: tokenizer.token_to_id(text) for text in (*form.markers, *form.thinking)}
    return {text: token_id for text, token_id in ids.items() if token_id in added}


def call_grammar(form: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], parallel: bool, ids: Mapping[str, int],
                 thinking: bool | None = None) -> str:
    """A grammar in llguidance's variant of Lark: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.

    Args:
        schemas: of the arguments, by the function's name.
        parallel: several calls may come.
        ids: as ``marker_ids`` has them.
        thinking: thoughts may come first (False), their end must (True), or none are possible (None).
    """
    calls = f"{_literal(form, form.begin, ids)} call"
    if parallel and form.between is not None:
        calls += f" (between call){{0,{MOST_CALLS - 1}}}"
    lines = ["%llguidance {}", f"start: {_thoughts(form, ids, thinking)} {calls} {_literal(form, form.end, ids)}"]
    if parallel and form.between is not None:
        lines.append(f"between: {_literal(form, form.between, ids)}")
    lines.append("call: " + " | ".join(f"call_{index}" for index in range(len(schemas))))
    for index, (name, schema) in enumerate(schemas.items()):
        lines.append(f'call_{index}: {_head(form, name)} arguments_{index} "}}"')
        lines.append(f"arguments_{index}: %json {json.dumps({**schema, 'x-guidance': SPACES})}")
    return "\n".join(lines) + _TERMINALS


def _thoughts(form: ToolFormat, ids: Mapping[str, int], thinking: bool | None) -> str:
    tokens = [f"<[{ids[text]}]>" for text in form.thinking if text in ids]
    if thinking is None or len(tokens) != 2:
        return ""
    begin, end = tokens
    return f"TEXT {end} SPACE{{0,2}}" if thinking else f"({begin} TEXT {end} SPACE{{0,2}})?"


def _head(form: ToolFormat, name: str) -> str:
    """A call up to its arguments, with any place in the answer."""
    return " INDEX ".join(json.dumps(part) for part in form.head(name, _PLACE).split(_PLACE))


def _literal(form: ToolFormat, text: str, ids: Mapping[str, int]) -> str:
    """A text of the format; beside a marker there may be a space, a line break or nothing, as each model has it."""
    pieces = form.split(text)
    rules: list[str] = []
    for index, piece in enumerate(pieces):
        if piece in form.markers:
            rules.append(f"<[{ids[piece]}]>" if piece in ids else json.dumps(piece))
            continue
        follows, leads = index > 0, index + 1 < len(pieces)  # a marker stands before it, behind it
        inner = piece.lstrip() if follows else piece
        inner = inner.rstrip() if leads else inner
        if follows or not inner:
            rules.append("SPACE?")
        if inner:
            rules += [json.dumps(inner), "SPACE?"] if leads else [json.dumps(inner)]
    return " ".join(rules)


class OpenStructure:
    """An answer that may be anything until it begins a call, which then is one of a known function.

    A call that begins in another way than the format's stays free; it may be read nevertheless.
    """

    def __init__(self, form: ToolFormat, pieces: Detokenizer, thinking: bool,
                 begin: Callable[[str], Structure | None]) -> None:
        """Nothing of the answer is there yet.

        Args:
            thinking: the prompt ends within thoughts.
            begin: makes the structure of an answer that begins with this text; None: it cannot.
        """
        self._pieces = pieces
        self._opening = Opening(form, thinking)
        self._head = form.opening if form.markers else f"{{{json.dumps(form.function)}"
        self._begin = begin
        self._rest = ""
        self._call: Structure | None = None
        self._is_free = False

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return self._call is not None and self._call.is_complete

    def restrict(self, logits: np.ndarray) -> np.ndarray:
        """Logits [vocab_size] float32, within a call with -inf for every token that cannot come next."""
        return logits if self._call is None else self._call.restrict(logits)

    def accept(self, token_id: int) -> None:
        """The next token.

        Raises:
            EdgeAwqError: the grammar has become too complex.
        """
        if self._call is not None:
            self._call.accept(token_id)
        elif not self._is_free:
            self._watch(self._pieces.push(token_id))

    def _watch(self, text: str) -> None:
        if self._opening.found:
            self._rest += text
        else:
            self._opening.push(text)
            self._rest = self._opening.rest
        if self._rest.startswith(self._head):
            self._call = self._begin(self._rest)
            self._is_free = self._call is None
        else:
            self._is_free = not self._head.startswith(self._rest)


@dataclass(frozen=True)
class CallAnswer:
    """How an answer with calls comes about.

    Attributes:
        spelled: special tokens that are part of its text.
        structure: what it must be; None: any text.
        splitter: takes its text apart.
    """

    spelled: frozenset[int]
    structure: Structure | OpenStructure | None
    splitter: CallSplitter


def begin_answer(form: ToolFormat, use: ToolUse, tokenizer: Tokenizer, prompt_ids: Sequence[int],
                 structures: Callable[[], Structures]) -> CallAnswer:
    """What the answer to a prompt needs.

    Args:
        structures: of this model; fails where llguidance is not installed.

    Raises:
        EdgeAwqError: a call is wanted, and it cannot be enforced here or for this schema.
    """
    ids = marker_ids(tokenizer, form)
    thoughts = [ids.get(text) for text in form.thinking]
    last = next((token_id for token_id in reversed(prompt_ids) if token_id in thoughts), None)
    is_thinking = last is not None and last == thoughts[0]
    spelled = frozenset(token_id for text, token_id in ids.items() if text in form.markers)
    splitter = CallSplitter(form, use.names, is_thinking)
    if use.is_forced:
        made = structures()
        for name, schema in use.schemas.items():
            made.of_schema(schema, f"tools: the schema of {name!r}")  # so that an error names it
        grammar = call_grammar(form, use.schemas, use.parallel, ids, is_thinking)
        return CallAnswer(spelled, made.of_grammar(grammar, "tools"), splitter)
    try:
        made = structures()
    except EdgeAwqError:  # free, then
        return CallAnswer(spelled, None, splitter)

    def begin(text: str) -> Structure | None:
        schemas = {name: schema if made.knows(schema) else ANY_OBJECT for name, schema in use.schemas.items()}
        try:
            structure = made.of_grammar(call_grammar(form, schemas, use.parallel, ids), "tools")
        except EdgeAwqError:  # too much together
            return None
        begun = [[ids[piece]] if piece in ids else made.tokenize(piece) for piece in form.split(text)]
        return structure if structure.follow([token_id for piece in begun for token_id in piece]) else None

    pieces = Detokenizer(tokenizer, spelled)
    return CallAnswer(spelled, OpenStructure(form, pieces, is_thinking, begin), splitter)
