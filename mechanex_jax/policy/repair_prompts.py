"""Prompts that ask the model to repair or to revise a text: the one place where a policy writes prompts."""

from __future__ import annotations

from collections.abc import Sequence

from mechanex_jax.engine.request import Prompt

_REPAIR = "That answer has mistakes: {reasons}. Answer again, without them."
_REVISE = "Improve that answer: correct what is wrong and say what is missing. Give the improved answer only."


def _continued(prompt: Prompt, answer: str, request: str) -> Prompt:
    """Append an answer and a request about it: as further messages of a chat, or as paragraphs of a text."""
    if isinstance(prompt, list):
        return [*prompt, {"role": "assistant", "content": answer}, {"role": "user", "content": request}]
    return f"{prompt}{answer}\n\n{request}\n\n{prompt}"


def repair(prompt: Prompt, answer: str, reasons: Sequence[str]) -> Prompt:
    """Write a prompt that shows a failed text and why it failed.

    Args:
      prompt: the run's own, a text or a list of messages.
      answer: the text.
      reasons: complaints of verifiers and broken constraints.
    """
    return _continued(prompt, answer, _REPAIR.format(reasons="; ".join(reasons)))


def revision(prompt: Prompt, answer: str) -> Prompt:
    """Write a prompt that shows a text and asks for a better one."""
    return _continued(prompt, answer, _REVISE)
