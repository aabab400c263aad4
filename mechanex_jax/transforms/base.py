"""The protocol of a logits transform, and the two ways to make one from others: `chain` and `stateless`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int32, Key

from mechanex_jax import rows
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.rows import Array, PerRow

State = TypeVar("State")

# Shapes of one row; V is the vocabulary.
Logits: TypeAlias = Float32[jax.Array, " V"]
Token: TypeAlias = Int32[jax.Array, ""]
RowKey: TypeAlias = Key[jax.Array, ""]


class Step(NamedTuple):
    """Where one row stands when a token is about to be chosen.

    Attributes:
      index: int32 [], tokens generated so far (0 for the first).
      remaining: int32 [], tokens that may still be generated, this one included.
      key: typed key [], of this row at this step; fold in a constant of your own before using it.
    """

    index: Token
    remaining: Token
    key: RowKey


@runtime_checkable
class LogitsTransform(Protocol[State]):
    """A pure function of one row's logits, with a state that follows the row's tokens.

    Implementations are row trees (see `mechanex_jax.rows`): their fields are traced, so changing a value never recompiles.
    Reading and writing are apart, because a token is chosen in between: speculation applies a transform at hypothetical
    states, and beams gather states by parent.
    """

    def init(self, prompt: Int32[Array, " T"], length: Token) -> State:
        """Return the state before the first token. `prompt[:length]` are real tokens, the rest is padding."""
        ...

    def apply(self, state: State, logits: Logits, step: Step) -> Logits:
        """Return the transformed logits; -inf is a token that cannot be drawn. Reads the state, never moves it."""
        ...

    def advance(self, state: State, token: Token, step: Step) -> State:
        """Return the state after `token` was chosen."""
        ...


class Stateless:
    """Base of the transforms that need no state: only `apply` is left to write."""

    def init(self, prompt: Int32[Array, " T"], length: Token) -> tuple[()]:
        return ()

    def advance(self, state: tuple[()], token: Token, step: Step) -> tuple[()]:
        return ()


def transform_name(transform: object) -> str:
    """The name to call a transform by in messages: its class, or the function that it lifts."""
    if isinstance(transform, Guarded):
        return transform_name(transform.inner)
    if isinstance(transform, Adopted):
        return transform.cls.__name__
    if isinstance(transform, Lifted):
        return getattr(transform.fn, "__name__", "stateless")
    return type(transform).__name__


def transform_names(transform: object) -> str:
    """The names of a transform's parts, in their order."""
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    return ", ".join(transform_name(part) for part in parts)


def _shapes(tree: object) -> str:
    leaves = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in map(jnp.asarray, jax.tree.leaves(tree))]
    return ", ".join(leaves) or "nothing"


def apply_checked(transform: LogitsTransform[State], state: State, logits: Logits, step: Step) -> Logits:
    """`apply`, whose output is checked for shape and dtype when it is traced.

    Raises:
      ArgumentError: it returned something else than float32 logits, one for each token.
    """
    output = transform.apply(state, logits, step)
    if getattr(output, "shape", None) != logits.shape or getattr(output, "dtype", None) != jnp.float32:
        shown = _shapes(output) if hasattr(output, "dtype") else f"a {type(output).__name__}"
        shape = f"float32{list(logits.shape)}, one logit for each token of the vocabulary"
        raise expected(f"transform {transform_name(transform)}.apply", Verbatim(shown), shape)
    return jnp.asarray(output)


def advance_checked(transform: LogitsTransform[State], state: State, token: Token, step: Step) -> State:
    """`advance`, whose output is checked against the state before when it is traced.

    Raises:
      ArgumentError: the state changed its structure, a shape or a dtype.
    """
    following = transform.advance(state, token, step)
    if jax.tree.structure(following) != jax.tree.structure(state) or _shapes(following) != _shapes(state):
        shown, kept = (f"{_shapes(tree)} in {jax.tree.structure(tree)}" for tree in (following, state))
        raise expected(
            f"transform {transform_name(transform)}.advance", Verbatim(shown), f"the state that init returns, {kept}"
        )
    return following


@rows.row_tree
class Chain:
    """Transforms applied one after the other, each with a state of its own. The empty chain is the identity.

    Attributes:
      parts: the transforms, in their order.
    """

    parts: tuple[LogitsTransform, ...] = rows.nested()

    def init(self, prompt: Int32[Array, " T"], length: Token) -> tuple[object, ...]:
        return tuple(part.init(prompt, length) for part in self.parts)

    def apply(self, state: tuple[object, ...], logits: Logits, step: Step) -> Logits:
        for part, part_state in zip(self.parts, state, strict=True):
            logits = apply_checked(part, part_state, logits, step)
        return logits

    def advance(self, state: tuple[object, ...], token: Token, step: Step) -> tuple[object, ...]:
        return tuple(advance_checked(part, s, token, step) for part, s in zip(self.parts, state, strict=True))


@rows.row_tree
class Adopted(rows.SharedDataclass):
    """A plain frozen dataclass with `init`, `apply` and `advance`."""

    def init(self, prompt: Int32[Array, " T"], length: Token) -> object:
        return cast(LogitsTransform, self.instance()).init(prompt, length)

    def apply(self, state: object, logits: Logits, step: Step) -> Logits:
        return cast(LogitsTransform, self.instance()).apply(state, logits, step)

    def advance(self, state: object, token: Token, step: Step) -> object:
        return cast(LogitsTransform, self.instance()).advance(state, token, step)


def as_transform(transform: object) -> LogitsTransform:
    """A transform as a row tree; a plain frozen dataclass becomes one, whose values all rows share.

    Raises:
      ArgumentError: it lacks one of `init`, `apply` and `advance`, or is neither.
    """
    if isinstance(transform, Chain):  # its parts have been through here
        return transform
    if isinstance(transform, type) or not isinstance(transform, LogitsTransform):
        raise expected(
            "transform",
            transform,
            "a LogitsTransform (a row tree or frozen dataclass with init, apply and advance)",
            "Lift a plain function with mx.transforms.stateless(fn, *scalars).",
        )
    if rows.is_row_tree(transform):
        return transform
    return Adopted(type(transform), *rows.split_dataclass(transform))


def chain(*transforms: object) -> Chain:
    """Apply `transforms` in the order given; `chain()` is the identity.

    Neighbours that know how to become one (`a.fuse(b)`, as the truncations do) are fused. Nested chains are flattened.

    >>> from mechanex_jax import transforms as tx
    >>> [type(part).__name__ for part in chain(tx.temperature(0.7), tx.top_p(0.9), tx.logit_bias([0.0, 1.0])).parts]
    ['Truncation', 'LogitBias']

    Args:
      *transforms: LogitsTransforms: row trees, or plain frozen dataclasses, whose values all rows share.

    Raises:
      ArgumentError: a part is not a LogitsTransform.
    """
    parts: list[LogitsTransform] = []
    for transform in transforms:
        transform = as_transform(transform)
        for part in transform.parts if isinstance(transform, Chain) else (transform,):
            fuse = getattr(parts[-1], "fuse", None) if parts else None
            fused = None if fuse is None else fuse(part)
            if fused is None:
                parts.append(part)
            else:
                parts[-1] = fused
    return Chain(tuple(parts))


@rows.row_tree
class Lifted(Stateless):
    """A bare function of one row's logits, with its arguments.

    Attributes:
      fn: (logits, *scalars) -> logits.
      scalars: one number per row each.
    """

    fn: Callable[..., Logits] = rows.static()
    scalars: tuple[_Scalar, ...] = rows.nested()

    def apply(self, state: tuple[()], logits: Logits, step: Step) -> Logits:
        return self.fn(logits, *(scalar.value for scalar in self.scalars))


@rows.row_tree
class _Scalar:
    value: Float32[Array, ""] = rows.row()


def stateless(fn: Callable[..., Logits], *scalars: PerRow) -> Lifted:
    """Lift `fn(logits, *scalars) -> logits` to a transform.

    >>> from mechanex_jax import transforms as tx
    >>> def soft_cap(logits, cap):
    ...     return cap * jax.numpy.tanh(logits / cap)
    >>> transform = tx.chain(tx.stateless(soft_cap, 30.0), tx.temperature(0.7))

    Args:
      fn: written for one row, float32 [V] -> [V]. Define it at module level: it is part of the compile key, and a lambda made
        anew for each call compiles anew for each call.
      *scalars: numbers, or one value per row ([B]); traced as float32, so that changing them never recompiles. A function
        that needs larger arrays is a class with `@mx.transforms.row_tree` fields.

    Raises:
      ArgumentError: `fn` is not callable.
    """
    if not callable(fn):
        raise expected("stateless", fn, "a function of one row's logits")
    return Lifted(fn, tuple(_Scalar(rows.as_field(value)) for value in scalars))


@rows.row_tree
class Guarded:
    """A caller's own transform behind a mask: tokens at -inf stay there, and a row with NaN has no token left.

    Truncation would hide NaN; a function such as a soft cap would make a forbidden token possible again.

    Attributes:
      inner: the transform.
    """

    inner: LogitsTransform = rows.nested()

    def init(self, prompt: Int32[Array, " T"], length: Token) -> object:
        return self.inner.init(prompt, length)

    def apply(self, state: object, logits: Logits, step: Step) -> Logits:
        output = apply_checked(self.inner, state, logits, step)
        return jnp.where(jnp.isneginf(logits) | jnp.any(jnp.isnan(output)), -jnp.inf, output)

    def advance(self, state: object, token: Token, step: Step) -> object:
        return advance_checked(self.inner, state, token, step)


# The batch axis is added here and nowhere else. Every leaf of `state` and `step` has B in front.


def init_rows(transform: LogitsTransform[State], prompts: Int32[Array, "B T"], lengths: Int32[Array, " B"]) -> State:
    """`init` for B rows."""
    axes = rows.row_axes(transform)
    return jax.vmap(lambda t, p, n: t.init(p, n), in_axes=(axes, 0, 0))(transform, prompts, lengths)


def apply_rows(
    transform: LogitsTransform[State], state: State, logits: Float32[Array, "B V"], step: Step
) -> Float32[jax.Array, "B V"]:
    """`apply` for B rows."""
    axes = rows.row_axes(transform)
    return jax.vmap(lambda t, s, x, at: apply_checked(t, s, x, at), in_axes=(axes, 0, 0, 0))(transform, state, logits, step)


def advance_rows(transform: LogitsTransform[State], state: State, token: Int32[Array, " B"], step: Step) -> State:
    """`advance` for B rows."""
    axes = rows.row_axes(transform)
    return jax.vmap(lambda t, s, token, at: advance_checked(t, s, token, at), in_axes=(axes, 0, 0, 0))(
        transform, state, token, step
    )
