"""An automaton met by a vocabulary: everything that masking and advancing need, as arrays, computed once on the host.

Masks are those of "inside" tokens, which leave the frame (the called rule's run) that they begin in on the stack, one per state
and budget. A token that leaves its frame depends on what is below: such tokens are listed, with what is left of them
behind the frame's end, and what a return state makes of each such rest is a table too (`rest`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.token_index.mask_rows import MaskRows, mask_rows
from mechanex_jax.constraints.token_index.token_suffixes import Rests, rests
from mechanex_jax.constraints.token_index.tokens_to_finish import FAR, solve
from mechanex_jax.constraints.token_index.transitions import Outcomes, explore
from mechanex_jax.constraints.token_index.trie import tries_of
from mechanex_jax.constraints.token_index.trie_walk import Moves, Walker
from mechanex_jax.errors import ConstraintError, expected
from mechanex_jax.tokenization.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the tables of one constraint may cost before it is refused.

    Attributes:
      states: of the automaton.
      bytes: of the finished tables.
      seconds: to build them.
      depth: how deep calls may nest before the masks lead back out.
    """

    states: int = 400_000
    bytes: int = 512 << 20
    seconds: float = 60.0
    depth: int = 128


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """One constraint for one vocabulary. S states, C byte classes, N return sites, K labels, V ids, B blocks of states.

    Budgets count tokens. `distance[s, y]` is how many a frame at state s needs to end with label y. In the tables of a block
    they are relative to that: a token is listed at `threshold` t if behind it the frame needs `distance[s, y] + t` (or, where
    `distance[s, y]` is `FAR`, t).

    Attributes:
      classes, target, push, stay, label, returns, start: the automaton's.
      distance: int32 [S, K].
      block: int32 [S]; states of one block have the same masks. Block 0 is the dead state's.
      every: int32 [B], the mask row of all tokens inside.
      roomy: int32 [B, K], the largest threshold, `NEVER` if there is none.
      first_threshold: int32 [B * K + 1], into the next two.
      threshold: int32, ascending for each block and label.
      row: int32, the mask row of the tokens that need no more than that.
      masks: uint32 [U, ceil(V / 32)], the bit `v % 32` of word `v // 32` is token v's. Row 0 is empty.
      first_group, group_rest, group_label: for each block, the (rest, label) pairs of tokens that leave the frame.
      first_entry, entry_token: for each group, those tokens.
      rest_row: int32 [S], the row of `rest` for a return state.
      rest: int32 [R, W]: 0 the text dies; n > 0 it ends inside the frame, which needs `rest_ends[n - 1]` more; n < 0 it
        leaves it again, with rest and label `divmod(-1 - n, K)`.
      rest_ends: int32 [E, K], relative to the return state's distance.
      eos_ids: int32, ascending.
      free: how high the stack may grow freely; above it only the nearest way out is allowed.
      height: how high it can grow.
      vocabulary: the fingerprint.
      size: V.
      stats: figures for people.
    """

    classes: np.ndarray
    target: np.ndarray
    push: np.ndarray
    stay: np.ndarray
    label: np.ndarray
    returns: np.ndarray
    start: int
    distance: np.ndarray
    block: np.ndarray
    every: np.ndarray
    roomy: np.ndarray
    first_threshold: np.ndarray
    threshold: np.ndarray
    row: np.ndarray
    masks: np.ndarray
    first_group: np.ndarray
    group_rest: np.ndarray
    group_label: np.ndarray
    first_entry: np.ndarray
    entry_token: np.ndarray
    rest_row: np.ndarray
    rest: np.ndarray
    rest_ends: np.ndarray
    eos_ids: np.ndarray
    free: int
    height: int
    vocabulary: str
    size: int
    stats: Mapping[str, Any]

    @property
    def minimum(self) -> int:
        """The least max_tokens with which a text is certain to be completed."""
        return int(self.distance[self.start].min())

    @property
    def bytes(self) -> int:
        """What the arrays occupy."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


def build(
    pushdown: PushdownAutomaton,
    vocabulary: Vocabulary,
    *,
    eos_ids: Sequence[int],
    logits: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Tables:
    """The tables of an automaton for a vocabulary.

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
    walker = Walker(Moves.of(pushdown), begun + limits.seconds)
    outcomes = explore(walker, vocabulary, tries_of(vocabulary, ends))
    if pushdown.start == 0 or outcomes.distance[pushdown.start].min() >= FAR:
        raise ConstraintError("No text that the constraint accepts can be spelled with this vocabulary.")
    found = rests(walker, outcomes, vocabulary)
    # Nodes met since distances were solved: only what is above the frame's bottom is new.
    none = np.zeros(0, np.int64)
    value, _ = solve(pushdown, outcomes.configurations, none, none, outcomes.distance)
    potential = np.where(outcomes.distance < FAR, outcomes.distance, 0)
    rows = mask_rows(outcomes, value, potential, size, limits.bytes)
    free, height = _heights(pushdown, outcomes, walker.highest, limits.depth)
    return _finished(pushdown, vocabulary, size, ends, outcomes, found, value, potential, rows, free, height, begun)


def _heights(pushdown: PushdownAutomaton, outcomes: Outcomes, highest: int, depth: int) -> tuple[int, int]:
    """How high the stack may grow freely, and how high it then can grow at most."""
    sources, columns = np.nonzero(pushdown.target)
    caller, called = pushdown.rule[sources], pushdown.rule[pushdown.target[sources, columns]]
    pushes = pushdown.push[sources, columns] >= 0
    edges = np.unique(np.stack([caller, called, pushes], axis=1)[(caller != called) | pushes], axis=0)
    nested = np.zeros(len(pushdown.names) + 1, np.int64)
    while len(edges):
        found = nested.copy()
        np.maximum.at(found, edges[:, 0], nested[edges[:, 1]] + edges[:, 2])
        if (found == nested).all():
            break
        nested = found
        if nested.max() > depth:  # recursion, or as good as
            return depth, depth + 2 * highest + int(outcomes.height.max(initial=0))
    return int(nested.max()), int(nested.max())


def _finished(
    pushdown: PushdownAutomaton,
    vocabulary: Vocabulary,
    size: int,
    ends: tuple[int, ...],
    outcomes: Outcomes,
    found: Rests,
    value: np.ndarray,
    potential: np.ndarray,
    rows: MaskRows,
    free: int,
    height: int,
    begun: float,
) -> Tables:
    rest, rest_ends = found.table(value, potential)
    first_group, group_rest, group_label, first_entry, entry_token, rest = found.lists(rest)
    as_int = lambda array: np.ascontiguousarray(array, np.int32)
    tables = Tables(
        classes=pushdown.classes,
        target=pushdown.target,
        push=pushdown.push,
        stay=pushdown.stay,
        label=pushdown.label,
        returns=pushdown.returns,
        start=pushdown.start,
        distance=as_int(outcomes.distance),
        block=as_int(outcomes.block),
        every=as_int(rows.every),
        roomy=as_int(rows.roomy),
        first_threshold=as_int(rows.first),
        threshold=as_int(rows.threshold),
        row=as_int(rows.row),
        masks=rows.masks,
        first_group=as_int(first_group),
        group_rest=as_int(group_rest),
        group_label=as_int(group_label),
        first_entry=as_int(first_entry),
        entry_token=as_int(entry_token),
        rest_row=as_int(found.row_of_state),
        rest=as_int(rest),
        rest_ends=as_int(rest_ends),
        eos_ids=as_int(ends),
        free=free,
        height=height,
        vocabulary=vocabulary.fingerprint,
        size=size,
        stats={},
    )
    stats = {
        "states": len(pushdown.label) - 1,
        "blocks": len(rows.every) - 1,
        "rows": len(rows.masks) - 1,
        "classes": int(pushdown.target.shape[1]),
        "labels": int(pushdown.returns.shape[1]),
        "sites": len(pushdown.returns),
        "stack": height,
        "leaving_tokens": int(np.diff(first_entry[first_group]).max(initial=0)),
        "leaving_groups": int(np.diff(first_group).max(initial=0)),
        "rests": rest.shape[1],
        "minimum": tables.minimum,
        "bytes": tables.bytes,
        "seconds": round(time.monotonic() - begun, 4),
    }
    return dataclasses.replace(tables, stats=stats)
