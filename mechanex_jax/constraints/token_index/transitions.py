"""Where every token leads from every state, one walk for all states that no token tells apart."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mechanex_jax.constraints.automata.minimize import ranges
from mechanex_jax.constraints.token_index.byte_classes import WalkPlanner
from mechanex_jax.constraints.token_index.differences import differences
from mechanex_jax.constraints.token_index.equivalent_states import Refinement, mix, mix_rows
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE, Configurations, shortest_distances
from mechanex_jax.constraints.token_index.trie import TokenTries, Trie
from mechanex_jax.constraints.token_index.trie_walk import Exited, Moves, Reached, Walker
from mechanex_jax.tokenization.vocabulary import Vocabulary

_MOST_PAIRS = 400_000  # (state, token) pairs that may be walked to solve distances of states that share another's walk
_NODES = 1 << 32  # a state and a node or token, as one number
_WITNESSES = 2  # tokens looked at for each such state and label, where all would be too many


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """Some states walked over the same trie.

    Attributes:
      trie: the tokens, folded to what these states can tell apart.
      states: the walked states; `origin` in `reached` and `exited` is a state, not an index.
      configuration: the node of `Configurations` that each row of `reached` ends at.
    """

    trie: Trie
    states: np.ndarray
    reached: Reached
    exited: Exited
    configuration: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Some states walked where they differ from their bases; the rest of their walks is that of the bases.

    Attributes:
      trie: all tokens.
      states: the walked states; `origin` in the next four is a state.
      bases: of each, a state of `Transitions.walks`.
      added, added_exits: what the base's walk does not have.
      removed, removed_exits: what only the base's walk has.
      added_node, removed_node: the nodes of `Configurations` of the rows of `added` and `removed`.
    """

    trie: Trie
    states: np.ndarray
    bases: np.ndarray
    added: Reached
    added_exits: Exited
    removed: Reached
    removed_exits: Exited
    added_node: np.ndarray
    removed_node: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    """Where every token leads from every state.

    Attributes:
      configurations: the nodes that walks end at.
      walks: all walks.
      comparisons: of states that have a base.
      block: int [S]; states of one block have the same masks, relative to their distances. Block 0 is the dead state.
      representative: int [B], the state of each block that was walked.
      distance: int32 [S, K], tokens that a frame needs to end with each label.
      height: int32 [N, K], see `tokens_to_finish.shortest_distances`.
    """

    configurations: Configurations
    walks: list[Walk]
    comparisons: list[Comparison]
    block: np.ndarray
    representative: np.ndarray
    distance: np.ndarray
    height: np.ndarray


def find_transitions(walker: Walker, vocabulary: Vocabulary, tries: TokenTries) -> Transitions:
    """Make all walks that the tables need, and solve the distances."""
    moves = walker.moves
    pushdown = moves.pushdown
    planner = WalkPlanner(moves, tries)
    rounds = tries.trie.depth
    refinement = Refinement(moves)
    # Frames that are left and frames that never are do not share a walk.
    kind = 2 * (pushdown.label.astype(np.int64) + 2) + planner.called[pushdown.rule]
    kind[0] = 0
    block = _numbered(refinement.run(kind, rounds))
    walked = np.unique(block, return_index=True)[1]
    walks = _Walks(walker, planner)
    walks.add(walked[walked > 0])
    source, after = _steps(walker, vocabulary, walks, block, walked)
    distance, height = shortest_distances(pushdown, walks.configurations, source, after)
    distance = distance[: len(pushdown.label)]

    # Distances may differ along a block: split it where they change differently.
    finer = _numbered(refinement.run(mix_rows(np.concatenate([block[:, None], _slopes(moves, distance)], axis=1)), rounds))
    representative = np.unique(finer, return_index=True)[1]
    representative[finer[walked]] = walked
    walks.add(np.setdiff1d(representative, walked))
    return Transitions(walks.configurations, walks.walks, walks.comparisons, finer, representative, distance, height)


def _numbered(block: np.ndarray) -> np.ndarray:
    """Blocks numbered by their first state, so that the dead state's is 0."""
    _, first, inverse = np.unique(block, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)]


def _slopes(moves: Moves, distance: np.ndarray) -> np.ndarray:
    """What has to be equal, along equal ways, for masks to differ by their states' distances only: uint64 [S, C + 2]."""
    finite = distance < UNREACHABLE
    base = np.where(finite, distance, 0).astype(np.int64)
    # Step by step: along a byte within the frame, the change; into a call, the called state's and the change up to the return.
    steps = mix_rows(base[moves.target] - base[:, None])
    calls, columns = np.nonzero(moves.pushed)
    if len(calls):
        sites = moves.lists[moves.pushed[calls, columns]]
        entered = mix_rows(base[moves.target[calls, columns]])
        for position in range(sites.shape[1]):
            back = moves.pushdown.returns[np.maximum(sites[:, position], 0)]
            change = base[back] - (base[calls][:, None] if position == 0 else 0)
            change = np.where((back > 0)[:, :, None], change, 0)
            change = mix_rows(change.reshape(len(calls), -1))
            entered = np.where(sites[:, position] >= 0, mix(entered + change), entered)
        steps[calls, columns] = entered
    steps[moves.target == 0] = 0
    return np.concatenate([steps, mix_rows(finite)[:, None]], axis=1)


class _Walks:
    """The walks made so far."""

    def __init__(self, walker: Walker, planner: WalkPlanner):
        self.configurations = Configurations(walker.moves.pushdown, walker.stacks)
        self.walks: list[Walk] = []
        self.comparisons: list[Comparison] = []
        self._walker, self._planner = walker, planner
        self._walked = np.zeros(len(walker.moves.target), bool)

    def add(self, states: np.ndarray) -> None:
        """Walk states that were not walked before, but for those that may have been as bases."""
        bases = self._planner.loops.base[states]
        like, bases = states[bases > 0], bases[bases > 0]
        alone = np.unique(np.concatenate([np.setdiff1d(states, like), bases]))
        alone = alone[~self._walked[alone]]
        self._walked[alone] = True
        for plan in self._planner.plan(alone):
            reached, exited = self._walker.walk(plan.trie, plan.states, leave_at_once=False)
            reached, exited = self._named(plan.states, reached, exited)
            self.walks.append(Walk(plan.trie, plan.states, reached, exited, self._nodes(reached)))
        if len(like):
            found = differences(self._walker, self._planner.trie, like, bases)
            added, added_exits = self._named(like, found.added, found.added_exits)
            removed, removed_exits = self._named(like, found.removed, found.removed_exits)
            nodes = self._nodes(added), self._nodes(removed)
            self.comparisons.append(
                Comparison(self._planner.trie, like, bases, added, added_exits, removed, removed_exits, *nodes)
            )

    def _named(self, states: np.ndarray, reached: Reached, exited: Exited) -> tuple[Reached, Exited]:
        """With states as origins, and without exits from frames that are never left."""
        reached = reached._replace(origin=states[reached.origin])
        exited = exited._replace(origin=states[exited.origin])
        called = self._planner.called[self._planner.rule[exited.origin]]
        return reached, Exited(*(column[called] for column in exited))

    def _nodes(self, reached: Reached) -> np.ndarray:
        return self.configurations.nodes(reached.state, reached.stack)


class _Edges(NamedTuple):
    """Edges (state, node behind some token): how many tokens, and one of them."""

    state: np.ndarray
    node: np.ndarray
    tokens: np.ndarray
    token: np.ndarray


def _edges(trie: Trie, reached: Reached, node: np.ndarray) -> _Edges:
    keys, first, inverse = np.unique(reached.origin * _NODES + node, return_index=True, return_inverse=True)
    counts = (trie.end_own - trie.first_item)[reached.node]
    tokens = np.bincount(inverse.reshape(-1), counts, len(keys)).astype(np.int64)
    return _Edges(keys // _NODES, keys % _NODES, tokens, trie.items[trie.first_item[reached.node[first]]])


def _compared_edges(comparison: Comparison, edges: _Edges) -> _Edges:
    """The edges of compared states, from those of all others, which are sorted by state."""
    added = _edges(comparison.trie, comparison.added, comparison.added_node)
    removed = _edges(comparison.trie, comparison.removed, comparison.removed_node)
    low, high = (np.searchsorted(edges.state, comparison.bases, side=side) for side in ("left", "right"))
    at = ranges(low, high)
    state, node = np.repeat(comparison.states, high - low), edges.node[at]
    tokens, token = edges.tokens[at].copy(), edges.token[at].copy()
    keys = state * _NODES + node
    lost = removed.state * _NODES + removed.node
    order = np.argsort(keys, kind="stable")
    place = order[np.searchsorted(keys[order], lost)]
    tokens[place] -= removed.tokens
    # Where the token that stands for an edge is one that the state lacks, another has to.
    lacking = np.repeat(comparison.removed.origin, _own(comparison.trie, comparison.removed.node)) * _NODES
    lacking += comparison.trie.items_at(comparison.removed.node)
    lacking.sort()
    token[np.isin(state * _NODES + token, lacking)] = -1
    kept = tokens > 0
    joint = (np.concatenate(pair) for pair in zip((state[kept], node[kept], tokens[kept], token[kept]), added, strict=True))
    return _Edges(*joint)


def _own(trie: Trie, nodes: np.ndarray) -> np.ndarray:
    """How many items end at each node."""
    return (trie.end_own - trie.first_item)[nodes]


def _steps(
    walker: Walker, vocabulary: Vocabulary, walks: _Walks, block: np.ndarray, walked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (state, node behind a token) for all states: of walked ones all, of the others all or the most promising."""
    configurations = walks.configurations
    parts = [_edges(walk.trie, walk.reached, walk.configuration) for walk in walks.walks]
    edges = _Edges(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(edges.state, kind="stable")
    edges = _Edges(*(column[order] for column in edges))
    compared = [_compared_edges(comparison, edges) for comparison in walks.comparisons]
    edges = _Edges(*(np.concatenate(column) for column in zip(edges, *compared, strict=True)))
    sources, after = [edges.state], [edges.node]
    counts = np.bincount(block)
    others = np.setdiff1d(np.arange(1, len(block)), walked)
    if len(others):
        shared = np.zeros(len(block), bool)  # walks that other states share
        shared[walked[np.flatnonzero(counts > 1)]] = True
        kept = shared[edges.state]
        origin, node, token = edges.state[kept], edges.node[kept], edges.token[kept]
        pairs = int((counts[block[origin]] - 1).sum())
        if pairs > _MOST_PAIRS:
            kept = _promising(walker, configurations, origin, node, counts[block[origin]])
            origin, node, token = origin[kept], node[kept], token[kept]
        token = _with_tokens(walks, origin, node, token)
        order = np.argsort(block[origin], kind="stable")
        token, owner = token[order], block[origin][order]
        low = np.searchsorted(owner, block[others])
        high = np.searchsorted(owner, block[others], side="right")
        state = np.repeat(others, high - low)
        target, stack = _read(walker, vocabulary, state, token[ranges(low, high)])
        sources.append(state[target > 0])
        after.append(configurations.nodes(target[target > 0], stack[target > 0]))
    return np.concatenate(sources), np.concatenate(after)


def _with_tokens(walks: _Walks, origin: np.ndarray, node: np.ndarray, token: np.ndarray) -> np.ndarray:
    """`token`, with one that the base's walk has and the state's does not lack for each -1."""
    token = token.copy()
    asked = np.flatnonzero(token < 0)
    for comparison in walks.comparisons if len(asked) else ():
        order = np.argsort(comparison.removed.origin, kind="stable")
        removed, lost = comparison.removed.origin[order], comparison.removed.node[order]
        base_of = dict(zip(comparison.states.tolist(), comparison.bases.tolist(), strict=True))
        for walk in walks.walks:
            inside = set(walk.states.tolist())
            here = [at for at in asked.tolist() if base_of.get(int(origin[at])) in inside]
            if not here:
                continue
            keys = walk.reached.origin * _NODES + walk.configuration
            order = np.argsort(keys, kind="stable")
            keys, reached = keys[order], walk.reached.node[order]
            for at in here:
                key = base_of[int(origin[at])] * _NODES + node[at]
                has = walk.trie.items_at(reached[slice(*np.searchsorted(keys, (key, key + 1)))])
                lacks = comparison.trie.items_at(lost[slice(*np.searchsorted(removed, (origin[at], origin[at] + 1)))])
                token[at] = has[~np.isin(has, lacks)][0]
    return token


def _read(walker: Walker, vocabulary: Vocabulary, state: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States and stacks behind one token each; 0 where the frame is left."""
    offsets, data = vocabulary.offsets, vocabulary.bytes
    state, stack = state.copy(), np.zeros(len(state), np.int64)
    length = offsets[token + 1] - offsets[token]
    for position in range(int(length.max(initial=0))):
        live = np.flatnonzero((length > position) & (state > 0))
        column = walker.moves.pushdown.classes[data[offsets[token[live]] + position]]
        state[live], stack[live], _ = walker.step(state[live], stack[live], column)
    return state, stack


def _promising(
    walker: Walker, configurations: Configurations, origin: np.ndarray, node: np.ndarray, members: np.ndarray
) -> np.ndarray:
    """For each origin and label the tokens behind which the fewest bytes are needed; all for small blocks."""
    moves = walker.moves
    sources, columns = np.nonzero(moves.target)
    stack = np.zeros(len(sources), np.int64)
    pushed = moves.pushed[sources, columns]
    for position in range(moves.lists.shape[1]):
        calls = np.flatnonzero(moves.lists[pushed, position] >= 0)
        stack[calls] = walker.stacks.push(stack[calls], moves.lists[pushed[calls], position])
    after = configurations.nodes(moves.target[sources, columns], stack)
    pairs = np.unique(sources * (1 << 32) + after)
    distance, _ = shortest_distances(moves.pushdown, configurations, pairs >> 32, pairs & 0xFFFFFFFF)
    kept = members <= 8
    for label in range(distance.shape[1]):
        cost = distance[node, label]
        order = np.lexsort((cost, origin))
        rank = np.arange(len(order)) - np.searchsorted(origin[order], origin[order])
        kept[order[(rank < _WITNESSES) & (cost[order] < UNREACHABLE)]] = True
    return np.flatnonzero(kept)
