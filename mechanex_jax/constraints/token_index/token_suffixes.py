"""Tokens that leave the frame they began in: what is left of them then, and what each return state makes of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.token_index import trie as tries
from mechanex_jax.constraints.token_index.tokens_to_finish import FAR
from mechanex_jax.constraints.token_index.transitions import Outcomes
from mechanex_jax.constraints.token_index.trie_walk import Walker
from mechanex_jax.errors import ConstraintError
from mechanex_jax.tokenization.vocabulary import Vocabulary

_CELLS = 40_000_000  # of the table


class _Names:
    """Rests of tokens, spelled in the automaton's byte classes, so that those which no state tells apart are one."""

    def __init__(self) -> None:
        self.number: dict[bytes, int] = {}

    def of(self, text: bytes) -> int:
        return self.number.setdefault(text, len(self.number))


@dataclasses.dataclass(frozen=True, eq=False)
class Rests:
    """Rest and return row: rests are numbered from 0, rows from 1 (row 0 is for states that nothing returns to).

    Attributes:
      outcomes: the walks.
      leaving: (block, token, rest, label) of each token that leaves its frame.
      count: of the rests.
      row_of_state: int [S].
      states: the state walked for each row.
      ends: (row, rest, node) where the rest ends within the frame.
      again: (row, rest, rest left, label) where it leaves that frame too.
    """

    outcomes: Outcomes
    leaving: tuple[np.ndarray, ...]
    count: int
    row_of_state: np.ndarray
    states: np.ndarray
    ends: tuple[np.ndarray, ...]
    again: tuple[np.ndarray, ...]

    def table(self, value: np.ndarray, potential: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`rest` (with columns as rests are numbered here) and `rest_ends` of `tables.Tables`."""
        labels = value.shape[1]
        if (len(self.states) + 1) * max(self.count, 1) > _CELLS:
            raise ConstraintError(
                f"The constraint is too large: {self.count:,} rests of tokens meet {len(self.states):,} kinds of return. "
                "Use smaller bounds."
            )
        table = np.zeros((len(self.states) + 1, self.count), np.int64)
        row, rest, node = self.ends
        needed = value[node]
        live = (needed < FAR).any(axis=1)
        row, rest, needed = row[live], rest[live], needed[live]
        relative = np.where(needed < FAR, needed - potential[self.states[row - 1]], FAR)
        ends, number = np.unique(relative.reshape(-1, labels), axis=0, return_inverse=True)
        table[row, rest] = 1 + number.reshape(-1)
        row, rest, left, label = self.again
        table[row, rest] = -1 - (left * labels + label)
        while True:  # a rest that nothing can be made of is none; so are those that come to it
            dead = np.all(table == 0, axis=0)
            lost = (table < 0) & dead[(-1 - np.minimum(table, -1)) // labels]
            if not lost.any():
                return table, ends
            table[lost] = 0

    def lists(self, table: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rests of one column become one.

        Returns:
          first_group, group_rest, group_label, first_entry, entry_token and rest of `tables.Tables`.
        """
        labels = self.outcomes.distance.shape[1]
        image = np.arange(self.count)
        width = self.count + 1
        while self.count:
            again = table < 0
            left, label = np.divmod(-1 - np.minimum(table, -1), labels)
            renamed = np.where(again, -1 - (image[left] * labels + label), table)
            columns, first, number = np.unique(renamed, axis=1, return_index=True, return_inverse=True)
            image = number.reshape(-1)
            if columns.shape[1] >= width:
                table = np.where(again, -1 - (image[left] * labels + label), table)[:, first]
                break
            width = columns.shape[1]
        block, token, rest, label = self.leaving
        live = np.any(table != 0, axis=0)[image[rest]] if len(rest) else np.zeros(0, bool)
        block, token, rest, label = block[live], token[live], image[rest[live]], label[live]
        columns = max(table.shape[1], 1)
        keys = (block * columns + rest) * labels + label
        order = np.lexsort((token, keys))
        groups, first_entry = np.unique(keys[order], return_index=True)
        first_group = np.searchsorted(groups // (columns * labels), np.arange(len(self.outcomes.walked) + 1))
        if not self.count:
            table = np.zeros((len(table), 1), np.int64)
        return first_group, groups // labels % columns, groups % labels, np.append(first_entry, len(order)), token[order], table


def rests(walker: Walker, outcomes: Outcomes, vocabulary: Vocabulary) -> Rests:
    """All rests, and all that return states make of them, to the last."""
    pushdown = walker.moves.pushdown
    back = np.unique(pushdown.returns[pushdown.returns > 0])
    names = _Names()
    leaving = _leaving(outcomes, vocabulary, pushdown, np.any(pushdown.target[back] > 0, axis=0), names)
    blocks = np.unique(outcomes.block[back])
    states = outcomes.walked[blocks]
    row_of_block = np.zeros(len(outcomes.walked), np.int64)
    row_of_block[blocks] = 1 + np.arange(len(blocks))
    row_of_state = np.zeros(len(outcomes.block), np.int64)
    row_of_state[back] = row_of_block[outcomes.block[back]]
    ends: list[tuple[np.ndarray, ...]] = []
    again: list[tuple[np.ndarray, ...]] = []
    done = 0
    while done < len(names.number) and len(states):
        texts = list(names.number)[done:]
        low, done = done, len(names.number)
        trie = tries.of_strings(texts)
        reached, left = walker.walk(trie, states, leave_at_once=True)
        item = trie.items[trie.enter[reached.node]]  # the texts differ: one at each node
        ends.append((1 + reached.origin, low + item, outcomes.configurations.nodes(reached.state, reached.stack)))
        counts = trie.leave[left.node] - trie.enter[left.node]
        item = trie.items[tries.ranges(trie.enter[left.node], trie.leave[left.node])]
        depth = np.repeat(left.depth, counts)
        pairs, which = np.unique(item * (1 << 16) + depth, return_inverse=True)
        further = np.array([names.of(texts[pair >> 16][pair & 0xFFFF :]) for pair in pairs.tolist()], np.int64)
        again.append(
            (1 + np.repeat(left.origin, counts), low + item, further[which.reshape(-1)], np.repeat(left.label, counts))
        )
    none = (np.zeros(0, np.int64),)
    joined = lambda parts, width: tuple(np.concatenate(c) for c in zip(*parts, strict=True)) if parts else none * width
    return Rests(outcomes, leaving, len(names.number), row_of_state, states, joined(ends, 3), joined(again, 4))


def _leaving(
    outcomes: Outcomes, vocabulary: Vocabulary, pushdown: PushdownAutomaton, live: np.ndarray, names: _Names
) -> tuple[np.ndarray, ...]:
    """Block, token, rest and label of the tokens that leave their frame; `live` are the columns some return state reads."""
    block_of = np.full(len(outcomes.block), -1, np.int64)
    block_of[outcomes.walked] = np.arange(len(outcomes.walked))
    spelled = pushdown.classes[vocabulary.bytes] if len(vocabulary.bytes) else vocabulary.bytes
    spelling, ends = spelled.astype(np.uint8).tobytes(), vocabulary.offsets
    parts = []
    for group in outcomes.groups:
        trie, left = group.trie, group.left
        owner = block_of[left.origin]
        kept = owner >= 0
        owner, node, depth, label = owner[kept], left.node[kept], left.depth[kept], left.label[kept]
        counts = trie.leave[node] - trie.enter[node]
        token = trie.items[tries.ranges(trie.enter[node], trie.leave[node])]
        owner, depth, label = (np.repeat(column, counts) for column in (owner, depth, label))
        kept = live[spelled[ends[token] + depth]]
        parts.append((owner[kept], token[kept].astype(np.int64), depth[kept], label[kept]))
    block, token, depth, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    pairs, which = np.unique(token * (1 << 16) + depth, return_inverse=True)
    low, high = (ends[pairs >> 16] + (pairs & 0xFFFF)).tolist(), ends[(pairs >> 16) + 1].tolist()
    numbers = np.array([names.of(spelling[a:b]) for a, b in zip(low, high, strict=True)], np.int64)
    return block, token, numbers[which.reshape(-1)], label
