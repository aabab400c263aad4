"""How many steps (tokens or bytes) a frame needs at least to end with each of its labels.

A frame is a called rule's run, from its call to its return. The cost of a call is that of the frame it opens plus that of what
follows behind the return, least over the labels it may end with: shortest derivations (Knuth 1977), found by relaxation over
whole arrays, one round for each step of the longest.
"""

from __future__ import annotations

import numpy as np

from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.token_index.trie_walk import KeyNumbering, Stacks

UNREACHABLE = 1 << 28  # a distance; more than any number of tokens; sums of a few still fit an int32


class Configurations:
    """Pairs of a state and a stack above the frame's bottom, as nodes: node s is state s with nothing on the stack.

    Args:
      pushdown: whose states and returns.
      stacks: what stack numbers mean.
    """

    def __init__(self, pushdown: PushdownAutomaton, stacks: Stacks):
        self.pushdown, self.stacks = pushdown, stacks
        self.states = len(pushdown.label)
        self._numbering = KeyNumbering()
        self.state, self.stack = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def nodes(self, state: np.ndarray, stack: np.ndarray) -> np.ndarray:
        """The node of each pair."""
        node = state.astype(np.int64)
        called = np.flatnonzero(stack)
        if len(called):
            numbers, fresh = self._numbering.number(stack[called] * self.states + node[called])
            node[called] = self.states + numbers
            self.state = np.concatenate([self.state, fresh % self.states])
            self.stack = np.concatenate([self.stack, fresh // self.states])
        return node

    def returns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The ways out of the frames above the bottom, for all nodes and those that they lead to.

        Returns:
          Edges (node, state, label, next): from `node` one reaches `next` once its top frame, at `state`, ends with `label`.
        """
        edges = []
        done = 0
        while done < len(self.state):
            low, done = done, len(self.state)
            back = self.pushdown.returns[self.stacks.site[self.stack[low:done]]]
            item, label = np.nonzero(back)
            after = self.nodes(back[item, label], self.stacks.parent[self.stack[low + item]])
            edges.append((self.states + low + item, self.state[low + item], label, after))
        if not edges:
            edges = [(np.zeros(0, np.int64),) * 4]
        node, state, label, after = (np.concatenate(column) for column in zip(*edges, strict=True))
        return node, state, label, after


def shortest_distances(
    pushdown: PushdownAutomaton,
    configurations: Configurations,
    source: np.ndarray,
    after: np.ndarray,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the least numbers of steps, and how high the stack grows on the shortest ways.

    Args:
      pushdown: gives the labels that frames end with, K of them.
      configurations: the nodes that `after` names.
      source: states; one step leads from `source[i]` to node `after[i]`.
      known: int32 [S, K], the states' distances where they have been solved already.

    Returns:
      distance: int32 [N, K], of every node; `UNREACHABLE` where there is no way.
      height: int32 [N, K], the most that any shortest way has on the stack above the frame's bottom (between steps).
    """
    # A string that may not be closed, as it is equal to another, takes one token more: every distinct one is given it.
    inside = np.flatnonzero(pushdown.boundary != np.arange(len(pushdown.boundary)))
    source, after = np.concatenate([source, inside]), np.concatenate([after, pushdown.boundary[inside]])
    node, called_state, label, behind = configurations.returns()
    labels = pushdown.returns.shape[1]
    size = configurations.states + len(configurations.state)
    distance = np.full((size, labels), UNREACHABLE, np.int32)
    ends = np.flatnonzero(pushdown.label >= 0)
    distance[ends, pushdown.label[ends]] = 0
    if known is not None:
        distance[: len(known)] = known
    # Both kinds of edge as one: distance[start, :] <= (distance[through, ending], or 1 for a step) + distance[to, :].
    start = np.concatenate([source, node])
    order = np.argsort(start, kind="stable")
    start, to = start[order], np.concatenate([after, behind])[order]
    through = np.concatenate([np.full(len(source), -1), called_state])[order]
    ending = np.concatenate([np.zeros(len(source), np.int64), label])[order]
    called = through >= 0
    changed = np.zeros(size, bool)
    changed[: configurations.states] = (distance[: configurations.states] < UNREACHABLE).any(axis=1)
    while changed.any():
        edges = np.flatnonzero(changed[to] | (called & changed[through]))
        if not len(edges):
            break
        into, groups = np.unique(start[edges], return_index=True)
        best = np.minimum(np.minimum.reduceat(_cost(distance, to, through, ending, edges), groups, axis=0), distance[into])
        better = (best < distance[into]).any(axis=1)
        distance[into] = best
        changed[:] = False
        changed[into[better]] = True
    return distance, _heights(configurations, distance, start, to, through, ending)


def _cost(distance: np.ndarray, to: np.ndarray, through: np.ndarray, ending: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int32 [E, K], the distances of the edges' starts if each took its edge."""
    first = np.where(through[edges] >= 0, distance[through[edges], ending[edges]], 1)
    return np.minimum(distance[to[edges]] + first[:, None], UNREACHABLE)


def _heights(
    configurations: Configurations,
    distance: np.ndarray,
    start: np.ndarray,
    to: np.ndarray,
    through: np.ndarray,
    ending: np.ndarray,
) -> np.ndarray:
    """The most that any shortest way has on the stack, by following all edges that are part of one."""
    height = np.zeros_like(distance)
    stacked = np.zeros(len(distance), np.int32)
    stacked[configurations.states :] = configurations.stacks.height[configurations.stack]
    if not stacked.any():
        return height
    cost = _cost(distance, to, through, ending, np.arange(len(to)))
    best = (cost <= distance[start]) & (cost < UNREACHABLE)
    used = np.flatnonzero(best.any(axis=1))
    start, to, through, ending, best = start[used], to[used], through[used], ending[used], best[used]
    called = through >= 0
    into, groups = np.unique(start, return_index=True)
    while True:
        inner = np.where(called, stacked[start] + height[through, ending], 0)
        highest = np.where(best, np.maximum(height[to], inner[:, None]), 0)
        highest = np.maximum.reduceat(highest, groups, axis=0)
        if (highest <= height[into]).all():
            return height
        height[into] = np.maximum(height[into], highest)
