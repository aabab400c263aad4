"""Tokens that leave the frame they began in: what is left of them then, and what each return state makes of it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mechanex_jax.constraints.automata.minimize import ranges, unique_rows
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.token_index import trie as tries
from mechanex_jax.constraints.token_index.equivalent_states import mix
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE
from mechanex_jax.constraints.token_index.transitions import Transitions
from mechanex_jax.constraints.token_index.trie_walk import Exited, Walker
from mechanex_jax.errors import ConstraintError
from mechanex_jax.tokenization.vocabulary import Vocabulary

_MOST_CELLS = 40_000_000  # of the table
_POSITIONS = 1 << 16  # a token and a position in it, as one number


class SuffixTables(NamedTuple):
    """Fields of `build.Tables`, by the same names."""

    suffix_row: np.ndarray
    suffix_code: np.ndarray
    suffix_distance: np.ndarray
    first_group: np.ndarray
    group_suffix: np.ndarray
    group_label: np.ndarray
    first_entry: np.ndarray
    entry_token: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSuffixes:
    """All suffixes, numbered from 0, and what return states make of them, in rows from 1 (row 0: nothing returns there).

    Attributes:
      transitions: the walks.
      leaving: (block, token, suffix, label) of each token that leaves its frame.
      count: the number of suffixes.
      row_of_state: int [S].
      states: the state walked for each row.
      staying: (row, suffix, node) where the suffix ends within the frame.
      leaving_again: (row, suffix, next suffix, label) where it leaves that frame too.
    """

    transitions: Transitions
    leaving: tuple[np.ndarray, ...]
    count: int
    row_of_state: np.ndarray
    states: np.ndarray
    staying: tuple[np.ndarray, ...]
    leaving_again: tuple[np.ndarray, ...]

    def tables(self, node_distance: np.ndarray, base_distance: np.ndarray) -> SuffixTables:
        """What the device reads.

        Args:
          node_distance: int32 [N, K], distances of all nodes.
          base_distance: int32 [S, K], what `suffix_distance` is relative to.

        Raises:
          ConstraintError: the table of suffixes and return states is too large.
        """
        labels = node_distance.shape[1]
        cells, suffix_distance = self._cells(node_distance, base_distance)
        codes, image = self._merged(cells, labels)
        block, token, suffix, label = self.leaving
        live = np.any(codes != 0, axis=0)[image[suffix]] if len(suffix) else np.zeros(0, bool)
        block, token, suffix, label = block[live], token[live], image[suffix[live]], label[live]
        columns = max(codes.shape[1], 1)
        keys = (block * columns + suffix) * labels + label
        order = np.lexsort((token, keys))
        groups, first_entry = np.unique(keys[order], return_index=True)
        blocks = len(self.transitions.representative)
        return SuffixTables(
            suffix_row=self.row_of_state,
            suffix_code=codes if self.count else np.zeros((len(codes), 1), np.int32),
            suffix_distance=suffix_distance,
            first_group=np.searchsorted(groups // (columns * labels), np.arange(blocks + 1)),
            group_suffix=groups // labels % columns,
            group_label=groups % labels,
            first_entry=np.append(first_entry, len(order)),
            entry_token=token[order],
        )

    def _cells(self, node_distance: np.ndarray, base_distance: np.ndarray) -> tuple[_Cells, np.ndarray]:
        """The entries of `suffix_code` that are not 0, with columns as suffixes are numbered here, and `suffix_distance`."""
        labels = node_distance.shape[1]
        row, suffix, node = self.staying
        needed = node_distance[node]
        live = (needed < UNREACHABLE).any(axis=1)
        row, suffix, needed = row[live], suffix[live], needed[live]
        relative = np.where(needed < UNREACHABLE, needed - base_distance[self.states[row - 1]], UNREACHABLE)
        distances, number = unique_rows(relative.reshape(-1, labels))
        again_row, again_suffix, next_suffix, label = self.leaving_again
        columns = (row, again_row), (suffix, again_suffix), (1 + number, -1 - (next_suffix * labels + label))
        cells = _Cells(*map(np.concatenate, columns))
        while True:  # a suffix that nothing can be made of is none; so are those that come to it
            dead = np.bincount(cells.suffix, minlength=self.count) == 0
            lost = np.flatnonzero(cells.code < 0)
            lost = lost[dead[(-1 - cells.code[lost]) // labels]]
            if not len(lost):
                return cells, distances
            cells = _Cells(*(np.delete(column, lost) for column in cells))

    def _merged(self, cells: _Cells, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """The table with suffixes of one column made one, and the new number of each suffix.

        Raises:
          ConstraintError: it is too large.
        """
        order = np.argsort(cells.suffix, kind="stable")
        row, suffix, code = _Cells(*(column[order] for column in cells))
        place = mix(mix(row))  # once more than a code: the two are not to be confused
        again = code < 0
        next_suffix, label = np.divmod(-1 - np.minimum(code, -1), labels)
        begins = np.flatnonzero(np.diff(suffix, prepend=-1))
        image, columns = np.arange(self.count), self.count + 1
        while self.count:
            renamed = np.where(again, -1 - (image[next_suffix] * labels + label), code)
            content = np.zeros(self.count, np.uint64)
            if len(begins):
                content[suffix[begins]] = np.add.reduceat(mix(mix(renamed) + place), begins)
            distinct, number = np.unique(content, return_inverse=True)
            image = number.reshape(-1)
            if len(distinct) >= columns:
                break
            columns = len(distinct)
        columns = columns if self.count else 0
        if (len(self.states) + 1) * columns > _MOST_CELLS:
            raise ConstraintError(
                f"The constraint is too large: {columns:,} suffixes of tokens meet {len(self.states):,} kinds of return. "
                "Use smaller bounds."
            )
        codes = np.zeros((len(self.states) + 1, columns), np.int32)
        codes[row, image[suffix]] = np.where(again, -1 - (image[next_suffix] * labels + label), code)
        return codes, image


class _Cells(NamedTuple):
    """Entries of a table."""

    row: np.ndarray
    suffix: np.ndarray
    code: np.ndarray


def token_suffixes(walker: Walker, transitions: Transitions, vocabulary: Vocabulary) -> TokenSuffixes:
    """Find all suffixes, and all that return states make of them, to the last."""
    pushdown = walker.moves.pushdown
    back = np.unique(pushdown.returns[pushdown.returns > 0])
    # Suffixes are spelled in the automaton's byte classes, so that those which no state tells apart are one.
    numbers: dict[bytes, int] = {}
    leaving = _leaving(transitions, vocabulary, pushdown, np.any(pushdown.target[back] > 0, axis=0), numbers)
    blocks = np.unique(transitions.block[back])
    states = transitions.representative[blocks]
    row_of_block = np.zeros(len(transitions.representative), np.int64)
    row_of_block[blocks] = 1 + np.arange(len(blocks))
    row_of_state = np.zeros(len(transitions.block), np.int64)
    row_of_state[back] = row_of_block[transitions.block[back]]
    staying: list[tuple[np.ndarray, ...]] = []
    leaving_again: list[tuple[np.ndarray, ...]] = []
    done = 0
    while done < len(numbers) and len(states):
        texts = list(numbers)[done:]
        low, done = done, len(numbers)
        trie = tries.of_strings(texts)
        reached, exited = walker.walk(trie, states, leave_at_once=True)
        suffix = low + trie.items[trie.first_item[reached.node]]  # the texts differ: one at each node
        node = transitions.configurations.nodes(reached.state, reached.stack)
        staying.append((1 + reached.origin, suffix, node))
        item, counts = trie.items_below(exited.node)
        pairs, which = np.unique(item.astype(np.int64) * _POSITIONS + np.repeat(exited.depth, counts), return_inverse=True)
        next_suffix = [_number(numbers, texts[pair // _POSITIONS][pair % _POSITIONS :]) for pair in pairs.tolist()]
        origin, label = np.repeat(exited.origin, counts), np.repeat(exited.label, counts)
        leaving_again.append((1 + origin, low + item, np.array(next_suffix, np.int64)[which.reshape(-1)], label))
    none = np.zeros(0, np.int64)
    joined = lambda parts, width: tuple(map(np.concatenate, zip(*parts, strict=True))) if parts else (none,) * width
    return TokenSuffixes(
        transitions,
        leaving,
        len(numbers),
        row_of_state,
        states,
        joined(staying, 3),
        joined(leaving_again, 4),
    )


def _number(numbers: dict[bytes, int], suffix: bytes) -> int:
    return numbers.setdefault(suffix, len(numbers))


def _leaving(
    transitions: Transitions, vocabulary: Vocabulary, pushdown: PushdownAutomaton, live: np.ndarray, numbers: dict[bytes, int]
) -> tuple[np.ndarray, ...]:
    """Block, token, suffix and label of the tokens that leave their frame; `live` are the columns some return state reads."""
    block_of = np.full(len(transitions.block), -1, np.int64)
    block_of[transitions.representative] = np.arange(len(transitions.representative))
    spelled = pushdown.classes[vocabulary.bytes] if len(vocabulary.bytes) else vocabulary.bytes
    spelling, ends = spelled.astype(np.uint8).tobytes(), vocabulary.offsets
    parts = []
    for state, token, depth, label in _leaving_tokens(transitions):
        owner = block_of[state]
        kept = (owner >= 0) & live[spelled[ends[token] + depth]]
        parts.append((owner[kept], token[kept].astype(np.int64), depth[kept], label[kept]))
    block, token, depth, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    pairs, which = np.unique(token * _POSITIONS + depth, return_inverse=True)
    token_of_pair, position = pairs // _POSITIONS, pairs % _POSITIONS
    low, high = (ends[token_of_pair] + position).tolist(), ends[token_of_pair + 1].tolist()
    suffix = np.array([_number(numbers, spelling[a:b]) for a, b in zip(low, high, strict=True)], np.int64)
    return block, token, suffix[which.reshape(-1)], label


def _leaving_tokens(transitions: Transitions) -> list[tuple[np.ndarray, ...]]:
    """State, token, the depth at which it leaves its frame, and the label."""

    def of(trie: tries.Trie, exited: Exited) -> tuple[np.ndarray, ...]:
        token, counts = trie.items_below(exited.node)
        state, depth, label = (np.repeat(column, counts) for column in (exited.origin, exited.depth, exited.label))
        return state, token, depth, label

    parts = [of(walk.trie, walk.exited) for walk in transitions.walks]
    walked = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(walked[0], kind="stable")
    state = walked[0][order]
    for comparison in transitions.comparisons:
        low, high = (np.searchsorted(state, comparison.bases, side=side) for side in ("left", "right"))
        at = order[ranges(low, high)]
        compared = np.repeat(comparison.states, high - low)
        removed, token, *_ = of(comparison.trie, comparison.removed_exits)
        kept = ~np.isin(compared * _POSITIONS**2 + walked[1][at], removed * _POSITIONS**2 + token)
        parts.append((compared[kept], *(column[at][kept] for column in walked[1:])))
        parts.append(of(comparison.trie, comparison.added_exits))
    return parts
