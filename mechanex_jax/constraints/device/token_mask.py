"""Constraints on the device: masks and moves of many machines, row by row, inside the jitted loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import rows
from mechanex_jax.constraints.compiled import Compiled
from mechanex_jax.constraints.device.packing import shared_fields
from mechanex_jax.constraints.token_index.build import Tables
from mechanex_jax.constraints.token_index.tokens_to_finish import FAR
from mechanex_jax.errors import expected
from mechanex_jax.tokenization.vocabulary import Vocabulary

_GROUPS, _ENTRIES = 128, 256  # leaving tokens are looked at in blocks of this many


class AutomatonState(NamedTuple):
    """Attributes:
    state: int32 [], 0 is dead.
    height: int32 [], how many sites are on the stack.
    stack: int32 [D], return sites, the bottom first.
    ahead: int32 [D + 1, K], tokens that are needed once the frame with so many sites below it has ended with each label.
    """

    state: jax.Array
    height: jax.Array
    stack: jax.Array
    ahead: jax.Array


def _at(array: jax.Array, *index: Any) -> jax.Array:
    """`array[index]` for indices known to be inside."""
    return jnp.asarray(array).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


class _Host:
    """Carries a host object through a tree without being part of the compile key."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Host)

    def __hash__(self) -> int:
        return hash(_Host)


@rows.row_tree
class Automaton:
    """A LogitsTransform that leaves only tokens with which the text can still be completed, within `step.remaining`.

    Several machines lie behind one another in the shared fields, which are those of `tables.Tables`; each row starts in
    its own. What a row may not choose becomes -inf. A token that was not allowed leads to the dead state, where nothing is.

    Attributes:
      start: the row's first state.
      free: whether the row is unconstrained; its logits stay as they are.
      limit: how high the row's stack may grow freely.
      ends: the mask row of the ids that end its text.
      classes: int32 [256], its machine's byte classes.
      moves: int32 [S, C, 2], target * 2 + stay, and push.
      closed: bool [S], states that end their frame and read nothing.
      thresholds: int32 [B, K, 2], where a block's thresholds of a label begin and end.
      groups: int32 [B, 2], likewise its groups of leaving tokens.
      entries: int32 [G, 2], likewise a group's tokens.
      offsets, data: the tokens' bytes.
      depth: how high a stack can grow.
      search: halvings that find a threshold.
      host: the compiled constraint, where there is one for all rows.
    """

    start: Any = rows.row(0, jnp.int32)
    free: Any = rows.row(0, jnp.bool_)
    limit: Any = rows.row(0, jnp.int32)
    ends: Any = rows.row(0, jnp.int32)
    classes: Any = rows.row(1, jnp.int32)
    moves: Any = rows.shared()
    label: Any = rows.shared()
    closed: Any = rows.shared()
    returns: Any = rows.shared()
    distance: Any = rows.shared()
    block: Any = rows.shared()
    every: Any = rows.shared()
    roomy: Any = rows.shared()
    thresholds: Any = rows.shared()
    threshold: Any = rows.shared()
    row: Any = rows.shared()
    masks: Any = rows.shared()
    groups: Any = rows.shared()
    group_rest: Any = rows.shared()
    group_label: Any = rows.shared()
    entries: Any = rows.shared()
    entry_token: Any = rows.shared()
    entry_group: Any = rows.shared()
    rest_row: Any = rows.shared()
    rest: Any = rows.shared()
    rest_ends: Any = rows.shared()
    offsets: Any = rows.shared()
    data: Any = rows.shared()
    depth: int = rows.static()
    search: int = rows.static()
    host: _Host = rows.static()

    @property
    def compiled(self) -> Compiled:
        """The constraint on the host, of an automaton that `mx.constraints.compile` made.

        Raises:
          ArgumentError: it was put together from several.
        """
        if self.host.value is None:
            raise expected("automaton", "one of several constraints", "one made by mx.constraints.compile")
        return self.host.value

    def matches(self, text: str) -> bool:
        """Whether the constraint accepts the whole text."""
        return self.compiled.matches(text)

    def allowed(self, prefix: str = "") -> np.ndarray:
        """The ids that may come behind `prefix`, ascending: int32 [N]."""
        return self.compiled.allowed(prefix)

    @property
    def minimum(self) -> int:
        """The least max_tokens with which a text is certain to be completed."""
        return self.compiled.minimum

    @property
    def stats(self) -> Mapping[str, Any]:
        """States, rows, classes, bytes, seconds and more."""
        return self.compiled.stats

    def init(self, prompt: Any, length: Any) -> AutomatonState:
        labels = self.distance.shape[1]
        return AutomatonState(
            jnp.asarray(self.start, jnp.int32),
            jnp.int32(0),
            jnp.zeros(self.depth, jnp.int32),
            jnp.zeros((self.depth + 1, labels), jnp.int32),
        )

    def apply(self, state: AutomatonState, logits: jax.Array, step: Any) -> jax.Array:
        words = self.allowed_words(state, step.remaining)
        bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & jnp.uint32(1)
        allowed = bits.astype(jnp.bool_).reshape(-1)[: logits.shape[0]]
        return jnp.where(self.free | allowed, logits, jnp.asarray(-jnp.inf, logits.dtype))

    def allowed_words(self, state: AutomatonState, remaining: jax.Array) -> jax.Array:
        """uint32 [ceil(V / 32)]; bit v % 32 of word v // 32 says whether token v is allowed."""
        cost = jnp.min(_at(self.distance, state.state) + _at(state.ahead, state.height))
        # Too high a stack is led back down the nearest way.
        budget = jnp.where(state.height > self.limit, jnp.minimum(remaining, cost), remaining) - 1

        # A frame that may end here is asked first; then, as if it had ended, the one below; and so on.
        def body(loop: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            at, height, words, _, _ = loop
            words = words | self._inside(at, _at(state.ahead, height), budget)
            words = self._leaving(at, height, state, budget, words)
            label = _at(self.label, at)
            ends = label >= 0
            below = jnp.maximum(height - 1, 0)
            go = ends & (height > 0)
            back = self._return(state.stack, below, jnp.maximum(label, 0))
            return jnp.where(go, back, at), jnp.where(go, below, height), words, go, ends & (height == 0)

        words = jnp.zeros(self.masks.shape[1], jnp.uint32)
        begin = (state.state, state.height, words, state.state != 0, jnp.bool_(False))
        _, _, words, _, complete = jax.lax.while_loop(lambda loop: loop[3], body, begin)
        return words | _at(self.masks, jnp.where(complete, self.ends, 0))

    def _return(self, stack: jax.Array, below: jax.Array, label: jax.Array) -> jax.Array:
        """Where the frame above `below` sites returns to."""
        if not self.depth:
            return jnp.zeros_like(below)
        return _at(self.returns, _at(stack, below), label)

    def _inside(self, at: jax.Array, ahead: jax.Array, budget: jax.Array) -> jax.Array:
        """Tokens that stay in the frame."""
        block, distance = _at(self.block, at), _at(self.distance, at)
        room = budget - ahead - jnp.where(distance < FAR, distance, 0)
        roomy = jnp.all(room >= _at(self.roomy, block))
        words = _at(self.masks, jnp.where(roomy, _at(self.every, block), 0))

        def body(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            label, words = loop
            begin, end = (_at(self.thresholds, block, label, side) for side in (0, 1))
            last = begin
            size = end - begin
            for _ in range(self.search):  # the number of thresholds that fit, by bisection
                half = (size + 1) // 2
                fits = (half > 0) & (_at(self.threshold, jnp.maximum(last + half - 1, 0)) <= _at(room, label))
                last = jnp.where(fits, last + half, last)
                size = jnp.where(fits, size - half, jnp.maximum(half - 1, 0))
            row = jnp.where(last > begin, _at(self.row, jnp.maximum(last - 1, 0)), 0)
            return label + 1, words | _at(self.masks, row)

        count = jnp.where(roomy, 0, room.shape[0])
        return jax.lax.while_loop(lambda loop: loop[0] < count, body, (jnp.int32(0), words))[1]

    def _leaving(
        self, at: jax.Array, height: jax.Array, state: AutomatonState, budget: jax.Array, words: jax.Array
    ) -> jax.Array:
        """Tokens that leave the frame, added to `words`."""
        if not self.depth:
            return words
        block = _at(self.block, at)
        begin = _at(self.groups, block, 0)
        end = jnp.where(height > 0, _at(self.groups, block, 1), begin)

        def body(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, words = loop
            high = jnp.minimum(low + _GROUPS, end)
            good = self._verdicts(low, high, height, state, budget)
            first, last = _at(self.entries, low, 0), _at(self.entries, high - 1, 1)

            def add(inner: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                entry, words = inner
                index = jnp.minimum(entry + jnp.arange(_ENTRIES, dtype=jnp.int32), last - 1)
                real = entry + jnp.arange(_ENTRIES, dtype=jnp.int32) < last
                token = _at(self.entry_token, index)
                allowed = real & _at(good, jnp.clip(_at(self.entry_group, index) - low, 0, _GROUPS - 1))
                bit = jnp.where(allowed, jnp.uint32(1) << (token & 31).astype(jnp.uint32), jnp.uint32(0))
                # No token is listed twice, nor inside as well: to add is to set.
                return entry + _ENTRIES, words.at[token >> 5].add(bit, mode="promise_in_bounds")

            words = jax.lax.while_loop(lambda inner: inner[0] < last, add, (first, words))[1]
            return high, words

        return jax.lax.while_loop(lambda loop: loop[0] < end, body, (begin, words))[1]

    def _verdicts(
        self, low: jax.Array, high: jax.Array, height: jax.Array, state: AutomatonState, budget: jax.Array
    ) -> jax.Array:
        """bool [_GROUPS], for the groups from `low` to `high`: return, read the rest of the token, return again."""
        labels = self.distance.shape[1]
        lane = low + jnp.arange(_GROUPS, dtype=jnp.int32)
        index = jnp.minimum(lane, high - 1)

        def body(loop: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            rest, label, height, open_, good = loop
            below = height - 1
            back = self._return(state.stack, below, label)
            code = _at(self.rest, _at(self.rest_row, back), rest)
            distance = _at(self.distance, back)
            needed = _at(self.rest_ends, jnp.maximum(code - 1, 0)) + jnp.where(distance < FAR, distance, 0)
            fits = jnp.any(needed + _at(state.ahead, below) <= budget, axis=-1)
            good = good | (open_ & (code > 0) & fits)
            left, next_label = jnp.divmod(jnp.maximum(-1 - code, 0), labels)
            open_ = open_ & (code < 0) & (below > 0)
            return left, next_label, jnp.maximum(below, 1), open_, good

        begin = (
            _at(self.group_rest, index),
            _at(self.group_label, index),
            jnp.broadcast_to(height, lane.shape),
            (lane < high) & (height > 0),
            jnp.zeros(lane.shape, jnp.bool_),
        )
        return jax.lax.while_loop(lambda loop: jnp.any(loop[3]), body, begin)[4]

    def advance(self, state: AutomatonState, token: jax.Array, step: Any) -> AutomatonState:
        known = (token >= 0) & (token < self.offsets.shape[0] - 1)
        index = jnp.where(known, token, 0)
        begin = _at(self.offsets, index)
        end = jnp.where(known, _at(self.offsets, index + 1), begin)
        first = jnp.where(end > begin, state.state, 0)  # ids without text end it
        spots = jnp.arange(self.depth, dtype=jnp.int32)

        def more(loop: tuple[jax.Array, ...]) -> jax.Array:
            at, height, _, _, position = loop
            return (at != 0) & ((position < end) | (_at(self.closed, at) & (height > 0)))

        def body(loop: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            at, height, lowest, stack, position = loop
            column = _at(self.classes, _at(self.data, jnp.minimum(position, end - 1)).astype(jnp.int32))
            code, site = (_at(self.moves, at, column, part) for part in (0, 1))
            reads = (position < end) & (code > 1)
            label = _at(self.label, at)
            pops = ~reads & (label >= 0) & (height > 0)
            pushes = reads & (site >= 0) & (height < self.depth)
            lost = reads & (site >= 0) & (height >= self.depth)
            stack = jnp.where(pushes & (spots == height), site, stack)
            back = self._return(stack, jnp.maximum(height - 1, 0), jnp.maximum(label, 0))
            at = jnp.where(reads & ~lost, code >> 1, jnp.where(pops, back, 0))
            height = height + pushes.astype(jnp.int32) - pops.astype(jnp.int32)
            position = position + (reads & (code & 1 == 0)).astype(jnp.int32)
            return at, height, jnp.minimum(lowest, height), stack, position

        loop = (first, state.height, state.height, state.stack, begin)
        at, height, lowest, stack, _ = jax.lax.while_loop(more, body, loop)
        return AutomatonState(at, height, stack, self._ahead(state.ahead, stack, lowest, height))

    def _ahead(self, ahead: jax.Array, stack: jax.Array, lowest: jax.Array, height: jax.Array) -> jax.Array:
        """`ahead` for the sites above `lowest`, which are new."""
        if not self.depth:
            return ahead
        spots = jnp.arange(self.depth + 1, dtype=jnp.int32)

        def body(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            level, ahead = loop
            behind = _at(self.distance, _at(self.returns, _at(stack, level)))
            needed = jnp.minimum(jnp.min(behind + _at(ahead, level), axis=-1), FAR)
            return level + 1, jnp.where((spots == level + 1)[:, None], needed, ahead)

        return jax.lax.while_loop(lambda loop: loop[0] < height, body, (lowest, ahead))[1]


def arena(
    machines: Sequence[Tables | None],
    vocabulary: Vocabulary,
    *,
    token_bytes: tuple[Any, Any] | None = None,
    compiled: Compiled | None = None,
) -> Automaton:
    """The automaton of B rows.

    Args:
      machines: each row's tables; None leaves a row unconstrained. One machine for several rows is held once.
      vocabulary: the one that all were built for.
      token_bytes: its offsets and bytes where they are on the device already.
      compiled: what the automaton's `host` answers with.

    Raises:
      ArgumentError: tables of another vocabulary, or of different numbers of logits.
    """
    if not machines:
        raise expected("machines", machines, "one entry for each row")
    distinct: dict[int, Tables] = {}
    for machine in machines:
        if machine is not None:
            distinct.setdefault(id(machine), machine)
            if machine.vocabulary != vocabulary.fingerprint:
                raise expected(
                    "constraint", "one compiled for another tokenizer", "one for the loaded model's", "Compile it anew."
                )
    sizes = sorted({machine.size for machine in distinct.values()}) or [vocabulary.size]
    if len(sizes) > 1:
        raise expected("machines", sizes, "tables for one number of logits")
    fields, placed = shared_fields(list(distinct.values()), sizes[0])
    number = {key: index for index, key in enumerate(distinct)}
    chosen = [None if machine is None else number[id(machine)] for machine in machines]
    per_row = lambda value, none, dtype: np.array(
        [none if c is None else value(c, machines[i]) for i, c in enumerate(chosen)], dtype
    )
    offsets, data = token_bytes or (vocabulary.offsets, vocabulary.bytes)
    return Automaton(
        start=per_row(lambda c, m: m.start + placed[c, 0], 0, np.int32),
        free=per_row(lambda c, m: False, True, bool),
        limit=per_row(lambda c, m: m.free, 0, np.int32),
        ends=per_row(lambda c, m: placed[c, 1], 0, np.int32),
        classes=per_row(lambda c, m: m.classes, np.zeros(256), np.int32),
        offsets=offsets,
        data=data,
        host=_Host(compiled),
        **fields,
    )
