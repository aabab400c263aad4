"""Mask rows: for each block of states and label, the tokens inside by how many more tokens the frame needs behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mechanex_jax.constraints.automata.minimize import ranges
from mechanex_jax.constraints.token_index.equivalent_states import mix
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE
from mechanex_jax.constraints.token_index.transitions import Comparison, Transitions, Walk
from mechanex_jax.constraints.token_index.trie import Trie
from mechanex_jax.constraints.token_index.trie_walk import Reached
from mechanex_jax.errors import ConstraintError

NO_THRESHOLD = -(1 << 30)  # a threshold that every budget meets
_COSTS = 1 << 30  # a state and a cost, as one number


@dataclasses.dataclass(frozen=True, eq=False)
class MaskRows:
    """Fields of `build.Tables`, by the same names."""

    all_tokens: np.ndarray
    max_threshold: np.ndarray
    first_threshold: np.ndarray
    threshold: np.ndarray
    mask_row: np.ndarray
    masks: np.ndarray


class _DistinctSets:
    """Sets of tokens, told apart by the sums of their tokens' hashes; each is written out once."""

    def __init__(self, size: int, max_bytes: int):
        self.words, self.max_bytes = -(-size // 32), max_bytes
        self.rows = [np.zeros(self.words, np.uint32)]
        self._row_of_digest: dict[int, int] = {0: 0}

    def number(self, digests: np.ndarray, tokens: Callable[[int, np.ndarray], None]) -> np.ndarray:
        """The row of each set; `tokens(i, flags)` marks the tokens of set i."""
        distinct, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        flags = np.zeros(self.words * 32, bool)
        numbers = np.zeros(len(distinct), np.int64)
        for index, (digest, at) in enumerate(zip(distinct.tolist(), first.tolist(), strict=True)):
            if digest not in self._row_of_digest:
                if (len(self.rows) + 1) * self.words * 4 > self.max_bytes:
                    raise ConstraintError(
                        f"The constraint is too large: its masks take more than {self.max_bytes >> 20} MB. Use smaller bounds, "
                        "or patterns in which what may follow depends less on how the text began."
                    )
                flags[:] = False
                tokens(at, flags)
                self._row_of_digest[digest] = len(self.rows)
                self.rows.append(np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32))
            numbers[index] = self._row_of_digest[digest]
        return numbers[inverse.reshape(-1)]

    def mark(self, row: int, flags: np.ndarray) -> None:
        """Mark the tokens of a row."""
        flags[:] = np.unpackbits(self.rows[row].astype("<u4").view(np.uint8), bitorder="little").view(bool)


class _Levels(NamedTuple):
    """Sets of tokens of states, each with all that cost no more; sorted by state, then cost.

    Attributes:
      state, cost: int [N].
      digest: uint64 [N], the sum of the tokens' hashes.
      row: int [N].
    """

    state: np.ndarray
    cost: np.ndarray
    digest: np.ndarray
    row: np.ndarray


Costs = Callable[[np.ndarray], np.ndarray]  # of nodes of `Configurations`; `UNREACHABLE` or more for none


def mask_rows(
    transitions: Transitions, node_distance: np.ndarray, base_distance: np.ndarray, size: int, max_bytes: int
) -> MaskRows:
    """Build the rows of all walked states.

    Args:
      transitions: the walks.
      node_distance: int32 [N, K], distances of all nodes.
      base_distance: int32 [S, K], what thresholds are relative to.
      size: V.
      max_bytes: of all rows together.
    """
    blocks, labels = len(transitions.representative), node_distance.shape[1]
    block_of = np.full(len(transitions.block), -1, np.int64)
    block_of[transitions.representative] = np.arange(blocks)
    distinct = _DistinctSets(size, max_bytes)
    walks = [(walk, _sums(walk.trie)) for walk in transitions.walks]
    compared = [(comparison, _sums(comparison.trie)) for comparison in transitions.comparisons]

    def levels_of(costs: Costs) -> _Levels:
        parts = [_walk_levels(distinct, walk, sums, costs) for walk, sums in walks]
        levels = _joined(parts)
        parts = [_compared_levels(distinct, comparison, sums, costs, levels) for comparison, sums in compared]
        levels = _joined([levels, *parts])
        kept = block_of[levels.state] >= 0  # states walked first may have lost their block to another since
        return _Levels(*(column[kept] for column in levels))

    all_tokens, max_threshold = np.zeros(blocks, np.int64), np.full((blocks, labels), NO_THRESHOLD, np.int64)
    any_label = node_distance.min(axis=1)
    levels = levels_of(lambda nodes: np.where(any_label[nodes] < UNREACHABLE, 0, UNREACHABLE))
    all_tokens[block_of[levels.state]] = levels.row
    owner, threshold, row = [], [], []
    for label in range(labels):
        levels = levels_of(lambda nodes, label=label: node_distance[nodes, label])
        relative = levels.cost - base_distance[levels.state, label]
        blocks_of = block_of[levels.state]
        owner.append(blocks_of * labels + label)
        threshold.append(relative)
        row.append(levels.row)
        max_threshold[blocks_of, label] = relative  # the last of a state counts
    owner, threshold, row = (np.concatenate(column) for column in (owner, threshold, row))
    order = np.lexsort((threshold, owner))
    first = np.searchsorted(owner[order], np.arange(blocks * labels + 1))
    return MaskRows(all_tokens, max_threshold, first, threshold[order], row[order], np.stack(distinct.rows))


def _sums(trie: Trie) -> np.ndarray:
    """uint64 [N], for each node the sum of the hashes of the tokens that end there."""
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(trie.items), dtype=np.uint64)])
    return sums[trie.end_own] - sums[trie.first_item]


def _joined(parts: list[_Levels]) -> _Levels:
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    levels = _Levels(*columns)
    order = np.argsort(levels.state, kind="stable")
    return _Levels(*(column[order] for column in levels))


def _cumulated(state: np.ndarray, cost: np.ndarray, digest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the levels of sorted tokens end, and their digests."""
    none = np.zeros(0, np.int64)
    if not len(state):
        return none, none.astype(np.uint64)
    begins = np.flatnonzero(np.diff(state, prepend=-1))
    low = np.repeat(begins, np.diff(np.append(begins, len(state))))
    last = np.append(state[1:] != state[:-1], True)
    ends = np.flatnonzero(last | np.append(cost[1:] != cost[:-1], True))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(digest, dtype=np.uint64)])
    return ends, sums[ends + 1] - sums[low[ends]]


def _sorted_tokens(reached: Reached, configuration: np.ndarray, costs: Costs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State, cost and trie node of the tokens from which the frame can end, sorted by state and cost."""
    cost = costs(configuration)
    live = np.flatnonzero(cost < UNREACHABLE)
    live = live[np.lexsort((cost[live], reached.origin[live]))]
    return reached.origin[live], cost[live], reached.node[live]


def _walk_levels(distinct: _DistinctSets, walk: Walk, sums: np.ndarray, costs: Costs) -> _Levels:
    state, cost, node = _sorted_tokens(walk.reached, walk.configuration, costs)
    ends, digest = _cumulated(state, cost, sums[node])
    low = np.searchsorted(state, state[ends])

    def tokens(index: int, flags: np.ndarray) -> None:
        flags[walk.trie.items_at(node[low[index] : ends[index] + 1])] = True

    return _Levels(state[ends], cost[ends], digest, distinct.number(digest, tokens))


def _compared_levels(
    distinct: _DistinctSets, comparison: Comparison, sums: np.ndarray, costs: Costs, levels: _Levels
) -> _Levels:
    """The levels of compared states: those of their bases, with some tokens more and some fewer."""
    low, high = (np.searchsorted(levels.state, comparison.bases, side=side) for side in ("left", "right"))
    at = ranges(low, high)
    grown = np.diff(levels.digest, prepend=np.uint64(0))
    first = np.flatnonzero(np.diff(levels.state, prepend=-1))
    grown[first] = levels.digest[first]
    more = _sorted_tokens(comparison.added, comparison.added_node, costs)
    fewer = _sorted_tokens(comparison.removed, comparison.removed_node, costs)
    base_state = np.repeat(comparison.states, high - low)
    state = np.concatenate([base_state, more[0], fewer[0]])
    cost = np.concatenate([levels.cost[at], more[1], fewer[1]])
    digest = np.concatenate([grown[at], sums[more[2]], np.uint64(0) - sums[fewer[2]]])
    order = np.lexsort((cost, state))
    state, cost = state[order], cost[order]
    ends, digest = _cumulated(state, cost, digest[order])
    state, cost = state[ends], cost[ends]
    before = np.where(np.diff(state, prepend=-1) != 0, np.uint64(0), np.roll(digest, 1))
    changed = digest != before
    state, cost, digest = state[changed], cost[changed], digest[changed]
    keyed = [keys[0] * _COSTS + keys[1] for keys in (more, fewer)]

    def tokens(index: int, flags: np.ndarray) -> None:
        base = comparison.bases[place[state[index]]]
        found = np.searchsorted(levels.state, base, side="left"), np.searchsorted(levels.state, base, side="right")
        level = found[0] + np.searchsorted(levels.cost[found[0] : found[1]], cost[index], side="right") - 1
        if level >= found[0]:
            distinct.mark(int(levels.row[level]), flags)
        for value, keys, (_, _, node) in ((False, keyed[1], fewer), (True, keyed[0], more)):
            begin, end = np.searchsorted(keys, (state[index] * _COSTS, state[index] * _COSTS + cost[index] + 1))
            flags[comparison.trie.items_at(node[begin:end])] = value

    place = np.zeros(int(comparison.states.max(initial=0)) + 1, np.int64)
    place[comparison.states] = np.arange(len(comparison.states))
    return _Levels(state, cost, digest, distinct.number(digest, tokens))
