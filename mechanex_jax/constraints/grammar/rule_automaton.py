"""The automata that rules become, before their characters are bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mechanex_jax.constraints.automata.dfa import DEAD, CharDfa, useful
from mechanex_jax.constraints.automata.encoding import EncodingTree, to_bytes
from mechanex_jax.constraints.automata.minimize import coarsest
from mechanex_jax.constraints.automata.nfa import Alphabet
from mechanex_jax.constraints.automata.pushdown_builder import Builder

END = -1  # the place behind an automaton's last character

Member = tuple[int, tuple[int, ...]]  # a place, and the places to return to
Subset = frozenset[Member]
DONE: Member = (END, ())


@dataclasses.dataclass(eq=False)
class RuleAutomaton:
    """The subsets reached from one subset until its members' rules end, with their characters and calls.

    Label 0 is its end; the others, only where ends are returned early, stand for a subset that may end or go on.
    """

    rule: str
    key: Subset
    numbers: dict[Subset, int] = dataclasses.field(default_factory=dict)
    subsets: list[Subset] = dataclasses.field(default_factory=lambda: [frozenset()])
    rows: list[list[tuple[int, int]]] = dataclasses.field(default_factory=lambda: [[]])  # (class mask, target)
    calls: list[dict[tuple[Subset, int], int]] = dataclasses.field(default_factory=lambda: [{}])  # (called, label) -> target
    label: list[int] = dataclasses.field(default_factory=lambda: [-1])
    labels: list[Subset] = dataclasses.field(default_factory=lambda: [frozenset({DONE})])
    sites: list[tuple[RuleAutomaton, int, list[Member]]] = dataclasses.field(default_factory=list)

    def number(self, subset: Subset) -> int:
        if subset not in self.numbers:
            self.numbers[subset] = len(self.subsets)
            self.subsets.append(subset)
            self.rows.append([])
            self.calls.append({})
            self.label.append(-1)
        return self.numbers[subset]

    def emit(self, builder: Builder, ids: Mapping[Subset, int], rule: int, alphabet: Alphabet) -> None:
        """Write the states into a builder's `rule`, characters as bytes; `ids` are the rules of the automata it calls."""
        if len(self.subsets) == 1:
            return  # nothing but the empty text: it is never called
        chars = alphabet.table(self.rows)
        symbols = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbol for row in self.calls for symbol in row))}
        calls = np.zeros((len(chars), len(symbols)), np.int32)
        for state, row in enumerate(self.calls):
            for symbol, target in row.items():
                calls[state, symbols[symbol]] = target
        table, label = np.concatenate([chars, calls], axis=1), np.array(self.label, np.int16)
        keep = useful(table, label, 1)
        table = np.where(keep[table], table, DEAD)
        block = coarsest(table, np.where(keep, label, -1))
        _, first = np.unique(block, return_index=True)
        table = block[table[first]]
        width = alphabet.count
        dfa = CharDfa(alphabet.bounds, alphabet.classes, table[:, :width], label[first], int(block[1]))
        base = len(builder.states)
        builder.starts[rule] = builder.copy(rule, to_bytes(dfa))
        for state in range(1, len(table)):
            targets: dict[int, dict[int, int]] = {}
            for (key, ending), target in zip(symbols, table[state, width:].tolist(), strict=True):
                if target:
                    targets.setdefault(ids[key], {})[ending] = base + target
            for inner, returns in targets.items():
                builder.call(base + state, inner, returns)


def lead_bytes(alphabet: Alphabet) -> list[int]:
    """For each class the first bytes of its characters in UTF-8."""
    tree = EncodingTree(alphabet.bounds, alphabet.classes, "utf8")
    inside: list[set[int]] = []
    for edges in tree.nodes:
        inside.append({c for _, child in edges for c in ((~child,) if child < 0 else inside[child])})
    leads = [0] * alphabet.count
    for mask, child in tree.root:
        for c in (~child,) if child < 0 else inside[child]:
            leads[c] |= mask
    return leads
