"""From what a user writes to tables for a vocabulary: the table of front ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from mechanex_jax.constraints import cache, sources
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.storage.paths import cache_folder
from mechanex_jax.tokenization.vocabulary import Vocabulary

if TYPE_CHECKING:
    from mechanex_jax.tokenization.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A constraint that has been read.

    Attributes:
      key: all that decides its automaton, as JSON: equal keys of one front end are the same constraint.
      compile: gives its automaton.
    """

    key: str
    compile: Callable[[], PushdownAutomaton]


FrontEnd: TypeAlias = Callable[[object, JsonOptions], Source]
"""One way to write a constraint: what the user gave, and how JSON is to be written, to a `Source`.

Its libraries are imported only when it is used.
"""


def _json_schema(source: object, options: JsonOptions) -> Source:
    from mechanex_jax.constraints import json_schema

    read = sources.read_schema(source)
    json_schema.warn_of_misspelt(read.schema)
    closed = read.closed if options.closed is None else options.closed
    options = dataclasses.replace(options, closed=closed)
    return Source(
        json.dumps([read.schema, dataclasses.astuple(options)]),
        lambda: json_schema.pushdown_automaton(read.schema, options=options),
    )


def _regex(source: object, options: JsonOptions) -> Source:
    from mechanex_jax.constraints import regex

    pattern = sources.read_regex(source)
    return Source(json.dumps(pattern), lambda: regex.pushdown_automaton(pattern))


def _choices(source: object, options: JsonOptions) -> Source:
    from mechanex_jax.constraints import regex

    texts = sources.read_choices(source)
    return Source(json.dumps(sorted(texts)), lambda: regex.choices(texts))


def _grammar(source: object, options: JsonOptions) -> Source:
    from mechanex_jax.constraints import grammar

    text = sources.read_grammar(source)
    return Source(json.dumps(text), lambda: grammar.pushdown_automaton(text))


def _forbidden_terms(source: object, options: JsonOptions) -> Source:
    from mechanex_jax.constraints import regex

    terms = sorted({term.casefold() for term in sources.read_choices(source, "forbidden_terms")})
    return Source(json.dumps(terms), lambda: regex.forbidding(terms))


FRONT_ENDS: dict[str, FrontEnd] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "choices": _choices,
    "grammar": _grammar,
    "forbidden_terms": _forbidden_terms,
}


class HasTokenizer(Protocol):
    """What `mx.load` returns, as far as a constraint needs it. Its `model`, if it has one, tells the number of logits."""

    @property
    def tokenizer(self) -> Tokenizer: ...


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
    def of(cls, owner: HasTokenizer | Tokenizer | Vocabulary) -> Target:
        """The target of a loaded model, a tokenizer, or a bare Vocabulary (which has no end of sequence).

        Raises:
          ArgumentError: none of these.
        """
        if isinstance(owner, Vocabulary):
            return cls(owner, (), owner.size)
        tokenizer = getattr(owner, "tokenizer", owner)
        vocabulary = getattr(tokenizer, "vocabulary", None)
        if not isinstance(vocabulary, Vocabulary):
            raise expected("tokenizer", Verbatim(type(owner).__name__), "what mx.load returns, its .tokenizer, or a Vocabulary")
        model = getattr(owner, "model", None)
        eos_ids: tuple[int, ...] = getattr(tokenizer, "eos_ids", ())
        return cls(vocabulary, eos_ids, model.spec.vocabulary if model is not None else vocabulary.size)


def compile_for(kind: str, source: object, options: JsonOptions, target: Target) -> CompiledConstraint:
    """Compile a constraint for a target; what was compiled once is kept in memory and on disk.

    Args:
      kind: one of `FRONT_ENDS`.
      source: as the user wrote it.
      options: how JSON is written.
      target: what for.

    Raises:
      ConstraintError: it is wrong, unsupported, too large, accepts no text, or the vocabulary cannot spell it.
      ArgumentError: the front end does not take values of this type.
    """
    read = FRONT_ENDS[kind](source, options)
    return cache.cached(
        kind,
        read.key,
        read.compile,
        target.vocabulary,
        eos_ids=target.eos_ids,
        logits=target.logits,
        folder=cache_folder() / "constraints",
    )
