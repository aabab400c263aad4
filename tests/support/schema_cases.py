# ruff: noqa: E501 (a table: one case a line, or two)
"""Schemas with instances that they accept and reject, keyword by keyword: (name, schema, valid, invalid).

The verdicts are those of the specification; `test_json_schema.py` also asks jsonschema for them, except where it computes in
binary floating point or with Python's regular expressions.
"""

from __future__ import annotations

from typing import Any

Case = tuple[str, Any, list[Any], list[Any]]

_DEEP: dict[str, Any] = {"v": 1}
for _ in range(64):
    _DEEP = {"v": 1, "next": _DEEP}

TYPES: list[Case] = [
    ("true schema", True, [None, 1, "x", [], {"a": [{}]}], []),
    ("integer", {"type": "integer"}, [0, -3, 1.0, 10**40, 1e16, -1e300], [1.5, "1", True, None, []]),
    ("number", {"type": "number"}, [1, 1.5, 1e-7, -2e300], ["1", False, {}]),
    ("union of types", {"type": ["integer", "string"]}, [1, "a"], [1.5, None]),
    ("string", {"type": "string"}, ["", "é😀\n\"\\/", "\u2028\x7f"], [1, None]),
    ("enum of anything", {"enum": [6, "foo", [], True, {"foo": 12}, None]}, [6, 6.0, "foo", [], True, {"foo": 12}, None], [
        7, "fo", [1], False, {"foo": False}, {"foo": 12, "bar": 1}, {},
    ]),
    ("enum keeps false and 0 apart", {"enum": [False]}, [False], [0, 0.0, None]),
    ("enum keeps 1 and true apart", {"enum": [[1], {"a": 0}]}, [[1], [1.0], {"a": 0}], [[True], {"a": False}]),
    ("enum with escapes", {"enum": ["foo\nbar", "foo\rbar", "/"]}, ["foo\nbar", "foo\rbar", "/"], ["abc", "foo\tbar"]),
    ("const object", {"const": {"foo": "bar", "baz": [1, {"x": None}]}}, [{"foo": "bar", "baz": [1, {"x": None}]}], [
        {"foo": "bar"}, {"foo": "bar", "baz": [1, {}]}, [],
    ]),
    ("const number", {"const": -2.0}, [-2, -2.0], [2, -2.5, "-2"]),
    ("const beyond doubles", {"const": 9007199254740992}, [9007199254740992, 9007199254740992.0], [9007199254740991]),
    ("const with nul", {"const": "hello\0there"}, ["hello\0there"], ["hellothere"]),
]  # fmt: skip

NUMBERS: list[Case] = [
    ("minimum", {"minimum": 1.1}, [1.1, 2.6, "x"], [0.6, 1, -5]),
    ("minimum, negative", {"minimum": -2}, [-1, -2, -2.0, 0, 1e20], [-2.0001, -3, -1e20]),
    ("maximum", {"maximum": 3.0}, [2.6, 3, 3.0, -1e300, 1e-7], [3.5, 3.0000001, 31, 1e16]),
    ("exclusive", {"exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9.999, 1e-7, 0.5], [0, 0.0, 10, 10.0, -1e-7, 1e16]),
    ("multipleOf 2", {"multipleOf": 2}, [10, -4, 0, 2.0, 1.5e-7 * 0], [7, 1.5, 0.0002]),
    ("multipleOf 1.5", {"multipleOf": 1.5}, [0, 4.5, -3], [35, 0.5, 4.6]),
    ("multipleOf 0.01", {"type": "number", "multipleOf": 0.01}, [19.99, 0.07, 1, 4.35, 1e16, 1.1], [0.001, 19.999, 1e-7]),
    ("multipleOf 0.0001", {"multipleOf": 0.0001}, [0.0075, 0], [0.00751]),
    ("small multiple of a large integer", {"type": "integer", "multipleOf": 1e-8}, [12391239123], [1.5]),
    ("multipleOf 10", {"multipleOf": 10}, [20, 0, -1e16], [5, 15]),
    ("port", {"type": "integer", "minimum": 1, "maximum": 65535}, [1, 80, 65535, 443.0], [0, 65536, 100000, -1, 80.5]),
]

STRINGS: list[Case] = [
    ("maxLength counts code points", {"maxLength": 2}, ["fo", "\U0001f4a9\U0001f4a9", "\n\"", 100], ["foo", "éüö"]),
    ("minLength counts code points", {"minLength": 2}, ["fo", "\U0001f4a9é"], ["f", "\U0001f4a9", ""]),
    ("lengths as floats", {"minLength": 1.0, "maxLength": 2.0}, ["a", "ab"], ["", "abc"]),
    ("lookaround at the ends", {"pattern": "^(?!aws:)(?=.{2,6}$)[a-z:]+(?<!\\.git|:)$"}, ["ab", "aw:s"], ["aws:b", "a", "ab:", "abcdefg"]),
    ("pattern", {"pattern": "^a*$"}, ["", "aaa", True], ["abc", "a\n"]),
    ("pattern is not anchored", {"pattern": "a+"}, ["xxaayy"], ["xyz"]),
    ("pattern and length", {"pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4}, ["ab", "abcd"], ["a", "abcde", "AB"]),
    ("two patterns", {"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, ["ab", "xbya"], ["a", "bb"]),
    ("not a pattern", {"type": "string", "not": {"pattern": "^x-"}}, ["", "x", "y-x-"], ["x-", "x-y"]),
    ("ASCII digits", {"pattern": "^\\d$"}, ["0", "9"], ["\u07c0", "x"]),
    ("a letter by property", {"pattern": "^\\p{Letter}+$"}, ["naïve", "日本"], ["a1"]),
    ("pattern beyond the BMP", {"pattern": "^🐲*$"}, ["", "🐲🐲"], ["🐉", "🐲 "]),
    ("format date", {"format": "date"}, ["1963-06-19", "2020-02-29", 12], ["2021-02-29", "1998-13-01", "1998-1-20", "2020-W01"]),
    ("format date-time", {"format": "date-time"}, ["1963-06-19T08:30:06.283185Z", "1990-12-31T15:59:50-08:00"], [
        "1998-12-31T23:59:61Z", "1990-02-31T15:59:59Z", "1963-06-19 08:30:06Z", "1963-06-19T08:30:06",
    ]),
    ("format email", {"format": "email"}, ["joe.bloggs@example.com", "te~st@example.com"], ["2962", ".a@b.c", "a@", "te..st@a.b"]),
    ("format ipv4", {"format": "ipv4"}, ["192.168.0.1", "87.10.0.1"], ["127.0.0.0.1", "256.1.1.1", "127.0", "087.10.0.1"]),
    ("format ipv6", {"format": "ipv6"}, ["::1", "::abef", "::", "::ffff:192.168.0.1", "1:2:3:4:5:6:7:8", "1::d6:192.168.0.1"], [
        "12345::", "1:1:1:1:1:1:1:1:1", "::laptop", ":2:3:4:5:6:7:8", "1::2::3", "fe80::a%eth1", "1:2:3:4:5:6:7",
    ]),
    ("format uuid", {"format": "uuid"}, ["2EB8AA08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08-aa98-11ea-b4aa-73b441d1638"]),
    ("format uri", {"format": "uri"}, ["http://foo.bar/?baz=qux#quux", "urn:isbn:045", "mailto:a@b.c", "ftp://[2001:db8::7]/c"], [
        "/abc", "\\\\WINDOWS", "http:// shouldfail.com", "bar,baz", "http://a b", ":// no",
    ]),
    ("format uri-reference", {"format": "uri-reference"}, ["/abc", "", "#f", "a/b", "http://x"], ["\\\\WIN", "#frag\\ment"]),
    ("format hostname", {"format": "hostname"}, ["www.example.com", "xn--4gbwdl", "a" * 63], ["-a", "a_b", "a" * 64, "", "a..b"]),
    ("format duration", {"format": "duration"}, ["P4DT12H30M5S", "P4Y", "PT36H", "P4W"], ["PT1D", "P", "P1YT", "P2D1Y", "4DT"]),
    ("format time", {"format": "time"}, ["08:30:06Z", "08:30:06.28+00:20"], ["24:00:00Z", "08:30:06", "8:30:06Z"]),
    ("format json-pointer", {"format": "json-pointer"}, ["", "/foo/0", "/a~1b/~0"], ["foo", "/~2", "#"]),
    ("unknown formats are annotations", {"format": "x-unknown", "type": "string"}, ["anything"], [1]),
]  # fmt: skip

OBJECTS: list[Case] = [
    ("all optional", {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}, [
        {}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}, {"z": [], "y": {}}, {"a": 1, "q": None}, [], 3,
    ], [{"a": "x"}, {"a": 1, "b": 2}, {"b": 1, "z": 1}]),
    ("keys that are prefixes of keys", {"properties": {"a": {"type": "integer"}, "ab": {"type": "string"}, "abc": False}}, [
        {"a": 1, "ab": "x", "abcd": 1}, {"ab": ""}, {"abb": 1},
    ], [{"a": "x"}, {"ab": 1}, {"abc": 1}]),
    ("required", {"properties": {"foo": {}, "bar": {}}, "required": ["bar", "baz"]}, [{"bar": 1, "baz": 2}, {
        "foo": 1, "bar": 2, "x": 1, "baz": 3, "y": 1}], [{}, {"foo": 1, "bar": 1}, {"baz": 1}]),
    ("names of Python's objects", {"required": ["__proto__", "toString"], "properties": {"constructor": {"type": "number"}}}, [
        {"__proto__": 1, "toString": 2}], [{}, {"__proto__": 1}, {"constructor": "x", "__proto__": 1, "toString": 1}]),
    ("escaped names", {"properties": {"foo\nbar": {"type": "number"}, "foo\"bar": {"type": "number"}, "é": {"type": "null"}}}, [
        {"foo\nbar": 1, "foo\"bar": 2, "é": None}, {"x\\y": 1}], [{"foo\nbar": "1"}, {"foo\"bar": "2"}, {"é": 1}]),
    ("closed", {"properties": {"a": {}, "b": {}}, "additionalProperties": False}, [{}, {"b": 1}, {"a": 1, "b": 2}], [{"c": 1}]),
    ("patterns and the rest", {
        "properties": {"foo": {"type": "array", "maxItems": 3}, "bar": {"type": "array"}},
        "patternProperties": {"f.o": {"minItems": 2}}, "additionalProperties": {"type": "integer"},
    }, [{"foo": [1, 2]}, {"bar": []}, {"quux": 3}, {"fxo": [1, 2]}], [{"foo": []}, {"fxo": []}, {"quux": "x"}, {"foo": [1, 2, 3, 4]}]),
    ("patternProperties", {"patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}}}, [
        {"ab": 7, "a": 1, "b": 5, "c": "x"}, {"b": "x"}], [{"ab": 4}, {"a": "x"}, {"xb": 1}, {"ab": "x"}]),
    ("patternProperties with booleans", {"patternProperties": {"f.*": True, "b.*": False}}, [{}, {"foo": 1}], [
        {"bar": 1}, {"foo": 1, "bar": 2}, {"foobar": 1}]),
    ("propertyNames", {"propertyNames": {"maxLength": 3, "pattern": "^[a-z]"}}, [{}, {"f": 1, "foo": 2}, 3], [{"foobar": 1}, {"1": 1}]),
    ("propertyNames by enum", {"propertyNames": {"enum": ["foo", "bar"]}}, [{"foo": 1, "bar": 2}, {"bar": 1, "foo": 1}], [{"baz": 1}]),
    ("propertyNames false", {"propertyNames": False}, [{}], [{"a": 1}]),
    ("minProperties", {"minProperties": 1}, [{"foo": 1}, {"a": 1, "b": 2}, "", []], [{}]),
    ("maxProperties", {"maxProperties": 2.0}, [{}, {"a": 1, "b": 2}], [{"a": 1, "b": 2, "c": 3}]),
    ("exactly two", {"minProperties": 2, "maxProperties": 2, "properties": {"a": {}}}, [{"a": 1, "b": 2}, {"c": 1, "b": 2}], [
        {"a": 1}, {"a": 1, "b": 1, "c": 1}]),
    ("dependentRequired", {"dependentRequired": {"quux": ["foo", "bar"]}}, [{}, {"foo": 1}, {"foo": 1, "bar": 2, "quux": 3}], [
        {"foo": 1, "quux": 2}, {"quux": 3}]),
    ("dependentSchemas", {"properties": {"foo": {}}, "dependentSchemas": {"foo": {"properties": {"bar": {}}, "additionalProperties": False}}}, [
        {"bar": 1}, {"a": 1}], [{"foo": 1}, {"foo": 1, "bar": 2}]),
    ("dependentSchemas by boolean", {"dependentSchemas": {"foo": True, "bar": False}}, [{"foo": 1}, {}], [{"bar": 1}, {"foo": 1, "bar": 2}]),
]  # fmt: skip

ARRAYS: list[Case] = [
    ("items", {"items": {"type": "integer"}}, [[], [1, 2, 3], {"foo": "bar"}], [[1, "x"]]),
    ("items false", {"items": False}, [[], 1], [[1], [[]]]),
    ("a closed tuple", {"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}, [[], [1], [1, "a"]], [
        [1, "a", True], ["a"], [1, 2]]),
    ("an open tuple", {"prefixItems": [{}, {}, {"type": "integer"}]}, [[None, "foo", 37, "x"], [1]], [["a", "b", "c"]]),
    ("a tuple and the rest", {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, [["x", 2, 3], []], [["x", "y"], [1]]),
    ("counts", {"minItems": 1, "maxItems": 2}, [[1], [1, 2], ""], [[], [1, 2, 3]]),
    ("contains", {"contains": {"minimum": 5}}, [[3, 4, 5], [5, 5], {}], [[], [2, 3], ["5x"][:0]]),
    ("contains and items", {"items": {"multipleOf": 2}, "contains": {"multipleOf": 3}}, [[6, 12], [2, 6]], [[2, 4], [3, 6], [1, 5]]),
    ("minContains and maxContains", {"contains": {"const": 1}, "minContains": 2, "maxContains": 3}, [[1, 1], [1, 2, 1, 1]], [
        [1], [1, 1, 1, 1], []]),
    ("minContains 0", {"contains": {"const": 1}, "minContains": 0, "maxContains": 1}, [[], [2], [1, 2]], [[1, 1]]),
    ("contains true", {"contains": True}, [[None]], [[]]),
    ("uniqueItems of an enum", {"items": {"enum": ["a", 1, None, True]}, "uniqueItems": True}, [[], ["a", 1, None], [True, "a"]], [
        ["a", "a"], [1, 1.0], ["a", 1, "a"], ["b"]]),
    ("uniqueItems of booleans", {"items": {"type": "boolean"}, "uniqueItems": True}, [[True, False]], [[True, True], [True, False, True]]),
    ("uniqueItems of at most one", {"maxItems": 1, "uniqueItems": True}, [[], [3]], [[3, 4]]),
    ("uniqueItems of strings", {"items": {"type": "string"}, "uniqueItems": True}, [[], ["a", "b", "", "e\n"], ["a\"b", "c\"b"]], [
        ["a", "a"], ["", ""], ["b", "e", "e"], ["a", 1]]),
    ("uniqueItems of strings that match", {"items": {"type": "string", "pattern": "^[a-z]+$"}, "uniqueItems": True, "minItems": 2}, [["a", "ab"]], [
        ["a"], ["a", "b", "a"]]),
    ("uniqueItems false", {"uniqueItems": False}, [[1, 1]], []),
]  # fmt: skip

LOGIC: list[Case] = [
    ("allOf", {"allOf": [{"properties": {"bar": {"type": "integer"}}, "required": ["bar"]}, {
        "properties": {"foo": {"type": "string"}}, "required": ["foo"]}]}, [{"bar": 2, "foo": "baz"}, {"foo": "x", "bar": 1}], [
        {"foo": "baz"}, {"bar": 2}, {"foo": "baz", "bar": "quux"}]),
    ("allOf with its own", {"properties": {"bar": {"type": "integer"}}, "required": ["bar"], "allOf": [
        {"properties": {"foo": {"type": "string"}}, "required": ["foo"]}, {"required": ["baz"], "properties": {"baz": {"type": "null"}}}]}, [
        {"bar": 2, "foo": "quux", "baz": None}], [{"foo": "quux", "baz": None}, {"bar": 2, "baz": None}]),
    ("allOf, anyOf and oneOf", {"allOf": [{"multipleOf": 2}], "anyOf": [{"multipleOf": 3}], "oneOf": [{"multipleOf": 5}]}, [30, 0], [
        1, 5, 3, 15, 2, 10, 6]),
    ("anyOf", {"anyOf": [{"type": "integer"}, {"minimum": 2}]}, [1, 2.5, 3, "x"], [1.5]),
    ("anyOf of objects", {"anyOf": [{"properties": {"bar": {"type": "integer"}}, "required": ["bar"]}, {
        "properties": {"foo": {"type": "string"}}, "required": ["foo"]}]}, [{"bar": 2}, {"foo": "baz"}, {"bar": "x", "foo": "y"}], [
        {"foo": 2, "bar": "quux"}, {}]),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1, 2.5], [3, 1.5]),
    ("oneOf of strings", {"type": "string", "oneOf": [{"minLength": 2}, {"maxLength": 4}]}, ["f", "foobar"], ["foo", 3]),
    ("oneOf of required", {"type": "object", "oneOf": [{"required": ["foo", "bar"]}, {"required": ["foo", "baz"]}]}, [
        {"foo": 1, "bar": 2}, {"foo": 1, "baz": 3}], [{"bar": 2}, {"foo": 1, "bar": 2, "baz": 3}]),
    ("a union by its tag", {"oneOf": [
        {"properties": {"kind": {"const": "circle"}, "r": {"type": "number"}}, "required": ["kind", "r"], "additionalProperties": False},
        {"properties": {"kind": {"const": "box"}, "w": {"type": "number"}, "h": {"type": "number"}}, "required": ["kind", "w"]}]}, [
        {"kind": "circle", "r": 1}, {"kind": "box", "w": 1}, {"kind": "box", "w": 1, "h": 2, "z": 0}], [
        {"kind": "circle", "r": 1, "w": 2}, {"kind": "box"}, {"kind": "tri"}]),
    ("not", {"not": {"type": ["integer", "boolean"]}}, ["foo", 1.5], [1, True]),
    ("not of an object", {"not": {"type": "object", "properties": {"foo": {"type": "string"}}}}, [1, {"foo": 1}], [{"foo": "bar"}, {}]),
    ("a forbidden property", {"properties": {"foo": {"not": {}}}}, [{"bar": 1}, {}], [{"foo": 1}]),
    ("double negation", {"not": {"not": {"type": "array", "items": {"const": 1}}}}, [[], [1, 1]], [[2], {}]),
    ("if, then, else", {"if": {"exclusiveMaximum": 0}, "then": {"minimum": -10}, "else": {"multipleOf": 2}}, [-1, -10, 4, "x"], [-100, 3]),
    ("if without then", {"if": {"const": 0}, "else": {"multipleOf": 2}}, [0, 4], [3]),
    ("conditional requirement", {"properties": {"country": {"enum": ["US", "NL"]}, "zip": {"type": "string"}}, "required": ["country"],
        "if": {"properties": {"country": {"const": "US"}}}, "then": {"required": ["zip"], "properties": {"zip": {"pattern": "^[0-9]{5}$"}}},
        "else": {"properties": {"zip": {"pattern": "^[0-9]{4} [A-Z]{2}$"}}}}, [
        {"country": "US", "zip": "12345"}, {"country": "NL"}, {"country": "NL", "zip": "1234 AB"}], [
        {"country": "US"}, {"country": "US", "zip": "1234 AB"}, {"country": "NL", "zip": "12345"}]),
]  # fmt: skip

UNEVALUATED: list[Case] = [
    ("unevaluatedProperties false", {"properties": {"foo": {}}, "unevaluatedProperties": False}, [{}, {"foo": 1}], [{"bar": 1}]),
    ("unevaluatedProperties by schema", {"unevaluatedProperties": {"type": "string", "minLength": 3}}, [{"foo": "foo"}], [{"foo": "fo"}]),
    ("through allOf", {"properties": {"foo": {}}, "allOf": [{"properties": {"bar": {}}}], "unevaluatedProperties": False}, [
        {"foo": 1, "bar": 2}], [{"foo": 1, "baz": 2}]),
    ("through anyOf", {"properties": {"foo": {}}, "anyOf": [
        {"properties": {"bar": {"const": "bar"}}, "required": ["bar"]}, {"properties": {"baz": {"const": "baz"}}, "required": ["baz"]}],
        "unevaluatedProperties": False}, [{"foo": 1, "bar": "bar"}, {"foo": 1, "bar": "bar", "baz": "baz"}], [
        {"foo": 1, "bar": "bar", "baz": "not-baz"}, {"foo": 1, "bar": "bar", "quux": 1}]),
    ("through if", {"if": {"properties": {"foo": {"const": "then"}}, "required": ["foo"]}, "then": {"properties": {"bar": {}}},
        "else": {"properties": {"baz": {}}}, "unevaluatedProperties": False}, [{"foo": "then", "bar": 1}, {"baz": 1}], [
        {"foo": "then", "baz": 1}, {"foo": "else", "baz": 1}, {"bar": 1}]),
    ("not through not", {"properties": {"foo": {}}, "not": {"not": {"properties": {"bar": {"const": "bar"}}, "required": ["bar"]}},
        "unevaluatedProperties": False}, [1], [{"foo": 1, "bar": "bar"}, {"foo": 1}]),
    ("through $ref", {"$ref": "#/$defs/bar", "properties": {"foo": {}}, "unevaluatedProperties": False,
        "$defs": {"bar": {"properties": {"bar": {}}}}}, [{"foo": 1, "bar": 2}], [{"baz": 1}]),
    ("through dependentSchemas", {"properties": {"foo": {}}, "dependentSchemas": {"foo": {"properties": {"bar": {}}}},
        "unevaluatedProperties": False}, [{"foo": 1, "bar": 1}, {}], [{"bar": 1}]),
    ("beside patterns", {"anyOf": [{"patternProperties": {"^a": {"type": "integer"}}}, {"patternProperties": {"z$": {}}, "required": ["k"]}],
        "unevaluatedProperties": {"const": 0}}, [{"a": 1}, {"k": 0, "bz": 5}, {"k": 0, "a": 3}], [{"bz": 5}, {"k": 1, "bz": 5}]),
    ("cousins don't see each other", {"allOf": [{"properties": {"foo": True}}, {"unevaluatedProperties": False}]}, [{}], [{"foo": 1}]),
    ("a nested one is seen", {"properties": {"foo": {}}, "allOf": [{"unevaluatedProperties": True}], "unevaluatedProperties": False}, [
        {"foo": 1, "bar": 2}], []),
    ("unevaluatedItems false", {"prefixItems": [{}], "unevaluatedItems": False}, [[], [1]], [[1, 2]]),
    ("unevaluatedItems with contains", {"contains": {"multipleOf": 2}, "unevaluatedItems": {"multipleOf": 3}}, [[2, 3, 6], [2]], [
        [2, 5], [3, 9]]),
    ("unevaluatedItems through anyOf", {"prefixItems": [{"const": "foo"}], "anyOf": [{"prefixItems": [True, {"const": "bar"}]},
        {"prefixItems": [True, True, {"const": "baz"}]}], "unevaluatedItems": False}, [["foo", "bar"], ["foo", "bar", "baz"]], [
        ["foo", "bar", 42], ["foo", 1, 2, 3]]),
    ("unevaluatedItems through conditional contains", {"if": {"contains": {"const": "a"}}, "then": {"if": {"contains": {"const": "b"}},
        "then": {"if": {"contains": {"const": "c"}}}}, "unevaluatedItems": False}, [[], ["a", "a"], ["a", "b", "a"], ["c", "a", "b"]], [
        ["b", "b"], ["c"], ["c", "b"], ["c", "a"]]),
]  # fmt: skip

REFERENCES: list[Case] = [
    ("root pointer", {"properties": {"foo": {"$ref": "#"}}, "additionalProperties": False}, [{"foo": False}, {"foo": {"foo": {}}}], [
        {"bar": False}, {"foo": {"bar": 1}}]),
    ("nesting 64 deep", {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"],
        "additionalProperties": False}, [_DEEP, {"v": 1}], [{"v": 1, "next": {}}]),
    ("mutual recursion", {"$ref": "#/$defs/tree", "$defs": {
        "tree": {"type": "object", "properties": {"nodes": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["nodes"]},
        "node": {"type": "object", "properties": {"value": {"type": "number"}, "sub": {"$ref": "#/$defs/tree"}}, "required": ["value"]}}}, [
        {"nodes": [{"value": 1, "sub": {"nodes": []}}, {"value": 2}]}], [{"nodes": [{"value": 1, "sub": {}}]}, {"nodes": [{}]}]),
    ("escaped pointers", {"$defs": {"tilde~field": {"type": "integer"}, "slash/field": {"type": "integer"}, "percent%field": {"type": "integer"}},
        "properties": {"t": {"$ref": "#/$defs/tilde~0field"}, "s": {"$ref": "#/$defs/slash~1field"}, "p": {"$ref": "#/$defs/percent%25field"}}}, [
        {"t": 1, "s": 2, "p": 3}], [{"t": "x"}, {"s": "x"}, {"p": "x"}]),
    ("siblings of $ref", {"$defs": {"r": {"type": "array"}}, "properties": {"foo": {"$ref": "#/$defs/r", "maxItems": 2}}}, [
        {"foo": []}], [{"foo": [1, 2, 3]}, {"foo": "x"}]),
    ("siblings are ignored in draft 7", {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"r": {"type": "array"}},
        "properties": {"foo": {"$ref": "#/definitions/r", "maxItems": 2}}}, [{"foo": [1, 2, 3]}], [{"foo": "x"}]),
    ("a property named $ref", {"properties": {"$ref": {"type": "string"}}}, [{"$ref": "a"}], [{"$ref": 2}]),
    ("anchor", {"$ref": "#foo", "$defs": {"A": {"$anchor": "foo", "type": "integer"}}}, [1], ["a"]),
    ("base URI change", {"$id": "http://example.test/root.json", "items": {"$id": "folder/", "items": {"$ref": "int.json"}}, "$defs": {
        "x": {"$id": "folder/int.json", "type": "integer"}}}, [[[1]], [[]]], [[["a"]]]),
    ("a nested $id with a pointer", {"$id": "http://example.test/a", "$ref": "b", "$defs": {"b": {"$id": "b", "$ref": "#/$defs/c",
        "$defs": {"c": {"type": "null"}}}}}, [None], [1]),
    ("dynamicRef to a dynamicAnchor", {"$id": "https://t.test/root", "$ref": "list", "$defs": {
        "foo": {"$dynamicAnchor": "items", "type": "string"},
        "list": {"$id": "list", "type": "array", "items": {"$dynamicRef": "#items"}, "$defs": {"items": {"$dynamicAnchor": "items"}}}}}, [
        ["foo", "bar"]], [["foo", 42]]),
    ("a strict tree", {"$id": "http://t.test/strict-tree.json", "$dynamicAnchor": "node", "$ref": "tree.json", "unevaluatedProperties": False,
        "$defs": {"tree": {"$id": "tree.json", "$dynamicAnchor": "node", "type": "object", "properties": {"data": True, "children": {
            "type": "array", "items": {"$dynamicRef": "#node"}}}}}}, [{"children": [{"data": 1}]}], [{"children": [{"daat": 1}]}]),
    ("a metaschema", {"$ref": "https://json-schema.org/draft/2020-12/meta/format-annotation"}, [{"format": "x"}, True], [{"format": 1}, 3]),
    ("cycle through items", {"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}, "maxItems": 1}},
        "$ref": "#/$defs/a", "type": "array"}, [[], [[1]], [[[2, 3]]]], [1, [[1, 2]]]),
]  # fmt: skip

DRAFTS: list[Case] = [
    ("draft 7 tuple", {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}], "additionalItems": False}, [
        [], [1]], [[1, 2], ["a"]]),
    ("draft 7 tuple without $schema", {"items": [{"type": "integer"}], "additionalItems": {"type": "null"}}, [[1, None]], [[1, 2]]),
    ("draft 7 dependencies", {"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"], "c": {"required": ["d"]}}}, [
        {"a": 1, "b": 2}, {"c": 1, "d": 1}, {}], [{"a": 1}, {"c": 1}]),
    ("draft 4 bounds", {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True, "type": "integer"}, [
        2], [1, 2.0, 0]),
    ("draft 4 id", {"$schema": "http://json-schema.org/draft-04/schema#", "id": "http://x.test/", "items": {"$ref": "#/definitions/a"},
        "definitions": {"a": {"type": "string"}}}, [["x"]], [[1]]),
    ("draft 2019-09 recursion", {"$schema": "https://json-schema.org/draft/2019-09/schema", "$recursiveAnchor": True,
        "properties": {"foo": {"$recursiveRef": "#"}}, "additionalProperties": False}, [{"foo": {"foo": {}}}], [{"foo": {"bar": 1}}]),
]  # fmt: skip

CASES = [*TYPES, *NUMBERS, *STRINGS, *OBJECTS, *ARRAYS, *LOGIC, *UNEVALUATED, *REFERENCES, *DRAFTS]
