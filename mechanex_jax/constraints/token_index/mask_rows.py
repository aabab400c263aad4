"""Mask rows: for each block of states and label, the tokens inside by how many more tokens the frame needs behind them."""

from __future__ import annotations

import dataclasses

import numpy as np

from mechanex_jax.constraints.token_index.equivalent_states import mix
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE
from mechanex_jax.constraints.token_index.transitions import Transitions
from mechanex_jax.constraints.token_index.trie import Trie
from mechanex_jax.errors import ConstraintError

NO_THRESHOLD = -(1 << 30)  # a threshold that every budget meets


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

    def number(self, digests: np.ndarray, trie: Trie, nodes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The row of each set; set i has the tokens of `nodes[low[i] : high[i]]`."""
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
                flags[trie.items_at(nodes[low[at] : high[at]])] = True
                self._row_of_digest[digest] = len(self.rows)
                self.rows.append(np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32))
            numbers[index] = self._row_of_digest[digest]
        return numbers[inverse.reshape(-1)]


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
    all_tokens, max_threshold = np.zeros(blocks, np.int64), np.full((blocks, labels), NO_THRESHOLD, np.int64)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (block * K + label, threshold, row)
    for walk in transitions.walks:
        origin, node, behind = walk.reached.origin, walk.reached.node, walk.configuration
        chosen = block_of[origin] >= 0  # states walked first may have lost their block to another since
        origin, node, behind = origin[chosen], node[chosen], behind[chosen]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(walk.trie.items), dtype=np.uint64)])
        digest = sums[walk.trie.end_own] - sums[walk.trie.first_item]
        finite = np.flatnonzero((node_distance[behind] < UNREACHABLE).any(axis=1))
        finite = finite[np.argsort(origin[finite], kind="stable")]
        ends, rows, _ = _prefixes(distinct, walk.trie, digest, origin[finite], node[finite], np.zeros(len(finite), np.int64))
        all_tokens[block_of[origin[finite]][ends]] = rows
        for label in range(labels):
            cost = node_distance[behind, label]
            live = np.flatnonzero(cost < UNREACHABLE)
            relative = cost[live] - base_distance[origin[live], label]
            order = np.lexsort((relative, origin[live]))
            live, relative = live[order], relative[order]
            ends, rows, last = _prefixes(distinct, walk.trie, digest, origin[live], node[live], relative)
            owner = block_of[origin[live]][ends]
            parts.append((owner * labels + label, relative[ends], rows))
            max_threshold[owner[last], label] = relative[ends][last]
    owner, threshold, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((threshold, owner))
    first = np.searchsorted(owner[order], np.arange(blocks * labels + 1))
    return MaskRows(all_tokens, max_threshold, first, threshold[order], row[order], np.stack(distinct.rows))


def _prefixes(
    distinct: _DistinctSets, trie: Trie, digest: np.ndarray, origin: np.ndarray, node: np.ndarray, cost: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each origin and each of its costs, the row of all nodes that cost at most that; sorted by origin, then cost.

    Returns:
      where each such prefix ends (its last item), its row, and whether it is its origin's last.
    """
    if not len(origin):
        none = np.zeros(0, np.int64)
        return none, none, none.astype(bool)
    begins = np.flatnonzero(np.diff(origin, prepend=-1))
    low = np.repeat(begins, np.diff(np.append(begins, len(origin))))
    last = np.append(origin[1:] != origin[:-1], True)
    ends = np.flatnonzero(last | np.append(cost[1:] != cost[:-1], True))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(digest[node], dtype=np.uint64)])
    rows = distinct.number(sums[ends + 1] - sums[low[ends]], trie, node, low[ends], ends + 1)
    return ends, rows, last[ends]
