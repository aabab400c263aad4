"""Deterministic finite automata over code points: construction, Boolean operations, minimization."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.minimize import coarsest
from mechanex_jax.errors import ConstraintError

DEAD = 0


@dataclasses.dataclass(frozen=True)
class CompileLimits:
    """Bounds on the work of compiling one constraint, beyond which it is refused. None of them is a time: what compiles on
    one machine compiles on every other, however busy.

    Attributes:
      states: states of one automaton.
      work: positions looked at while one automaton is determinized, or entries of a product's table in units of 32.
      steps: operands of formulas that are made from a JSON schema.
    """

    states: int = 200_000
    work: int = 400_000
    steps: int = 5_000_000

    def meter(self, what: str) -> Callable[..., None]:
        """Make a function `(states, work=0)` that raises `ConstraintError` about `what` beyond the limits."""

        def check(states: int, work: int = 0) -> None:
            if states > self.states or work > self.work:
                ran_out = (
                    f"its automaton needs more than {self.states:,} states"
                    if states > self.states
                    else f"finding its automaton takes more than {self.work:,} steps (at {states:,} states)"
                )
                raise ConstraintError(
                    f"{what} is too large: {ran_out}. Use smaller bounds of repetition, or a pattern in which what may follow "
                    "depends less on how the text began."
                )

        return check


DEFAULT_LIMITS = CompileLimits()


@dataclasses.dataclass(frozen=True, eq=False)
class CharDfa:
    """A complete DFA over code points. State 0 is dead, and every state goes there on a surrogate.

    Attributes:
      bounds: int32 [C], ascending starts of intervals of code points, beginning with 0; interval c ends before bounds[c + 1].
      classes: int32 [C], the class of each interval; class 0 is the surrogates, and may hold characters that no text has.
      next: int32 [S, K], by state and class.
      label: int16 [S], -1 where the text may not end; other values say which of several languages it belongs to.
      start: a state; 0 if the language is empty.
    """

    bounds: np.ndarray
    classes: np.ndarray
    next: np.ndarray
    label: np.ndarray
    start: int

    def label_of(self, text: str) -> int:
        """The label that `text` ends with, -1 if it is not accepted."""
        state = self.start
        if text:
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
            for column in self.classes[np.searchsorted(self.bounds, points, side="right") - 1].tolist():
                state = int(self.next[state, column])
        return int(self.label[state])

    def accepts(self, text: str) -> bool:
        """Whether `text`, all of it, is in the language (of any label)."""
        return self.label_of(text) >= 0

    def is_empty(self) -> bool:
        """Whether no text is accepted."""
        return self.shortest() is None

    def labels(self) -> frozenset[int]:
        """The labels that some text ends with."""
        live = self.label[_reached(self.next, [self.start])] if self.start else np.array([], int)
        return frozenset(live[live >= 0].tolist())

    def shortest(self, label: int | None = None) -> str | None:
        """A shortest accepted text (with this label, if one is given), None if there is none. Prefers printable ASCII."""
        came: dict[int, tuple[int, int]] = {self.start: (-1, -1)}
        queue, sample = deque([self.start] if self.start else []), _samples(self.bounds, self.classes)
        while queue:
            state = queue.popleft()
            if self.label[state] >= 0 if label is None else self.label[state] == label:
                points = []
                while came[state][0] >= 0:
                    state, column = came[state]
                    points.append(sample[column])
                return "".join(map(chr, reversed(points)))
            for column in np.flatnonzero(self.next[state]).tolist():
                target = int(self.next[state, column])
                if target not in came:
                    came[target] = (state, column)
                    queue.append(target)
        return None


def _samples(bounds: np.ndarray, classes: np.ndarray) -> dict[int, int]:
    """A code point of each class."""
    sample: dict[int, int] = {}
    printable = [*range(0x61, 0x7B), *range(0x30, 0x3A), *range(0x20, 0x7F)]
    columns = classes[np.searchsorted(bounds, printable, side="right") - 1]
    for point, column in zip([*printable, *bounds.tolist()], [*columns.tolist(), *classes.tolist()], strict=True):
        sample.setdefault(column, point)
    return sample


# -- Building -----------------------------------------------------------------------------------------------------------------


def everything() -> CharDfa:
    """Every text, label 0."""
    return length(0, None)


def nothing() -> CharDfa:
    """No text."""
    bounds, classes, _ = charset.alphabet([charset.ANY])
    return CharDfa(bounds, classes, np.zeros((1, 2), np.int32), np.array([-1], np.int16), DEAD)


def length(minimum: int, maximum: int | None) -> CharDfa:
    """Texts of `minimum` to `maximum` code points (None: no upper bound), label 0."""
    if maximum is not None and maximum < minimum:
        return nothing()
    bounds, classes, _ = charset.alphabet([charset.ANY])
    last = minimum if maximum is None else maximum
    table = np.zeros((last + 2, 2), np.int32)
    table[1:-1, 1] = np.arange(2, last + 2)
    table[-1, 1] = last + 1 if maximum is None else DEAD
    label = np.where(np.arange(last + 2) > minimum, 0, -1).astype(np.int16)
    return CharDfa(bounds, classes, table, label, 1)


def literals(texts: Mapping[str, int]) -> CharDfa:
    """Exactly these texts, each with its label: a trie."""
    points = sorted({ord(char) for text in texts for char in text})
    bounds, classes, member = charset.alphabet([((p, p),) for p in points])
    column = {chr(p): int(np.flatnonzero(row)[0]) for p, row in zip(points, member, strict=True) if row.any()}
    edges: list[dict[int, int]] = [{}, {}]
    label = [-1, -1]
    for text, value in texts.items():
        if any(char not in column for char in text):
            continue  # a lone surrogate: no text that can be written
        state = 1
        for char in text:
            following = edges[state].setdefault(column[char], len(edges))
            if following == len(edges):
                edges.append({})
                label.append(-1)
            state = following
        label[state] = value
    table = np.zeros((len(edges), int(classes.max()) + 1), np.int32)
    for state, row in enumerate(edges):
        for c, target in row.items():
            table[state, c] = target
    return trim(CharDfa(bounds, classes, table, np.array(label, np.int16), 1))


# -- Reachability and minimisation ---------------------------------------------------------------------------------------------


def _spread(sources: np.ndarray, targets: np.ndarray, count: int, seeds: Sequence[int]) -> np.ndarray:
    """bool [count]: what can be reached from the seeds along the edges."""
    order = np.argsort(sources, kind="stable")
    first = np.searchsorted(sources[order], np.arange(count + 1)).tolist()
    ends = targets[order].tolist()
    seen = bytearray(count)
    stack = list(seeds)
    for seed in stack:
        seen[seed] = 1
    while stack:
        at = stack.pop()
        for target in ends[first[at] : first[at + 1]]:
            if not seen[target]:
                seen[target] = 1
                stack.append(target)
    return np.frombuffer(seen, bool)


def _reached(table: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    sources, columns = np.nonzero(table)
    return _spread(sources, table[sources, columns], len(table), seeds)


def useful(table: np.ndarray, label: np.ndarray, start: int) -> np.ndarray:
    """bool [S]: states that can be reached, and from which a text can end; never state 0."""
    sources, columns = np.nonzero(table)
    targets = table[sources, columns]
    keep = _spread(sources, targets, len(table), [start])
    keep = keep & _spread(targets, sources, len(table), np.flatnonzero(label >= 0).tolist())
    keep[DEAD] = False
    return keep


def trim(dfa: CharDfa) -> CharDfa:
    """The same language without states that don't matter."""
    keep = useful(dfa.next, dfa.label, dfa.start)
    keep[DEAD] = True
    if keep.all():
        return dfa
    number = np.where(keep, np.cumsum(keep) - 1, DEAD).astype(np.int32)
    return CharDfa(dfa.bounds, dfa.classes, number[dfa.next[keep]], dfa.label[keep], int(number[dfa.start]))


def minimize(dfa: CharDfa) -> CharDfa:
    """The smallest automaton of the same language and labels; classes and states that no text tells apart are merged."""
    dfa = trim(dfa)
    block = coarsest(dfa.next, dfa.label)
    _, first = np.unique(block, return_index=True)
    table = block[dfa.next[first]]
    kept, column = np.unique(table, axis=1, return_inverse=True)
    column = column.reshape(-1)
    # Class 0 stays the surrogates; another class that no text may contain is merged with it.
    if column[0] != 0:
        swap = np.arange(kept.shape[1])
        swap[[0, column[0]]] = swap[[column[0], 0]]
        kept, column = kept[:, swap], swap[column]
    classes = column[dfa.classes]
    fresh = np.concatenate([[True], classes[1:] != classes[:-1]])
    return CharDfa(
        dfa.bounds[fresh], classes[fresh].astype(np.int32), kept.astype(np.int32), dfa.label[first], int(block[dfa.start])
    )


# -- Boolean operations --------------------------------------------------------------------------------------------------------


def product(
    automata: Sequence[CharDfa], combine: Callable[[tuple[int, ...]], int], limits: CompileLimits = DEFAULT_LIMITS
) -> CharDfa:
    """Run automata side by side; a text's label is `combine` of their labels.

    Args:
      automata: at least one.
      combine: labels, -1 for not accepted, to a label; called once for every combination that occurs.
      limits: states and work.

    Raises:
      ConstraintError: beyond the limits.
    """
    check = limits.meter("A combination of patterns")
    bounds = np.unique(np.concatenate([np.array([0xD800, 0xE000]), *[a.bounds for a in automata]])).astype(np.int32)
    columns = np.stack([a.classes[np.searchsorted(a.bounds, bounds, side="right") - 1] for a in automata])
    lost = (bounds >= 0xD800) & (bounds < 0xE000)
    columns[:, lost] = -1  # sorts the surrogates first
    joint, classes = np.unique(columns, axis=1, return_inverse=True)
    tables = [a.next[:, c].tolist() for a, c in zip(automata, joint, strict=True)]
    ends = [a.label.tolist() for a in automata]
    known: dict[tuple[int, ...], int] = {}
    first = tuple(a.start for a in automata)
    dead = (DEAD,) * len(automata)
    numbers: dict[tuple[int, ...], int] = {dead: DEAD} if combine((-1,) * len(automata)) < 0 else {}
    numbers.setdefault(first, 1)
    order = [first] if numbers[first] else []
    table, label = [[DEAD] * joint.shape[1]], [-1]
    for state in order:
        if not len(table) % 256:
            check(len(table), len(table) * joint.shape[1] // 32)
        row = [DEAD]
        for target in list(zip(*[t[s] for t, s in zip(tables, state, strict=True)], strict=True))[1:]:
            number = numbers.get(target)
            if number is None:
                number = numbers[target] = len(order) + 1
                order.append(target)
            row.append(number)
        table.append(row)
        labels = tuple([e[s] for e, s in zip(ends, state, strict=True)])
        if labels not in known:
            known[labels] = combine(labels)
        label.append(known[labels])
    check(len(table))
    start = numbers[first]
    dfa = CharDfa(bounds, classes.reshape(-1).astype(np.int32), np.array(table, np.int32), np.array(label, np.int16), start)
    return trim(dfa)


def union(*automata: CharDfa, limits: CompileLimits = DEFAULT_LIMITS) -> CharDfa:
    """Texts that any of them accepts, label 0; minimal."""
    return minimize(product(automata, lambda labels: 0 if max(labels) >= 0 else -1, limits))


def intersection(*automata: CharDfa, limits: CompileLimits = DEFAULT_LIMITS) -> CharDfa:
    """Texts that all of them accept, label 0; minimal."""
    return minimize(product(automata, lambda labels: 0 if min(labels) >= 0 else -1, limits))


def complement(dfa: CharDfa) -> CharDfa:
    """Texts that it does not accept, label 0; minimal."""
    return minimize(product([dfa], lambda labels: -1 if labels[0] >= 0 else 0))
