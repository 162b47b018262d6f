#!/usr/bin/env python3
"""Golden renderings of chat templates, from Jinja2 set up as `transformers` does it. Rerun when a case changes:

  .venv/bin/pip install jinja2==3.1.6
  .venv/bin/python tools/make_golden/chat_template.py

Writes tests/data/tokenizer/golden_chat.json. A case whose rendering raises has no "output": there the C++ renderer
must fail too. The templates have the forms of DeepSeek-V2, V3, R1 and V3.1, Moonlight, Kimi-K2 and GLM-4, written anew.
"""
import json
import os

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATH = os.path.join(ROOT, "tests/data/tokenizer/golden_chat.json")

TEMPLATES = {
    "v2": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    "v3": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(first=true, in_tool=false, rules='', first_rule=true) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.first_rule %}{% set ns.rules = ns.rules + message['content'] %}{% set ns.first_rule = false %}{%- else %}{% set ns.rules = ns.rules + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.rules }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.in_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.in_tool = false -%}{%- set ns.first = true %}"
    "{%- for call in message['tool_calls'] %}{%- if ns.first %}{%- if message['content'] is none %}{{'<｜Assistant｜><｜calls｜>' + call['type'] + '<｜sep｜>' + call['function']['name'] + '\n```json\n' + call['function']['arguments'] + '\n```'}}{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜calls｜>' + call['type'] + '<｜sep｜>' + call['function']['name']}}{%- endif %}{%- set ns.first = false -%}{%- else %}{{'\n<｜call｜>' + call['type'] + '<｜sep｜>' + call['function']['name']}}{%- endif %}{%- endfor %}{{'<｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.in_tool %}{{'<｜outputs▁end｜>' + message['content'] + eos_token}}{%- set ns.in_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + eos_token}}{%- endif %}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{%- set ns.in_tool = true -%}{{'<｜output｜>' + message['content']}}{%- endif %}"
    "{%- endfor -%}"
    "{% if add_generation_prompt and not ns.in_tool %}{{'<｜Assistant｜><think>\n'}}{% endif %}",
    "v31": """{% if not add_generation_prompt is defined %}
  {% set add_generation_prompt = false %}
{% endif %}
{% if not thinking is defined %}
  {% set thinking = false %}
{% endif %}
{% set ns = namespace(rules='', is_first=true, last_user=false) %}
{%- for message in messages if message.role == 'system' %}
  {%- set ns.rules = ns.rules ~ ('' if loop.first else '\n\n') ~ message.content %}
{%- endfor %}
{% if tools is defined and tools is not none %}
  {% set text = namespace(value='## Tools\n') %}
  {% for tool in tools %}
    {% set text.value = text.value + '\n### ' + tool.function.name + '\nParameters: ' + (tool.function.parameters | tojson) + '\n' %}
  {% endfor %}
  {% set ns.rules = ns.rules + '\n\n' + text.value %}
{% endif %}
{{- bos_token }}{{ ns.rules }}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}
    {%- set ns.last_user = true -%}
{{ '<｜User｜>' + message['content'] }}
  {%- elif message['role'] == 'assistant' %}
    {%- if ns.last_user %}{{ '<｜Assistant｜>' }}{% if message['prefix'] is defined and message['prefix'] and thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}
    {%- set ns.last_user = false -%}
    {%- set content = message['content'] -%}
    {%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] -%}{%- endif %}
{{ content + eos_token }}
  {%- endif %}
{%- endfor -%}
{%- if add_generation_prompt and ns.last_user %}{{ '<｜Assistant｜>' }}{%- if not thinking %}{{ '</think>' }}{%- else %}{{ '<think>' }}{%- endif %}{% endif %}
""",
    "moonlight": "{%- for message in messages -%}{%- if loop.first and messages[0]['role'] != 'system' -%}{{'<|im_system|>system<|im_middle|>You help.<|im_end|>'}}{%- endif -%}{%- if message['role'] == 'system' -%}{{'<|im_system|>'}}{%- endif -%}{%- if message['role'] == 'user' -%}{{'<|im_user|>'}}{%- endif -%}{%- if message['role'] == 'assistant' -%}{{'<|im_assistant|>'}}{%- endif -%}{{- message['role'] -}}{{'<|im_middle|>'}}{{message['content'] + '<|im_end|>'}}{%- endfor -%}{%- if add_generation_prompt -%}{{'<|im_assistant|>assistant<|im_middle|>'}}{%- endif -%}",
    "kimi": """{%- macro content_of(message) -%}
  {%- set c = message.get('content') -%}
  {%- if c is string -%}
    {{ c }}
  {%- elif c is not none -%}
    {%- for part in c -%}
      {%- if part['type'] == 'image' or 'image' in part -%}<|image|>{%- else -%}{{ part['text'] }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro header(message) -%}
  {%- set name = message.get('name') or message['role'] -%}
  {%- if message['role'] == 'user' -%}<|im_user|>{{ name }}<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}<|im_assistant|>{{ name }}<|im_middle|>
  {%- else -%}<|im_system|>{{ name }}<|im_middle|>
  {%- endif -%}
{%- endmacro -%}
{%- if tools -%}<|im_system|>tools<|im_middle|>{{ tools | tojson }}<|im_end|>{%- endif -%}
{% for message in messages %}
  {%- if loop.first and messages[0]['role'] != 'system' -%}
  <|im_system|>system<|im_middle|>Helpful.<|im_end|>
  {%- endif -%}
  {{ header(message) }}
  {%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
    {{ content_of(message) }}<|calls|>
    {%- for call in message['tool_calls'] -%}
    <|call|>{{ call.get('id', 'none') }}<|args|>{% if call['function']['arguments'] is string %}{{ call['function']['arguments'] }}{% else %}{{ call['function']['arguments'] | tojson }}{% endif %}<|end|>
    {%- endfor -%}
  {%- else -%}
    {{ content_of(message) }}
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
""",
    "glm": """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
{%- endif -%}
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- elif item is string -%}{{- item }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}{%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning = '' %}
{%- set content = visible(m.content) %}
{%- if m.reasoning_content is string %}
    {%- set reasoning = m.reasoning_content %}
{%- else %}
    {%- if '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
{%- endif %}
{%- if loop.index0 > ns.last_user_index and reasoning -%}
{{ '\\n<think>' + reasoning.strip() +  '</think>'}}
{%- else -%}
{{ '\\n<think></think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ '\\n' + content.strip() }}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}{%- set tc = tc.function %}{%- endif %}
{{ '\\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}
{%- if _args is mapping -%}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}{%- endif -%}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}
""",
    "strict": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate: ' + m['role']) }}{% endif %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}",
}

SPECIAL = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = [
    [],
    [said("user", "Hello!")],
    [said("system", "Be brief."), said("user", "What is 2+2?")],
    [said("system", "One."), said("system", "Two."), said("user", "Hi"), said("assistant", "Hello."), said("user", "Again?")],
    [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")],
    [said("user", "a"), said("user", "b")],
    [said("assistant", "starts")],
    [said("user", "Think."), said("assistant", "<think>\nlong\n</think>\n\nAnswer </think> twice."), said("user", "More")],
    [said("user", "  spaces \n\t"), said("assistant", "\u00a0tail\u3000\n")],
    [said("user", "中文 é 👍🏽 \"quotes\" \\ <｜User｜> {{ not }} {% a %} template"), said("assistant", "ok")],
    [said("user", "w?"), said("assistant", None, tool_calls=[
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Köln\"}"}},
        {"type": "function", "function": {"name": "time", "arguments": {"zone": "UTC", "n": 1.5, "deep": {"list": [1, None, True, "é\n"]}, "e": {}, "l": []}}}]),
     said("tool", "sunny"), said("tool", "noon"), said("assistant", "Sunny at noon.")],
    [said("user", "w?"), said("assistant", "Let me see.", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}]), said("tool", "1")],
    [said("user", [{"type": "text", "text": "Look: "}, {"type": "image", "image": "x"}]), said("assistant", "I see.", reasoning_content="Hm.")],
    [said("user", "go on"), said("assistant", "The", prefix=True)],
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter für <b>'Städte'</b> & \"Orte\"", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]

# Small templates that show one rule each. {V} are the variables below.
VARIABLES = {"a": 1, "b": 2.5, "s": "héllo wörld 👍", "t": True, "f": False, "n": None, "l": [1, 2, 3, 4, 5], "d": {"x": 1, "y": {"z": "deep"}, "items": 7}, "e": "", "el": [], "ls": ["b", "a", "c"], "html": "<a href='x'>\"&\u2028\x7f\x01"}
SNIPPETS = [
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "  {% if t %}  x  {% endif %}  ", "a {%- if t -%} b {%- endif -%} c", "a\n  {%+ if t %}x{% endif +%}\n b", "x {# note #}\n y", "x {#- note -#}  \n y", "\n\n{{ a }}\n\n", "{{ a }}\n", "{{- a -}}  \n\n z", "  {{ a }}", "  {# c #}  \nz", "\t {% set q = 1 %}\t\n{{ q }}", "a\r\nb\rc\n{% if t %}\r\nd{% endif %}", "{{ '\r\n' }}|{{ 'a\\\nb' }}",
    "{% raw %}{{ x }} {% if %}{% endraw %}!", "{%- raw -%}  {{ y }}  {%- endraw -%}  .", "a {% raw %}\n b {% endraw %}\n c",
    "{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 - -1 }} {{ -a }} {{ +a }}", "{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}", "{{ 1 / 3 }} {{ 100000000.0 * 100000000.0 }} {{ 10000000.0 * 100000000.0 }} {{ 0.00001 * 1 }} {{ 0.0001 * 1 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 2.0 ~ undef }}", "{{ 'a' + 'b' 'c' \"d\" }}", "{{ 'tab\\tnl\\nq\\'q\\\"u\\u00e9x\\x41\\\\ \\d' }}",
    "{{ t and f }} {{ t or f }} {{ not t }} {{ not f and t }} {{ e or 'x' }} {{ l and 'y' }} {{ n or e or 0 }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ 'é' > 'z' }} {{ 2 >= 2 }} {{ 1 != 2 }} {{ n == none }} {{ l == [1,2,3,4,5] }} {{ d == d }} {{ 'a' == 1 }}",
    "{{ 2 in l }} {{ 9 not in l }} {{ 'x' in d }} {{ 'll' in s }} {{ 'q' in undef }} {{ not 2 in l }} {{ 'a' in ('a', 'b') }}", "{{ 'yes' if t else 'no' }} {{ 'yes' if f }} {{ ('a' if f else 'b') ~ 'c' }} {{ 1 if f else 2 if t else 3 }}",
    "{{ undef }}|{{ undef is defined }}|{{ a is defined }}|{{ d.q is defined }}|{{ d['q'] is undefined }}|{{ not undef }}", "{{ undef.x }}", "{{ undef['x'] }}", "{{ undef + 'a' }}", "{{ d.q.r }}", "{{ n.x is defined }} {{ 'a'.x is defined }} {{ a.x is defined }}", "{{ n.x.y }}",
    "{{ n is none }} {{ undef is none }} {{ s is string }} {{ l is string }} {{ d is mapping }} {{ l is iterable }} {{ s is iterable }} {{ a is iterable }} {{ l is sequence }} {{ a is number }} {{ t is number }} {{ b is float }} {{ a is integer }} {{ t is integer }} {{ t is boolean }} {{ t is true }} {{ f is false }} {{ a is true }} {{ l is not mapping }} {{ undef is iterable }} {{ n is iterable }}",
    "{{ a is in l }} {{ a is eq 1 }} {{ a is equalto(2) }} {{ a is ne 1 }} {{ not a is defined }} {{ a is defined and b is defined }} {{ 'x' if a is none else 'y' }}",
    "{{ l[0] }} {{ l[-1] }} {{ l[9] is defined }} {{ l[1:3] | join(',') }} {{ l[::-1] | join }} {{ l[-2:] | join }} {{ l[:-3] | join }} {{ l[::2] | join }} {{ l[4:1:-2] | join }} {{ l[10:] | join }} {{ l[-10:2] | join }}", "{{ s[1] }} {{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s | length }} {{ s[:99] }}", "{{ d['y']['z'] }} {{ d.y.z }} {{ d['y'].z }} {{ d['items'] }} {{ d.get('x') }} {{ d.get('q') }} {{ d.get('q', 'dflt') }}", "{{ d.items() | length }} {{ d.keys() | join(',') }} {{ d.y.values() | list | join }}", "{{ l.0 }} {{ ls[0] }}",
    "{% for i in l %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}", "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {{ loop.previtem }}/{{ loop.nextitem }};{% endfor %}", "{% for i in el %}x{% else %}none{% endfor %}", "{% for i in undef %}x{% else %}none{% endfor %}", "{% for i in n %}x{% endfor %}", "{% for i in a %}x{% endfor %}", "{% for i in l if i % 2 %}{{ i }}:{{ loop.index }}/{{ loop.length }} {% endfor %}", "{% for i in l if i > 9 %}x{% else %}no{% endfor %}", "{% for k, v in d.items() %}{{ k }} {% endfor %}", "{% for k in d %}{{ k }} {% endfor %}", "{% for x, y in [[1, 2], [3, 4]] %}{{ x }}{{ y }} {% endfor %}", "{% for x, y in [[1, 2, 3]] %}{% endfor %}", "{% for c in 'aé👍' %}[{{ c }}]{% endfor %}", "{% for i in l %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% for j in l %}{% if j > i %}{% break %}{% endif %}{{ j }}{% endfor %};{% endfor %}", "{% for i in l %}{% for j in [1,2] %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}", "{% set ns = namespace(c=0) %}{% for i in l %}{% set ns.c = ns.c + i %}{% endfor %}{{ ns.c }} {{ ns.q is defined }}", "{% set ns = namespace() %}{% set ns.a = 'x' %}{{ ns.a }}{{ ns['a'] }}", "{% set x.y = 1 %}", "{% set d.y = 1 %}", "{% set x %}a{{ a }}\n{% endset %}[{{ x }}]{{ x is string }}", "{% for i in l %}{% if loop.first %}{% set q = 'once' %}{% endif %}{{ q is defined }} {% endfor %}{{ q is defined }}",
    "{% macro m(x, y='d', z=none) %}<{{ x }}{{ y }}{{ z }}>{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, z=3) }}{{ m() }}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(q=2) }}", "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}", "{% macro m() %}{{ a }}{{ s }}{% endmacro %}{% for a in l %}{{ m() | length }}{% endfor %}", "{% set g = 'top' %}{% macro m() %}{{ g }}{% set g2 = 1 %}{% endmacro %}{{ m() }}{{ g2 is defined }}",
    "{{ '  x y ' | trim }}|{{ ' x '.strip() }}|{{ ' x '.lstrip() }}|{{ ' x '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xyax'.lstrip('xy') }}|{{ '\u3000\u00a0 a\x1f' | trim }}", "{{ 'a,b,,c'.split(',') | join('|') }} {{ ' a  b '.split() | join('|') }} {{ 'a,b,c'.split(',', 1) | join('|') }} {{ ' a  b  c '.split(none, 1) | join('|') }} {{ ''.split() | length }} {{ ''.split(',') | length }} {{ 'a'.split('abc')[0] }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'aXbX'.replace('X', '-') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ 'aXbX' | replace('X', '--') }} {{ 'Ab'.upper() }} {{ 'Ab' | lower }} {{ ','.join(ls) }}", "{{ 'a'.split('') }}",
    "{{ undef | default('x') }} {{ e | default('x') }}| {{ e | default('x', true) }} {{ n | d('x') }} {{ f | default('y', boolean=true) }}", "{{ l | length }} {{ d | length }} {{ s | count }} {{ undef | length }}", "{{ l | first }} {{ l | last }} {{ el | first is defined }} {{ 'abc' | first }} {{ 'abc' | last }}", "{{ l | reverse | list | join }} {{ 'aé👍' | reverse }}", "{{ d | items | list | length }} {% for k, v in d.y | items %}{{ k }}={{ v }}{% endfor %}", "{{ 3 | string ~ 'x' }} {{ n | string }} {{ 'abc' | list | join('-') }}", "{{ a | length }}", "{{ 'x' | safe }}",
    "{{ d | tojson }} {{ l | tojson }} {{ s | tojson }} {{ n | tojson }} {{ t | tojson }} {{ b | tojson }} {{ html | tojson }}", "{{ d | tojson(indent=2) }}\n{{ l | tojson(indent=4) }}\n{{ el | tojson(indent=2) }}{{ {} | tojson(indent=2) }}", "{{ s | tojson(ensure_ascii=true) }} {{ html | tojson(ensure_ascii=True) }}", "{{ {'k': [1, {'q': none}], 'é': 1.5} | tojson }}", "{{ undef | tojson }}", "{{ 1000000000000.0 | tojson }} {{ 10000000000000000.0 | tojson }} {{ 0.1 | tojson }}",
    "{{ 'a' + 1 }}", "{{ 1 + 'a' }}", "{{ n + 'a' }}", "{{ 'a' < 1 }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ l + ls | length }}", "{{ (l + ls) | length }}", "{{ d + d }}", "{{ -s }}", "{{ l['x'] is defined }} {{ d[1] is defined }}", "{{ a() }}", "{{ nope() }}", "{{ s.nope() }}", "{{ l | nope }}", "{{ l is nope }}", "{{ raise_exception('stop') }}",
    "{% if %}", "{% if t %}", "{% for %}{% endfor %}", "{{ }}", "{{ 'a }}", "{{ a", "{% nope %}", "{% endif %}", "{{ (1 }}", "{{ 1) }}", "{{ [1, }}", "{{ a b }}", "{# open", "{% raw %} open", "{% for i in l %}{% endif %}", "{% else %}", "{{ a.  }}", "{{ | trim }}", "{% set = 1 %}", "{% break %}", "{{ @ }}", "{% macro %}{% endmacro %}", "{{ {1 2} }}", "{{ a is }}",
    "{{ {'a': {'b': 1}}.a.b }} {{ [1, [2, 3]][1][0] }} {{ ('x',)[0] }} {{ () | length }} {{ [1, 2,] | length }}", "{{ 'a' 'b' ~ 'c' * 1 if f else 'd' }}", "{{ '}}' }}{{ '%}' }}{{ {'a': '}'}['a'] }}", "{{ {'a': 1}.a }}", "{% if t and (f or not n) %}ok{% endif %}", "{% if f %}1{% elif n %}2{% elif e %}3{% else %}4{% endif %}", "{%if t%}x{%endif%}{{a}}", "{%- if t %}\n\n  x\n{%- endif %}\n\n", "{{ True }} {{ False }} {{ None }} {{ true }} {{ none }}", "{{ a|string|length }}", "{{ (-1)|string }}", "{{ not a == 1 }}", "{{ 1 if t else undef.x }}", "{{ t or undef.x }}", "{{ f and undef.x }}",
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def case(source, variables):
    try:
        return {"output": environment().from_string(source).render(**variables)}
    except Exception as error:  # whatever it is, the other renderer must refuse this too
        return {"raises": str(error)[:80]}


def main():
    chats = []
    for name, source in TEMPLATES.items():
        for i, messages in enumerate(CONVERSATIONS):
            if name == "strict" and not all(isinstance(m["content"], str) for m in messages):
                continue  # would print a list as Python does, which the C++ renderer refuses
            for extra in ({"add_generation_prompt": True}, {"add_generation_prompt": False},
                          {"add_generation_prompt": True, "thinking": True, "enable_thinking": False, "tools": TOOLS},
                          *([{}] if name in ("v2", "v3") else [])):
                result = case(source, {**SPECIAL, "messages": messages, **extra})
                chats.append({"template": name, "conversation": i, "extra": extra, **result})
    snippets = [{"source": s, **case(s, VARIABLES)} for s in SNIPPETS]
    with open(PATH, "w", encoding="ascii") as f:
        json.dump({"templates": TEMPLATES, "special": SPECIAL, "conversations": CONVERSATIONS, "chats": chats,
                   "variables": VARIABLES, "snippets": snippets}, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    print(f"{PATH}: {os.path.getsize(PATH)} bytes, {len(chats)} chats "
          f"({sum('raises' in c for c in chats)} raise), {len(snippets)} snippets ({sum('raises' in s for s in snippets)} raise)")
    for s in snippets:
        if "raises" in s:
            print("raises:", repr(s["source"])[:60], "->", s["raises"])


if __name__ == "__main__":
    main()
