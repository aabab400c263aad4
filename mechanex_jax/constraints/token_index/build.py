"""The tables of an automaton and a vocabulary: all that masking and advancing need, as arrays, computed once on the host.

Masks are those of "inside" tokens, which leave the frame (the called rule's run) that they begin in on the stack, one per state
and budget. A token that leaves its frame depends on what is below: such tokens are listed, with what is left of them
behind the frame's end, and what a return state makes of each such suffix is a table too (`suffix_code`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence

import numpy as np

from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.token_index.mask_rows import mask_rows
from mechanex_jax.constraints.token_index.token_suffixes import token_suffixes
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE, shortest_distances
from mechanex_jax.constraints.token_index.transitions import Transitions, find_transitions
from mechanex_jax.constraints.token_index.trie import tries_of
from mechanex_jax.constraints.token_index.trie_walk import Moves, Walker
from mechanex_jax.errors import ConstraintError, expected
from mechanex_jax.tokenization.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class IndexLimits:
    """What the tables of one constraint may cost before it is refused.

    Attributes:
      states: of the automaton.
      bytes: of the finished tables.
      steps: bytes of tokens that states read, those that begin alike counted once.
      depth: how deep calls may nest before the masks lead back out.
    """

    states: int = 400_000
    bytes: int = 512 << 20
    steps: int = 100_000_000
    depth: int = 128


DEFAULT_LIMITS = IndexLimits()


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """One constraint for one vocabulary. S states, C byte classes, N return sites, K labels, V ids, B blocks of states.

    Budgets count tokens. `distance[s, y]` is how many a frame at state s needs to end with label y. In the tables of a block
    they are relative to that: a token is listed at `threshold` t if behind it the frame needs `distance[s, y] + t` (or, where
    `distance[s, y]` is `UNREACHABLE`, t).

    Attributes:
      classes, target, push, stay, label, returns, start, boundary: the automaton's.
      distance: int32 [S, K].
      block: int32 [S]; states of one block have the same masks. Block 0 is the dead state's.
      all_tokens: int32 [B], the mask row of all tokens inside the frame, however many tokens are needed behind them.
      max_threshold: int32 [B, K], the largest threshold, `NO_THRESHOLD` if there is none.
      first_threshold: int32 [B * K + 1]; those of block b and label y begin at `first_threshold[b * K + y]` of the next two.
      threshold: int32, ascending for each block and label.
      mask_row: int32, the mask row of the tokens that need no more than that.
      masks: uint32 [U, ceil(V / 32)], the bit `v % 32` of word `v // 32` is token v's. Row 0 is empty.
      quote_row: the mask row of the tokens that begin with a quote; 0 where there are no distinct strings.
      first_group, group_suffix, group_label: for each block, the (suffix, label) pairs of tokens that leave the frame.
      first_entry, entry_token: for each group, those tokens.
      suffix_row: int32 [S], the row of `suffix_code` for a return state.
      suffix_code: int32 [R, W]: 0 the text dies; n > 0 it ends inside the frame, which needs `suffix_distance[n - 1]` more;
        n < 0 it leaves it again, with suffix and label `divmod(-1 - n, K)`.
      suffix_distance: int32 [E, K], relative to the return state's distance.
      eos_ids: int32, ascending.
      max_free_depth: how high the stack may grow freely; above it only the nearest way out is allowed.
      max_depth: how high it can grow.
      longest: see `PushdownAutomaton`.
      vocabulary: the fingerprint.
      size: V.
      stats: sizes, and the seconds it took, for people.
    """

    classes: np.ndarray
    target: np.ndarray
    push: np.ndarray
    stay: np.ndarray
    label: np.ndarray
    returns: np.ndarray
    start: int
    boundary: np.ndarray
    distance: np.ndarray
    block: np.ndarray
    all_tokens: np.ndarray
    max_threshold: np.ndarray
    first_threshold: np.ndarray
    threshold: np.ndarray
    mask_row: np.ndarray
    masks: np.ndarray
    quote_row: int
    first_group: np.ndarray
    group_suffix: np.ndarray
    group_label: np.ndarray
    first_entry: np.ndarray
    entry_token: np.ndarray
    suffix_row: np.ndarray
    suffix_code: np.ndarray
    suffix_distance: np.ndarray
    eos_ids: np.ndarray
    max_free_depth: int
    max_depth: int
    longest: int
    vocabulary: str
    size: int
    stats: Mapping[str, float]

    def __repr__(self) -> str:
        return f"Tables({len(self.target):,} states, {len(self.masks):,} masks, {self.size:,} ids)"

    @functools.cached_property
    def minimum(self) -> int:
        """The least max_tokens with which a text is certain to be completed."""
        return int(self.distance[self.start].min())

    @property
    def bytes(self) -> int:
        """The memory that the arrays take."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


def build(
    pushdown: PushdownAutomaton,
    vocabulary: Vocabulary,
    *,
    eos_ids: Sequence[int],
    logits: int | None = None,
    limits: IndexLimits = DEFAULT_LIMITS,
) -> Tables:
    """Build the tables of an automaton for a vocabulary.

    Args:
      pushdown: what the text has to match.
      vocabulary: the tokenizer's; special tokens are never part of the text.
      eos_ids: ids that end the text; not part of it either.
      logits: V, the model's number of logits; ids beyond the vocabulary are never allowed. None takes the vocabulary's size.
      limits: beyond them the constraint is refused.

    Raises:
      ConstraintError: no text can be spelled with this vocabulary, or a limit is exceeded.
      ArgumentError: `logits` is smaller than the vocabulary.
    """
    begun = time.monotonic()
    size = vocabulary.size if logits is None else int(logits)
    if size < vocabulary.size:
        raise expected("logits", size, f"at least the vocabulary's {vocabulary.size} ids")
    if (states := len(pushdown.label) - 1) > limits.states:
        raise ConstraintError(
            f"The constraint is too large: {states:,} states, at most {limits.states:,} are held. Use smaller bounds."
        )
    ends = tuple(sorted({int(token) for token in eos_ids}))
    labels = max(pushdown.returns.shape[1], int(pushdown.label.max(initial=0)) + 1)
    pushdown = dataclasses.replace(
        pushdown, returns=np.pad(pushdown.returns, ((0, 0), (0, labels - pushdown.returns.shape[1]))).astype(np.int32)
    )
    walker = Walker(Moves.of(pushdown), limits.steps)
    transitions = find_transitions(walker, vocabulary, tries_of(vocabulary, ends))
    if pushdown.start == 0 or transitions.distance[pushdown.start].min() >= UNREACHABLE:
        raise ConstraintError("No text that the constraint accepts can be spelled with this vocabulary.")
    suffixes = token_suffixes(walker, transitions, vocabulary)
    # Nodes met since distances were solved: only what is above the frame's bottom is new.
    none = np.zeros(0, np.int64)
    node_distance, _ = shortest_distances(pushdown, transitions.configurations, none, none, transitions.distance)
    base_distance = np.where(transitions.distance < UNREACHABLE, transitions.distance, 0)
    rows = mask_rows(transitions, node_distance, base_distance, size, limits.bytes)
    max_free_depth, max_depth = _depths(pushdown, transitions, walker.highest, limits.depth)
    suffix_tables = suffixes.tables(node_distance, base_distance)
    distinct = bool(pushdown.distinct_ends.any())
    masks = np.concatenate([rows.masks, _opening_with(b'"', vocabulary, size)[None]]) if distinct else rows.masks
    int32 = lambda values: np.ascontiguousarray(values, np.int32)
    tables = Tables(
        classes=pushdown.classes,
        target=pushdown.target,
        push=pushdown.push,
        stay=pushdown.stay,
        label=pushdown.label,
        returns=pushdown.returns,
        start=pushdown.start,
        boundary=pushdown.boundary,
        distance=int32(transitions.distance),
        block=int32(transitions.block),
        all_tokens=int32(rows.all_tokens),
        max_threshold=int32(rows.max_threshold),
        first_threshold=int32(rows.first_threshold),
        threshold=int32(rows.threshold),
        mask_row=int32(rows.mask_row),
        masks=masks,
        quote_row=len(masks) - 1 if distinct else 0,
        first_group=int32(suffix_tables.first_group),
        group_suffix=int32(suffix_tables.group_suffix),
        group_label=int32(suffix_tables.group_label),
        first_entry=int32(suffix_tables.first_entry),
        entry_token=int32(suffix_tables.entry_token),
        suffix_row=int32(suffix_tables.suffix_row),
        suffix_code=int32(suffix_tables.suffix_code),
        suffix_distance=int32(suffix_tables.suffix_distance),
        eos_ids=int32(ends),
        max_free_depth=max_free_depth,
        max_depth=max_depth,
        longest=pushdown.longest,
        vocabulary=vocabulary.fingerprint,
        size=size,
        stats={},
    )
    return dataclasses.replace(tables, stats=_stats(tables) | {"seconds": round(time.monotonic() - begun, 4)})


def _opening_with(byte: bytes, vocabulary: Vocabulary, size: int) -> np.ndarray:
    """The mask row of the tokens whose text begins with a byte."""
    begin, end = vocabulary.offsets[:-1], vocabulary.offsets[1:]
    flags = np.zeros(-(-size // 32) * 32, bool)
    filled = np.flatnonzero(end > begin)
    flags[filled[vocabulary.bytes[begin[filled]] == byte[0]]] = True
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)


def _stats(tables: Tables) -> dict[str, float]:
    return {
        "states": len(tables.label) - 1,
        "blocks": len(tables.all_tokens) - 1,
        "rows": len(tables.masks) - 1,
        "classes": tables.target.shape[1],
        "labels": tables.returns.shape[1],
        "sites": len(tables.returns),
        "stack": tables.max_depth,
        "leaving_tokens": int(np.diff(tables.first_entry[tables.first_group]).max(initial=0)),
        "leaving_groups": int(np.diff(tables.first_group).max(initial=0)),
        "token_suffixes": tables.suffix_code.shape[1],
        "minimum": tables.minimum,
        "bytes": tables.bytes,
    }


def _depths(pushdown: PushdownAutomaton, transitions: Transitions, highest: int, limit: int) -> tuple[int, int]:
    """How high the stack may grow freely, and how high it then can grow at most.

    Args:
      pushdown, transitions: of the constraint.
      highest: how high a single token made the stack grow.
      limit: how high it may grow freely, if nothing else bounds it.
    """
    sources, columns = np.nonzero(pushdown.target)
    caller, called = pushdown.rule[sources], pushdown.rule[pushdown.target[sources, columns]]
    pushes = pushdown.push[sources, columns] >= 0
    edges = np.unique(np.stack([caller, called, pushes], axis=1)[(caller != called) | pushes], axis=0)
    nested = np.zeros(len(pushdown.names) + 1, np.int64)
    while len(edges):
        deeper = nested.copy()
        np.maximum.at(deeper, edges[:, 0], nested[edges[:, 1]] + edges[:, 2])
        if (deeper == nested).all():
            break
        nested = deeper
        if nested.max() > limit:  # recursion, or as good as
            return limit, limit + 2 * highest + int(transitions.height.max(initial=0))
    return int(nested.max()), int(nested.max())
