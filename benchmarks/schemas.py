"""What the benchmarks of constraints compile and decode: forty schemas with a request each (closed and open objects, recursion,
oneOf, patterns), expressions and grammars, and what the rows of a batch are held to."""

from __future__ import annotations

from typing import Any


def _object(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted, **more}


def _closed(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return _object(properties, required, additionalProperties=False, **more)


TEXT, WHOLE, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
SHORT = {"type": "string", "maxLength": 40}
DATE = {"type": "string", "format": "date"}
TREE = {
    "$defs": {
        "node": _closed(
            {"name": SHORT, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}, ["name"]
        )
    },
    "$ref": "#/$defs/node",
}
EXPRESSION = {
    "$defs": {
        "term": {
            "oneOf": [
                {"type": "integer", "minimum": 0, "maximum": 99},
                _closed({"op": {"enum": ["+", "*"]}, "left": {"$ref": "#/$defs/term"}, "right": {"$ref": "#/$defs/term"}}),
            ]
        }
    },
    "$ref": "#/$defs/term",
}
LINKED = {
    "$defs": {"item": _closed({"value": WHOLE, "next": {"anyOf": [{"$ref": "#/$defs/item"}, {"type": "null"}]}})},
    "$ref": "#/$defs/item",
}

SIX_FIELDS = _closed(
    {
        "name": TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": TEXT,
        "active": FLAG,
        "score": NUMBER,
        "tags": {"type": "array", "items": TEXT},
    }
)

SCHEMAS: list[tuple[str, str, dict[str, Any]]] = [
    ("six fields", "Describe a user of a web shop.", SIX_FIELDS),
    ("person", "Invent a person.", _closed({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 120}})),
    ("open person", "Invent a person, with hobbies.", _object({"name": SHORT}, maxProperties=4)),
    ("any object", "Describe the weather today.", {"type": "object", "maxProperties": 5}),
    ("numbers by name", "Count the animals in a zoo.", {"type": "object", "additionalProperties": WHOLE, "maxProperties": 6}),
    (
        "words by letter",
        "One word for each of some letters.",
        {"type": "object", "patternProperties": {"^[a-z]$": SHORT}, "additionalProperties": False, "maxProperties": 6},
    ),
    ("tree", "A family tree.", TREE),
    ("expression", "The sum of two and three as a syntax tree.", EXPRESSION),
    ("linked list", "A linked list of three numbers.", LINKED),
    ("colour", "Name a colour.", {"enum": ["red", "green", "blue", "yellow", "black", "white"]}),
    ("yes or no", "Is the earth round?", _closed({"answer": FLAG, "why": SHORT})),
    ("date", "When did the first person walk on the moon?", _closed({"event": SHORT, "date": DATE})),
    ("date and time", "When does the train leave?", _closed({"departure": {"type": "string", "format": "date-time"}})),
    (
        "identifier",
        "A new order.",
        _closed({"id": {"type": "string", "format": "uuid"}, "items": {"type": "array", "items": SHORT}}),
    ),
    ("plate", "A number plate.", _closed({"plate": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}})),
    ("phone", "A phone number.", _closed({"phone": {"type": "string", "pattern": "^\\+[1-9][0-9]{6,11}$"}})),
    (
        "slug",
        "A title and its slug.",
        _closed({"title": SHORT, "slug": {"type": "string", "pattern": "^[a-z]+(-[a-z]+){0,5}$"}}),
    ),
    (
        "address",
        "The address of the museum.",
        _closed({"street": SHORT, "city": SHORT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}),
    ),
    (
        "host",
        "A server.",
        _closed({"ip": {"type": "string", "format": "ipv4"}, "port": {"type": "integer", "minimum": 1, "maximum": 65535}}),
    ),
    ("three numbers", "Three prime numbers.", {"type": "array", "items": WHOLE, "minItems": 3, "maxItems": 3}),
    ("pair", "A name and a number.", {"type": "array", "prefixItems": [SHORT, WHOLE], "items": False, "minItems": 2}),
    (
        "list of objects",
        "Two books.",
        {"type": "array", "items": _closed({"title": SHORT, "year": WHOLE}), "minItems": 1, "maxItems": 3},
    ),
    (
        "shape",
        "A shape.",
        {
            "oneOf": [
                _closed({"kind": {"const": "circle"}, "radius": NUMBER}),
                _closed({"kind": {"const": "square"}, "side": NUMBER}),
            ]
        },
    ),
    (
        "payment",
        "A payment.",
        {
            "oneOf": [
                _closed({"card": {"type": "string", "pattern": "^[0-9]{16}$"}}),
                _closed({"iban": {"type": "string", "maxLength": 34}}),
            ]
        },
    ),
    ("number or text", "The answer to everything.", {"anyOf": [WHOLE, SHORT]}),
    ("optional", "A note.", _closed({"title": SHORT, "body": SHORT, "pinned": FLAG}, ["body"])),
    ("all optional", "Settings.", _closed({"dark": FLAG, "size": WHOLE, "font": SHORT}, [])),
    ("nested", "A company.", _closed({"name": SHORT, "boss": _closed({"name": SHORT, "desk": _closed({"room": WHOLE})})})),
    ("percent", "A share.", _closed({"share": {"type": "number", "minimum": 0, "maximum": 100}})),
    (
        "price",
        "A price.",
        _closed(
            {
                "price": {"type": "number", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": 0.01},
                "currency": {"enum": ["EUR", "USD", "GBP"]},
            }
        ),
    ),
    ("even", "An even number.", {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 1000}),
    ("rating", "Rate the film.", _closed({"stars": {"enum": [1, 2, 3, 4, 5]}, "review": SHORT})),
    (
        "not empty",
        "A list of words.",
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 20}, "minItems": 1, "maxItems": 8},
    ),
    (
        "function call",
        "Find the weather in Paris.",
        _closed({"function": {"enum": ["weather", "search"]}, "arguments": {"type": "object", "maxProperties": 3}}),
    ),
    (
        "either",
        "A contact.",
        {
            "type": "object",
            "properties": {"mail": SHORT, "phone": SHORT},
            "anyOf": [{"required": ["mail"]}, {"required": ["phone"]}],
            "additionalProperties": False,
        },
    ),
    (
        "conditional",
        "A parcel.",
        {
            "type": "object",
            "properties": {"country": {"enum": ["US", "DE"]}, "code": {"type": "string"}},
            "required": ["country", "code"],
            "if": {"properties": {"country": {"const": "US"}}},
            "then": {"properties": {"code": {"pattern": "^[0-9]{5}$"}}},
            "else": {"properties": {"code": {"pattern": "^D-[0-9]{5}$"}}},
            "additionalProperties": False,
        },
    ),
    (
        "joined",
        "An employee.",
        {"allOf": [_object({"name": SHORT}), _object({"salary": {"type": "integer", "minimum": 0}})], "maxProperties": 3},
    ),
    ("nullable", "A lost item.", _closed({"item": SHORT, "owner": {"type": ["string", "null"], "maxLength": 30}})),
    (
        "two deep",
        "A menu.",
        _closed(
            {
                "sections": {
                    "type": "array",
                    "items": _closed({"name": SHORT, "dishes": {"type": "array", "items": SHORT, "maxItems": 3}}),
                    "minItems": 1,
                    "maxItems": 2,
                }
            }
        ),
    ),
    (
        "sentiment",
        "I love this phone.",
        _closed(
            {
                "sentiment": {"enum": ["positive", "neutral", "negative"]},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            }
        ),
    ),
]

JSON_GBNF = r"""
root ::= value
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (pair ("," pair)*)? "}"
pair ::= string ":" value
array ::= "[" (value ("," value)*)? "]"
string ::= "\"" ([^"\\\x00-\x1f] | "\\" ["\\/bfnrt])* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)?
"""
ARITHMETIC_LARK = """
start: term (("+" | "-") term)*
term: factor (("*" | "/") factor)*
factor: NUMBER | "(" start ")"
NUMBER: /[0-9]+/
"""
OTHERS = [
    ("date", "regex", r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"),
    ("mail address", "regex", r"[a-z0-9._]{1,30}@[a-z0-9-]{1,20}\.(com|org|net)"),
    ("sentence", "regex", r"([A-Z][a-z]*)( [a-z]+){2,20}[.!?]"),
    ("any JSON", "grammar", JSON_GBNF),
    ("arithmetic", "grammar", ARITHMETIC_LARK),
]
SOURCES: list[tuple[str, str, Any]] = [(name, "json_schema", schema) for name, _, schema in SCHEMAS] + OTHERS

# What rows write in the loop: closed objects, or open ones, which need the stack; too many for a row to finish.
CLOSED = {"type": "array", "items": SIX_FIELDS, "minItems": 5}
OPEN = {
    "type": "array",
    "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    "minItems": 20,
}
MIXES: dict[str, list[Any]] = {"closed": [CLOSED], "open": [OPEN], "mixed": [CLOSED, OPEN, None]}
