"""Tools in chat templates: transformers' apply_chat_template is the oracle, on templates like the published ones."""

import copy
import json

import pytest
import transformers

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.tool_format import find_format, load_formats
from edge_awq.runner.tool_prompt import ToolPrompt
from edge_awq.runner.vocabulary import read_vocabulary
from tokenizers_made_here import train_byte_level
from tool_templates import NONE, SMOL, TEMPLATES

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Now, in a <city>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
ASKED = {"role": "user", "content": "In Zürich?"}
CALL = {"id": "call_0123456789abcdef01234567", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "content": "8 °C"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
AS_TEXT = copy.deepcopy(CALLED)  # as OpenAI's API has it
AS_TEXT["tool_calls"][0]["function"]["arguments"] = '{"city": "Zürich"}'
AS_TEXT["content"] = None


@pytest.fixture
def made(tmp_path):
    """From a template: our prompt as text, and transformers'."""
    def make(template):
        tokenizer = train_byte_level()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        prompt = ToolPrompt(read_vocabulary(tmp_path), "tiny")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)

        def render(messages, **options):
            return theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)

        return lambda *given, **options: tokenizer.decode(prompt.encode(*given, **options), False), render
    return make


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_template_has_one_format(name):
    assert [form.name for form in load_formats() if form.fits(TEMPLATES[name])] == [name]
    assert find_format(NONE) is None
    xml = TEMPLATES["hermes"].replace('{"name"', "<function=")
    assert find_format(xml) is None


@pytest.mark.parametrize("name", ["hermes", "llama3", "command-r7b"])
def test_tools_and_calls_render_as_in_transformers(made, name):
    ours, theirs = made(TEMPLATES[name])
    found = ours([ASKED, AS_TEXT, RESULT], TOOLS)
    assert found == theirs([ASKED, CALLED, RESULT], tools=TOOLS)
    assert "Zürich" in found and "°C" in found
    assert ours([ASKED], TOOLS) == theirs([ASKED], tools=TOOLS) != ours([ASKED])
    assert ours([ASKED, AS_TEXT, RESULT]) == theirs([ASKED, CALLED, RESULT])
    assert ours([ASKED, {"role": "assistant", "content": "x", "tool_calls": []}, ASKED]) == theirs(
        [ASKED, {"role": "assistant", "content": "x"}, ASKED])


def test_ids_are_as_long_as_the_template_wants(made):
    ours, theirs = made(TEMPLATES["mistral"])
    fit = {**CALLED, "tool_calls": [{**CALL, "id": "abcdefXY9"}]}, {**RESULT, "tool_call_id": "abcdefXY9"}
    assert ours([ASKED, *fit, ASKED], TOOLS) == theirs([ASKED, *fit, ASKED], tools=TOOLS)
    found = ours([ASKED, AS_TEXT, RESULT, ASKED], TOOLS)
    (short,) = {found.split('"id": "')[1][:9], found.split("[RESULT]")[1][:9]}
    fit = {**CALLED, "tool_calls": [{**CALL, "id": short}]}, {**RESULT, "tool_call_id": short}
    assert short.isalnum() and found == theirs([ASKED, *fit, ASKED], tools=TOOLS)


@pytest.mark.parametrize("name, role, written", [
    ("granite3", "tool_response", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Zürich"}}]'),
    ("phi4-mini", "tool_response", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Zürich"}}]<|/tool_call|>'),
])
def test_calls_become_text_where_the_template_knows_only_text(made, name, role, written):
    ours, theirs = made(TEMPLATES[name])
    found = ours([ASKED, {**AS_TEXT, "content": "Sure."}, RESULT])
    assert found == theirs([ASKED, {"role": "assistant", "content": f"Sure.\n{written}"}, {**RESULT, "role": role}])


def test_tools_go_where_the_template_looks_for_them(made):
    ours, theirs = made(SMOL)
    assert ours([ASKED], TOOLS) == theirs([ASKED], xml_tools=TOOLS)
    assert ours([ASKED], TOOLS, variables={"xml_tools": []}) == ours([ASKED])
    ours, theirs = made(TEMPLATES["phi4-mini"])
    listed = json.dumps([TOOLS[0]["function"]], ensure_ascii=False)
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        told = {"role": "system", "content": system[0]["content"] if system else "", "tools": listed}
        assert ours([*system, ASKED], TOOLS) == theirs([told, ASKED])


def test_models_that_know_no_tools_say_so(made):
    ours, _ = made(NONE)
    with pytest.raises(EdgeAwqError, match="chat template of 'tiny' does not use tools") as caught:
        ours([ASKED], TOOLS)
    assert caught.value.hint
    with pytest.raises(EdgeAwqError, match="form that is not known") as caught:
        ours([ASKED, AS_TEXT, RESULT])
    assert "Qwen3" in caught.value.hint


@pytest.mark.parametrize("calls, word", [
    ([5], "tool_calls hold 5"), ([{"function": {}}], "tool_calls hold"),
    ([{"function": {"name": "f", "arguments": "{"}}], "arguments = '{' of a call of 'f' are no JSON object"),
    ([{"function": {"name": "f", "arguments": "[]"}}], "are no JSON object"),
])
def test_calls_that_are_none(made, calls, word):
    ours, _ = made(TEMPLATES["hermes"])
    with pytest.raises(EdgeAwqError, match=word.replace("[", r"\[").replace("{", r"\{")):
        ours([ASKED, {"role": "assistant", "tool_calls": calls}])
    assert "arguments" not in ours([ASKED, {"role": "assistant", "content": "", "tool_calls": None}])
