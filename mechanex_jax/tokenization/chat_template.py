"""Chat templates: Jinja, in a sandbox, with what templates on the hub expect to find."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mechanex_jax.errors import ArgumentError, expected

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser

Messages: TypeAlias = str | Sequence[object]  # each {"role": ..., "content": ...}
"""A conversation: `{"role": ..., "content": ...}` each, or a text, which is one user message."""


def default_template(stored: str | Sequence[Mapping[str, str]] | None) -> str | None:
    """The template for plain conversations out of `tokenizer_config.json`, which may hold several by name."""
    if stored is None or isinstance(stored, str):
        return stored
    return next((item["template"] for item in stored if item["name"] == "default"), None)


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
    from jinja2 import TemplateError

    try:
        return _compile(template).render(
            messages=_checked(messages),
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **named_tokens,
        )
    except (TemplateError, TypeError) as error:
        raise ArgumentError(
            f"messages: the model's chat template refuses them: {error}. Most templates want an optional system "
            "message and then user and assistant by turns."
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
def _compile(template: str) -> Template:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's part for training; the text inside stays as it is."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: object, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, indent=indent, **{"ensure_ascii": False, **options})  # Jinja's own escapes HTML

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)
