"""Token masks on the device: the state of many constraints, row by row, inside the jitted loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from mechanex_jax import rows
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.device import distinct
from mechanex_jax.constraints.device.packing import pack_tables
from mechanex_jax.constraints.device.state import Array, ConstraintState, HostConstraint
from mechanex_jax.constraints.device.state import at as _at
from mechanex_jax.constraints.token_index.build import Tables
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE
from mechanex_jax.errors import expected
from mechanex_jax.tokenization.vocabulary import Vocabulary
from mechanex_jax.transforms.base import Logits, Step, Token

_GROUP_CHUNK, _ENTRY_CHUNK = 128, 256  # groups of tokens, and tokens, that are looked at at once


# Of a token that is being read: state, height, lowest height, stack, bytes read, and what is remembered of distinct strings.
_Reading: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, distinct.DistinctState | None]


@rows.row_tree
class Constraint:
    """A LogitsTransform that leaves only tokens with which the text can still be completed, within `step.remaining`.

    Tables of several constraints lie behind one another in the shared fields, which are those of `build.Tables` unless said
    otherwise; each row starts in its own. What a row may not choose becomes -inf. A token that was not allowed leads to the
    dead state, in which none is.

    Attributes:
      start: int32 [], the row's first state.
      unconstrained: bool [], whether the row's logits stay as they are.
      max_free_depth: int32 [], how high the row's stack may grow freely.
      eos_row, quote_row: int32 [], the mask rows of the ids that end its text, and of those that begin with a quote.
      classes: int32 [256], its byte classes.
      moves: int32 [S, C, 2], target * 2 + stay, and push.
      closed: bool [S], states that end their frame and read nothing.
      boundary, distinct_end: int32 and bool [S], see `automata.pushdown`; empty where no row has distinct strings.
      byte_token: int32 [256], the token of each single byte, -1 if there is none.
      threshold_range: int32 [B, K, 2], where a block's thresholds of a label begin and end.
      group_range: int32 [B, 2], likewise its groups of tokens that leave the frame.
      entry_range: int32 [G, 2], likewise a group's tokens.
      entry_group: int32, the group of each of those tokens.
      offsets, data: the bytes of all tokens, as in `Vocabulary`.
      max_depth: how high a stack can grow.
      bisections: halvings that find a threshold.
      host: the compiled constraint, where there is one for all rows.
    """

    start: Array = rows.row(0, jnp.int32)
    unconstrained: Array = rows.row(0, jnp.bool_)
    max_free_depth: Array = rows.row(0, jnp.int32)
    eos_row: Array = rows.row(0, jnp.int32)
    quote_row: Array = rows.row(0, jnp.int32)
    classes: Array = rows.row(1, jnp.int32)
    moves: Array = rows.shared()
    label: Array = rows.shared()
    closed: Array = rows.shared()
    boundary: Array = rows.shared()
    distinct_end: Array = rows.shared()
    byte_token: Array = rows.shared()
    returns: Array = rows.shared()
    distance: Array = rows.shared()
    block: Array = rows.shared()
    all_tokens: Array = rows.shared()
    max_threshold: Array = rows.shared()
    threshold_range: Array = rows.shared()
    threshold: Array = rows.shared()
    mask_row: Array = rows.shared()
    masks: Array = rows.shared()
    group_range: Array = rows.shared()
    group_suffix: Array = rows.shared()
    group_label: Array = rows.shared()
    entry_range: Array = rows.shared()
    entry_token: Array = rows.shared()
    entry_group: Array = rows.shared()
    suffix_row: Array = rows.shared()
    suffix_code: Array = rows.shared()
    suffix_distance: Array = rows.shared()
    offsets: Array = rows.shared()
    data: Array = rows.shared()
    max_depth: int = rows.static()
    bisections: int = rows.static()
    distinct: bool = rows.static()
    host: HostConstraint = rows.static()

    def __repr__(self) -> str:
        count = getattr(self.start, "size", 1)
        return f"Constraint({count} row{'s' * (count != 1)}, {len(self.block):,} states, {len(self.offsets) - 1:,} ids)"

    @property
    def compiled(self) -> CompiledConstraint:
        """The constraint on the host, if `mx.constraints.compile` made it.

        Raises:
          ArgumentError: it was put together from several.
        """
        if self.host.value is None:
            raise expected("constraint", "one of several constraints", "one made by mx.constraints.compile")
        return self.host.value

    def matches(self, text: str) -> bool:
        """Tell whether the constraint accepts the whole text."""
        return self.compiled.matches(text)

    def allowed(self, prefix: str = "") -> np.ndarray:
        """Return the ids that may follow `prefix`, ascending, int32 [N]; limits on tokens and nesting are left aside."""
        return self.compiled.allowed(prefix)

    @property
    def minimum(self) -> int:
        """The least `max_tokens` with which a text is certain to be completed."""
        return self.compiled.minimum

    @property
    def stats(self) -> Mapping[str, float]:
        """Sizes and times of compiling, by name: numbers of states, rows, classes, bytes, seconds and more."""
        return self.compiled.stats

    def init(self, prompt: Int32[rows.Array, " T"], length: Token) -> ConstraintState:
        labels = self.distance.shape[1]
        return ConstraintState(
            jnp.asarray(self.start, jnp.int32),
            jnp.int32(0),
            jnp.zeros(self.max_depth, jnp.int32),
            jnp.zeros((self.max_depth + 1, labels), jnp.int32),
            distinct.nothing_read(self.max_depth) if self.distinct else None,
        )

    def apply(self, state: ConstraintState, logits: Logits, step: Step) -> Logits:
        words = self.allowed_words(state, step.remaining)
        bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & jnp.uint32(1)
        allowed = bits.astype(jnp.bool_).reshape(-1)[: logits.shape[0]]
        return jnp.where(self.unconstrained | allowed, logits, jnp.asarray(-jnp.inf, logits.dtype))

    def allowed_words(self, state: ConstraintState, remaining: Token) -> jax.Array:
        """uint32 [ceil(V / 32)]; bit v % 32 of word v // 32 says whether token v is allowed."""
        cost = jnp.min(_at(self.distance, state.state) + _at(state.ahead, state.height))
        # Too high a stack is led back down the nearest way.
        budget = jnp.where(state.height > self.max_free_depth, jnp.minimum(remaining, cost), remaining) - 1
        repeats = self._repeats(state)

        # A frame that may end here is asked first; then, as if it had ended, the one below; and so on.
        def body(loop: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            at, height, words, _, _ = loop
            words = words | self._staying(at, _at(state.ahead, height), budget)
            words = self._leaving(at, height, state, budget, words)
            label = _at(self.label, at)
            ends = label >= 0
            below = jnp.maximum(height - 1, 0)
            returns = ends & (height > 0)
            back = self._return(state.stack, below, jnp.maximum(label, 0))
            return jnp.where(returns, back, at), jnp.where(returns, below, height), words, returns, ends & (height == 0)

        words = jnp.zeros(self.masks.shape[1], jnp.uint32)
        begin = (state.state, state.height, words, state.state != 0, jnp.bool_(False))
        _, _, words, _, complete = jax.lax.while_loop(lambda loop: loop[3], body, begin)
        if state.strings is not None:
            longer = self._longer(state, state.strings, remaining - 1)
            words = jnp.where(repeats, (words & ~_at(self.masks, jnp.asarray(self.quote_row))) | longer, words)
        return words | _at(self.masks, jnp.where(complete, self.eos_row, 0))

    def _repeats(self, state: ConstraintState) -> jax.Array:
        """Whether a distinct string may be closed here, but for one that is equal to it."""
        if state.strings is None:
            return jnp.bool_(False)
        return _at(self.distinct_end, state.state) & distinct.is_seen(state.strings, state.strings.digest, state.height)

    def _longer(self, state: ConstraintState, strings: distinct.DistinctState, budget: jax.Array) -> jax.Array:
        """Single bytes with which a distinct string that may not be closed becomes one that may: the least that it takes."""
        byte = jnp.arange(256, dtype=jnp.int32)
        column = _at(self.classes, byte)
        code, site = (_at(self.moves, state.state, column, part) for part in (0, 1))
        after = _at(self.boundary, code >> 1)
        new = ~distinct.is_seen(strings, distinct.read_byte(strings, byte), state.height)
        fits = jnp.min(_at(self.distance, after) + _at(state.ahead, state.height), axis=-1) <= budget
        token = _at(self.byte_token, byte)
        good = (code > 1) & (code & 1 == 0) & (site < 0) & _at(self.distinct_end, after) & new & fits & (token >= 0)
        token = jnp.maximum(token, 0)
        bit = jnp.where(good, jnp.uint32(1) << (token & 31).astype(jnp.uint32), jnp.uint32(0))
        return jnp.zeros(self.masks.shape[1], jnp.uint32).at[token >> 5].add(bit, mode="promise_in_bounds")

    def _return(self, stack: jax.Array, below: jax.Array, label: jax.Array) -> jax.Array:
        """Where the frame above `below` sites returns to."""
        if not self.max_depth:
            return jnp.zeros_like(below)
        return _at(self.returns, _at(stack, below), label)

    def _staying(self, at: jax.Array, ahead: jax.Array, budget: jax.Array) -> jax.Array:
        """Tokens that stay in the frame."""
        block, distance = _at(self.block, at), _at(self.distance, at)
        room = budget - ahead - jnp.where(distance < UNREACHABLE, distance, 0)
        all_fit = jnp.all(room >= _at(self.max_threshold, block))
        words = _at(self.masks, jnp.where(all_fit, _at(self.all_tokens, block), 0))

        def body(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            label, words = loop
            begin, end = (_at(self.threshold_range, block, label, side) for side in (0, 1))
            last = begin
            size = end - begin
            for _ in range(self.bisections):  # of the thresholds that fit, the number
                half = (size + 1) // 2
                fits = (half > 0) & (_at(self.threshold, jnp.maximum(last + half - 1, 0)) <= _at(room, label))
                last = jnp.where(fits, last + half, last)
                size = jnp.where(fits, size - half, jnp.maximum(half - 1, 0))
            row = jnp.where(last > begin, _at(self.mask_row, jnp.maximum(last - 1, 0)), 0)
            return label + 1, words | _at(self.masks, row)

        count = jnp.where(all_fit, 0, room.shape[0])
        return jax.lax.while_loop(lambda loop: loop[0] < count, body, (jnp.int32(0), words))[1]

    def _leaving(
        self, at: jax.Array, height: jax.Array, state: ConstraintState, budget: jax.Array, words: jax.Array
    ) -> jax.Array:
        """Tokens that leave the frame, added to `words`."""
        if not self.max_depth:
            return words
        block = _at(self.block, at)
        begin = _at(self.group_range, block, 0)
        end = jnp.where(height > 0, _at(self.group_range, block, 1), begin)

        def body(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, words = loop
            high = jnp.minimum(low + _GROUP_CHUNK, end)
            allowed_groups = self._allowed_groups(low, high, height, state, budget)
            first, last = _at(self.entry_range, low, 0), _at(self.entry_range, high - 1, 1)

            def add(inner: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                entry, words = inner
                index = jnp.minimum(entry + jnp.arange(_ENTRY_CHUNK, dtype=jnp.int32), last - 1)
                real = entry + jnp.arange(_ENTRY_CHUNK, dtype=jnp.int32) < last
                token = _at(self.entry_token, index)
                allowed = real & _at(allowed_groups, jnp.clip(_at(self.entry_group, index) - low, 0, _GROUP_CHUNK - 1))
                bit = jnp.where(allowed, jnp.uint32(1) << (token & 31).astype(jnp.uint32), jnp.uint32(0))
                # No token is listed twice, nor inside as well: to add is to set.
                return entry + _ENTRY_CHUNK, words.at[token >> 5].add(bit, mode="promise_in_bounds")

            words = jax.lax.while_loop(lambda inner: inner[0] < last, add, (first, words))[1]
            return high, words

        return jax.lax.while_loop(lambda loop: loop[0] < end, body, (begin, words))[1]

    def _allowed_groups(
        self, low: jax.Array, high: jax.Array, height: jax.Array, state: ConstraintState, budget: jax.Array
    ) -> jax.Array:
        """bool [_GROUP_CHUNK], for the groups from `low` to `high`: return, read the rest of the token, return again."""
        labels = self.distance.shape[1]
        lane = low + jnp.arange(_GROUP_CHUNK, dtype=jnp.int32)
        index = jnp.minimum(lane, high - 1)

        def body(loop: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            suffix, label, height, running, good = loop
            below = height - 1
            back = self._return(state.stack, below, label)
            code = _at(self.suffix_code, _at(self.suffix_row, back), suffix)
            distance = _at(self.distance, back)
            needed = _at(self.suffix_distance, jnp.maximum(code - 1, 0)) + jnp.where(distance < UNREACHABLE, distance, 0)
            fits = jnp.any(needed + _at(state.ahead, below) <= budget, axis=-1)
            good = good | (running & (code > 0) & fits)
            next_suffix, next_label = jnp.divmod(jnp.maximum(-1 - code, 0), labels)
            running = running & (code < 0) & (below > 0)
            return next_suffix, next_label, jnp.maximum(below, 1), running, good

        begin = (
            _at(self.group_suffix, index),
            _at(self.group_label, index),
            jnp.broadcast_to(height, lane.shape),
            (lane < high) & (height > 0),
            jnp.zeros(lane.shape, jnp.bool_),
        )
        return jax.lax.while_loop(lambda loop: jnp.any(loop[3]), body, begin)[4]

    def advance(self, state: ConstraintState, token: Token, step: Step) -> ConstraintState:
        known = (token >= 0) & (token < self.offsets.shape[0] - 1)
        index = jnp.where(known, token, 0)
        begin = _at(self.offsets, index)
        end = jnp.where(known, _at(self.offsets, index + 1), begin)
        first = jnp.where(end > begin, state.state, 0)  # ids without text end it
        levels = jnp.arange(self.max_depth, dtype=jnp.int32)
        strings = self._first_byte(state, _at(self.data, jnp.minimum(begin, self.data.shape[0] - 1)))

        def unfinished(loop: _Reading) -> jax.Array:
            at, height, _, _, position, _ = loop
            return (at != 0) & ((position < end) | (_at(self.closed, at) & (height > 0)))

        def body(loop: _Reading) -> _Reading:
            at, height, lowest, stack, position, strings = loop
            byte = _at(self.data, jnp.minimum(position, end - 1)).astype(jnp.int32)
            column = _at(self.classes, byte)
            code, site = (_at(self.moves, at, column, part) for part in (0, 1))
            reads = (position < end) & (code > 1)
            label = _at(self.label, at)
            pops = ~reads & (label >= 0) & (height > 0)
            pushes = reads & (site >= 0) & (height < self.max_depth)
            lost = reads & (site >= 0) & (height >= self.max_depth)
            stack = jnp.where(pushes & (levels == height), site, stack)
            if strings is not None:
                begun = pushes & (jnp.arange(self.max_depth + 1) == height + 1)
                strings = strings._replace(opened=jnp.where(begun, strings.position, strings.opened))
                strings = distinct.advance(strings, byte, reads & (code & 1 == 0))
            back = self._return(stack, jnp.maximum(height - 1, 0), jnp.maximum(label, 0))
            at = jnp.where(reads & ~lost, code >> 1, jnp.where(pops, back, 0))
            height = height + pushes.astype(jnp.int32) - pops.astype(jnp.int32)
            position = position + (reads & (code & 1 == 0)).astype(jnp.int32)
            return at, height, jnp.minimum(lowest, height), stack, position, strings

        loop: _Reading = (first, state.height, state.height, state.stack, begin, strings)
        at, height, lowest, stack, _, strings = jax.lax.while_loop(unfinished, body, loop)
        if strings is not None:
            at = _at(self.boundary, at)
        return ConstraintState(at, height, stack, self._ahead(state.ahead, stack, lowest, height), strings)

    def _first_byte(self, state: ConstraintState, byte: jax.Array) -> distinct.DistinctState | None:
        """What is remembered of distinct strings once a token begins with `byte`, which alone may close one."""
        if state.strings is None:
            return None
        closes = _at(self.distinct_end, state.state) & (byte == distinct.QUOTE)
        return distinct.remembered(state.strings, closes, state.height)

    def _ahead(self, ahead: jax.Array, stack: jax.Array, lowest: jax.Array, height: jax.Array) -> jax.Array:
        """`ahead` for the sites above `lowest`, which are new."""
        if not self.max_depth:
            return ahead
        levels = jnp.arange(self.max_depth + 1, dtype=jnp.int32)

        def body(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            level, ahead = loop
            behind = _at(self.distance, _at(self.returns, _at(stack, level)))
            needed = jnp.minimum(jnp.min(behind + _at(ahead, level), axis=-1), UNREACHABLE)
            return level + 1, jnp.where((levels == level + 1)[:, None], needed, ahead)

        return jax.lax.while_loop(lambda loop: loop[0] < height, body, (lowest, ahead))[1]


def pack_constraints(
    tables: Sequence[Tables | None],
    vocabulary: Vocabulary,
    *,
    token_bytes: tuple[Array, Array] | None = None,
    compiled: CompiledConstraint | None = None,
) -> Constraint:
    """The constraint of B rows.

    Args:
      tables: each row's; None leaves a row unconstrained. Tables of several rows are held once.
      vocabulary: the one that all were built for.
      token_bytes: its offsets and bytes where they are on the device already.
      compiled: what the constraint answers with on the host.

    Raises:
      ArgumentError: tables of another vocabulary, or of different numbers of logits.
    """
    if not tables:
        raise expected("tables", tables, "one entry for each row")
    held: dict[int, Tables] = {}
    for row in tables:
        if row is not None:
            held.setdefault(id(row), row)
            if row.vocabulary != vocabulary.fingerprint:
                raise expected(
                    "constraint", "one compiled for another tokenizer", "one for the loaded model's", "Compile it anew."
                )
    sizes = sorted({one.size for one in held.values()}) or [vocabulary.size]
    if len(sizes) > 1:
        raise expected("tables", sizes, "tables for one number of logits")
    packed = pack_tables(list(held.values()), sizes[0])
    number = {key: index for index, key in enumerate(held)}

    def per_row(value: Callable[[Tables, int], object], unconstrained: object, dtype: type) -> np.ndarray:
        return np.array([unconstrained if t is None else value(t, number[id(t)]) for t in tables], dtype)

    offsets, data = token_bytes or (vocabulary.offsets, vocabulary.bytes)
    return Constraint(
        start=per_row(lambda t, index: t.start + packed.first_state[index], 0, np.int32),
        unconstrained=per_row(lambda t, index: False, True, bool),
        max_free_depth=per_row(lambda t, index: t.max_free_depth, 0, np.int32),
        eos_row=per_row(lambda t, index: packed.eos_row[index], 0, np.int32),
        classes=per_row(lambda t, index: t.classes, np.zeros(256), np.int32),
        offsets=offsets,
        quote_row=per_row(lambda t, index: packed.quote_row[index], 0, np.int32),
        byte_token=vocabulary.single_bytes,
        data=data,
        max_depth=packed.max_depth,
        bisections=packed.bisections,
        distinct=packed.distinct,
        host=HostConstraint.of(compiled),
        **packed.arrays,
    )
