"""Where every token leads from every state, one walk for all states that no token tells apart."""

from __future__ import annotations

import dataclasses

import numpy as np

from mechanex_jax.constraints.token_index.byte_classes import WalkPlanner
from mechanex_jax.constraints.token_index.equivalent_states import Refinement, mix, mix_rows
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE, Configurations, shortest_distances
from mechanex_jax.constraints.token_index.trie import TokenTries, Trie, ranges
from mechanex_jax.constraints.token_index.trie_walk import Exited, Moves, Reached, Walker
from mechanex_jax.tokenization.vocabulary import Vocabulary

_MOST_PAIRS = 400_000  # (state, token) pairs that may be walked to solve distances of states that share another's walk
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
class Transitions:
    """Where every token leads from every state.

    Attributes:
      configurations: the nodes that walks end at.
      walks: all walks.
      block: int [S]; states of one block have the same masks, relative to their distances. Block 0 is the dead state.
      representative: int [B], the state of each block that was walked.
      distance: int32 [S, K], tokens that a frame needs to end with each label.
      height: int32 [N, K], see `tokens_to_finish.shortest_distances`.
    """

    configurations: Configurations
    walks: list[Walk]
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
    configurations = Configurations(pushdown, walker.stacks)
    walks = _walks(walker, configurations, planner, walked[walked > 0])
    source, after = _steps(walker, vocabulary, configurations, walks, block, walked)
    distance, height = shortest_distances(pushdown, configurations, source, after)
    distance = distance[: len(pushdown.label)]

    # Distances may differ along a block: split it where they change differently.
    finer = _numbered(refinement.run(mix_rows(np.concatenate([block[:, None], _slopes(moves, distance)], axis=1)), rounds))
    representative = np.unique(finer, return_index=True)[1]
    representative[finer[walked]] = walked
    not_walked = np.setdiff1d(representative, walked)
    if len(not_walked):
        walks += _walks(walker, configurations, planner, not_walked)
    return Transitions(configurations, walks, finer, representative, distance, height)


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


def _walks(walker: Walker, configurations: Configurations, planner: WalkPlanner, states: np.ndarray) -> list[Walk]:
    walks = []
    for plan in planner.plan(states):
        reached, exited = walker.walk(plan.trie, plan.states, leave_at_once=False)
        reached = reached._replace(origin=plan.states[reached.origin])
        exited = exited._replace(origin=plan.states[exited.origin])
        called = planner.called[planner.rule[exited.origin]]
        exited = Exited(*(column[called] for column in exited))
        node = configurations.nodes(reached.state, reached.stack)
        walks.append(Walk(plan.trie, plan.states, reached, exited, node))
    return walks


def _steps(
    walker: Walker,
    vocabulary: Vocabulary,
    configurations: Configurations,
    walks: list[Walk],
    block: np.ndarray,
    walked: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (state, node behind a token) for all states: of walked ones all, of the others all or the most promising."""
    sources, after = [], []
    counts = np.bincount(block)
    others = np.setdiff1d(np.arange(1, len(block)), walked)
    shared = np.zeros(len(block), bool)  # walks that other states share
    shared[walked[np.flatnonzero(counts > 1)]] = True
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for walk in walks:
        keys = walk.reached.origin * (1 << 32) + walk.configuration
        _, first = np.unique(keys, return_index=True)
        sources.append(walk.reached.origin[first])
        after.append(walk.configuration[first])
        first = first[shared[walk.reached.origin[first]]]
        token = walk.trie.items[walk.trie.first_item[walk.reached.node[first]]]
        edges.append((walk.reached.origin[first], walk.configuration[first], token))
    if len(others):
        origin, node, token = (np.concatenate(column) for column in zip(*edges, strict=True))
        pairs = int((counts[block[origin]] - 1).sum())
        if pairs > _MOST_PAIRS:
            kept = _promising(walker, configurations, origin, node, counts[block[origin]])
            origin, node, token = origin[kept], node[kept], token[kept]
        order = np.argsort(block[origin], kind="stable")
        token, owner = token[order], block[origin][order]
        low = np.searchsorted(owner, block[others])
        high = np.searchsorted(owner, block[others], side="right")
        state = np.repeat(others, high - low)
        target, stack = _read(walker, vocabulary, state, token[ranges(low, high)])
        sources.append(state[target > 0])
        after.append(configurations.nodes(target[target > 0], stack[target > 0]))
    return np.concatenate(sources), np.concatenate(after)


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
