"""Where every token leads from every state, one walk for all states that no token tells apart."""

from __future__ import annotations

import dataclasses

import numpy as np

from mechanex_jax.constraints.token_index.byte_classes import Readers
from mechanex_jax.constraints.token_index.equivalent_states import Refinement, mix, mix_rows
from mechanex_jax.constraints.token_index.tokens_to_finish import FAR, Configurations, solve
from mechanex_jax.constraints.token_index.trie import TokenTries, Trie, ranges
from mechanex_jax.constraints.token_index.trie_walk import Left, Moves, Reached, Walker
from mechanex_jax.tokenization.vocabulary import Vocabulary

_PAIRS = 400_000  # (state, token) pairs that may be walked to solve distances of states that share another's walk
_WITNESSES = 2  # tokens looked at for each such state and label, where all would be too many


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """States walked over the same trie.

    Attributes:
      trie: the tokens, folded to what these states can tell apart.
      states: the walked states; `origin` in `reached` and `left` is a state, not an index.
      node: the node (see `Configurations`) that each row of `reached` ends at.
    """

    trie: Trie
    states: np.ndarray
    reached: Reached
    left: Left
    node: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """Attributes:
    groups: all walks.
    block: int [S]; states of one block have the same outcomes, relative to their distances. Block 0 is the dead state.
    walked: int [B], the state of each block that was walked.
    distance: int32 [S, K], tokens that a frame needs to end with each label.
    height: int32 [N, K], see `distances.solve`.
    """

    configurations: Configurations
    groups: list[Group]
    block: np.ndarray
    walked: np.ndarray
    distance: np.ndarray
    height: np.ndarray


def explore(walker: Walker, vocabulary: Vocabulary, tries: TokenTries) -> Outcomes:
    """All walks that the tables need, and the distances."""
    moves = walker.moves
    pushdown = moves.pushdown
    readers = Readers(moves, tries)
    rounds = tries.trie.depth
    refinement = Refinement(moves)
    # Frames that are left and frames that never are do not share a walk.
    kind = 2 * (pushdown.label.astype(np.int64) + 2) + readers.called[pushdown.rule]
    kind[0] = 0
    block = _numbered(refinement.run(kind, rounds))
    walked = np.unique(block, return_index=True)[1]
    configurations = Configurations(pushdown, walker.stacks)
    groups = _walks(walker, configurations, readers, walked[walked > 0])
    source, after = _steps(walker, vocabulary, configurations, groups, block, walked)
    distance, height = solve(pushdown, configurations, source, after)
    distance = distance[: len(pushdown.label)]

    # Distances may differ along a block: split it where they change differently.
    finer = _numbered(refinement.run(mix_rows(np.concatenate([block[:, None], _slopes(moves, distance)], axis=1)), rounds))
    chosen = np.unique(finer, return_index=True)[1]
    chosen[finer[walked]] = walked
    fresh = np.setdiff1d(chosen, walked)
    if len(fresh):
        groups += _walks(walker, configurations, readers, fresh)
    return Outcomes(configurations, groups, finer, chosen, distance, height)


def _numbered(block: np.ndarray) -> np.ndarray:
    """Blocks numbered by their first state, so that the dead state's is 0."""
    _, first, inverse = np.unique(block, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)]


def _slopes(moves: Moves, distance: np.ndarray) -> np.ndarray:
    """What has to be equal, along equal ways, for masks to differ by their states' distances only: uint64 [S, C + 2]."""
    finite = distance < FAR
    potential = np.where(finite, distance, 0).astype(np.int64)
    # Step by step: along a byte within the frame, the change; into a call, the called state's and the change up to the return.
    steps = mix_rows(potential[moves.target] - potential[:, None])
    calls, columns = np.nonzero(moves.pushed)
    if len(calls):
        sites = moves.lists[moves.pushed[calls, columns]]
        entered = mix_rows(potential[moves.target[calls, columns]])
        for position in range(sites.shape[1]):
            back = moves.pushdown.returns[np.maximum(sites[:, position], 0)]
            own = potential[back] - (potential[calls][:, None] if position == 0 else 0)
            own = np.where((back > 0)[:, :, None], own, 0)
            own = mix_rows(own.reshape(len(calls), -1))
            entered = np.where(sites[:, position] >= 0, mix(entered + own), entered)
        steps[calls, columns] = entered
    steps[moves.target == 0] = 0
    return np.concatenate([steps, mix_rows(finite)[:, None]], axis=1)


def _walks(walker: Walker, configurations: Configurations, readers: Readers, states: np.ndarray) -> list[Group]:
    groups = []
    for part in readers.parts(states):
        reached, left = walker.walk(part.trie, part.states, leave_at_once=False)
        reached = reached._replace(origin=part.states[reached.origin])
        left = left._replace(origin=part.states[left.origin])
        called = readers.called[readers.rule[left.origin]]
        left = Left(*(column[called] for column in left))
        node = configurations.nodes(reached.state, reached.stack)
        groups.append(Group(part.trie, part.states, reached, left, node))
    return groups


def _steps(
    walker: Walker,
    vocabulary: Vocabulary,
    configurations: Configurations,
    groups: list[Group],
    block: np.ndarray,
    walked: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (state, node behind a token) for all states: of walked ones all, of the others all or the most promising."""
    sources, after = [], []
    counts = np.bincount(block)
    others = np.setdiff1d(np.arange(1, len(block)), walked)
    wanted = np.zeros(len(block), bool)
    wanted[walked[np.flatnonzero(counts > 1)]] = True
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for number, group in enumerate(groups):
        keys = group.reached.origin * (1 << 32) + group.node
        _, first = np.unique(keys, return_index=True)
        sources.append(group.reached.origin[first])
        after.append(group.node[first])
        first = first[wanted[group.reached.origin[first]]]
        token = group.trie.items[group.trie.enter[group.reached.node[first]]]
        edges.append((group.reached.origin[first], group.node[first], token, np.full(len(first), number)))
    if len(others):
        origin, node, token, _ = (np.concatenate(column) for column in zip(*edges, strict=True))
        pairs = int((counts[block[origin]] - 1).sum())
        if pairs > _PAIRS:
            kept = _promising(walker, configurations, origin, node, counts[block[origin]])
            origin, node, token = origin[kept], node[kept], token[kept]
        order = np.argsort(block[origin], kind="stable")
        token, owner = token[order], block[origin][order]
        low = np.searchsorted(owner, block[others])
        high = np.searchsorted(owner, block[others], side="right")
        state, which = np.repeat(others, high - low), ranges(low, high)
        found, stack = _read(walker, vocabulary, state, token[which])
        sources.append(state[found > 0])
        after.append(configurations.nodes(found[found > 0], stack[found > 0]))
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
    distance, _ = solve(moves.pushdown, configurations, pairs >> 32, pairs & 0xFFFFFFFF)
    kept = members <= 8
    for label in range(distance.shape[1]):
        cost = distance[node, label]
        order = np.lexsort((cost, origin))
        rank = np.arange(len(order)) - np.searchsorted(origin[order], origin[order])
        kept[order[(rank < _WITNESSES) & (cost[order] < FAR)]] = True
    return np.flatnonzero(kept)
