"""Functions called over HTTP, by a model that says what the test wants; openai's own client reads the answers."""

import json
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import jsonschema
import openai
import pytest

from edge_awq.runner.answer import Observers
from edge_awq.runner.chat import ChatTemplate
from edge_awq.runner.sampling import SamplingSettings
from edge_awq.runner.session import Session
from edge_awq.runner.vocabulary import Vocabulary
from edge_awq.server.app import Served
from edge_awq.server.jobs import Jobs
from edge_awq.server.listen import bind, listening, url
from fakes import ScriptedEngine
from tokenizers_made_here import train_byte_level
from tool_templates import HERMES, LLAMA3, NONE

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}}, "required": ["city"],
          "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Now", "parameters": SCHEMA}},
         {"type": "function", "function": {"name": "now"}}]
NAMED = {"type": "function", "function": {"name": "weather"}}
ASKED = [{"role": "user", "content": "In Zürich?"}]
CALLS = ('<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
         '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')


def deep(levels):
    """A schema that llguidance does not read; each request must leave the server alive."""
    schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return {"type": "object", "properties": {"x": schema}}


class Stop:
    """Ends a thread that works."""

    begun = True
    tell = staticmethod(lambda event: None)

    @property
    def request(self):
        raise SystemExit


class Engine(ScriptedEngine):
    """It may also choose by itself."""

    context = 3000

    def step_greedy(self, token_id):
        return int(self.step(token_id).argmax())


class Server:
    """HTTP, queue and session in this process, before an engine that follows a script and then says anything."""

    def __init__(self, template, special=("<tool_call>", "</tool_call>"), added=()):
        self.tokenizer = train_byte_level(("<|begin|>", "<|end|>", *special))
        self.tokenizer.add_tokens(list(added))
        sizes = self.tokenizer.get_vocab_size()
        self.engine = Engine(sizes, 1, [])
        vocabulary = Vocabulary(self.tokenizer, None, (self.tokenizer.token_to_id("<|end|>"),),
                                SamplingSettings(temperature=0), ChatTemplate({"default": template}, {}))
        loaded = SimpleNamespace(manifest=SimpleNamespace(name="tiny"), load_s=0.0, weight_bytes_per_token=1)
        self.session = Session(self.engine, vocabulary, loaded)
        self.jobs = Jobs(9)
        self.worker = threading.Thread(target=self._work)

    def __enter__(self):
        bound = bind("127.0.0.1", 0)
        self._listening = listening(bound, Served("tiny", self.engine.context, self.jobs))
        self._listening.__enter__()
        self.worker.start()
        self.client = openai.OpenAI(base_url=f"{url(bound)}/v1", api_key="none", max_retries=0, timeout=60)
        return self

    def __exit__(self, *error):
        self.client.close()
        self.jobs._queue.put(Stop())
        self.worker.join()
        self._listening.__exit__(None, None, None)

    def _work(self):
        with suppress(SystemExit):
            self.jobs.work(self.session, Observers(), lambda line: None)

    def create(self, script="", **fields):
        self.engine.script = self.tokenizer.encode(script, add_special_tokens=False).ids
        return self.client.chat.completions.create(model="tiny", **{"messages": ASKED, "tools": TOOLS, **fields})

    def ask(self, script="", **fields):
        """The one choice."""
        return self.create(script, **fields).choices[0]


@pytest.fixture(scope="module")
def server():
    with Server(HERMES) as running:
        yield running


def called(message):
    for call in message.tool_calls:
        assert call.type == "function" and call.id.startswith("call_")
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]


def test_calls_are_found_in_an_answer(server):
    found = server.ask(f"I look.\n{CALLS}<|end|>")
    assert found.finish_reason == "tool_calls" and found.message.content == "I look."
    assert called(found.message) == [("weather", {"city": "Zürich"}), ("now", {})]
    assert len({call.id for call in found.message.tool_calls}) == 2
    found = server.ask(f"{CALLS}<|end|>")
    assert found.message.content is None and len(found.message.tool_calls) == 2


def test_a_stream_brings_text_and_then_calls(server):
    chunks = list(server.create(f"I look,\n\nnow. {CALLS}<|end|>", stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    texts = [choice.delta.content for choice in choices if choice.delta.content]
    assert "".join(texts) == "I look,\n\nnow." and len(texts) > 2
    assert choices[0].delta.role == "assistant" and choices[-1].finish_reason == "tool_calls"
    deltas = [delta for choice in choices for delta in choice.delta.tool_calls or []]
    assert [(delta.index, delta.function.name, json.loads(delta.function.arguments)) for delta in deltas] == [
        (0, "weather", {"city": "Zürich"}), (1, "now", {})]
    assert len({delta.id for delta in deltas}) == 2 and all(choice.finish_reason is None for choice in choices[:-1])
    assert chunks[-1].usage.completion_tokens > 20


def test_openai_puts_the_stream_together(server):
    server.engine.script = server.tokenizer.encode(f"Yes. {CALLS}<|end|>", add_special_tokens=False).ids
    with server.client.chat.completions.stream(model="tiny", messages=ASKED, tools=TOOLS) as stream:
        done = [each for each in stream if each.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [(each.name, json.loads(each.arguments)) for each in done] == called(final.message)
    assert final.message.content == "Yes." and final.finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_call_that_must_come_comes(server, choice, stream):
    for temperature in (0, 2):
        fields = {"tool_choice": choice, "parallel_tool_calls": False, "temperature": temperature}
        if stream:
            (call,) = [call for chunk in server.create(stream=True, **fields)
                       for call in chunk.choices[0].delta.tool_calls or []]
        else:
            found = server.ask(**fields)
            (call,) = found.message.tool_calls
            assert found.message.content is None and found.finish_reason == "tool_calls"
        if call.function.name == "weather":
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        assert call.function.name == "weather" or (call.function.name == "now" and choice == "required")


def test_a_call_that_the_model_begins_is_right(server):
    for seed in range(3):
        (call,) = server.ask("<tool_call>", parallel_tool_calls=False, temperature=3, seed=seed).message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA if call.function.name == "weather" else {})


def test_answers_without_calls(server):
    for fields in ({}, {"tool_choice": "none"}, {"tools": openai.omit}, {"tools": []}):
        found = server.ask("It is 8 °C.<|end|>", **fields)
        assert (found.message.content, found.finish_reason, found.message.tool_calls) == ("It is 8 °C.", "stop", None)
    found = server.ask(f"{CALLS}<|end|>", tool_choice="none")
    assert found.finish_reason == "stop" and found.message.tool_calls is None and '"name"' in found.message.content
    found = server.ask("I look. <tool_call>", max_tokens=12)
    assert found.finish_reason == "length" and found.message.content.startswith("I look.")


def test_an_answer_that_is_cut_off_between_calls(server):
    one = CALLS[: CALLS.index("</tool_call>")]
    tokens = len(server.tokenizer.encode(one, add_special_tokens=False).ids) + 4
    found = server.ask(f"{CALLS}<|end|>", max_tokens=tokens)
    assert found.finish_reason == "length" and called(found.message) == [("weather", {"city": "Zürich"})]


def test_results_go_back_to_the_model(server):
    first = server.ask(f"{CALLS}<|end|>").message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "8 °C"} for call in first.tool_calls]
    found = server.create("It is cold.<|end|>", messages=[*ASKED, first, *results])
    assert found.choices[0].message.content == "It is cold."
    told = server.session.encode_chat([*ASKED, first.model_dump(), *results], tools=TOOLS)
    assert found.usage.prompt_tokens == len(told)
    assert '"arguments": {"city": "Zürich"}}' in server.tokenizer.decode(told)
    # all of the first turn but its end is in the cache still
    assert found.usage.prompt_tokens_details.cached_tokens > 0.5 * len(told)


def test_thoughts_stay_before_the_call(server):
    found = server.ask(f"<think>\nHm, <tool_call>?\n</think>\n\n{CALLS}<|end|>")
    assert found.message.content == "<think>\nHm, <tool_call>?\n</think>" and len(found.message.tool_calls) == 2


@pytest.mark.parametrize("fields, param, words", [
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", ["'weather' is there twice"]),
    ({"tools": [{"type": "function", "function": {"description": "x"}}]}, "tools", ["tools[0]", "function.name"]),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", ["'a b'", "1 to 64 letters"]),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools",
     ["parameters = {'type': 'array'}", "JSON schema"]),
    ({"tools": [{"type": "code_interpreter"}]}, "tools", ["code_interpreter", "use functions"]),
    ({"tools": "weather"}, "tools", ["tools = 'weather'"]),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", ["other", "weather, now"]),
    ({"tool_choice": "any"}, "tool_choice", ["tool_choice = 'any'"]),
    ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice", ["tool_choice = 'required'"]),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", ["parallel_tool_calls = 'yes'"]),
    ({"messages": [*ASKED, {"role": "tool", "content": "x"}]}, "messages", ["messages[1].tool_call_id = None"]),
    ({"messages": [*ASKED, {"role": "tool", "tool_call_id": ["x"], "content": "x"}]}, "messages",
     ["messages[1].tool_call_id = ['x']"]),
    ({"messages": [*ASKED, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]}, "messages",
     ["messages[1].tool_call_id = 'call_1'", "none"]),
    ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [5]}]}, "messages", ["messages[1].tool_calls = [5]"]),
    ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{"}}]}]}, None,
     ["arguments = '{' of a call of 'now'"]),
    ({"response_format": {"type": "json_object"}}, None, ["leave tools out"]),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"not": {}}}}}}],
      "tool_choice": "required"}, None, ["the schema of 'f'", "Unimplemented keys"]),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": deep(200)}}], "tool_choice": "required"},
     None, ["the schema of 'f'", "nest it less deeply"]),
    ({"tools": openai.omit, "response_format": {"type": "json_schema", "json_schema": {
        "name": "f", "schema": deep(200)}}}, None, ["json_schema is not possible", "nest it less deeply"]),
])
def test_requests_that_are_not_possible(server, fields, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        server.create(**fields)
    assert caught.value.param == param and all(word in caught.value.body["message"] for word in words)


def test_models_that_cannot_call():
    with Server(NONE) as server:
        with pytest.raises(openai.BadRequestError, match=r"template of 'tiny' does not use tools.*leave tools out"):
            server.create()
        assert server.ask("Hello<|end|>", tools=openai.omit).message.content == "Hello"
    template = LLAMA3.replace('"parameters": ', '"args": ')
    with Server(template) as server, pytest.raises(openai.BadRequestError, match="in a form that is not known"):
        server.create()


def test_calls_without_markers_and_without_llguidance(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    one = '{"name": "now", "parameters": {}}'  # in one token
    with Server(LLAMA3, (), [one]) as server:
        assert called(server.ask(f"{one}<|end|>").message) == [("now", {})]
        found = server.ask('{"name": "weather", "parameters": {"city": "Ur"}}<|end|>')
        assert called(found.message) == [("weather", {"city": "Ur"})] and found.message.content is None
        assert server.ask('{"name": "rain"}<|end|>').message.content == '{"name": "rain"}'
        chunks = list(server.create('{"city": 5}<|end|>', stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == '{"city": 5}'
        with pytest.raises(openai.BadRequestError, match=r"llguidance.*edge-awq\[structured\]"):
            server.create(tool_choice="required")
