"""Chat templates that come with a checkpoint are programs: whatever they do, they end soon, and say why."""

from __future__ import annotations

import time

import jinja2
import pytest

from mechanex_jax.errors import ArgumentError
from mechanex_jax.tokenization.chat_template import render

DOUBLE = "{%% set n = namespace(x='aa') %%}{%% for i in range(60) %%}{%% set n.x = %s %%}{%% endfor %%}"
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMBS = {
    "nested loops": NESTED,
    "lipsum": "{{ lipsum(n=100000) }}",
    "padding": "{{ 'a'.center(10**10) }}",
    "the filter of padding": "{{ 'a' | center(10000000000) }}",
    "repetition": "{{ 'a' * 10**10 }}",
    "a list repeated": "{{ ([1] * 10**9) | length }}",
    "a power": "{{ 10 ** (10 ** 8) }}",
    "a large range": "{{ range(10**9) | list }}",
    "doubling by ~": DOUBLE % "n.x ~ n.x",
    "doubling by +": DOUBLE % "n.x + n.x",
    "doubling by replace": DOUBLE % "n.x.replace('a', 'aa')",
    "doubling by the filter replace": DOUBLE % "n.x | replace('a', 'aa')",
    "doubling by join": DOUBLE % "n.x.join(['', '', ''])",
    "doubling by the filter join": DOUBLE % "['', '', ''] | join(n.x)",
    "doubling by a block": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "a wide format": "{{ '%10000000000d' % 1 }}",
    "a width as an argument": "{{ '{:{}}'.format('a', 10**10) }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "recursion that branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "much output": "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "an error of Python": "{{ 1 // 0 }}",
    "a missing key": "{{ messages[7].content.x }}",
    "a wide indent": "{{ ('a\\n' * 100000) | indent(10**9) }}",
    "a broken template": "{% for %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_without_end_is_refused_soon(name: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ArgumentError, match="chat template refuses"):
        render(BOMBS[name], "Hello", True, {})
    assert time.monotonic() - begun < 30  # not a speed: without a bound none of them ends


ORDINARY = """
{%- for message in messages %}{% if not loop.first %}|{% endif %}{{ message.role | upper ~ ':' ~ message['content'] }}
{%- if loop.last %} ({{ loop.index }} of {{ loop.length }}){% endif %}{% endfor %}
{%- set ns = namespace(n=0) %}
{% for m in messages if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% else %}none{% endfor %}{{ ns.n }}
{{ messages | map(attribute='role') | join(', ') }} {{ 'a-b'.replace('-', '+') }} {{ ['x', 'y'] | join }}
{{ '{:>5}'.format(7) }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ '%s!' % 'now' }} {{ 2 * 3 ** 2 }} {{ [1] + [2] }}
{{ messages | join('-', attribute='role') }} {{ "one\\ntwo\\n\\nthree" | indent(2) }} {{ "one\\ntwo" | indent(2, true) }}
{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} {{ messages[::-1][0].content.split('l') }}"""


def test_an_ordinary_template_reads_as_in_jinja() -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(ORDINARY).render(messages=messages)
    assert render(ORDINARY, messages, True, {}) == plain
