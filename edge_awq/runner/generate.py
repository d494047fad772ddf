"""The generation loop: one record per token; printing, logging and benchmarking consume the same stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from numbers import Integral
from typing import Any

from tokenizers import Tokenizer

from edge_awq.engine.base import Engine
from edge_awq.errors import EdgeAwqError
from edge_awq.runner.sampling import Sampler, SamplingSettings, check_setting
from edge_awq.runner.structure import Structure
from edge_awq.runner.text import TextStream
from edge_awq.runner.tool_format import ToolCall
from edge_awq.runner.tool_use import ToolUse

Clock = Callable[[], float]  # seconds from any fixed moment on


@dataclass(frozen=True)
class GenerationSettings:
    """When generation ends, and how tokens are drawn.

    Attributes:
        max_tokens: tokens generated at most; None goes on until the model ends or the context is full.
        stop: texts before which to stop; they are not part of the answer.
        eos_ids: tokens with which the model ends.
        ignore_eos: go on after them.
        bos_id: token to begin with when the prompt is empty, None when the model has none.
        json_schema: the answer is JSON of it; True in place of a schema: any object.
        regex: the answer is what it matches, see edge_awq.runner.structure.
        tools: functions that it may call.
    """

    max_tokens: int | None = 128
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    bos_id: int | None = None
    json_schema: Mapping[str, Any] | bool | None = None
    regex: str | None = None
    tools: ToolUse | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_setting("max_tokens", self.max_tokens, Integral, lambda value: value >= 1, "a whole number from 1 on")
        if not isinstance(self.ignore_eos, bool):
            raise EdgeAwqError(f"ignore_eos = {self.ignore_eos!r:.80} is not possible", hint="use true or false")
        listed = isinstance(self.stop, (list, tuple))
        if not listed or not all(isinstance(text, str) and text for text in self.stop):
            raise EdgeAwqError(f"stop = {self.stop!r:.80} is not possible",
                               hint="use a list of texts, none of them empty")
        self._check_form()

    @property
    def has_form(self) -> bool:
        """Whether not every text can be an answer."""
        return self.json_schema is not None or self.regex is not None

    def _check_form(self) -> None:
        if not isinstance(self.json_schema, (Mapping, type(None))) and self.json_schema is not True:
            raise EdgeAwqError(f"json_schema = {self.json_schema!r:.80} is not possible",
                               hint='use a schema such as {"type": "object"}')
        if not isinstance(self.regex, (str, type(None))):
            raise EdgeAwqError(f"regex = {self.regex!r:.80} is not possible", hint="use a text")
        if self.json_schema is not None and self.regex is not None:
            raise EdgeAwqError("json_schema and regex exclude each other", hint="leave one of them out")
        if not isinstance(self.tools, (ToolUse, type(None))):
            raise EdgeAwqError(f"tools = {self.tools!r:.80} is not possible", hint="use a ToolUse of them")
        if self.has_form and self.tools is not None:
            raise EdgeAwqError("an answer of a form cannot call functions", hint="leave tools out, or the form")
        if (self.has_form or self.tools is not None) and self.ignore_eos:
            raise EdgeAwqError("an answer of a form, or with calls, ends where it is complete, which ignore_eos "
                               "excludes", hint="leave ignore_eos out")


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        index: 0 for the first generated token.
        token_id: its id in the vocabulary.
        text: text that it settles, of whole characters; often of several tokens at once, often empty. The texts of all
            tokens together are the answer.
        logits_s: seconds from the start of prefill until the logits that it was drawn from were there, or it itself
            where the engine chose it.
        t_s: seconds from the start of prefill until it and its text were there.
        finish_reason: None but for the last token: "eos" the model ended or the answer's form is complete, "stop" a
            stop string came, "length" max_tokens were there or the context was full.
        calls: of functions, that it completes; their text is in no token.
    """

    index: int
    token_id: int
    text: str
    logits_s: float
    t_s: float
    finish_reason: str | None
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Start:
    """What an answer starts with.

    Attributes:
        reused: tokens of the prompt, fewer than all, that are the last ones in the cache already.
        structure: what the answer must be; nothing of it is there yet. None: any text.
        spelled: special tokens that are part of its text.
    """

    reused: int = 0
    structure: Structure | None = None
    spelled: frozenset[int] = frozenset()


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    clock: Clock = time.perf_counter,
    start: Start | None = None,
) -> Iterator[Token]:
    """Append the prompt to the engine's cache and generate; yields at least one token.

    The token that fills the context is the last one; it is not in the cache, as no token follows it.

    Args:
        start: None: from an empty cache to any text.

    Raises:
        EdgeAwqError: at once, when the prompt is empty, too long, or holds ids that the model does not have.
    """
    start = start or Start()
    ids = _checked(engine, prompt_ids, settings.bos_id, start.reused)
    sampler = Sampler(settings.sampling, engine.vocab_size, start.structure)
    sampler.see(ids)
    text = TextStream(tokenizer, settings.stop, start.spelled)
    return _stream(engine, text, ids[start.reused :], sampler, settings, clock)


def _checked(engine: Engine, prompt_ids: Sequence[int], bos_id: int | None, reused: int) -> list[int]:
    ids = [int(token_id) for token_id in prompt_ids]
    if not ids:
        if bos_id is None:
            raise EdgeAwqError("the prompt is empty, and this model has no token to begin a text with",
                               hint="give a prompt of at least one character")
        ids = [bos_id]
    free = engine.context - engine.length + reused
    if len(ids) > free:
        raise EdgeAwqError(f"the prompt has {len(ids)} tokens, the context has room for {free}",
                           hint="shorten the prompt, or use a larger context; the build of the bundle sets its limit")
    for token_id in ids:
        if not 0 <= token_id < engine.vocab_size:
            raise EdgeAwqError(f"token id {token_id} is not one of the model's {engine.vocab_size}",
                               hint="give ids of this bundle's tokenizer; if they are, build the bundle again")
    return ids


def _stream(
    engine: Engine, text: TextStream, ids: list[int], sampler: Sampler, settings: GenerationSettings, clock: Clock
) -> Iterator[Token]:
    ends = frozenset() if settings.ignore_eos else frozenset(settings.eos_ids)
    step_chosen = _chooser(engine, settings.sampling) if sampler.structure is None else None
    start_s = clock()
    logits = engine.prefill(ids)  # [V]
    logits_s = clock() - start_s
    token_id = sampler.draw(logits)
    for index in count():
        piece = "" if token_id in ends else text.push(token_id)
        reason = None
        if token_id in ends or (sampler.structure is not None and sampler.structure.is_complete):
            reason = "eos"
        elif text.stopped:
            reason = "stop"
        elif index + 1 == settings.max_tokens or engine.length >= engine.context:
            reason = "length"
        if reason is not None:
            piece += text.finish()
        yield Token(index, token_id, piece, logits_s, clock() - start_s, reason)
        if reason is not None:
            return
        if step_chosen is None:
            logits = engine.step(token_id)
            logits_s = clock() - start_s
            token_id = sampler.draw(logits)
        else:
            token_id = step_chosen(token_id)
            logits_s = clock() - start_s


def _chooser(engine: Engine, sampling: SamplingSettings) -> Callable[[int], int] | None:
    """The engine's step that chooses the next token itself; None where it has none for these settings."""
    if sampling.repetition_penalty != 1:
        return None
    if sampling.temperature == 0:
        return getattr(engine, "step_greedy", None)
    step_sampled = getattr(engine, "step_sampled", None)
    if step_sampled is not None:
        engine.begin_sampling(sampling)
    return step_sampled
