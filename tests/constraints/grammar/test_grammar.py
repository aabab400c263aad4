"""Grammars against Lark's Earley parser, Python's `json`, and brute force."""

from __future__ import annotations

import functools
import itertools
import json
import random

import lark
import pytest

from mechanex_jax.constraints import grammar
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.errors import ConstraintError

# llama.cpp's grammars/json.gbnf, with any value at the top.
JSON = r"""
root   ::= ws value
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [0-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = """
start: expr
?expr: term | expr "+" term | expr "-" term -> sub
?term: factor | term "*" factor | term "/" factor
?factor: NUMBER | "-" factor | "(" expr ")" | NAME
%import common.NUMBER
%import common.CNAME -> NAME
%import common.WS
%ignore WS
"""
SQL = """
start: select ";"?
select: "SELECT" columns "FROM" NAME where? order?
columns: "*" | column ("," column)*
column: NAME | NAME "(" (column | "*") ")"
where: "WHERE" condition
condition: condition "AND" condition | condition "OR" condition | "NOT" condition | "(" condition ")" | value OP value
value: NAME | INT | TEXT | "(" select ")"
order: "ORDER BY" NAME ("ASC" | "DESC")?
OP: "=" | "<" | ">" | "<=" | ">="
NAME: /[a-z_][a-z0-9_]*/
TEXT: /'[^']*'/
%import common.INT
%import common.WS
%ignore WS
"""
JSON_LARK = """
?start: value
?value: object | array | ESCAPED_STRING | SIGNED_NUMBER | "true" | "false" | "null"
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: ESCAPED_STRING ":" value
%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS
%ignore WS
"""


@functools.cache
def pushdown(text: str) -> PushdownAutomaton:
    return grammar.pushdown_automaton(text)


def accepts(net: PushdownAutomaton, text: str) -> bool:
    matcher = Matcher(net)
    matcher.feed(text.encode())
    return matcher.accepts()


def value(rng: random.Random, depth: int):
    kind = rng.randrange(8 if depth else 5)
    if kind >= 5:
        items = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
        return items if kind == 5 else {rng.choice(["a", "é", 'q"', "😀", ""]) + str(i): x for i, x in enumerate(items)}
    text = "".join(rng.choices('ab"\\/\b\n\té😀\x01', k=rng.randrange(6)))
    return [None, rng.random() < 0.5, rng.randint(-(10**9), 10**9), round(rng.uniform(-1e3, 1e3), rng.randrange(5)), text][kind]


def test_gbnf_json_accepts_what_json_writes():
    rng = random.Random(0)
    for _ in range(120):
        thing = value(rng, 5)
        spaced, plain = json.dumps(thing), json.dumps(thing, ensure_ascii=False, separators=(",", ":"))
        assert accepts(pushdown(JSON), spaced) and accepts(pushdown(JSON), plain), spaced
        assert accepts(pushdown(JSON_LARK), json.dumps(thing, indent=2))


def test_gbnf_json_rejects_what_json_cannot_read():
    rng, wrong = random.Random(1), 0
    for _ in range(400):
        text = list(json.dumps(value(rng, 3)))
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(2)] = rng.choice(["", "{", "]", '"', ",", ":", "1", "x", "}", "-"])
        damaged = "".join(text)
        try:
            json.loads(damaged)
        except ValueError:
            wrong += 1
            assert not accepts(pushdown(JSON), damaged), damaged
    assert wrong > 200


def test_recursion_is_not_unrolled_to_a_depth():
    net = pushdown(JSON)
    for depth in (1, 60, 500):
        assert accepts(net, '{"a":[' * depth + "1" + "]}" * depth)
        assert not accepts(net, '{"a":[' * depth + "1" + "]}" * (depth - 1) + "}]")
    assert len(net.target) < 1000


def heights(rules: dict[str, list]) -> dict[str, int]:
    """For each rule how deep its flattest sentence nests."""
    found = dict.fromkeys(rules, 99)
    for _ in rules:
        for name, options in rules.items():
            found[name] = min(height(rule, found) for rule in options)
    return found


def height(rule, known: dict[str, int]) -> int:
    return 1 + max((known[s.name] for s in rule.expansion if not s.is_term), default=0)


def derive(rules: dict[str, list], words: dict[str, list[str]], name: str, rng: random.Random, depth: int) -> str:
    """A random sentence of Lark's compiled rules, as flat as possible below `depth`."""
    known = heights(rules)
    rule = rng.choice(rules[name]) if depth > 0 else min(rules[name], key=lambda rule: height(rule, known))
    out = ""
    for symbol in rule.expansion:
        out += rng.choice(words[symbol.name]) if symbol.is_term else derive(rules, words, symbol.name, rng, depth - 1)
        out += rng.choice(["", " ", " "])
    return out


WORDS = {"NUMBER": ["1", "20", "3.5", "1e5"], "NAME": ["a", "b1", "total"], "INT": ["0", "42"], "TEXT": ["'x'", "''"],
         "ESCAPED_STRING": ['"a"', '"\\""'], "SIGNED_NUMBER": ["-1", "2.5"], "OP": ["=", "<="]}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", [ARITHMETIC, SQL, JSON_LARK], ids=["arithmetic", "sql", "json"])
def test_sentences_and_their_mutations_are_judged_as_by_earley(text):
    # Earley's lexer matches any text of a terminal, which is what the automaton does.
    peer = lark.Lark(text, parser="earley", lexer="dynamic_complete", ambiguity="resolve")
    words = {str(t.name): WORDS.get(t.name, [str(t.pattern.value)]) for t in peer.terminals}
    rules: dict[str, list] = {}
    for rule in peer.rules:
        rules.setdefault(str(rule.origin.name), []).append(rule)
    net, rng, verdicts = grammar.pushdown_automaton(text), random.Random(0), [0, 0]
    for i in range(160):
        sentence = derive(rules, words, "start", rng, 6)
        if len(sentence) > 50:
            continue
        if i % 2 and sentence:
            at = rng.randrange(len(sentence))
            sentence = (
                sentence[:at] + rng.choice(["", "(", ")", ",", "1", "a", " ", "FROM"]) + sentence[at + rng.randrange(3) :]
            )
        try:
            peer.parse(sentence)
            wanted = True
        except lark.exceptions.LarkError:
            wanted = False
        verdicts[wanted] += 1
        assert accepts(net, sentence) == wanted, sentence
    assert min(verdicts) > 15


def random_grammar(rng: random.Random) -> str:
    names = ["start", "a", "b", "c"][: rng.randint(1, 4)]

    def part(depth: int) -> str:
        kind = rng.random()
        if depth == 0 or kind < 0.3:
            return rng.choice(['"x"', '"y"', '"("', '")"', '"xy"', '"é"'])
        if kind < 0.5:
            return rng.choice(names)
        if kind < 0.8:
            return " ".join(part(depth - 1) for _ in range(rng.randint(1, 3)))
        if kind < 0.9:
            return f"({part(depth - 1)} | {part(depth - 1)})"
        return f"({part(depth - 1)}){rng.choice('*+?')}"

    return "\n".join(f"{n}: " + " | ".join(part(2) for _ in range(rng.randint(1, 3))) for n in names)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_grammars_are_held_exactly_or_refused(seed):
    rng, held, accepted = random.Random(seed), 0, 0
    words = ["".join(w) for n in range(6) for w in itertools.product("xy()é" if n < 4 else "xy(", repeat=n)]
    for _ in range(250):
        text = random_grammar(rng)
        try:
            net = grammar.pushdown_automaton(text)
        except ConstraintError:
            continue
        held += 1
        peer = lark.Lark(text, parser="earley", lexer="dynamic_complete")
        for word in [*rng.sample(words, 25), "", "x", "y"]:
            try:
                peer.parse(word)
                wanted = True
            except lark.exceptions.LarkError:
                wanted = False
            accepted += wanted
            assert accepts(net, word) == wanted, (text, word)
    assert held > 200 and accepted > 100


def by_hand(rule: str):
    """Membership by the definition, for the languages below."""
    return {
        "equal": lambda w: len(w) % 2 == 0 and w == "a" * (len(w) // 2) + "b" * (len(w) // 2) and w != "",
        "marked": lambda w: w.count("c") == 1 and w == w[::-1],
        "balanced": lambda w: "c" not in w and all(w[:i].count("a") >= w[:i].count("b") for i in range(len(w)))
        and w.count("a") == w.count("b"),
        "list": lambda w: w != "" and all(x == "a" for x in w.split("b")) and "c" not in w,
    }[rule]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("equal", 'root ::= "a" root "b" | "ab"'),
        ("equal", 'root ::= "a" middle "b"\nmiddle ::= root?'),
        ("marked", 'root ::= "a" root "a" | "b" root "b" | "c"'),
        ("balanced", 'root ::= "" | "a" root "b" root'),
        ("balanced", 'root ::= root root | "a" root "b" | ""'),
        ("balanced", 'root ::= ("a" root "b")*'),
        ("list", 'root ::= "a" | root "b" root'),
        ("list", 'root ::= root "b" "a" | "a"'),
        ("list", 'root ::= "a" ("b" root)*'),
        ("list", 'root ::= x | "a"\nx ::= root "b" "a"'),
        ("list", 'root ::= "a" | "a" "b" root'),
    ],
)
def test_small_grammars_by_brute_force(rule, text):
    net = grammar.pushdown_automaton(text)
    for size in range(9):
        for letters in itertools.product("abc" if size < 7 else "ab", repeat=size):
            word = "".join(letters)
            assert accepts(net, word) == by_hand(rule)(word), word


CASES = [
    # Where the space belongs is open on both sides of a recursive rule.
    (
        'root ::= v\nv ::= ws ("[" (v ("," v)*)? ws "]" | "1") ws\nws ::= [ ]*',
        ["1", " [ 1 , [ ] ] ", "[[ ]]"],
        ["[,]", "[1 1]"],
    ),
    # Operators without precedence, before, between and behind.
    (
        'root ::= e\ne ::= e [+*] e | "-" e | e "!" | "(" e ")" | e "[" e "]" | [0-9]+',
        ["1", "-(1!+2)[3]*4"],
        ["", "1+", "(1", "1-2"],
    ),
    # The same beginning in several rules.
    (
        'root ::= s\ns ::= n "=" e ";" | n "(" e ")" ";" | "{" s* "}"\ne ::= n | "(" e ")"\nn ::= [a-z]+',
        ["a=(b);", "{f((x));{}}"],
        ["a;"],
    ),
    ('root ::= [a-c]{2,3} "\\x41\\u00e9\\U0001F600\\n" [^\\]x]? .', ["abAé😀\n]", "abcAé😀\nyx"], ["aAé😀\nyy", "abAé😀\nx]"]),
    ('root ::= a{2} # two\n\n  | b\na ::= "x"\n  "y"{,2}\nb ::= "z"{3,}', ["xyxyy", "xx", "zzz"], ["x", "zz", "xyyyx"]),
    ('start: list{"x"} | opt?\nlist{t}: t ("," t)*\n!opt: /y+/i -> name', ["x,x", "", "yY"], ["x,", "xy"]),
    ('start: A~2..3 B\nA: "a" | /[0-9]/\nB.2: "b"i', ["a1b", "aaaB"], ["ab", "aaaab"]),
    ('root ::= a "x"\na ::= a a | ""', ["x"], ["", "xx"]),
    ("regex:a|ab", ["a", "ab"], ["b", "abb"]),
]


@pytest.mark.parametrize(("text", "accepted", "rejected"), CASES)
def test_notation_and_ambiguity(text, accepted, rejected):
    net = grammar.pushdown_automaton(text)
    assert [w for w in accepted if not accepts(net, w)] == []
    assert [w for w in rejected if accepts(net, w)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('root ::= a\n  b ::= "x" foo', r"rule 'a' is not defined \(line 1, column 10\)"),
        ('root ::= "x"\n  b ::= "x" foo', r"rule 'foo' is not defined \(line 2, column 13\)"),
        ('a ::= "x"', "no rule 'root'"),
        ('root ::= "x" )', r"line 1, column 14"),
        ('root ::= ("x"', r"line 1, column 10"),
        ('root ::= "x"\n "y" @', r"'@' is not expected here \(line 2, column 6\)"),
        ('root ::= "\\q"', r"unknown escape \\q \(line 1, column 11\)"),
        ("root ::= [z-a]", "out of order"),
        ('root ::= "a"{3,1}', "line 1, column 13"),
        ('root ::= "a"\nroot ::= "b"', r"twice \(line 2, column 1\)"),
        ('root ::= "a" root "a" | "b" root "b" | ""', "Rule 'root' is left-recursive, or ambiguous"),
        ('root ::= a\na ::= "z"? a "x" | "1"', "Rule 'a' is left-recursive"),
        ('root ::= "x" root', "No text matches rule 'root'"),
        ('start: foo "x"\nbar: "y"', r"foo.*line 1, column 8"),
        ('start: "x" (', "line 1 column 13|line 1, column 1"),
        ('a: "x"', "start"),
        ("start: A\n%import .foo.A", r"line 2, column 9"),
        ("start: A\nA: /a(?=b)/", "lookaround at position 1"),
        ("start: A\nA: /a\\b/", "word boundary"),
        ("start: A\nA: /[a/", r"(?i)\[a|unterminated"),
        ("regex:a(", "position 1"),
        ("  ", "grammar: got no text"),
    ],
)
def test_errors_say_what_and_where(text, said):
    with pytest.raises(ConstraintError, match=said):
        grammar.pushdown_automaton(text)
