"""Thompson's construction and the subset construction, with anchors and word boundaries: expressions to DFAs.

A subset's members are places between characters. Conditions on the neighbouring characters (`^`, `$`, `\\b`, ...) are decided
while the next character is read, from its kind and that of the one before, which the subset remembers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.charset import CharSet
from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CharDfa, CompileLimits, minimize
from mechanex_jax.constraints.automata.expression import Alternation, Assertion, CharClass, Concat, Node, Repeat, RuleRef

NEWLINE: CharSet = ((10, 10),)
_EDGE = 1 << 30  # the kind of what lies before the first and after the last character
_NEWLINE_KINDS = ("final", "line_begin", "line_end")


class Nfa:
    """A nondeterministic automaton: epsilon moves, assertions, characters and rule calls lead from state to state."""

    def __init__(self, limits: CompileLimits = DEFAULT_LIMITS):
        self.check = limits.meter("The pattern")
        self.epsilon: list[list[int]] = []
        self.assertions: list[list[tuple[Assertion, int]]] = []
        self.transitions: list[list[tuple[int, int]]] = []  # (set, target)
        self.rule_calls: list[list[tuple[str, int]]] = []
        # States that stand for the same position in optional copies of a repeated part share a family; the earlier copy, the
        # smaller number, accepts whatever the later one does.
        self.family: list[int] = []
        self.repeats = False
        self.sets: dict[CharSet, int] = {}

    def state(self) -> int:
        self.family.append(len(self.epsilon))
        self.epsilon.append([])
        self.assertions.append([])
        self.transitions.append([])
        self.rule_calls.append([])
        if not len(self.epsilon) % 1024:
            self.check(len(self.epsilon) // 4)
        return len(self.epsilon) - 1

    def add(self, node: Node, start: int, end: int) -> None:
        """Add the transitions that read `node` from `start` to `end`."""
        match node:
            case CharClass(chars):
                if chars:
                    self.transitions[start].append((self.sets.setdefault(chars, len(self.sets)), end))
            case Assertion():
                if node.kind in _NEWLINE_KINDS:
                    self.sets.setdefault(NEWLINE, len(self.sets))
                if node.words:
                    self.sets.setdefault(node.words, len(self.sets))
                self.assertions[start].append((node, end))
            case RuleRef(name):
                self.rule_calls[start].append((name, end))
            case Concat(parts):
                for part in parts[:-1]:
                    middle = self.state()
                    self.add(part, start, middle)
                    start = middle
                if parts:
                    self.add(parts[-1], start, end)
                else:
                    self.epsilon[start].append(end)
            case Alternation(parts):
                for part in parts:
                    self._apart(part, start, end)
            case Repeat():
                self._repeat(node, start, end)
            case _:
                raise TypeError(f"No automaton stands for {node}.")

    def _apart(self, node: Node, start: int, end: int) -> None:
        """Add `node` behind a new beginning, so that loops in `node` don't touch what else begins at `start`."""
        if isinstance(node, CharClass | RuleRef):
            self.add(node, start, end)
            return
        beginning = self.state()
        self.epsilon[start].append(beginning)
        self.add(node, beginning, end)

    def _repeat(self, node: Repeat, start: int, end: int) -> None:
        inner = node.body
        if isinstance(inner, Repeat) and inner.minimum == 0 and node.maximum != 0:
            # Optional parts repeated are optional parts: without this, empty moves would grow with the square of the bound.
            unbounded = inner.maximum is None or (node.maximum is None and inner.maximum)
            bound = None if unbounded else inner.maximum and (inner.maximum * (node.maximum or 0))
            self._repeat(Repeat(inner.body, 0, bound), start, end)
            return
        self.check(len(self.epsilon) // 4 + max(node.minimum, node.maximum or 0))
        for _ in range(node.minimum):
            after = self.state()
            self._apart(node.body, start, after)
            start = after
        if node.maximum is None:
            loop = self.state()
            self.epsilon[start].append(loop)
            self._apart(node.body, loop, loop)
            self.epsilon[loop].append(end)
            return
        self.epsilon[start].append(end)
        first = len(self.epsilon)
        optional = node.maximum - node.minimum
        for _ in range(optional):
            after = self.state()
            self._apart(node.body, start, after)
            self.epsilon[after].append(end)
            start = after
        if optional > 1:
            size = (len(self.epsilon) - first) // optional
            self.repeats = True
            for state in range(first + size, len(self.epsilon)):
                self.family[state] = self.family[state - size]

    def strongest(self, states: frozenset[int]) -> frozenset[int]:
        """Drop the states that another one of their family makes superfluous."""
        best: dict[int, int] = {}
        for state in sorted(states, reverse=True):
            best[self.family[state]] = state
        return frozenset(best.values())


class Alphabet:
    """The coarsest classes of characters that tell some sets apart, as bit masks."""

    def __init__(self, sets: Iterable[CharSet]):
        self.bounds, self.classes, member = charset.alphabet([*sets, charset.ANY])
        self.count = member.shape[1]
        self.masks = [sum(1 << int(c) for c in np.flatnonzero(row)) for row in member]
        self.everything = self.masks.pop()

    def split(self, items: Iterable[tuple[int, int]]) -> list[tuple[int, list[int]]]:
        """Split (mask, target) pairs into disjoint masks, each with all of its targets."""
        by_mask: dict[int, list[int]] = {}
        for mask, target in items:
            by_mask.setdefault(mask, []).append(target)
        parts: list[tuple[int, list[int]]] = []
        for mask, targets in by_mask.items():
            split = []
            for known, reached in parts:
                if both := known & mask:
                    split.append((both, reached + targets))
                if known & ~mask:
                    split.append((known & ~mask, reached))
                mask &= ~known
            if mask:
                split.append((mask, targets))
            parts = split
        return parts

    def indices(self, mask: int) -> list[int]:
        return [c for c in range(self.count) if mask >> c & 1]

    def table(self, rows: list[list[tuple[int, int]]]) -> np.ndarray:
        """int32 [S, K] of (mask, target) pairs a row."""
        table = np.zeros((len(rows), self.count), np.int32)
        by_mask: dict[int, tuple[list[int], list[int]]] = {}
        for state, row in enumerate(rows):
            for mask, target in row:
                states, targets = by_mask.setdefault(mask, ([], []))
                states.append(state)
                targets.append(target)
        for mask, (states, targets) in by_mask.items():
            table[np.ix_(states, self.indices(mask))] = np.array(targets)[:, None]
        return table


class _SubsetConstruction:
    """The subset construction. A member is 2 * state, + 1 if the text has to be over already."""

    def __init__(self, nfa: Nfa, start: int, end: int, everything: int | None, limits: CompileLimits):
        self.nfa, self.end, self.universal = nfa, end, everything
        self.check = limits.meter("The pattern")
        self.alphabet = Alphabet(nfa.sets)
        looks = {look for row in nfa.assertions for look, _ in row}
        # The kind of a character: one bit for each set that a condition asks about.
        kinds = {look.words or NEWLINE for look in looks if look.words or look.kind in _NEWLINE_KINDS}
        self.bit = {chars: 1 << i for i, chars in enumerate(sorted(kinds))}
        self.by_kind: dict[int, int] = {}
        for column in self.alphabet.indices(self.alphabet.everything):
            kind = sum(b for chars, b in self.bit.items() if self.alphabet.masks[nfa.sets[chars]] >> column & 1) if looks else 0
            self.by_kind[kind] = self.by_kind.get(kind, 0) | 1 << column
        self.plain = not looks
        self.work = 0
        self.memo: dict[tuple[int, int, int], tuple[list[tuple[int, int]], bool]] = {}
        self.start = start

    def holds(self, at: Assertion, before: int, after: int) -> bool | None:
        """Whether a condition holds between two kinds; None: only if the next character is the last."""
        newline, words = self.bit.get(NEWLINE, 0), self.bit.get(at.words, 0)
        match at.kind:
            case "begin":
                return before == _EDGE
            case "end":
                return after == _EDGE
            case "final":
                return True if after == _EDGE else None if after & newline else False
            case "line_begin":
                return bool(before == _EDGE or before & newline)
            case "line_end":
                return bool(after == _EDGE or after & newline)
            case "boundary":
                return bool(before & words) != bool(after & words)
            case "not_boundary":
                return bool(before & words) == bool(after & words)
            case _:
                return bool(before & words) == bool(after & words) and not before == after == _EDGE

    def closure(self, member: int, before: int, after: int) -> tuple[list[tuple[int, int]], bool]:
        """Follow epsilon moves between two kinds: (set, member) pairs that read on, and whether the end is reached."""
        key = (member, before, after)
        if key in self.memo:
            return self.memo[key]
        nfa, reads, accepted = self.nfa, [], False
        if not (member & 1 and after != _EDGE):
            member &= ~1
            seen, stack = {member}, [member]
            while stack:
                at = stack.pop()
                place, last = at >> 1, at & 1
                accepted |= place == self.end
                reads += [(chars, target << 1 | last) for chars, target in nfa.transitions[place]]
                moves = [target << 1 | last for target in nfa.epsilon[place]]
                for look, target in nfa.assertions[place]:
                    verdict = self.holds(look, before, after)
                    if verdict is not False:
                        moves.append(target << 1 | last | (verdict is None))
                for move in moves:
                    if move not in seen:
                        seen.add(move)
                        stack.append(move)
            self.work += len(seen)
        self.memo[key] = reads, accepted
        return reads, accepted

    def subset(self, members: Iterable[int]) -> frozenset[int]:
        """Members as a subset in normal form: equal languages should be equal subsets."""
        subset = frozenset(members)
        if self.universal is not None and self.universal in subset:
            return frozenset([self.universal])
        if self.nfa.repeats and len(subset) > 1:
            free = self.nfa.strongest(frozenset(m >> 1 for m in subset if not m & 1))
            return frozenset([*(p << 1 for p in free), *(m for m in subset if m & 1)])
        return subset

    def run(self) -> CharDfa:
        first: tuple[frozenset[int], int] = (frozenset([self.start << 1]), 0 if self.plain else _EDGE)
        numbers: dict[tuple[frozenset[int], int], int] = {first: 1}
        order: list[tuple[frozenset[int], int]] = [first]
        rows: list[list[tuple[int, int]]] = [[]]
        label = [-1]
        masks = self.alphabet.masks
        for members, before in order:
            self.work += len(members)
            self.check(len(order), self.work)
            row = []
            for kind, columns in self.by_kind.items():
                items: list[tuple[int, int]] = []
                for member in members:
                    items += self.closure(member, before, kind)[0]
                kept = kind if not self.plain else 0
                for mask, targets in self.alphabet.split([(masks[chars] & columns, target) for chars, target in items]):
                    key = (self.subset(targets), kept)
                    number = numbers.get(key)
                    if number is None:
                        number = numbers[key] = len(order) + 1
                        order.append(key)
                    row.append((mask, number))
            rows.append(row)
            ends = any(self.closure(member, before, _EDGE)[1] for member in members)
            label.append(0 if ends else -1)
        table = self.alphabet.table(rows)
        return minimize(CharDfa(self.alphabet.bounds, self.alphabet.classes, table, np.array(label, np.int16), 1))


def determinize(node: Node, *, search: bool = False, limits: CompileLimits = DEFAULT_LIMITS) -> CharDfa:
    """Build the minimal DFA of an expression without rule references or lookaround, label 0.

    Args:
      node: an expression.
      search: accept texts that have a matching part, not only those that match as a whole.
      limits: states and work.

    Raises:
      ConstraintError: beyond the limits.
    """
    nfa = Nfa(limits)
    start, end = nfa.state(), nfa.state()
    universal = None
    if search:
        first, last = nfa.state(), nfa.state()
        anything = Repeat(CharClass(charset.ANY), 0, None)
        nfa.add(anything, start, first)
        nfa.add(node, first, last)
        universal = nfa.state()
        nfa.epsilon[last].append(universal)
        nfa.add(CharClass(charset.ANY), universal, universal)
        nfa.epsilon[universal].append(end)
    else:
        nfa.add(node, start, end)
    return _SubsetConstruction(nfa, start, end, None if universal is None else universal << 1, limits).run()
