"""Calls by a model that wants anything but; jsonschema says whether the arguments are right."""

import json
import sys

import jsonschema
import numpy as np
import pytest

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.generate import GenerationSettings, Start, generate
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.sampling import SamplingSettings
from edge_awq.runner.structure import Structures
from edge_awq.runner.tool_format import ToolCall, load_formats
from edge_awq.runner.tool_grammar import MOST_CALLS, begin_answer
from edge_awq.runner.tool_stream import split_calls
from edge_awq.runner.tool_use import ToolUse
from edge_awq.runner.vocabulary import Vocabulary
from fakes import ScriptedEngine
from tokenizers_made_here import train_byte_level

PAD = 37  # logits beyond the vocabulary, as many models have them
CITY = {"$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}, "type": "object", "properties": {
    "city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["°C", "K"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "unit", "days"]}
ODD = {"type": "object", "properties": {"x": {"not": {}}}}  # what llguidance does not know
SCHEMAS = {"weather": CITY, "now": {"type": "object", "properties": {}}}
FORMS = {form.name: form for form in load_formats()}
KINDS = ("special", "added", "text")  # what the markers are


def tool(name, parameters=None):
    return {"type": "function", "function": {"name": name, **({"parameters": parameters} if parameters else {})}}


TOOLS = [tool("weather", CITY), tool("now")]


def make_vocabulary(form, kind, thinking=False):
    texts = (*form.markers, *(form.thinking if thinking else ()))
    tokenizer = train_byte_level(("<|begin|>", "<|end|>", *(texts if kind == "special" else ())))
    tokenizer.add_tokens(list(texts) if kind == "added" else [])
    return Vocabulary(tokenizer, None, (tokenizer.token_to_id("<|end|>"),), SamplingSettings(), None)


class Model:
    """A format, a vocabulary, and engines that know neither."""

    def __init__(self, form, kind, thinking=False):
        self.form, self.vocabulary = form, make_vocabulary(form, kind, thinking)
        self.tokenizer = self.vocabulary.tokenizer
        self.size = self.tokenizer.get_vocab_size() + PAD
        self.structures = Structures(self.vocabulary, self.size)

    def answer(self, use, seed=0, script="", prompt=(1,), lookup=0, **sampling):
        """What is said, the calls, and why it ends."""
        begun = begin_answer(self.form, use, self.tokenizer, prompt, lambda: self.structures)
        engine = ScriptedEngine(self.size, seed, self.tokenizer.encode(script, add_special_tokens=False).ids)
        settings = GenerationSettings(350, eos_ids=self.vocabulary.eos_ids,
                                      sampling=SamplingSettings(seed=seed, **sampling))
        tokens = list(split_calls(
            generate(LookupEngine(engine, lookup) if lookup else engine, self.tokenizer, prompt, settings,
                     start=Start(0, begun.structure, begun.spelled)), begun.splitter))
        return ("".join(token.text for token in tokens), [call for token in tokens for call in token.calls],
                tokens[-1].finish_reason)


def check(calls, schemas=SCHEMAS):
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


@pytest.fixture(scope="module", params=[(name, kind) for name in FORMS for kind in KINDS if FORMS[name].markers
                                        or kind == "text"], ids="-".join)
def model(request):
    name, kind = request.param
    return Model(FORMS[name], kind)


def test_a_call_that_is_required_is_right(model):
    names = set()
    for seed in range(6):
        said, calls, reason = model.answer(ToolUse(TOOLS, "required", parallel=seed % 2 == 0), seed)
        assert said == "" or reason == "length"  # cut off within a call
        assert (calls and reason == "eos") or reason == "length"
        assert len(calls) <= (MOST_CALLS if seed % 2 == 0 and model.form.between is not None else 1)
        check(calls)
        names |= {call.name for call in calls}
    assert names == set(SCHEMAS) or model.form.between is None


def test_what_the_format_writes_is_possible(model):
    calls = [ToolCall("weather", '{"city": "größer", "unit": "°C", "days": 5}'), ToolCall("now", "{}")]
    calls = calls[: 1 + (model.form.between is not None)]
    for choice in ("auto", "required"):
        said, found, reason = model.answer(ToolUse(TOOLS, choice), script=model.form.write(calls) + "<|end|>")
        assert [(call.name, call.arguments) for call in found] == [(call.name, call.arguments) for call in calls]
        assert (said, reason) == ("", "eos")


def test_a_function_that_is_named_is_called(model):
    for name in SCHEMAS:
        use = ToolUse(TOOLS, tool(name), parallel=False)
        said, (call,), reason = model.answer(use, 3, temperature=0)
        assert (said, call.name, reason) == ("", name, "eos")
        check([call])


def test_a_call_that_the_model_begins_is_right(model):
    opening = model.form.opening if model.form.markers else '{"name'
    begins = ["Sure. " + opening, opening] if model.form.markers else [opening]
    for begin in begins:
        for seed in range(3):
            said, calls, reason = model.answer(ToolUse(TOOLS, parallel=False), seed, begin)
            if model.form.markers:
                assert said == begin.removesuffix(opening).strip()
                assert len(calls) == 1 and reason == "eos"
            check(calls)


def test_guesses_do_not_change_what_comes():
    model = Model(FORMS["hermes"], "special")
    use = ToolUse(TOOLS, tool("weather"), parallel=False)
    assert [call.name for call in model.answer(use, 5, lookup=4)[1]] == ["weather"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_may_be_text(kind):
    model = Model(FORMS["hermes"], kind)
    for text in ("It is warm <today>.", 'Write <tool to {"name": "x"}', "日本 größer"):
        assert model.answer(ToolUse(TOOLS), 1, text + "<|end|>") == (text, [], "eos")


def test_the_beginning_of_a_call_within_a_token():
    """The marker ends within a token, whose rest is part of the call."""
    form = FORMS["hermes"]
    model = Model(form, "text")
    model.tokenizer.add_tokens(["l>\n{"])
    model.structures = Structures(model.vocabulary, model.size)
    said, (call,), _ = model.answer(ToolUse(TOOLS, parallel=False), 2, "Yes <tool_call>\n{")
    assert said == "Yes"
    check([call])


def test_a_call_that_begins_in_another_way_stays_free_and_is_read():
    model = Model(FORMS["hermes"], "text")
    model.tokenizer.add_tokens(["l>\n\n{"])  # one line break is the format's
    said, (call,), reason = model.answer(ToolUse(TOOLS), 0, '<tool_call>\n\n{"arguments":{}, "name":"now"}<|end|>')
    assert (said, call.name, call.arguments, reason) == ("", "now", "{}", "eos")
    model = Model(FORMS["llama3"], "text")
    script = '{"type": "function", "name": "now", "parameters": {}}<|end|>'
    assert [call.name for call in model.answer(ToolUse(TOOLS), 0, script)[1]] == ["now"]
    script = '{"answer": [1, "two"]}<|end|>'
    assert model.answer(ToolUse(TOOLS), 0, script) == ('{"answer": [1, "two"]}', [], "eos")


def test_thoughts_come_first():
    form = FORMS["hermes"]
    model = Model(form, "added", thinking=True)
    begin, end = (model.tokenizer.token_to_id(text) for text in form.thinking)
    use = ToolUse(TOOLS, "required", parallel=False)
    said, (call,), reason = model.answer(use, 1, "<think>\nI call it.\n</think>\n\n<tool_call>")
    assert said == "<think>\nI call it.\n</think>" and reason == "eos"
    check([call])
    said, (call,), _ = model.answer(use, 1, "I call it.\n</think><tool_call>", prompt=[begin, end, begin])
    assert said == "I call it.\n</think>"
    check([call])
    said, (call,), _ = model.answer(use, 1, "<tool_call>", prompt=[begin, end])
    assert said == ""
    thought = '<think>maybe <tool_call>{"name": 5}</think> no<|end|>'
    assert model.answer(ToolUse(TOOLS), 1, thought)[:2] == (thought.removesuffix("<|end|>"), [])


def test_a_schema_that_is_not_possible():
    model = Model(FORMS["hermes"], "special")
    with pytest.raises(EdgeAwqError, match=r"tools: the schema of 'odd' is not possible: .*Unimplemented keys"):
        model.answer(ToolUse([tool("odd", ODD)], "required"))
    said, calls, _ = model.answer(ToolUse([tool("odd", ODD), tool("now")], parallel=False), 4, "<tool_call>")
    assert said == "" and calls[0].name in ("odd", "now") and isinstance(json.loads(calls[0].arguments), dict)


def test_without_the_package(monkeypatch):
    model = Model(FORMS["hermes"], "special")
    monkeypatch.setitem(sys.modules, "llguidance", None)

    def structures():
        return Structures(model.vocabulary, model.size)

    with pytest.raises(EdgeAwqError, match="llguidance") as caught:
        begin_answer(model.form, ToolUse(TOOLS, "required"), model.tokenizer, [1], structures)
    assert "edge-awq[structured]" in caught.value.hint
    assert begin_answer(model.form, ToolUse(TOOLS), model.tokenizer, [1], structures).structure is None


def test_text_before_a_call_is_not_restricted():
    model = Model(FORMS["hermes"], "special")
    structure = begin_answer(model.form, ToolUse(TOOLS), model.tokenizer, [1], lambda: model.structures).structure
    logits = np.zeros(model.size, np.float32)
    assert structure.restrict(logits) is logits and not structure.is_complete
    structure.accept(model.tokenizer.token_to_id("<tool_call>"))
    assert np.isinf(structure.restrict(logits)).any()


@pytest.mark.parametrize("tools, changes, word", [
    ([], {}, "leaves nothing"), ([5], {}, r"tools\[0\] = 5"), ([{"type": "web"}], {}, r"tools\[0\] = "),
    ([{"type": "function"}], {}, "function.name is missing"), ([tool("f"), tool("f")], {}, "'f' is there twice"),
    ([tool("a b")], {}, "the name 'a b'"), ([tool("a" * 65)], {}, "the name"),
    ([tool("f", {"type": "array"})], {}, "no JSON schema"), ([tool("f", [1])], {}, "no JSON schema"),
    ([{"function": {"name": "f", "description": 5}}], {}, "description = 5"),
    ([tool("f")], {"choice": tool("g")}, "tool_choice = "), ([tool("f")], {"choice": "any"}, "tool_choice = 'any'"),
    ([tool("f")], {"choice": {"function": 5}}, "tool_choice"), ([tool("f")], {"parallel": 1}, "parallel_tool_calls"),
])
def test_tools_that_are_not_possible(tools, changes, word):
    with pytest.raises(EdgeAwqError, match=word) as caught:
        ToolUse(tools, **changes)
    assert caught.value.hint


@pytest.mark.parametrize("given", [{"tools": [tool("f")]}, {"tools": ToolUse([tool("f")]), "ignore_eos": True},
                                   {"tools": ToolUse([tool("f")]), "regex": "a"}], ids=["list", "eos", "regex"])
def test_settings_that_are_not_possible(given):
    with pytest.raises(EdgeAwqError) as caught:
        GenerationSettings(**given)
    assert caught.value.hint
