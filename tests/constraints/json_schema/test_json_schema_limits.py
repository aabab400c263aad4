"""What bounds the work of compiling: counts beyond any text, limits that no clock decides, and Ctrl-C."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time

import machines
import pytest

from mechanex_jax.constraints import cache, json_schema, regex
from mechanex_jax.constraints.automata.dfa import CompileLimits
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.json_schema.formula import Formulas
from mechanex_jax.constraints.token_index import build as tables
from mechanex_jax.errors import ArgumentError, ConstraintError

HUGE = 2**31 - 1
LONG = machines.chain(0, 100_000)
AT_MOST = {
    "maxLength": {"type": "string", "minLength": 2},
    "maxItems": {"type": "array", "minItems": 2},
    "maxProperties": {"type": "object", "minProperties": 2},
    "maxContains": {"type": "array", "contains": {"type": "null"}, "minContains": 2},
}


@pytest.mark.parametrize("word", AT_MOST)
@pytest.mark.parametrize("bound", [HUGE, 30_000_000, 2**20])
def test_a_count_that_no_text_comes_to_takes_no_states(word, bound):
    free = json_schema.pushdown_automaton(AT_MOST[word])
    pushdown = json_schema.pushdown_automaton({**AT_MOST[word], word: bound})
    assert len(pushdown.label) == len(free.label) and pushdown.longest == bound


@pytest.mark.parametrize(("word", "kind"), [("minLength", "string"), ("minItems", "array"), ("minProperties", "object")])
def test_a_count_that_no_text_comes_to_is_not_asked_for(word, kind):
    with pytest.raises(ConstraintError, match=rf"{word} at #/properties/a cannot be held exactly"):
        json_schema.pushdown_automaton({"properties": {"a": {"type": kind, word: HUGE}}})


def test_a_bound_between_is_refused_before_anything_is_allocated():
    with pytest.raises(ConstraintError, match="length of a string is too large: its automaton needs more than 200,000 states"):
        json_schema.pushdown_automaton({"type": "string", "maxLength": 1_000_000})


def test_texts_longer_than_what_is_held_are_refused():
    pushdown = dataclasses.replace(json_schema.pushdown_automaton({"type": "string"}), longest=5)
    vocabulary = machines.byte_vocabulary([])
    compiled = CompiledConstraint(pushdown, vocabulary, tables.build(pushdown, vocabulary, eos_ids=[0]))
    assert compiled.matches('"aé"') and compiled.longest == 5
    for asked in (compiled.matches, compiled.allowed):
        with pytest.raises(ArgumentError, match="at most 5 bytes"):
            asked('"aéé"')


def test_no_clock_decides_what_compiles(monkeypatch):
    clock = itertools.count(0, 1_000)
    for name in ("monotonic", "perf_counter", "process_time", "time"):
        monkeypatch.setattr(time, name, lambda: next(clock))
    pushdown = json_schema.pushdown_automaton({"oneOf": [{"properties": {"a": {"pattern": "^a|b"}}}, {"type": "string"}]})
    tables.build(pushdown, machines.byte_vocabulary([]), eos_ids=[0])


def test_what_runs_out_is_named():
    names = [{"properties": {name: {"type": "integer"}}, "required": [name]} for name in "abcdef"]
    with pytest.raises(ConstraintError, match=r"alternatives leave open takes more than 100 steps"):
        json_schema.pushdown_automaton({"type": "object", "oneOf": names}, limits=CompileLimits(steps=100))
    with pytest.raises(ConstraintError, match=r"takes more than 1,000 steps \(at \d+ states\)"):
        regex.char_dfa("(?:a|b)*a(?:a|b){12}", limits=CompileLimits(work=1000))
    assert Formulas().steps == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: json_schema.pushdown_automaton({"type": "string", "maxLength": 100_000}),
        lambda: regex.pushdown_automaton("(?:a|b)*a(?:a|b){20}"),
        lambda: LONG,
    ],
    ids=["a long string", "an explosion", "tables"],
)
def test_ctrl_c_ends_a_compile_within_a_second(make):
    interrupted = []

    def interrupt(number, frame):
        interrupted.append(time.process_time())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        for after in (0.05, 0.4):
            signal.setitimer(signal.ITIMER_VIRTUAL, after)
            with pytest.raises(KeyboardInterrupt):
                cache.cached("x", "x", make, machines.byte_vocabulary([]), eos_ids=[0])
            assert time.process_time() - interrupted[-1] < 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
