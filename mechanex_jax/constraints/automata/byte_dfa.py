"""Deterministic finite automata over bytes, their edges labelled by sets of bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from mechanex_jax.constraints.automata.minimize import coarsest

ALL_BYTES = (1 << 256) - 1


def byte_mask(values: Iterable[int]) -> int:
    """A set of bytes as an integer, bit b standing for byte b."""
    mask = 0
    for value in values:
        mask |= 1 << value
    return mask


def mask_flags(masks: Iterable[int]) -> np.ndarray:
    """bool [N, 256] of N byte sets."""
    packed = b"".join(mask.to_bytes(32, "little") for mask in masks)
    return np.unpackbits(np.frombuffer(packed, np.uint8).reshape(-1, 32), axis=1, bitorder="little").astype(bool)


@dataclasses.dataclass(eq=False)
class ByteDfa:
    """A partial DFA over bytes: a byte without an edge is rejected.

    Attributes:
      edges: by state, (byte mask, target); the masks of one state are disjoint.
      labels: by state, -1 where the text may not end; other values say which of several languages it belongs to.
      start: a state.
    """

    edges: list[list[tuple[int, int]]]
    labels: list[int]
    start: int

    @functools.cached_property
    def reach(self) -> list[int]:
        """The labels that can be reached from each state, as bits. The automaton must not change any more."""
        before: list[list[int]] = [[] for _ in self.edges]
        for state, edges in enumerate(self.edges):
            for _, target in edges:
                before[target].append(state)
        reach = [1 << label if label >= 0 else 0 for label in self.labels]
        work = [state for state, bits in enumerate(reach) if bits]
        while work:
            state = work.pop()
            for source in before[state]:
                if reach[state] & ~reach[source]:
                    reach[source] |= reach[state]
                    work.append(source)
        return reach

    def state(self, label: int = -1) -> int:
        """Add a state without edges."""
        self.edges.append([])
        self.labels.append(label)
        return len(self.edges) - 1

    def minimize(self) -> ByteDfa:
        """The smallest automaton of the same language and labels."""
        masks = {mask: i for i, mask in enumerate(dict.fromkeys(mask for edges in self.edges for mask, _ in edges))}
        if not masks:
            return self
        columns = np.unique(mask_flags(masks), axis=1)
        members = [np.flatnonzero(row) for row in columns]
        table = np.zeros((len(self.edges) + 1, columns.shape[1]), np.int32)  # row 0 is the dead state
        for state, edges in enumerate(self.edges, 1):
            for mask, target in edges:
                table[state, members[masks[mask]]] = target + 1
        dead, *block = coarsest(table, np.array([-1, *self.labels])).tolist()
        smallest = ByteDfa([], [], 0)
        numbers = {block[self.start]: smallest.state(self.labels[self.start])}
        order = [self.start]
        for state in order:
            merged: dict[int, int] = {}
            for mask, target in self.edges[state]:
                if block[target] == dead:
                    continue
                if block[target] not in numbers:
                    numbers[block[target]] = smallest.state(self.labels[target])
                    order.append(target)
                number = numbers[block[target]]
                merged[number] = merged.get(number, 0) | mask
            smallest.edges[numbers[block[state]]] = [(mask, number) for number, mask in merged.items()]
        return smallest
