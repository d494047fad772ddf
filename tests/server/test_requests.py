"""What clients may ask for: every field is taken, changes nothing, or is refused by name."""

import json

import pytest

from edge_awq.server.requests import RequestError, parse

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields):
    return parse("chat", {"messages": HELLO, **fields}, "tiny")


def test_what_is_not_said_is_left_to_the_model():
    wanted = chat(model="tiny", temperature=None, stop=None)
    assert (wanted.prompt, wanted.changes, wanted.stream, wanted.include_usage) == (HELLO, {"max_tokens": None}, False,
                                                                                    False)
    text = parse("text", {"prompt": "Once"}, "tiny")
    assert (text.prompt, text.changes) == ("Once", {"max_tokens": 16})


def test_settings_have_the_names_of_the_api():
    wanted = chat(max_completion_tokens=7, max_tokens=9, temperature=0.5, top_p=0.9, seed=3, stop="a", stream=True,
                  stream_options={"include_usage": True})
    assert wanted.changes == {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a"]}
    assert wanted.stream and wanted.include_usage
    assert chat(stop=["a", "b"]).changes["stop"] == ["a", "b"]
    assert chat(max_tokens=9).changes["max_tokens"] == 9


def test_forms_of_the_answer():
    assert chat(response_format={"type": "json_object"}).changes["json_schema"] is True
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    assert chat(response_format=named).changes["json_schema"] == schema
    assert "json_schema" not in chat(response_format={"type": "text"}).changes


def test_fields_that_change_nothing_are_taken():
    chat(n=1, frequency_penalty=0, presence_penalty=0.0, logit_bias={}, tools=[], tool_choice="auto", logprobs=False,
         response_format={"type": "text"}, user="me", metadata={"a": "b"}, store=True, parallel_tool_calls=False)


@pytest.mark.parametrize("field, value", [
    ("n", 2), ("frequency_penalty", 0.5), ("logit_bias", {"5": 1}), ("logprobs", True), ("tools", [{"type": "x"}]),
    ("response_format", {"type": "xml"}), ("response_format", "json"), ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": 5}}),
    ("reasoning_effort", "low"), ("max_token", 5), ("prompt", "x"),
    ("stream", "yes"), ("stream_options", {"usage": 1}), ("model", "other"), ("messages", []), ("messages", "Hello"),
    ("messages", ["Hello"]), ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
])
def test_others_are_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        chat(**{field: value})
    assert caught.value.param == field and caught.value.status == (404 if field == "model" else 400)
    assert field in json.dumps(caught.value.to_dict()["error"]["message"]) or field == "messages"


def test_parts_and_developers():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    wanted = chat(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts},
                            {"role": "assistant", "content": None}])
    assert wanted.prompt == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"},
                             {"role": "assistant", "content": None}]


@pytest.mark.parametrize("prompt, meant", [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])])
def test_a_prompt_is_text_or_token_ids(prompt, meant):
    assert parse("text", {"prompt": prompt}, "tiny").prompt == meant


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], [1, "a"], [True], 5, [[]]])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(RequestError, match="prompt must be"):
        parse("text", {"prompt": prompt}, "tiny")


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_a_body_is_an_object(body):
    with pytest.raises(RequestError, match="not a JSON object"):
        parse("chat", body, "tiny")
