"""From what a user writes to tables for a vocabulary: the table of front ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from mechanex_jax.constraints import cache
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.storage.paths import cache_folder
from mechanex_jax.tokenization.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """One way to write a constraint. Its libraries are imported only when it is used.

    Attributes:
      read: what the user gave, and whether JSON may have whitespace -> what decides the constraint, as JSON.
      compile: that -> its automaton.
    """

    read: Callable[[Any, bool], Any]
    compile: Callable[[Any], PushdownAutomaton]


def _read_schema(source: Any, whitespace: bool) -> Any:
    from mechanex_jax.constraints import json_schema

    return [json_schema.read(source), whitespace]


def _compile_schema(given: Any) -> PushdownAutomaton:
    from mechanex_jax.constraints import json_schema

    schema, whitespace = given
    return json_schema.pushdown_automaton(schema, whitespace=whitespace)


def _compile_regex(pattern: str) -> PushdownAutomaton:
    from mechanex_jax.constraints import regex

    return regex.pushdown_automaton(pattern)


def _compile_grammar(text: str) -> PushdownAutomaton:
    from mechanex_jax.constraints import grammar

    return grammar.pushdown_automaton(text)


def _as_it_is(source: str, whitespace: bool) -> str:
    return source


def _compile_forbidden(terms: list[str]) -> PushdownAutomaton:
    from mechanex_jax.constraints import regex

    return regex.forbidding(terms)


def _as_a_set(terms: Sequence[str], whitespace: bool) -> list[str]:
    return sorted({term.casefold() for term in terms})


FRONT_ENDS = {
    "json_schema": FrontEnd(_read_schema, _compile_schema),
    "regex": FrontEnd(_as_it_is, _compile_regex),
    "grammar": FrontEnd(_as_it_is, _compile_grammar),
    "forbidden_terms": FrontEnd(_as_a_set, _compile_forbidden),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a constraint is compiled for.

    Attributes:
      vocabulary: of the tokenizer.
      eos_ids: the ids that end a text.
      logits: V, the model's number of logits.
    """

    vocabulary: Vocabulary
    eos_ids: tuple[int, ...]
    logits: int

    @classmethod
    def of(cls, given: Any) -> Target:
        """Of a loaded model, a tokenizer of this library, or a bare Vocabulary (which has no end of sequence).

        Raises:
          ArgumentError: none of these.
        """
        if isinstance(given, Vocabulary):
            return cls(given, (), given.size)
        tokenizer = getattr(given, "tokenizer", given)
        if not isinstance(getattr(tokenizer, "vocabulary", None), Vocabulary):
            raise expected("tokenizer", Verbatim(type(given).__name__), "what mx.load returns, its .tokenizer, or a Vocabulary")
        vocabulary = tokenizer.vocabulary
        model = getattr(given, "model", None)
        return cls(vocabulary, tokenizer.eos_ids, model.spec.vocabulary if model is not None else vocabulary.size)


def compile_for(kind: str, source: Any, whitespace: bool, target: Target) -> CompiledConstraint:
    """A constraint for a target; what was compiled once is kept in memory and on disk.

    Args:
      kind: one of `FRONT_ENDS`.
      source: as the user wrote it.
      whitespace: for JSON, allow some between its parts.
      target: what for.

    Raises:
      ConstraintError: it is wrong, unsupported, too large, accepts no text, or the vocabulary cannot spell it.
    """
    front = FRONT_ENDS[kind]
    given = front.read(source, whitespace)
    return cache.cached(
        kind,
        json.dumps(given),
        lambda: front.compile(given),
        target.vocabulary,
        eos_ids=target.eos_ids,
        logits=target.logits,
        folder=cache_folder() / "constraints",
    )
