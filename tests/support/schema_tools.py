"""Verdicts of an automaton on JSON values, random walks through it, and random schemas."""

from __future__ import annotations

import decimal
import json
import random
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.sources import JsonOptions

ANY = JsonOptions(numbers="any")

# jsonschema divides: walks may write numbers of many digits.
decimal.getcontext().prec = 3000


def accepts(pushdown: PushdownAutomaton, text: str | bytes) -> bool:
    matcher = Matcher(pushdown)
    return bool(matcher.feed(text.encode() if isinstance(text, str) else text) and matcher.accepts())


def written(value: Any, ascii_only: bool = True) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)


def _listed(schema: Any, names: dict[str, Any]) -> dict[str, Any]:
    """The names in a schema's `properties`, then those in its parts', in the order of their appearance."""
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            names.setdefault(name, inner)
        parts = [branch for word in ("allOf", "anyOf", "oneOf") for branch in schema.get(word, ())]
        parts += [schema[word] for word in ("if", "then", "else", "not") if word in schema]
        for part in (*parts, *schema.get("dependentSchemas", {}).values()):
            _listed(part, names)
    return names


def reorder(schema: Any, value: Any) -> Any:
    """The value with its keys in schema order: listed ones first, then the others as they come."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, dict):
        listed = _listed(schema, {})
        inner = {**dict.fromkeys(value, schema.get("additionalProperties")), **listed}
        return {name: reorder(inner[name], value[name]) for name in (*listed, *value) if name in value}
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        return [reorder(prefix[i] if i < len(prefix) else schema.get("items"), item) for i, item in enumerate(value)]
    return value


class Repeated(Exception):
    """A key came twice: no automaton with finitely many states can tell, so the documentation excepts it."""


def read(text: bytes) -> Any:
    """The value of a text with exact numbers."""

    def distinct(members: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(members)) != len(members):
            raise Repeated
        return dict(members)

    def exact(number: str) -> int | Decimal:
        try:
            value = Decimal(number)
        except decimal.InvalidOperation:  # an exponent beyond Decimal's
            return Decimal(7) / 4 if "e-" in number.lower() else 10**400
        # Where nothing is asked of a number its exponent may have any size, too large to divide.
        if value and value.adjusted() >= decimal.getcontext().prec:
            return 10**400 if value > 0 else -(10**400)
        return int(value) if value.adjusted() < 1000 and value == value.to_integral_value() else value

    return json.loads(text, object_pairs_hook=distinct, parse_float=exact)


class Walker:
    """Random accepted texts: steps at random for a while, then the shortest way out."""

    def __init__(self, pushdown: PushdownAutomaton, seed: int):
        self.pushdown, self.random = pushdown, random.Random(seed)
        self.members = [np.flatnonzero(pushdown.classes == c).tolist() for c in range(pushdown.target.shape[1])]
        self.cost = self._cost()

    def _cost(self) -> np.ndarray:
        """float [S, K]: how many bytes until the rule ends with a label."""
        net = self.pushdown
        labels = max(int(net.label.max(initial=0)) + 1, net.returns.shape[1])
        cost = np.full((len(net.target), labels), np.inf)
        ends = np.flatnonzero(net.label >= 0)
        cost[ends, net.label[ends]] = 0
        sources, columns = np.nonzero(net.target)
        targets, sites = net.target[sources, columns], net.push[sources, columns]
        called = np.flatnonzero(sites >= 0)
        back = net.returns[sites[called]]
        step = (~net.stay[sources, columns]).astype(float)[:, None]
        while True:
            ways = cost[targets]
            inner = np.where(back > 0, ways[called][:, : back.shape[1]], np.inf)
            ways[called] = (inner[:, :, None] + cost[back]).min(axis=1, initial=np.inf)
            lower = cost.copy()
            np.minimum.at(lower, sources, ways + step)
            lower = np.minimum(lower, lower[net.boundary])  # every byte is read as a token
            if np.array_equal(lower, cost):
                return cost
            cost = lower

    def _left(self, matcher: Matcher) -> float:
        ways = self.cost[matcher.state]
        for site in reversed(matcher.stack):
            back = self.pushdown.returns[site]
            inner = ways[: len(back)]
            ways = np.where((back > 0)[:, None], inner[:, None] + self.cost[back], np.inf).min(axis=0)
        return float(ways.min())

    def text(self, steps: int) -> bytes:
        matcher, out = Matcher(self.pushdown), bytearray()
        while True:
            if matcher.accepts() and (len(out) >= steps or self.random.random() < 0.1):
                return bytes(out)
            options = []
            for members in self.members:
                after = matcher.copy()
                byte = self.random.choice(members)
                if after.feed(bytes([byte])):
                    options.append((byte, after))
            if not options:
                return bytes(out)
            if len(out) < steps:
                byte, matcher = self.random.choice(options)
            else:
                byte, matcher = min(options, key=lambda option: self._left(option[1]))
            out.append(byte)


# -- Random schemas ------------------------------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["a", "b", "ab", "c"])
_TYPE_NAMES = ("null", "boolean", "integer", "number", "string", "object", "array")
_LEAVES = st.one_of(
    st.booleans(),
    st.sampled_from([{"type": name} for name in _TYPE_NAMES]),
    st.builds(lambda low, high: {"minimum": low, "maximum": high}, st.integers(-5, 5), st.integers(-5, 12)),
    st.sampled_from([{"exclusiveMinimum": 1.5}, {"multipleOf": 2}, {"type": "integer", "multipleOf": 3}]),
    st.sampled_from([{"minLength": 2}, {"maxLength": 1}, {"pattern": "^a"}, {"pattern": "b$"}, {"pattern": "^[ab]*$"}]),
    st.sampled_from([{"enum": [1, "a", None]}, {"enum": [[], {}, "b"]}, {"const": {"b": None}}, {"const": [1, "a"]}, {}]),
)


def _larger(inner: st.SearchStrategy) -> st.SearchStrategy:
    counts = st.integers(0, 2)
    objects = st.fixed_dictionaries({}, optional={
        "type": st.just("object"), "properties": st.dictionaries(_NAMES, inner, max_size=3),
        "required": st.lists(_NAMES, max_size=2, unique=True), "additionalProperties": inner, "unevaluatedProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b", "^c$"]), inner, max_size=2),
        "propertyNames": st.sampled_from([{"maxLength": 1}, {"pattern": "^a"}, {"enum": ["a", "c"]}]),
        "minProperties": counts, "maxProperties": counts, "dependentSchemas": st.dictionaries(_NAMES, inner, max_size=1),
        "dependentRequired": st.dictionaries(_NAMES, st.lists(_NAMES, max_size=1), max_size=1),
    })  # fmt: skip
    arrays = st.fixed_dictionaries({}, optional={
        "type": st.just("array"), "prefixItems": st.lists(inner, min_size=1, max_size=2), "items": inner, "contains": inner,
        "minContains": counts, "maxContains": counts, "minItems": counts, "maxItems": counts, "unevaluatedItems": inner,
    })  # fmt: skip
    branches = st.lists(inner, min_size=1, max_size=3)
    logic = st.fixed_dictionaries({}, optional={
        "allOf": branches, "anyOf": branches, "oneOf": branches, "not": inner, "if": inner, "then": inner, "else": inner,
    })  # fmt: skip
    return st.builds(lambda a, b: {**a, **b}, st.one_of(objects, arrays), st.one_of(st.just({}), logic)) | logic


SCHEMAS = st.recursive(_LEAVES, _larger, max_leaves=7)
_SCALARS = st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 1.5, 2.0, 6, 10, "", "a", "b", "ab", "ba", "abc"])
_KEYS = st.sampled_from(["a", "b", "ab", "c", "ba", "d"])
VALUES = st.recursive(
    _SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)), max_leaves=5
)
