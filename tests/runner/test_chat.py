"""Chat templates: transformers' apply_chat_template is the oracle, on templates of the shapes that real models use."""

import json
from datetime import datetime

import pytest
import transformers

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.chat import read_chat_template
from tokenizers_made_here import train_byte_level

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}""",
    "inst": """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate user/assistant/user/...') }}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else -%}
        {{ ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif -%}
{%- endfor -%}""",
    "headers-tools": """{{- bos_token }}
{%- set ns = namespace(system='You help.', count=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|header|>system<|/header|>\n\n' }}
{{- 'Today: ' + strftime_now('%d %b %Y') + '\n' }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + '\n\n' }}
    {%- endfor %}
{%- endif %}
{{- ns.system + '<|eot|>' }}
{%- for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.tool_calls is defined %}
        {{- '<call>' + message.tool_calls[0].function | tojson + '</call>' }}
        {%- continue %}
    {%- endif %}
    {{- '<|header|>' + message['role'] + '<|/header|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{{- '(' ~ ns.count ~ ')' }}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\n\n' }}
{%- endif %}""",
    "generation": """{% for message in messages %}
    {% if message.role == 'assistant' %}
        {% generation %}{% set mark = '!' %}{{ message.content + mark }}{% endgeneration %}
    {% else %}
        {{ message.content }}{{ mark | default('?') }}
    {% endif %}
    {% if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
{{ pad_token | default('no pad') }} {{ thinking | default('off') }}""",
    "macros": """{% macro show(value) %}<{{ value }}>{% endmacro %}
{%- for message in messages | selectattr('role', 'equalto', 'user') -%}
  {{ show(message.content) }}{{ message.get('name', 'anonymous') }}{{ {'a': 1} | tojson }}
{%- endfor -%}{{ dict(a=1).items() | list }}""",
}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello <b>& größer 日本 😀"}],
    "turns": [{"role": "system", "content": "  Be brief.  "}, {"role": "user", "content": " a\nb "},
              {"role": "assistant", "content": "yes", "tool_calls": None}, {"role": "user", "content": "'q' \"x\""}],
    "tools": [{"role": "user", "content": "weather?"},
              {"role": "assistant", "content": "", "tool_calls": [
                  {"type": "function", "function": {"name": "weather", "arguments": {"to": "Zürich", "x": [1]}}}]}],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "<now>", "parameters": {}}}]
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>",
          "bos_token": {"__type": "AddedToken", "content": "<|begin|>", "special": True, "normalized": False}}
HELLO = [{"role": "user", "content": "Hello"}]


def write_model(folder, template=None, file=None, **config):
    """A folder with a tokenizer; the template goes into tokenizer_config.json, or into its own file."""
    train_byte_level().save(str(folder / "tokenizer.json"))
    table = {**CONFIG, **config}
    if template is not None:
        table["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    if file is not None:
        (folder / "chat_template.jinja").write_text(file)
    return folder


@pytest.fixture
def oracle():
    def render(folder, messages, **options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        # as transformers' newer versions do by themselves
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return render


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("conversation", ["one", "turns"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_as_transformers_does(tmp_path, oracle, template, conversation, prompt):
    folder, messages = write_model(tmp_path, TEMPLATES[template]), CONVERSATIONS[conversation]
    found = read_chat_template(folder).render(messages, add_generation_prompt=prompt)
    assert found == oracle(folder, messages, add_generation_prompt=prompt)


def test_tools_and_variables_render_as_in_transformers(tmp_path, oracle):
    folder = write_model(tmp_path, TEMPLATES["headers-tools"])
    found = read_chat_template(folder).render(CONVERSATIONS["tools"], tools=TOOLS)
    assert found == oracle(folder, CONVERSATIONS["tools"], tools=TOOLS, add_generation_prompt=True)
    assert "Zürich" in found and datetime.now().strftime("%Y") in found
    folder = write_model(tmp_path, TEMPLATES["generation"])
    found = read_chat_template(folder).render(HELLO, variables={"thinking": "on"})
    assert found == oracle(folder, HELLO, thinking="on", add_generation_prompt=True)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["chat", "tools"])
def test_named_templates(tmp_path, oracle, tools):
    named = [{"name": "tool_use", "template": "T{{ tools | tojson }}"}, {"name": "default", "template": "D"}]
    folder = write_model(tmp_path, named)
    assert read_chat_template(folder).render(HELLO, tools=tools) == oracle(folder, HELLO, tools=tools)


def test_the_file_of_its_own_wins(tmp_path, oracle):
    folder = write_model(tmp_path, "in the config", file="in the file {{ eos_token }}")
    assert read_chat_template(folder).render(HELLO) == oracle(folder, HELLO) == "in the file <|end|>"


def test_special_tokens_of_older_folders_lie_in_a_file_of_their_own(tmp_path):
    folder = write_model(tmp_path, "{{ bos_token }}{{ pad_token }}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}, "bos_token": "no"}))
    assert read_chat_template(folder).render(HELLO) == "<|begin|><pad>"


def test_no_template_is_none(tmp_path):
    assert read_chat_template(write_model(tmp_path)) is None
    assert read_chat_template(tmp_path / "nowhere") is None


BROKEN = {
    "syntax": "{% for message in %}",
    "refusal": "{{ raise_exception('no system role here') }}",
    "undefined": "{{ messages[0].nothing.more }}",
    "type": "{{ messages[0].role + 1 }}",
    "zero": "{{ 1 / 0 }}",
    "endless": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "escape": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "escape-by-function": "{{ raise_exception.__globals__['json'].__loader__ }}",
    "escape-by-format": "{{ '{0.__class__.__base__}'.format(messages) }}",
    "changes-the-messages": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_fails_is_one_clear_error(tmp_path, template):
    with pytest.raises(EdgeAwqError, match="chat template") as caught:
        read_chat_template(write_model(tmp_path, BROKEN[template])).render(HELLO)
    assert caught.value.hint


def test_a_template_says_why_it_refuses(tmp_path):
    with pytest.raises(EdgeAwqError, match="no system role here"):
        read_chat_template(write_model(tmp_path, BROKEN["refusal"])).render(HELLO)


@pytest.mark.parametrize("messages", [[], "Hello", ["Hello"], [{"content": "Hello"}], None, [{"role": 1}],
                                      [{"role": "user", "content": object()}]],
                         ids=["none", "text", "texts", "no-role", "null", "number", "object"])
def test_malformed_messages_are_refused(tmp_path, messages):
    with pytest.raises(EdgeAwqError, match="conversation"):
        read_chat_template(write_model(tmp_path, TEMPLATES["chatml"])).render(messages)


@pytest.mark.parametrize("entry", [5, [{"name": "default"}], ["default"]], ids=["number", "no-template", "texts"])
def test_a_malformed_entry_is_refused(tmp_path, entry):
    with pytest.raises(EdgeAwqError, match="chat_template"):
        read_chat_template(write_model(tmp_path, entry))


def test_templates_without_a_default_list_their_names(tmp_path):
    folder = write_model(tmp_path, [{"name": "rag", "template": ""}, {"name": "poem", "template": ""}])
    with pytest.raises(EdgeAwqError, match="poem, rag"):
        read_chat_template(folder).render(HELLO)
