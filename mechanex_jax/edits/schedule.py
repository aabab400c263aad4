"""Where and how strongly an edit acts: layers, a scope of positions, a strength and its decay. All of it is data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits.arguments import number_per_row
from mechanex_jax.edits.base import TextPositions
from mechanex_jax.errors import expected
from mechanex_jax.rows import Array, PerRow

_FAR = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Scope:
    """The positions p of a text whose prompt has P tokens with p < below and since <= p - P < until. Made by `scope`."""

    below: int = _FAR
    since: int = -_FAR
    until: int = _FAR


EVERYWHERE = Scope()

if TYPE_CHECKING:
    Window: TypeAlias = int | None
    Scopes: TypeAlias = str | Scope | Sequence[str | Scope]
else:  # as `mechanex_jax.rows.PerRow`
    Window = Scopes = object

# By name: the whole part, and which bound a window of its first n positions moves.
_PARTS = {"all": (EVERYWHERE, "below"), "prompt": (Scope(until=0), "below"), "generated": (Scope(since=0), "until")}


def scope(part: object, *, first: Window = None, last: Window = None) -> Scope:
    """Name a part of the text, for the `scope` of edits. Another scope never recompiles.

    Position p holds the activation of token p, from which token p + 1 is predicted. The first generated token is chosen at the
    last position of the prompt, `scope("prompt", last=1)`; "generated" acts on the choice of the second token and on.

    >>> scope("prompt", last=4).since
    -4

    Args:
      part: "all"; "prompt", the tokens given; "generated", those that the model has chosen.
      first: only the first n positions of it.
      last: only the last n positions, of the prompt: where a text will end is not known while it is generated.

    Raises:
      ArgumentError: an unknown word, both windows, a window that is not a whole number from 1, or `last` of a part that has
        no known end.
    """
    if not isinstance(part, str) or part not in _PARTS:
        raise expected("scope", part, f"one of {', '.join(_PARTS)}", "For a window: scope('prompt', last=4).")
    whole, bound = _PARTS[part]
    for name, count in (("first", first), ("last", last)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count < _FAR):
            raise expected(name, count, "a number of positions, 1 or more")
    if first is not None and last is not None:
        raise expected("scope", f"first={first}, last={last}", "one window", "For two windows make two edits.")
    if last is not None and part != "prompt":
        raise expected(
            "last", last, f"None for {part!r}", "Only the prompt has an end that is known: scope('prompt', last=...)."
        )
    if first is not None:
        return dataclasses.replace(whole, **{bound: int(first)})
    return whole if last is None else dataclasses.replace(whole, since=-int(last))


def _parse_scope(value: object) -> Scope:
    return value if isinstance(value, Scope) else scope(value)


@rows.row_tree
class Schedule:
    """How strongly an edit acts on one row: `strength * decay ** t` at its layers inside its scope, 0 elsewhere.

    t counts positions from the scope's start.

    Attributes:
      layers: one for each entry of the edit; -1 is no layer.
      strength: 0 is the identity of every operation.
      decay: in (0, 1], 1 is none.
      below, since, until: see `Scope`.
    """

    layers: Int32[Array, " N"] = rows.row(1, jnp.int32)
    strength: Float32[Array, ""] = rows.row()
    decay: Float32[Array, ""] = rows.row()
    below: Int32[Array, ""] = rows.row(0, jnp.int32)
    since: Int32[Array, ""] = rows.row(0, jnp.int32)
    until: Int32[Array, ""] = rows.row(0, jnp.int32)

    def at(self, layer: Int32[jax.Array, ""], where: TextPositions) -> tuple[Int32[jax.Array, ""], Float32[jax.Array, " S"]]:
        """Find the entry that is meant for `layer`, and the weight of each position (all 0 if none is)."""
        match = self.layers == layer
        offset = where.positions - where.prompt_length
        inside = (where.positions < self.below) & (offset >= self.since) & (offset < self.until)
        start = jnp.maximum(where.prompt_length + self.since, 0)
        age = jnp.maximum(where.positions - start, 0).astype(jnp.float32)
        weight = jnp.where(inside & jnp.any(match), self.strength * self.decay**age, 0.0)
        return jnp.argmax(match).astype(jnp.int32), weight


def make_schedule(layers: Int32[np.ndarray, "*B N"], strength: PerRow, scope: Scopes, decay: PerRow) -> Schedule:
    """Make a schedule from the arguments that all operations share.

    Args:
      layers: from `parse_layers`.
      strength, decay: one number, or one per row.
      scope: a word, a Scope, or one of them per row.

    Raises:
      ArgumentError: values that are not finite numbers, an unknown scope, a decay outside (0, 1].
    """
    factor = number_per_row("decay", decay)
    if not isinstance(factor, Tracer) and not ((factor > 0) & (factor <= 1)).all():
        raise expected("decay", decay, "more than 0 and at most 1, which is no decay")
    if isinstance(scope, Sequence) and not isinstance(scope, str):
        if not len(scope):
            raise expected("scope", scope, "one scope, or one per row")
        bounds = np.array([dataclasses.astuple(_parse_scope(part)) for part in scope], np.int32).T
    else:
        bounds = np.array(dataclasses.astuple(_parse_scope(scope)), np.int32)
    return Schedule(layers, number_per_row("strength", strength), factor, *bounds)
