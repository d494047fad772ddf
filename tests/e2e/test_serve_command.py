"""edge-awq serve, asked by OpenAI's own client."""

import http.client
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jsonschema
import openai
import pytest
from models import assert_refused, command, make_model, spawn

from edge_awq import load
from edge_awq.runner.tool_use import ToolUse
from tool_templates import HERMES

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick brown fox"}]
KEY = "a key"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Ur", "Rom"]}, "days": {"type": "boolean"}},
    "required": ["city", "days"]}}}]
LONG = {"temperature": 5, "extra_body": {"ignore_eos": True}}  # an answer that fills the context


class Server:
    """edge-awq serve in a process of its own; its standard error is read all the time."""

    def __init__(self, *arguments):
        self.process = spawn("serve", *arguments, "--port", 0)
        self.lines = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        first = self.wait_for("Ctrl-C ends it")
        self.url = first.split(" at ")[1].split(";")[0]
        self.port = int(self.url.split(":")[2].split("/")[0])

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def wait_for(self, text):
        with self._news:
            assert self._news.wait_for(lambda: any(text in line for line in self.lines), 60), self.lines
            return next(line for line in self.lines if text in line)

    def client(self, key=KEY):
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def ask(self, method, path, body=None, **headers):
        """Status and object of a request as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"Authorization": f"Bearer {KEY}", **headers})
        response = connection.getresponse()
        table = json.loads(response.read())
        connection.close()
        return response.status, table


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    make_model(folder / "model", template=HERMES, max_position_embeddings=2048)
    assert command("build", folder / "model", "-o", folder / "b", "--precision", "fp16").code == 0
    return folder / "b"


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    log = tmp_path_factory.mktemp("runs")
    running = Server(bundle, "--name", "tiny", "--key", KEY, "--log", log)
    running.log = log
    yield running
    running.process.kill()
    running.process.wait()


def expected(bundle, messages, **settings):
    with load(bundle) as session:
        tokens = list(session.chat(messages, temperature=0.0, **settings))
        return SimpleNamespace(text="".join(token.text for token in tokens), prompt=len(session.encode_chat(messages)))


def test_a_chat_as_the_python_api_answers_it(server, bundle):
    meant = expected(bundle, MESSAGES, max_tokens=9)
    found = server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=9, temperature=0)
    assert found.choices[0].message.content == meant.text and found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason == "length" and found.object == "chat.completion"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (meant.prompt, 9)
    assert found.edge_awq["decode_tok_s"] > 0 and found.edge_awq["energy"] is None
    again = server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=9, temperature=0)
    assert again.choices[0].message.content == meant.text
    assert again.usage.prompt_tokens_details.cached_tokens == meant.prompt - 1


def test_a_stream_is_the_same_text_in_pieces(server, bundle):
    meant = expected(bundle, MESSAGES, max_tokens=30)
    chunks = list(server.client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=30, temperature=0, stream=True,
        stream_options={"include_usage": True}))
    *pieces, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == meant.text
    assert pieces[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert usage.choices == [] and usage.usage.completion_tokens == 30


def test_answers_of_a_form(server):
    schema = {"type": "object", "properties": {"fox": {"enum": ["red", "brown"]}, "age": {"type": "boolean"}},
              "required": ["fox", "age"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "fox", "schema": schema, "strict": True}}
    for temperature in (0, 3):
        found = server.client().chat.completions.create(model="tiny", messages=MESSAGES, response_format=form,
                                                        temperature=temperature)
        assert found.choices[0].finish_reason == "stop"
        answer = json.loads(found.choices[0].message.content)
        assert answer["fox"] in ("red", "brown") and isinstance(answer["age"], bool) and len(answer) == 2
    with pytest.raises(openai.BadRequestError, match="Invalid type: fox"):
        form["json_schema"]["schema"] = {"type": "fox"}
        server.client().chat.completions.create(model="tiny", messages=MESSAGES, response_format=form)


def test_a_model_that_never_learned_it_calls_functions(server, bundle):
    ask = server.client().chat.completions.create
    for temperature in (0, 3):
        found = ask(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", temperature=temperature)
        assert found.choices[0].finish_reason == "tool_calls" and found.choices[0].message.content is None
        for call in found.choices[0].message.tool_calls:
            jsonschema.validate(json.loads(call.function.arguments), TOOLS[0]["function"]["parameters"])
    (called,) = ask(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", temperature=0,
                    parallel_tool_calls=False).choices[0].message.tool_calls
    with load(bundle) as session:
        tokens = list(session.chat(MESSAGES, tools=ToolUse(TOOLS, "required", parallel=False), temperature=0.0))
        assert [(call.name, call.arguments) for token in tokens for call in token.calls] == [
            (called.function.name, called.function.arguments)]
        meant = expected(bundle, MESSAGES, tools=ToolUse(TOOLS), max_tokens=9)
    found = ask(model="tiny", messages=MESSAGES, tools=TOOLS, temperature=0, max_tokens=9)
    assert found.choices[0].message.content == meant.text and found.usage.prompt_tokens > meant.prompt


def test_completions_take_text_and_token_ids(server, bundle):
    with load(bundle) as session:
        ids = session.encode("The fox")
        meant = "".join(token.text for token in session.generate(ids, max_tokens=16, temperature=0.0))
    client = server.client()
    for prompt in ("The fox", ids):
        found = client.completions.create(model="tiny", prompt=prompt, temperature=0)
        assert found.choices[0].text == meant and found.usage.completion_tokens == 16
    stream = client.completions.create(model="tiny", prompt="The fox", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == meant
    cut = client.completions.create(model="tiny", prompt="The fox", temperature=0, stop=meant[3:5])
    assert cut.choices[0].text == meant[:3] and cut.choices[0].finish_reason == "stop"


def test_many_clients_at_once_get_what_each_alone_would(server, bundle):
    begins = ("fox", "dog", "naïve", "3", "jumps", "lazy")
    chats = [[{"role": "user", "content": f"{word} and so on"}] for word in begins]

    def ask(messages):
        found = server.client().chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)
        return found.choices[0].message.content

    with ThreadPoolExecutor(len(chats)) as pool:
        found = list(pool.map(ask, chats))
    assert found == [expected(bundle, messages, max_tokens=12).text for messages in chats]


def test_the_model_is_listed(server):
    models = server.client().models
    assert [model.id for model in models.list()] == ["tiny"] and models.retrieve("tiny").owned_by == "edge-awq"
    assert server.ask("GET", "/health") == (200, {"status": "ok", "model": "tiny"})


def test_errors_are_those_of_the_api(server):
    client, long = server.client(), [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="temperature = -1"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="context has room for"):
        client.chat.completions.create(model="tiny", messages=long, stream=True)
    with pytest.raises(openai.BadRequestError, match="tool_choice = 'f'"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="f")
    with pytest.raises(openai.AuthenticationError, match="Bearer"):
        server.client("other").models.list()


@pytest.mark.parametrize("method, path, body, status, word", [
    ("POST", "/v1/completions", b"{", 400, "not JSON"), ("POST", "/v1/completions", b"\xff", 400, "not JSON"),
    ("POST", "/v1/completions", b"[" * 100_000, 400, "not JSON"), ("POST", "/v1/completions", b"[]", 400, "object"),
    ("POST", "/v1/completions", b'{"prompt": [999999]}', 400, "999999"),
    ("POST", "/v1/completions", b" " * (2 << 20), 413, "larger"), ("GET", "/v1/completions", None, 405, "Method"),
    ("GET", "/v1/nothing", None, 404, "/v1/nothing"), ("GET", "/v1/models/x/y", None, 404, "x/y"),
])
def test_what_is_no_request(server, method, path, body, status, word):
    found, table = server.ask(method, path, body)
    assert found == status and word in table["error"]["message"]


@pytest.mark.parametrize("body, word", [
    ('"stop": 5', "stop = 5"), ('"seed": 1' + "0" * 400, "seed = 1"), ('"ignore_eos": "no"', "ignore_eos"),
    ('"tools": ["' + "x" * 1000 + '"]', "tools"), ('"\\ud800": 1', "d800"),
])
def test_an_odd_request_is_refused_and_does_not_end_the_server(server, body, word):
    found, table = server.ask("POST", "/v1/completions", f'{{"prompt": "a", {body}}}'.encode())
    assert found == 400 and word in table["error"]["message"] and len(table["error"]["message"]) < 200
    assert server.ask("POST", "/v1/completions", b'{"prompt": "a"}')[0] == 200


def test_a_client_that_leaves_while_it_asks_is_no_news(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n\r\n"
        client.sendall(head.encode() + b"{")
        time.sleep(0.5)
    server.client().completions.create(model="tiny", prompt="later", max_tokens=7, temperature=0)
    server.wait_for("text [7 tokens at")
    assert not any("Traceback" in line for line in server.lines)


def test_every_answer_is_told_and_logged(server):
    before = len(list(server.log.iterdir()))
    server.client().completions.create(model="tiny", prompt="once", max_tokens=5, temperature=0)
    server.wait_for("text [5 tokens at")
    assert len(list(server.log.iterdir())) == before + 1


def test_a_client_that_leaves_ends_its_answer(server):
    with server.client().chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **LONG) as stream:
        next(iter(stream))
    server.wait_for("broken off")
    assert server.ask("GET", "/health")[0] == 200


def test_a_key_may_have_any_characters(bundle):
    server = Server(bundle, "--key", "clé")
    assert server.ask("GET", "/v1/models", Authorization="Bearer clé".encode())[0] == 200
    assert server.ask("GET", "/v1/models", Authorization="Bearer cle")[0] == 401
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_a_client_reads(bundle, number):
    server = Server(bundle)
    stream = server.client().chat.completions.create(model="b", messages=MESSAGES, stream=True, **LONG)
    pieces = iter(stream)
    next(pieces)
    server.process.send_signal(number)
    with pytest.raises(openai.APIError, match="stopping"):
        list(pieces)
    assert server.process.wait(30) == 0
    server.wait_for("stopped")


def test_a_client_in_the_middle_of_its_request_is_cut_off_in_silence(bundle):
    server = Server(bundle)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        time.sleep(0.5)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    server.wait_for("stopped")
    assert len(server.lines) == 2


def test_an_address_that_is_taken_and_one_that_is_not_ours(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(command("serve", bundle, "--port", port), f"port {port}", "in use", "--port")
    assert_refused(command("serve", bundle, "--host", "192.0.2.1"), "192.0.2.1", "--host")
    assert_refused(command("serve", bundle, "--host", "a" * 70), "a" * 70, "--host")
    assert_refused(command("serve", bundle, "--log", bundle / "manifest.json" / "x"), "manifest.json")
    assert_refused(command("serve", bundle / "nowhere", "--port", 0), "not a bundle")
