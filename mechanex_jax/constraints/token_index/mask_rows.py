"""Mask rows: for each block of states and label, the tokens inside by how many more tokens the frame needs behind them."""

from __future__ import annotations

import dataclasses

import numpy as np

from mechanex_jax.constraints.token_index.equivalent_states import mix
from mechanex_jax.constraints.token_index.tokens_to_finish import FAR
from mechanex_jax.constraints.token_index.transitions import Group, Outcomes
from mechanex_jax.constraints.token_index.trie import ranges
from mechanex_jax.errors import ConstraintError

NEVER = -(1 << 30)  # a threshold that every budget meets


@dataclasses.dataclass(frozen=True, eq=False)
class MaskRows:
    """See `tables.Tables` for `every`, `roomy`, `first`, `threshold`, `row` and `masks`."""

    every: np.ndarray
    roomy: np.ndarray
    first: np.ndarray
    threshold: np.ndarray
    row: np.ndarray
    masks: np.ndarray


class _Distinct:
    """Sets of tokens, told apart by the sums of their tokens' hashes; each is written out once."""

    def __init__(self, size: int, limit: int):
        self.size, self.limit = size, limit
        self.words = -(-size // 32)
        self.rows = [np.zeros(self.words, np.uint32)]
        self.known: dict[int, int] = {0: 0}

    def of(self, digests: np.ndarray, group: Group, nodes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The row of each set; set i has the tokens of `nodes[low[i] : high[i]]`."""
        wanted, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        trie, flags = group.trie, np.zeros(self.words * 32, bool)
        numbers = np.zeros(len(wanted), np.int64)
        for index, (digest, at) in enumerate(zip(wanted.tolist(), first.tolist(), strict=True)):
            if digest not in self.known:
                if (len(self.rows) + 1) * self.words * 4 > self.limit:
                    raise ConstraintError(
                        f"The constraint is too large: its masks take more than {self.limit >> 20} MB. Use smaller bounds, "
                        "or patterns in which what may follow depends less on how the text began."
                    )
                inside = nodes[low[at] : high[at]]
                flags[:] = False
                flags[trie.items[ranges(trie.enter[inside], trie.own[inside])]] = True
                self.known[digest] = len(self.rows)
                self.rows.append(np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32))
            numbers[index] = self.known[digest]
        return numbers[inverse.reshape(-1)]


def mask_rows(outcomes: Outcomes, value: np.ndarray, potential: np.ndarray, size: int, limit: int) -> MaskRows:
    """The rows of all walked states.

    Args:
      outcomes: the walks.
      value: int32 [N, K], distances of all nodes.
      potential: int32 [S, K], what thresholds are relative to.
      size: V.
      limit: bytes of all rows together.
    """
    blocks, labels = len(outcomes.walked), value.shape[1]
    block_of = np.full(len(outcomes.block), -1, np.int64)
    block_of[outcomes.walked] = np.arange(blocks)
    distinct = _Distinct(size, limit)
    every, roomy = np.zeros(blocks, np.int64), np.full((blocks, labels), NEVER, np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (block * K + label, threshold, row)
    for group in outcomes.groups:
        origin, node, behind = group.reached.origin, group.reached.node, group.node
        chosen = block_of[origin] >= 0  # states walked first may have lost their block to another since
        origin, node, behind = origin[chosen], node[chosen], behind[chosen]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(group.trie.items), dtype=np.uint64)])
        digest = sums[group.trie.own] - sums[group.trie.enter]
        several = np.flatnonzero((value[behind] < FAR).any(axis=1))
        several = several[np.argsort(origin[several], kind="stable")]
        ends, rows, _ = _prefixes(distinct, group, digest, origin[several], node[several], np.zeros(len(several), np.int64))
        every[block_of[origin[several]][ends]] = rows
        for label in range(labels):
            cost = value[behind, label]
            live = np.flatnonzero(cost < FAR)
            relative = cost[live] - potential[origin[live], label]
            order = np.lexsort((relative, origin[live]))
            live, relative = live[order], relative[order]
            ends, rows, last = _prefixes(distinct, group, digest, origin[live], node[live], relative)
            owner = block_of[origin[live]][ends]
            found.append((owner * labels + label, relative[ends], rows))
            roomy[owner[last], label] = relative[ends][last]
    owner, threshold, row = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((threshold, owner))
    first = np.searchsorted(owner[order], np.arange(blocks * labels + 1))
    return MaskRows(every, roomy, first, threshold[order], row[order], np.stack(distinct.rows))


def _prefixes(
    distinct: _Distinct, group: Group, digest: np.ndarray, origin: np.ndarray, node: np.ndarray, cost: np.ndarray
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
    rows = distinct.of(sums[ends + 1] - sums[low[ends]], group, node, low[ends], ends + 1)
    return ends, rows, last[ends]
