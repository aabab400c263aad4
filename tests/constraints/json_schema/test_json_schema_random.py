"""Random schemas: the automaton's verdict is jsonschema's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schema_tools import ANY, SCHEMAS, VALUES, Repeated, Walker, accepts, read, written

from mechanex_jax.constraints import json_schema
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.errors import ConstraintError

_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
_RANDOM = settings(derandomize=True, deadline=None, database=None, suppress_health_check=_CHECKS)


def _pushdown(schema) -> PushdownAutomaton | None:
    """None if no value is valid; any other refusal is a failure."""
    try:
        return json_schema.pushdown_automaton(schema, options=ANY)
    except ConstraintError as error:
        if "No value satisfies" not in str(error):
            raise
        return None


def _in_some_order(pushdown: PushdownAutomaton | None, value) -> bool:
    """Whether the value is accepted with its keys in some order, of which only listed ones matter."""
    return pushdown is not None and any(accepts(pushdown, written(order)) for order in _orders(value))


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and value:
        for first in value:
            rest = {name: inner for name, inner in value.items() if name != first}
            for inner in _orders(value[first]):
                for after in _orders(rest):
                    yield {first: inner} | after
    elif isinstance(value, list) and value:
        for head in _orders(value[0]):
            for tail in _orders(value[1:]):
                yield [head, *tail]
    else:
        yield value


@pytest.mark.slow
@settings(_RANDOM, max_examples=300)
@given(SCHEMAS, st.lists(VALUES, min_size=5, max_size=5))
def test_a_value_is_accepted_exactly_if_it_is_valid(schema, values):
    pushdown, validator = _pushdown(schema), jsonschema.Draft202012Validator(schema)
    for value in values:
        assert _in_some_order(pushdown, value) == validator.is_valid(value), value


@pytest.mark.slow
@settings(_RANDOM, max_examples=150)
@given(SCHEMAS, st.integers(0, 1000))
def test_random_walks_are_valid(schema, seed):
    pushdown = _pushdown(schema)
    assume(pushdown is not None and len(pushdown.target) < 600)
    assert pushdown is not None
    walker, validator = Walker(pushdown, seed), jsonschema.Draft202012Validator(schema)
    for steps in (0, 5, 15, 40):
        text = walker.text(steps)
        try:
            assert validator.is_valid(read(text)), text
        except Repeated:
            continue
