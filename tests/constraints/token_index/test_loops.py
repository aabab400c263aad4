"""States that share a walk, or have only what differs walked, get the tables that a walk of their own gives them."""

from __future__ import annotations

import dataclasses

import machines
import numpy as np
import pytest

from mechanex_jax.constraints import json_schema, regex
from mechanex_jax.constraints.token_index import build as tables
from mechanex_jax.constraints.token_index import byte_classes
from mechanex_jax.constraints.token_index.loops import Loops
from mechanex_jax.constraints.token_index.trie_walk import Moves

TEXTS = ["name", "nam", 'names"', "na", "me", "n", '"name"', '":"', '","', '"}', '{"', "alpha"]
TEXTS += ["é", "né", "👍", "\\n", "\\u00", "ab", "e\\"]
CUT = ["é".encode()[1:] + b"n", b"a\xf0\x9f"]  # in the middle of a character
VOCABULARY = machines.byte_vocabulary([text.encode() for text in TEXTS] + CUT)
NAMES = {"name": {"type": "string"}, "names": {"type": "integer"}, "né": {"enum": ["na", "n"]}}
OPEN = {"type": "object", "properties": NAMES}
PUSHDOWNS = {
    "an open object": lambda: json_schema.pushdown_automaton(OPEN),
    "required": lambda: json_schema.pushdown_automaton({**OPEN, "required": ["names"], "maxProperties": 3}),
    "inside an array": lambda: json_schema.pushdown_automaton({"type": "array", "items": OPEN}),
    "patterns": lambda: json_schema.pushdown_automaton({**OPEN, "patternProperties": {"^n.*s$": {"type": "null"}}}),
    "excluded texts": lambda: json_schema.pushdown_automaton({"type": "string", "not": {"enum": ["name", "né", "a"]}}),
    "alternatives": lambda: json_schema.pushdown_automaton({"oneOf": [OPEN, {"required": ["name"], "type": "object"}]}),
    "any JSON": lambda: json_schema.pushdown_automaton(True),
    "forbidden terms": lambda: regex.forbidding(["name", "nan", "é"]),
    "a loop that may end": lambda: regex.pushdown_automaton("n[a-z]*(?:é[a-z]+)?"),
}  # fmt: skip


def without_distinct_strings(pushdown):
    """Where strings must be distinct no walk is shared; without that, these automata have all kinds of loops."""
    return dataclasses.replace(pushdown, boundary=np.arange(len(pushdown.boundary), dtype=np.int32))


def read(built: tables.Tables) -> list:
    """For each state what its tables say, however rows, blocks and suffixes are numbered."""
    labels = built.distance.shape[1]
    said = []
    for state, block in enumerate(built.block.tolist()):
        thresholds = []
        for label in range(labels):
            at = range(*built.first_threshold[[block * labels + label, block * labels + label + 1]])
            thresholds.append([(int(built.threshold[i]), built.masks[built.mask_row[i]].tobytes()) for i in at])
        groups = range(*built.first_group[[block, block + 1]])
        leaving = sorted(
            (token, int(built.group_label[g]))
            for g in groups
            for token in built.entry_token[built.first_entry[g] : built.first_entry[g + 1]].tolist()
        )
        masks = built.masks[built.all_tokens[block]].tobytes()
        said.append((built.distance[state].tolist(), thresholds, built.max_threshold[block].tolist(), masks, leaving))
    return said


@pytest.mark.parametrize("name", PUSHDOWNS)
def test_shared_walks_give_what_walks_state_by_state_give(monkeypatch, name):
    pushdown = without_distinct_strings(PUSHDOWNS[name]())
    shared = tables.build(pushdown, VOCABULARY, eos_ids=[0])
    none = np.zeros(len(pushdown.label), np.int64)
    monkeypatch.setattr(byte_classes.Loops, "of", lambda moves, leaving: Loops(none, none.astype(np.uint64), none))
    assert read(shared) == read(tables.build(pushdown, VOCABULARY, eos_ids=[0]))


def test_the_table_has_loops_detours_and_states_that_are_almost_loops():
    pushdown = without_distinct_strings(PUSHDOWNS["an open object"]())
    loops = Loops.of(Moves.of(pushdown), np.zeros(len(pushdown.label), bool))
    states = np.arange(len(pushdown.label))
    assert (loops.home == states).sum() > 1 and (loops.home > 0).sum() > 10 and (loops.base > 0).sum() > 5
