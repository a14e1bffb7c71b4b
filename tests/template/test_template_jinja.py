"""A GGUF's own template: what it sees, and what transformers would have made of it."""

# ruff: noqa: E501  # templates do not wrap

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from modelctl.errors import BadRequest
from modelctl.template import Conversation, Message, load

SYSTEM, A, B, C = ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n' + message.content + '|' + message.name + '|' + message.tool_call_id + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def render(source: str, *messages: tuple[str, str], **more: Any) -> str:
    template = load(None, gguf_template=source, bos="<s>", eos="</s>")
    return template.render(Conversation([Message(*m) for m in messages], **more))


def test_chatml() -> None:
    assert (
        render(CHATML, SYSTEM, A)
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama2_with_bos_and_eos() -> None:
    assert render(LLAMA2, SYSTEM, A, B, C) == ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]")


def test_a_template_may_refuse() -> None:
    with pytest.raises(BadRequest, match="refuses this conversation: Conversation roles must alternate"):
        render(LLAMA2, A, B, B, C)


def test_a_last_assistant_message_is_the_start_of_the_answer() -> None:
    assert render(CHATML, A, B) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"
    assert render(CHATML, A, ("assistant", "")) == render(CHATML, A)


def test_a_last_assistant_message_with_calls_is_history() -> None:
    chat = [Message("user", "a"), Message("assistant", tool_calls=[{"function": {"name": "f", "arguments": {}}}])]
    prompt = load(None, gguf_template=TOOLS).render(Conversation(chat))
    assert prompt.endswith('{"name": "f", "arguments": {}}<|im_end|>\n<|im_start|>assistant\n')


def test_tools_calls_and_results() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "é <x> & 'y'"}}
    chat = [
        Message("user", "a"),
        Message("assistant", tool_calls=[{"id": "c1", "function": {"name": "f", "arguments": {"x": 1, "a": "é"}}}]),
        Message("tool", "42", tool_name="f", tool_call_id="c1"),
    ]
    assert load(None, gguf_template=TOOLS).render(Conversation(chat, tools=[tool])) == (
        "<|im_start|>system\n\n"
        '{"type": "function", "function": {"name": "f", "description": "é <x> & \'y\'"}}<|im_end|>\n'
        "<|im_start|>user\na<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "f", "arguments": {"x": 1, "a": "é"}}<|im_end|>\n'
        "<|im_start|>user\n42|f|c1<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("arguments", [{"x": [1, "é"]}, '{"x": [1, "é"]}'])
@pytest.mark.parametrize(
    "source",
    ["{{ a|tojson }}", "{{ a }}", "{{ '' + a + '' }}", "{{ a|string }}", "{{ '' ~ a }}", "{{ dict(a)|tojson }}"],
)
def test_arguments_are_an_object_and_its_text(source: str, arguments: Any) -> None:
    chat = [Message("assistant", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])]
    source = "{% set a = messages[0].tool_calls[0].function.arguments %}" + source
    assert load(None, gguf_template=source).render(Conversation(chat)) == '{"x": [1, "é"]}'


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True True"),
        ("{{ enable_thinking is defined }} {{ x is defined }}", "False False"),
        ("{{ messages[0].tool_calls is defined }} {{ messages[0].name is defined }}", "False False"),
        ("{{ {'b': [1, none, true], 'a': '<é>'}|tojson }}", '{"b": [1, null, true], "a": "<é>"}'),
        ("{{ {'b': 1, 'a': 2}|tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ 'é'|tojson(ensure_ascii=true) }} {{ [1, 2]|tojson(separators=(',', ':')) }}", '"\\u00e9" [1,2]'),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% macro m(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ m(1) }}{{ m('a' ~ 1, y=[1]) }}", "12a1[1]"),
        (
            "{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
            "user 1",
        ),
        (
            "{{ '%s-%d' % ('a', 3) }} {{ '{}:{x:>3}'.format(1, x=2) }} {{ '{:,}'.format(1700000000) }}",
            "a-3 1:  2 1,700,000,000",
        ),
        (
            "{{ 'Today: 20231231 %s'|format('x') }} {{ 1700000000 % 7 }} {{ 'ab' * 3 }} {{ 'a,b'.split(',') }}",
            "Today: 20231231 x 6 ababab ['a', 'b']",
        ),
        (
            "{{ 'abc'.replace('b', 'BB')|upper }} {{ ' x '|trim }} {{ 'a\nb'|indent(2) }} {{ 'é'|length }}",
            "ABBC x a\n  b 1",
        ),
        ("{% set x %}{% for i in 'ab' %}{{ i }}-{% endfor %}{% endset %}{{ x }}{{ x|length }}", "a-b-4"),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ 'a' in ['a', 'b'] }}{{ (1, 2)[0] }}",
            "a1True1",
        ),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
    ],
)
def test_what_templates_rely_on(source: str, prompt: str) -> None:
    assert render(source, A) == prompt


@pytest.mark.parametrize(
    ("think", "prompt"),
    [(None, "- - -"), (False, "False False -"), (True, "True True -"), ("high", "True True high")],
)
def test_thinking(think: bool | str | None, prompt: str) -> None:
    source = "{{ enable_thinking|default('-') }} {{ thinking|default('-') }} {{ reasoning_effort|default('-') }}"
    assert render(source, A, think=think) == prompt


def test_thoughts_of_earlier_turns() -> None:
    chat = [Message("assistant", "b", thinking="hm"), Message("user", "c")]
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }} {{ messages[1].thinking is defined }}"
    assert load(None, gguf_template=source).render(Conversation(chat)) == "hm hm False"


def test_the_date() -> None:
    before = datetime.now()
    prompt = render("{{ strftime_now('%d %B %Y') }}", A)
    assert prompt in {day.strftime("%d %B %Y") for day in (before, datetime.now())}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "a\n{% if %}",
            "the model's chat template is wrong at line 2: Expected an expression, got 'end of statement block'",
        ),
        ("a\n\n{{ 1 / 0 }}", "the model's chat template failed at line 3: division by zero"),
        ("{{ x.y }}", "the model's chat template failed at line 1: 'x' is undefined"),
        ("{{ messages + 1 }}", "the model's chat template failed at line 1: can only concatenate list"),
    ],
)
def test_errors_say_where(source: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        render(source, A)
    assert caught.value.message.startswith(message)
    assert caught.value.hint
