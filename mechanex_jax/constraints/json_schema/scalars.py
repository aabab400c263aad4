"""Numbers and strings: one automaton for all that is asked of the value, copied where it is read, or called if it is large."""

from __future__ import annotations

from mechanex_jax.constraints.automata.byte_dfa import ByteDfa
from mechanex_jax.constraints.json_schema import numbers, string_bytes
from mechanex_jax.constraints.json_schema.classifiers import Classifier, Valuation
from mechanex_jax.constraints.json_schema.formula import Formula, holds_of, signature, sorted_leaves
from mechanex_jax.constraints.json_schema.rules import MAX_LABELS, Rules
from mechanex_jax.constraints.json_schema.steps import Continuation, Goals, Truths
from mechanex_jax.constraints.json_schema.string_bytes import LongStrings
from mechanex_jax.constraints.json_schema.strings import Strings
from mechanex_jax.constraints.json_schema.to_automaton import ValueReader
from mechanex_jax.errors import ConstraintError

_MAX_INLINE = 24  # states up to which an automaton is copied where it is read, rather than called

# Automata kept between compilations: most schemas ask for the same few.
_SHARED: dict[tuple[str, bool, tuple], Classifier[Truths]] = {}
_MAX_SHARED = 1024
_MAX_SHARED_STATES = 1000


class Scalars:
    """The readers of numbers and strings of one schema."""

    def __init__(self, strings: Strings, rules: Rules, short_numbers: bool):
        self._short_numbers = short_numbers
        self._strings, self._rules, self._builder = strings, rules, rules.builder
        self._long_strings = LongStrings(rules.builder)
        self._classifiers: dict[tuple[str, Formula, Goals], Classifier[Truths]] = {}

    def read_number(self, values: ValueReader, source: int, must: Formula, goals: Goals, then: Continuation) -> None:
        """Read a number; where it may end, its state also is the state that comes next."""
        classifier = self._classifier("number", must, goals)

        def copy(source: int, then: Continuation) -> None:
            dfa, rule = classifier.automaton, self._builder.states[source].rule
            assert isinstance(dfa, ByteDfa)
            following = [then(truths) for truths in classifier.outcomes]
            copies = [self._builder.state(rule) for _ in dfa.edges]
            copies[dfa.start] = source
            for state, edges, label in zip(copies, dfa.edges, dfa.labels, strict=True):
                for mask, target in edges:
                    self._builder.edge(state, mask, copies[target])
                if label >= 0 and (after := following[label]) is not None:
                    self._rules.alias(state, after)

        if classifier.size <= _MAX_INLINE:
            copy(source, then)
        else:
            self._rules.call_reader(source, "number", must, goals, copy, then)

    def read_string(self, values: ValueReader, source: int, must: Formula, goals: Goals, then: Continuation) -> None:
        """Read a string with its quotes."""
        classifier = self._classifier("string", must, goals)
        automaton = classifier.automaton

        def copy(source: int, then: Continuation) -> None:
            rule = self._builder.states[source].rule
            ends = {label: state for label, truths in enumerate(classifier.outcomes) if (state := then(truths)) is not None}
            if isinstance(automaton, ByteDfa):
                start = self._builder.copy(rule, automaton, ends)
            elif automaton.start:
                start = self._long_strings.copy(rule, automaton, ends, classifier.as_written)
            else:
                return
            self._builder.edge(source, 1 << ord('"'), start)

        # A rule has few labels: where there are more outcomes, the copies go on without them.
        if isinstance(automaton, ByteDfa) and (classifier.size <= _MAX_INLINE or len(classifier.outcomes) > MAX_LABELS):
            copy(source, then)
        else:
            self._rules.call_reader(source, "string", must, goals, copy, then)

    def read_distinct_string(self, values: ValueReader, source: int, must: Formula, goals: Goals, then: Continuation) -> None:
        """Read a string in the frame of its array, in one spelling, so that it can be told from those before it.

        Raises:
          ConstraintError: where the string may be closed, it could not be longer in many ways.
        """
        classifier = self._classifier("string", must, goals)
        automaton, labels = classifier.automaton, range(len(classifier.outcomes))
        dfa = string_bytes.as_written(automaton) if isinstance(automaton, ByteDfa) else string_bytes.of_chars(automaton)
        dfa = string_bytes.with_one_spelling(dfa, labels)
        ends = string_bytes.distinct_ends(dfa, labels)
        closing = [state for state, edges in enumerate(dfa.edges) if any(dfa.labels[target] >= 0 for _, target in edges)]
        if not ends.issuperset(closing):
            raise ConstraintError("the items' length is limited, or what follows a character")
        rule = self._builder.states[source].rule
        following = [then(truths) for truths in classifier.outcomes]
        copies = [self._builder.state(rule) if label < 0 else following[label] for label in dfa.labels]
        for state, edges in enumerate(dfa.edges):
            if dfa.labels[state] < 0 and (copy := copies[state]) is not None:
                kept = [(mask, target) for mask, to in edges if (target := copies[to]) is not None]
                self._builder.string_edges(copy, kept, distinct=state in ends)
        if (start := copies[dfa.start]) is not None:
            self._builder.edge(source, 1 << ord('"'), start)

    def _classifier(self, kind: str, must: Formula, goals: Goals) -> Classifier[Truths]:
        """The automaton of the numbers or strings for which `must` holds, with the truths of the goals."""
        known = self._classifiers.get((kind, must, goals))
        if known is None:
            key = (kind, self._short_numbers, signature((must, *goals)))
            known = _SHARED.get(key) or self._build(kind, must, goals)
            if key not in _SHARED and known.size < _MAX_SHARED_STATES:
                if len(_SHARED) >= _MAX_SHARED:
                    del _SHARED[next(iter(_SHARED))]
                _SHARED[key] = known
            self._classifiers[kind, must, goals] = known
        return known

    def _build(self, kind: str, must: Formula, goals: Goals) -> Classifier[Truths]:
        def decide(valuation: Valuation) -> Truths | None:
            return tuple([holds_of(goal, valuation) for goal in goals]) if holds_of(must, valuation) else None

        leaves = sorted_leaves((must, *goals))
        if kind == "number":
            return numbers.classify(leaves, decide, self._strings.limits, short=self._short_numbers)
        return self._strings.classify(leaves, decide)
