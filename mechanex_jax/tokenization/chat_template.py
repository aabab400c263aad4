"""Chat templates: Jinja, in a sandbox, with what templates on the hub expect to find."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mechanex_jax.errors import ArgumentError, CheckpointError, expected, shown

if TYPE_CHECKING:
    from jinja2 import Template

    from mechanex_jax.tokenization.bounded_jinja import BoundedEnvironment

_LONGEST = 1_000_000  # characters of a template

Messages: TypeAlias = str | Sequence[object]  # each {"role": ..., "content": ...}
"""A conversation: `{"role": ..., "content": ...}` each, or a text, which is one user message."""


def default_template(stored: object) -> str | None:
    """The template for plain conversations out of `tokenizer_config.json`, which may hold several by name.

    Raises:
      CheckpointError: it holds something else.
    """
    template: object = stored
    if isinstance(stored, list) and all(isinstance(item, dict) and "template" in item for item in stored):
        template = next((item["template"] for item in stored if item.get("name") == "default"), None)
    if not isinstance(template, str | None):
        raise CheckpointError(
            f"tokenizer_config.json: got chat_template {shown(stored)}; expected a text, or a list of objects with name and "
            "template. Fetch the model again."
        )
    return template


def render(
    template: str | None,
    messages: Messages,
    add_generation_prompt: bool,
    named_tokens: Mapping[str, str],
) -> str:
    """Write a conversation as the text that the model reads.

    Args:
      template: the model's Jinja template.
      messages: `{"role": ..., "content": ...}` each, or a text, which is one user message.
      add_generation_prompt: whether the assistant's turn is opened at the end.
      named_tokens: `bos_token` and the like, which templates may use.

    Raises:
      ArgumentError: no template, messages of another form, or messages that the template refuses.
    """
    if template is None:
        raise ArgumentError(
            "chat: got a model without a chat template; expected one trained on conversations. Pass the text as a "
            "plain prompt, or add a chat_template.jinja to the model's folder."
        )
    from mechanex_jax.tokenization.bounded_jinja import render as render_bounded

    variables = {
        "messages": _checked(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **named_tokens,
    }
    try:
        return render_bounded(*_compile(template), variables)
    except Exception as error:  # a template is a program: it may raise anything
        raise ArgumentError(
            f"messages: the model's chat template refuses them: {error or type(error).__name__}. Most templates want an "
            "optional system message and then user and assistant by turns."
        ) from error


def _checked(messages: Messages) -> list[dict[str, object]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    checked = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise expected("messages", message, 'a text, or a list of {"role": ..., "content": ...}')
        checked.append(dict(message))
    return checked


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> tuple[BoundedEnvironment, Template]:
    import jinja2

    from mechanex_jax.tokenization.bounded_jinja import BoundedEnvironment

    if len(template) > _LONGEST:
        raise jinja2.TemplateError(f"it has {len(template)} characters, more than {_LONGEST}")
    environment = BoundedEnvironment()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: object, indent: int | None = None, **options: Any) -> str:
        options = {"ensure_ascii": False, **options}  # Jinja's own escapes HTML
        return json.dumps(value, indent=None if indent is None else min(indent, 100), **options)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment, environment.from_string(template)
