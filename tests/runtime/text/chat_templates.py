"""Chat templates of the kinds that the families ship, written for the tests, and conversations.

Each uses what its family's template uses of Jinja; the texts around the messages are shortened.
"""

from __future__ import annotations

from typing import Any

DEEPSEEK_V2 = """{% if not add_generation_prompt is defined %}
{% set add_generation_prompt = false %}{% endif %}
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}
{{ 'Assistant: ' + (message['content'] or '') + eos_token }}
{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

DEEPSEEK_R1 = """
{%- set ns = namespace(system='', is_tool=false, is_output_first=true) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = ns.system + ('\\n\\n' if not loop.first else '') + message['content'] -%}
{%- endfor -%}
{{- bos_token ~ ns.system -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.is_tool = false -%}{{- '<|User|>' + message['content'] -}}
  {%- endif -%}
  {%- if message['role'] == 'assistant' and 'tool_calls' in message -%}
    {%- for call in message['tool_calls'] -%}
      {%- if loop.first -%}{{- '<|Assistant|><calls>' -}}{%- else -%}{{- '\\n' -}}{%- endif -%}
      {{- '<call>' + call['function']['name'] + '<sep>' -}}
      {{- call['function']['arguments'] | tojson -}}
      {%- if loop.last -%}{{- '</calls>' + eos_token -}}{%- endif -%}
    {%- endfor -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set content = message['content'] -%}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif -%}
    {{- '<|Assistant|>' + content + eos_token -}}
  {%- endif -%}
  {%- if message['role'] == 'tool' -%}
    {%- set ns.is_tool = true -%}{{- '<output>' + message['content'] + '</output>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.is_tool -%}{{- '<|Assistant|><think>\\n' -}}{%- endif -%}
"""

KIMI_K2 = """
{%- macro render_content(message) -%}
  {%- set content = message.get('content') -%}
  {%- if content is string -%}{{ content }}
  {%- elif content is none -%}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<media>{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if tools -%}<|im_system|>tools<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}
{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and messages[0]['role'] != 'system' -%}
    <|im_system|>system<|im_middle|>You are helpful<|im_end|>
  {%- endif -%}
  {%- set role = message.get('name') or message['role'] -%}
  {%- if message['role'] == 'user' -%}<|im_user|>{{ role }}<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}<|im_assistant|>{{ role }}<|im_middle|>
  {%- else -%}<|im_system|>{{ role }}<|im_middle|>
  {%- endif -%}
  {%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
    {{ render_content(message) }}<|calls|>
    {%- for call in message['tool_calls'] -%}
      <|call|>{{ call['id'] }}<|args|>
      {%- set args = call['function']['arguments'] -%}
      {%- if args is string -%}{{ args }}{%- else -%}{{ args | tojson }}{%- endif -%}
    {%- endfor -%}
    <|/calls|>
  {%- elif message['role'] == 'tool' -%}
    ## Return of {{ message.tool_call_id | default('?') }}\n{{ render_content(message) }}
  {%- else -%}{{ render_content(message) }}{%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
"""

GLM_4_7 = """[gMASK]<sop>
{%- macro visible_text(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}
            {%- elif item is string -%}{{- item }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}{%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>{{ visible_text(m.content) }}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}
{%- set content = visible_text(m.content) %}
{%- if m.reasoning_content is string %}
    {%- set reasoning_content = m.reasoning_content %}
{%- elif '</think>' in content %}
    {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if (clear_thinking is defined and not clear_thinking) or loop.index0 > ns.last_user_index -%}
{{ '<think>' + reasoning_content.strip() + '</think>' }}
{%- else -%}{{ '</think>' }}{%- endif -%}
{%- if content.strip() -%}{{ content.strip() }}{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}{%- set tc = tc.function %}{%- endif %}
{{- '<tool_call>' + tc.name -}}
{% set _args = tc.arguments %}{% for k, v in _args.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}
    {{- '<|observation|>' }}{%- endif %}
{{- '<tool_response>' }}{{- m.content }}{{- '</tool_response>' }}
{%- elif m.role == 'system' -%}<|system|>{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>
    {{- '</think>' if (enable_thinking is defined and not enable_thinking) else '<think>' -}}
{%- endif -%}"""

MINICPM_3 = """{%- macro schema(value) -%}
  {%- if value is mapping -%}{% for k, v in value | dictsort %}{{ k }}={{ schema(v) }};{% endfor %}
  {%- elif value is sequence and value is not string -%}{{ value | map('string') | join(',') }}
  {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for call in message.tool_calls %}
{{ call.function.name }}({{ schema(call.function.arguments) }})
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | string + '<|im_end|>' + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

YOUTU = """{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system = 'Today is ' ~ strftime_now('%d %b %Y') %}{%- set loop_messages = messages %}
{%- endif %}
{{ bos_token }}{{ system | trim }}
{% for message in loop_messages %}
    {%- if message.role not in ['user', 'assistant', 'tool', 'system'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
    {%- if message.role == 'tool' and (loop.previtem is not defined
        or loop.previtem.role != 'assistant') %}
        {{- raise_exception('A tool answers the assistant') }}
    {%- endif %}
    {{- '<|' + message.role | capitalize + '|>' + (message.content or '') | trim }}
    {%- if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\n<|Assistant|>' }}{% endif %}"""

AXK1 = """{%- for message in messages | selectattr('role', 'ne', 'nobody') | list -%}
<|im_start|>{{ message['role'] }}
{{ message.content if message.content is string else message.content | tojson(indent=2) }}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LONGCAT = """
{%- set rounds = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}SYSTEM:{{ message.content }}{%- if not loop.last %} {% endif -%}
{%- elif message.role == 'user' -%}
[Round {{ rounds.user }}] USER:{{ message.content }}{% set rounds.user = rounds.user + 1 %}
{%- elif message.role == 'assistant' -%}
 ASSISTANT:{{ message.content }}{{ eos_token }}
{%- else %} {{ message.role | upper }}:{{ message.content | length }}{% continue %}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %} ASSISTANT:{% endif -%}"""

TEMPLATES = {
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_R1,
    "kimi_k2": KIMI_K2,
    "glm4_moe_lite": GLM_4_7,
    "minicpm3": MINICPM_3,
    "youtu": YOUTU,
    "axk1": AXK1,
    "longcat_flash": LONGCAT,
}


def _call(number: int, **arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": f"functions.weather:{number}", "type": "function", "function": function}


_QUESTION = {"role": "user", "content": "Wie ist das Wetter in Köln & <Bonn>?"}
_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [_call(0, city="Köln", days=2, units=["°C", "K"]), _call(1, city="Bonn")],
}
_RESULTS = [
    {"role": "tool", "tool_call_id": f"functions.weather:{n}", "name": "weather", "content": text}
    for n, text in enumerate(['{"sky": "grau"}', "Sonne\n"])
]

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hello <b>&</b> 'you' - déjà vu"}],
    "system": [{"role": "system", "content": " Be brief. \n"}, {"role": "user", "content": "你好"}],
    "two systems": [
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        {"role": "user", "content": ""},
    ],
    "many turns": [
        {"role": "user", "content": "  first  \n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n answer \n"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "again"},
        {"role": "user", "content": "third\n\n"},
    ],
    "an answer to go on with": [_QUESTION, {"role": "assistant", "content": "Es ist "}],
    "thoughts": [
        _QUESTION,
        {"role": "assistant", "content": "Gut.", "reasoning": "Warm? ", "prefix": True},
        {"role": "user", "content": "Und nun?"},
        {"role": "assistant", "content": "Auch.", "thinking": "\nimmer noch"},
    ],
    "tool calls": [_QUESTION, _CALLS],
    "tool results": [_QUESTION, _CALLS, *_RESULTS],
    "after tools": [
        _QUESTION,
        _CALLS,
        *_RESULTS,
        {"role": "assistant", "content": "Köln grau, Bonn Sonne."},
        {"role": "user", "content": "Danke!"},
    ],
}
