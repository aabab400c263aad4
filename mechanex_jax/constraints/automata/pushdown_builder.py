"""Build a `PushdownAutomaton`: states, edges and calls of rules one by one, then one table with renumbered states."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np

from mechanex_jax.constraints.automata.byte_dfa import ByteDfa, byte_mask, mask_flags
from mechanex_jax.constraints.automata.pushdown import DEAD, PushdownAutomaton
from mechanex_jax.errors import ConstraintError

_QUOTE = 1 << 0x22


@dataclasses.dataclass
class _State:
    rule: int
    label: int
    edges: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (byte mask, target)
    calls: list[tuple[int, dict[int, int]]] = dataclasses.field(default_factory=list)  # (rule, label -> state)


class Builder:
    """Rules under construction. States are numbered across all rules; `finish` keeps what can matter."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.starts: list[int] = []
        self.states: list[_State] = []
        self.boundaries: dict[int, int] = {}

    def rule(self, name: str) -> int:
        """Add a rule; `start(rule)` is its first state."""
        self.names.append(name)
        self.starts.append(-1)
        self.starts[-1] = self.state(len(self.names) - 1)
        return len(self.names) - 1

    def start(self, rule: int) -> int:
        return self.starts[rule]

    def state(self, rule: int, label: int = -1) -> int:
        """Add a state; with a label >= 0 the rule may end there."""
        self.states.append(_State(rule, label))
        return len(self.states) - 1

    def label(self, state: int, label: int) -> None:
        """Let the rule end at `state`, which had no label."""
        self.states[state].label = label

    def string_edges(self, source: int, edges: Iterable[tuple[int, int]], *, distinct: bool) -> None:
        """Add the edges (mask, target) of a state inside a string; where it may be closed as a distinct one, also its twin.

        See `pushdown` for what a distinct string is.
        """
        twin = self.state(self.states[source].rule) if distinct else source
        for mask, target in edges:
            self.edge(twin, mask, target)
            if distinct:
                self.edge(source, mask & ~_QUOTE, target)
        if distinct:
            self.boundaries[source] = twin

    def edge(self, source: int, mask: int, target: int) -> None:
        """Add an edge on the bytes of `mask` (see `byte_mask`), from one state to another of the same rule."""
        if mask:
            self.states[source].edges.append((mask, target))

    def text(self, source: int, data: bytes, target: int) -> None:
        """Add a path that reads `data`, of at least one byte, through new states."""
        for byte in data[:-1]:
            step = self.state(self.states[source].rule)
            self.edge(source, 1 << byte, step)
            source = step
        self.edge(source, 1 << data[-1], target)

    def call(self, source: int, rule: int, returns: Mapping[int, int]) -> None:
        """Call `rule` on any byte that it can begin with, then go on at `returns[label]`. A label left out is not allowed."""
        self.states[source].calls.append((rule, dict(returns)))

    def copy(self, rule: int, dfa: ByteDfa, into: Mapping[int, int] | None = None) -> int:
        """Copy the states of a DFA into `rule`; returns the copy of its start.

        Args:
          rule: their new rule.
          dfa: with `into`, one whose accepting states have no edges.
          into: label -> state that stands in for every accepting state of that label; a label left out is not allowed. None
            keeps the labels.
        """
        if into is None:
            copies = [self.state(rule, label) for label in dfa.labels]
        else:
            copies = [self.state(rule) if label < 0 else into.get(label, -1) for label in dfa.labels]
        for state, edges in zip(copies, dfa.edges, strict=True):
            for mask, target in edges:
                if copies[target] >= 0:
                    self.edge(state, mask, copies[target])
        return copies[dfa.start]

    def finish(self, root: int, labels: Iterable[int] = (0,)) -> PushdownAutomaton:
        """Build the automaton of the texts that `root` ends with one of `labels`.

        States from which the text can't be completed are left out; what a caller cannot use is left out of the called rule
        too, by a copy of it for each set of endings that some caller allows.

        Raises:
          ConstraintError: a rule calls itself before reading a byte, may be empty where it is called, or leaves open, on some
            byte, which way to go.
        """
        return _Finish(self).run(root, byte_mask(labels))


class _Finish:
    def __init__(self, builder: Builder):
        self.builder = builder
        self.reach = self._reach()
        self.numbers: dict[tuple[int, int], int] = {}  # (state, endings) -> number
        self.order: list[tuple[int, int]] = []
        self.sites: dict[tuple[int, ...], int] = {}

    def _reach(self) -> list[int]:
        """For each state, the labels with which its rule can end from there, as bits: a least fixpoint."""
        states = self.builder.states
        reach = [0] * len(states)
        affects: list[list[int]] = [[] for _ in states]  # whose reach is read off this one's
        for index, state in enumerate(states):
            for _, target in state.edges:
                affects[target].append(index)
            if index in self.builder.boundaries:
                affects[self.builder.boundaries[index]].append(index)
            for rule, returns in state.calls:
                affects[self.builder.starts[rule]].append(index)
                for target in returns.values():
                    affects[target].append(index)
        queue = deque(index for index, state in enumerate(states) if state.label >= 0)
        waiting = set(queue)
        while queue:
            index = queue.popleft()
            waiting.discard(index)
            state = states[index]
            labels = reach[index] | (1 << state.label if state.label >= 0 else 0)
            for _, target in state.edges:
                labels |= reach[target]
            if index in self.builder.boundaries:
                labels |= reach[self.builder.boundaries[index]]
            for rule, returns in state.calls:
                inner = reach[self.builder.starts[rule]]
                for label, target in returns.items():
                    if inner >> label & 1:
                        labels |= reach[target]
            if labels != reach[index]:
                reach[index] = labels
                for other in affects[index]:
                    if other not in waiting:
                        waiting.add(other)
                        queue.append(other)
        return reach

    def _number(self, state: int, endings: int) -> int:
        """The number of a state in the copy of its rule that serves `endings`; 0 if nothing allowed can be reached."""
        if not self.reach[state] & endings:
            return DEAD
        # Endings that the rule never has make no difference.
        key = (state, endings & self.reach[self.builder.starts[self.builder.states[state].rule]])
        if key not in self.numbers:
            self.numbers[key] = len(self.order) + 1
            self.order.append(key)
        return self.numbers[key]

    def run(self, root: int, endings: int) -> PushdownAutomaton:
        builder = self.builder
        start = self._number(builder.starts[root], endings)
        plain: list[tuple[int, int, int]] = []  # (source, mask, target)
        calls: list[tuple[int, int, int]] = []  # (source, start of the called rule, site or -1)
        boundary: dict[int, int] = {}
        at = 0
        while at < len(self.order):
            state, endings = self.order[at]
            at += 1
            for mask, target in builder.states[state].edges:
                if number := self._number(target, endings):
                    plain.append((at, mask, number))
            if state in builder.boundaries and (number := self._number(builder.boundaries[state], endings)):
                boundary[at] = number
            for rule, returns in builder.states[state].calls:
                if edge := self._call(rule, returns, endings):
                    calls.append((at, *edge))
        pushdown = self._tables(start, plain, calls)
        for number, twin in boundary.items():
            pushdown.boundary[number] = twin
        return pushdown

    def _call(self, rule: int, returns: Mapping[int, int], endings: int) -> tuple[int, int] | None:
        builder = self.builder
        start = builder.starts[rule]
        if builder.states[start].label >= 0:
            raise ConstraintError(f"Rule {builder.names[rule]!r} may be empty where it is called.")
        usable = {y: t for y, t in returns.items() if self.reach[start] >> y & 1 and self.reach[t] & endings}
        if not usable:
            return None
        number = self._number(start, byte_mask(usable))
        last = all(
            builder.states[t].label == y and not builder.states[t].edges and not builder.states[t].calls
            for y, t in usable.items()
        )
        if last:  # nothing is left to do after it: the caller's caller is returned to
            return number, -1
        row = [DEAD] * (max(usable) + 1)
        for label, target in usable.items():
            row[label] = self._number(target, endings)
        return number, self.sites.setdefault(tuple(row), len(self.sites))

    def _tables(self, start: int, plain: list[tuple[int, int, int]], calls: list[tuple[int, int, int]]) -> PushdownAutomaton:
        builder, size = self.builder, len(self.order) + 1
        masks = {mask: index for index, mask in enumerate(dict.fromkeys(mask for _, mask, _ in plain))}
        flags = mask_flags(masks) if masks else np.zeros((0, 256), bool)
        columns, classes = np.unique(flags, axis=1, return_inverse=True)
        classes = classes.reshape(256).astype(np.uint8)
        width = columns.shape[1]
        target = np.zeros((size, width), np.int32)
        push = np.full((size, width), -1, np.int32)
        stay = np.zeros((size, width), bool)
        rule = np.zeros(size, np.int32)
        label = np.full(size, -1, np.int16)
        copies: dict[tuple[int, int], int] = {}
        for number, (state, endings) in enumerate(self.order, 1):
            rule[number] = copies.setdefault((builder.states[state].rule, endings), len(copies))
            end = builder.states[state].label
            label[number] = end if end >= 0 and endings >> end & 1 else -1
        self.names = tuple(builder.names[index] for index, _ in copies)
        self._fill(plain, [columns[index] for index in masks.values()], masks, target, rule)
        self._fill_calls(calls, target, push, stay, rule)
        labels = max((len(row) for row in self.sites), default=1)
        returns = np.zeros((len(self.sites), labels), np.int32)
        for row, site in self.sites.items():
            returns[site, : len(row)] = row
        pushdown = PushdownAutomaton(
            classes, target, push, stay, label, returns, rule, self.names, start, np.arange(size, dtype=np.int32)
        )
        _check_ends(pushdown)
        return pushdown

    def _ambiguous(self, rule: int) -> ConstraintError:
        return ConstraintError(f"Rule {self.names[rule]!r} is ambiguous: two ways begin with the same byte.")

    def _fill(self, plain: list, flags: list[np.ndarray], masks: dict[int, int], target: np.ndarray, rule: np.ndarray) -> None:
        if not plain:
            return
        columns = [np.flatnonzero(row) for row in flags]
        sources, which, targets = np.array([(s, masks[m], t) for s, m, t in plain]).T
        counts = np.array([len(c) for c in columns])[which]
        flat = np.concatenate([columns[w] for w in which])
        source, goal = np.repeat(sources, counts), np.repeat(targets, counts)
        np.maximum.at(target, (source, flat), goal)
        wrong = target[source, flat] != goal
        if wrong.any():
            raise self._ambiguous(int(rule[source[wrong][0]]))

    def _fill_calls(self, calls: list, target: np.ndarray, push: np.ndarray, stay: np.ndarray, rule: np.ndarray) -> None:
        """Write calls as edges on the bytes that the called rule begins with, which may be calls of its own."""
        of: dict[int, list[tuple[int, int]]] = {}
        for source, first, site in calls:
            of.setdefault(source, []).append((first, site))
        done: set[int] = set()

        def fill(source: int, path: tuple[int, ...]) -> None:
            if source in path:
                raise ConstraintError(
                    f"Rule {self.names[int(rule[source])]!r} is left-recursive: it calls itself before reading anything. "
                    "Write the repetition with * or + instead."
                )
            if source in done:
                return
            for first, site in of.get(source, ()):
                fill(first, (*path, source))
                begins = target[first] != DEAD
                if (begins & (target[source] != DEAD)).any():
                    raise self._ambiguous(int(rule[source]))
                # One step where the first byte leads straight on; otherwise the byte is left for the called rule.
                straight = begins & (push[first] < 0) & ~stay[first]
                if site < 0:
                    straight = begins
                target[source, straight] = target[first, straight]
                push[source, straight] = push[first, straight] if site < 0 else site
                stay[source, straight] = stay[first, straight]
                other = begins & ~straight
                target[source, other], push[source, other], stay[source, other] = first, site, True
            done.add(source)

        for source in of:
            fill(source, ())
        del fill  # it holds itself, and the tables


def _check_ends(pushdown: PushdownAutomaton) -> None:
    """Raise where a rule could go on or end at the same byte: preferring one would lose texts."""
    begins = pushdown.target != DEAD
    open_ends = np.flatnonzero((pushdown.label >= 0) & begins.any(axis=1))
    if not len(open_ends):
        return
    follow = _follow(pushdown, begins)
    for state in open_ends:
        clash = begins[state] & follow.get((int(pushdown.rule[state]), int(pushdown.label[state])), False)
        if np.any(clash):
            raise ConstraintError(
                f"Rule {pushdown.names[pushdown.rule[state]]!r} is ambiguous: where it may end, what follows it begins like "
                "what would continue it."
            )


def _follow(pushdown: PushdownAutomaton, begins: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(rule, label) -> bool [C]: the classes with which a text can go on behind that ending. A safe superset."""
    callers: dict[tuple[int, int], set[int]] = {}  # ending -> states returned to
    tails: dict[tuple[int, int], set[int]] = {}  # ending -> rules that end with it, having called in their last step
    sources, columns = np.nonzero(begins & (pushdown.push < 0))
    targets = pushdown.target[sources, columns]
    across = pushdown.rule[sources] != pushdown.rule[targets]
    for source, target in zip(sources[across], targets[across], strict=True):
        for label in range(pushdown.returns.shape[1]):
            tails.setdefault((int(pushdown.rule[target]), label), set()).add(int(pushdown.rule[source]))
    sources, columns = np.nonzero(pushdown.push >= 0)
    for source, column in zip(sources, columns, strict=True):
        called = int(pushdown.rule[pushdown.target[source, column]])
        for label, back in enumerate(pushdown.returns[pushdown.push[source, column]]):
            if back != DEAD:
                callers.setdefault((called, label), set()).add(int(back))
    follow = {ending: np.zeros(begins.shape[1], bool) for ending in (*callers, *tails)}
    changed = True
    while changed:
        changed = False
        for ending, known in follow.items():
            before = known.copy()
            for rule in tails.get(ending, ()):
                follow[ending] |= follow.get((rule, ending[1]), False)
            for state in callers.get(ending, ()):
                follow[ending] |= begins[state]
                if pushdown.label[state] >= 0:
                    follow[ending] |= follow.get((int(pushdown.rule[state]), int(pushdown.label[state])), False)
            changed |= bool((follow[ending] != before).any())
    return follow
