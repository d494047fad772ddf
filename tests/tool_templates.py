"""Chat templates in the manner of published ones, one for each way of calling functions: its markers, our words."""

from __future__ import annotations

_TURNS = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
          "{% if add_generation_prompt %}<assistant>{% endif %}")

HERMES = """{%- if tools %}
    {{- '<system>' + (messages[0].content + '\\n' if messages[0].role == 'system' else '') + 'Functions:' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
    {{- '\\nCall one by <tool_call>\\n{"name": its name, "arguments": their values}\\n</tool_call><end>' }}
{%- elif messages[0].role == 'system' %}
    {{- '<system>' + messages[0].content + '<end>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<user>' + message.content + '<end>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<assistant>' + message.content.split('</think>')[-1] }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<end>' }}
    {%- elif message.role == 'tool' %}
        {{- '<user><result>' + message.content + '</result><end>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<assistant>' + ('<think>\\n' if opens_thoughts else '') }}{%- endif %}"""
SMOL = """{%- if xml_tools %}<system>{% for tool in xml_tools[:] %}{{ tool | string }}{% endfor %}
Call by <tool_call>{"name": n, "arguments": a}</tool_call><end>{%- endif %}""" + _TURNS
LLAMA3 = """{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
    {%- elif message.role == 'tool' %}
        {{- message.content | tojson }}
    {%- else %}
        {%- if tools is not none and loop.first %}{{- tools | tojson(indent=4) }}{%- endif %}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if loop.last and tools is not none %}{{- '[AVAILABLE_TOOLS]' + tools | tojson }}{%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}
        {{- '[RESULT]' + message.tool_call_id + message.content }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}"""
GRANITE3 = """{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson }}
{{- ' Call by <|tool_call|> and a list.' }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
COMMAND_R7B = """{%- if tools %}<system>Answer, or write <|START_ACTION|> and a list with "tool_name" and "parameters".
{%- for tool in tools %}{{ tool['function']['name'] }}: {{ tool['function']['parameters'] | tojson }}{% endfor %}<end>
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<assistant><|START_THINKING|>' ~ message.tool_plan ~ '<|END_THINKING|><|START_ACTION|>[\\n' }}
        {%- for call in message.tool_calls %}
            {{- '{"tool_call_id": "' ~ loop.index0 ~ '", "tool_name": "' + call['function']['name'] }}
            {{- '", "parameters": ' + call['function']['arguments'] | tojson + '}' }}
        {%- endfor %}
        {{- ']<|END_ACTION|><end>' }}
    {%- else %}
        {{- '<' + message.role + '>' + message.content + '<end>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{%- endif %}"""
PHI4_MINI = """{%- for message in messages -%}
    {%- if message['role'] == 'system' and 'tools' in message -%}
        {{- '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' -}}
    {%- else -%}
        {{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
NONE = _TURNS

TEMPLATES = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "granite3": GRANITE3, "command-r7b": COMMAND_R7B,
             "phi4-mini": PHI4_MINI}
