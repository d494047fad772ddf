"""Answers taken apart, however they are cut into pieces."""

import json
import random

import pytest

from edge_awq.runner.tool_format import ToolCall, load_formats
from edge_awq.runner.tool_stream import CallSplitter

FORMS = {form.name: form for form in load_formats()}
NAMES = ("weather", "now")
WEATHER = {"city": "</tool_call>[{}]\\ \"größer\"", "deep": {"a": [1, {"b": None}]}}


def read(form, text, cuts, thinking=False):
    splitter, said, calls = CallSplitter(form, NAMES, thinking), "", []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, found = splitter.push(text[start:end])
        said += piece
        calls += found
    return said + splitter.finish(), [(call.name, json.loads(call.arguments)) for call in calls]


def read_in_every_way(name, text, thinking=False):
    """One result, whether the text comes at once, by character, or in any pieces."""
    form, chance = FORMS[name], random.Random(text)
    ways = [[], list(range(1, len(text)))] + [sorted(chance.sample(range(len(text) + 1), min(5, len(text))))
                                              for _ in range(20)]
    found = [read(form, text, cuts, thinking) for cuts in ways]
    assert all(each == found[0] for each in found)
    return found[0]


def written(name, *calls):
    return FORMS[name].write([ToolCall(function, json.dumps(arguments)) for function, arguments in calls])


@pytest.mark.parametrize("name", FORMS)
def test_what_a_format_writes_is_read(name):
    several = FORMS[name].between is not None
    calls = [("weather", WEATHER), ("now", {})][: 1 + several]
    said = "Let me look." if FORMS[name].markers else ""
    assert read_in_every_way(name, f"{said} \n{written(name, *calls)}\n") == (said, calls)


@pytest.mark.parametrize("name, text, calls", [
    ("hermes", '<tool_call>{"arguments": {"city": "a"},\n "name": "weather"}</tool_call> <tool_call>{"name": "now"}', [
        ("weather", {"city": "a"}), ("now", {})]),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"a\\"}"}', [("weather", {"city": "a"})]),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "a\nb"}}\n', [("weather", {"city": "a\nb"})]),
    ("llama3", ' {"type": "function", "name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
     [("now", {}), ("now", {})]),
    ("mistral", '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abc"}]', [("now", {})]),
    ("phi4-mini", '<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>', [("now", {})]),
])
def test_other_ways_that_models_write(name, text, calls):
    assert read_in_every_way(name, text) == ("", calls)


@pytest.mark.parametrize("name, text", [
    ("hermes", "a < b, <tool> and <tool_cal"), ("hermes", 'see <tool_call>\n{"name": "other", "arguments": {}}'),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": '), ("hermes", "  two spaces "),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": [1]}\n</tool_call>'),
    ("llama3", '{"answer": 5}'), ("llama3", 'Here: {"name": "now", "parameters": {}}'), ("llama3", "  "),
    ("mistral", "[TOOL_CALLS] none"), ("granite3", "<|tool_call|>" + '{"a":' * 50_000),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{"}'), ("hermes", '<tool_call>{"name": ["now"]}'),
])
def test_what_is_no_call_stays_as_it_was_written(name, text):
    said, calls = read(FORMS[name], text, []) if len(text) > 1000 else read_in_every_way(name, text)
    assert (said.replace(" ", ""), calls) == (text.replace(" ", ""), [])


def test_text_after_calls_is_text_without_markers():
    call = written("hermes", ("now", {}))
    assert read_in_every_way("hermes", f"{call}\nDone.") == ("Done.", [("now", {})])
    assert read_in_every_way("hermes", f"{call}\n</tool_ca") == ("", [("now", {})])
    assert read_in_every_way("hermes", f"{call}\n<tool_call>\noops") == ("<tool_call>\noops", [("now", {})])


def test_a_thought_of_a_call_is_none():
    call, thought = written("hermes", ("now", {})), '<think>maybe <tool_call>{"name": "now"}\n</think>'
    assert read_in_every_way("hermes", f"{thought}\n\n{call}") == (thought, [("now", {})])
    assert read_in_every_way("hermes", thought + " no") == (thought + " no", [])
    opened = thought.removeprefix("<think>")
    assert read_in_every_way("hermes", f"{opened}\n\n{call}", thinking=True) == (opened, [("now", {})])


def test_every_call_has_an_id_of_its_own():
    ids = {ToolCall("now", "{}").id for _ in range(100)}
    assert len(ids) == 100 and all(each.startswith("call_") for each in ids)
