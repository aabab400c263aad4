"""Conversations with system, tool and tool-result messages read as in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechanex_jax.checkpoints import Tokenizer
from mechanex_jax.errors import ArgumentError
from tests.support.tokenizer_folders import KINDS

CALL = {"id": "call_0001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
CONVERSATIONS = {
    "plain": [{"role": "user", "content": " Hi \n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <s>"}],
    "tools": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sky": "clear"}', "tool_call_id": "call_0001", "name": "weather"},
        {"role": "assistant", "content": "Clear.", "tool_calls": None},
        {"role": "user", "content": "Thanks"},
    ],
}
TEMPLATES = {
    "ChatML": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "Llama 3.1": "{{- bos_token }}{%- for m in messages %}{%- if 'tool_calls' in m %}{%- set call = m.tool_calls[0].function %}"
    "{{- '<|h|>assistant<|e|>\n\n{\"name\": \"' + call.name + '\", ' }}{{- '\"parameters\": ' }}{{- call.arguments | tojson }}"
    "{{- '}<|eot|>' }}{%- elif m.role in ('tool', 'ipython') %}{{- '<|h|>ipython<|e|>\n\n' }}"
    "{%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}{%- else %}{{- m.content }}{%- endif %}"
    "{{- '<|eot|>' }}{%- else %}{{- '<|h|>' + m['role'] + '<|e|>\n\n' + m['content'] | trim + '<|eot|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|e|>\n\n' }}{%- endif %}",
    "Mistral": "{{ bos_token }}{%- if messages[0].role == 'system' %}{%- set rest = messages[1:] %}{%- else %}"
    "{%- set rest = messages %}{%- endif %}{% for m in rest %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls is defined and m.tool_calls is not none %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{{ c.function | tojson }}{{ ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}, {% endif %}{% endfor %}]"
    "{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.tool_call_id }} {{ m.content }}[/TOOL_RESULTS]"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "Qwen": "{%- for m in messages %}{%- if m.role == 'assistant' and m.tool_calls %}{{- '<|im_start|>' + m.role }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}{%- for c in m.tool_calls %}"
    '{%- if c.function is defined %}{%- set c = c.function %}{%- endif %}{{- \'\n<tool_call>\n{"name": "\' }}{{- c.name }}'
    "{{- '\", \"arguments\": ' }}{{- c.arguments | tojson(indent=2) }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}{{- '\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_equal_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = KINDS["Llama 3"]()
    files.templates = {"chat_template.jinja": TEMPLATES[name]}
    files.write(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS.values():
        for opened in (True, False):
            text = theirs.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=opened) == text
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(messages) == ids


@pytest.mark.parametrize(
    "message",
    [
        {"content": "x"},
        {"role": 3, "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": 3},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "x", "tool_calls": "call"},
        {"role": "assistant", "content": "x", "tool_calls": ["call"]},
    ],
)
def test_malformed_messages_are_refused(message: dict[str, object], tmp_path: Path) -> None:
    files = KINDS["Llama 3"]()
    files.templates = {"chat_template.jinja": TEMPLATES["Qwen"]}
    with pytest.raises(ArgumentError, match="messages: got"):
        Tokenizer.from_folder(files.write(tmp_path)).apply_chat_template([message])
