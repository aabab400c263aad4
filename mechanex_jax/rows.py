"""Rows: how values that belong to one row of a batch are declared, broadcast and vectorised.

Everything that acts on logits is a frozen pytree written for ONE row. Its fields are arrays; each says how many axes it
has for one row (`row(rank)`), or that all rows share it (`shared()`). The library then knows, for any such tree, how to give
every row its own value (`broadcast_rows`) and over which leaves to `jax.vmap` (`row_axes`). So a scalar and one value per row
end up in one shape, hence one compilation, and a `[V]` bias is never mistaken for a `[B]` temperature.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax.errors import expected

T = TypeVar("T")
_KIND = "mechanex_jax.rows"


@dataclasses.dataclass(frozen=True)
class _Row:
    rank: int
    dtype: Any


class _Kind(enum.Enum):
    SHARED = enum.auto()
    NESTED = enum.auto()
    STATIC = enum.auto()


def row(rank: int = 0, dtype: Any = jnp.float32, default: Any = dataclasses.MISSING) -> Any:
    """A field with one value per row: `rank` axes for a single row, one more for a batch."""
    return dataclasses.field(default=default, metadata={_KIND: _Row(rank, dtype)})


def shared() -> Any:
    """A field (any pytree of arrays) that all rows share, such as an automaton's tables."""
    return dataclasses.field(metadata={_KIND: _Kind.SHARED})


def nested() -> Any:
    """A field that holds further row trees: one, or a tuple of them."""
    return dataclasses.field(metadata={_KIND: _Kind.NESTED})


def static() -> Any:
    """A hashable field that belongs to the compile key."""
    return dataclasses.field(metadata={_KIND: _Kind.STATIC})


@dataclass_transform(frozen_default=True, field_specifiers=(row, shared, nested, static))
def row_tree(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass, registered as a pytree, whose fields are declared as above.

    A `row` field left at None is absent: it has no leaves, and the tree's structure (the compile key) says so.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    kinds = {f.name: f.metadata.get(_KIND, _Kind.STATIC) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    meta = [name for name, kind in kinds.items() if kind is _Kind.STATIC]
    data = [name for name in kinds if name not in meta]
    jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)
    cls.__row_kinds__ = kinds  # type: ignore[attr-defined]
    return cls


def as_field(value: Any, dtype: Any = jnp.float32) -> Any:
    """An array of `dtype`; on the host (NumPy) unless `value` is already JAX's, since a JAX dispatch costs far more."""
    return value.astype(dtype) if isinstance(value, jax.Array) else np.asarray(value, dtype)


def is_row_tree(value: Any) -> bool:
    return hasattr(type(value), "__row_kinds__")


def _map(tree: Any, on_row: Any, on_shared: Any) -> Any:
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(_map(part, on_row, on_shared) for part in tree)
    if not is_row_tree(tree):
        raise TypeError(f"{type(tree).__name__} is not a row tree: declare its fields with @row_tree")
    changed = {}
    for name, kind in type(tree).__row_kinds__.items():
        value = getattr(tree, name)
        if kind is _Kind.NESTED:
            changed[name] = _map(value, on_row, on_shared)
        elif isinstance(kind, _Row) and value is not None:
            changed[name] = on_row(f"{type(tree).__name__}.{name}", value, kind)
        elif kind is _Kind.SHARED and value is not None:
            changed[name] = jax.tree.map(on_shared, value)
    return dataclasses.replace(tree, **changed)


def _per_row(name: str, array: Any, kind: _Row, batch: int) -> int:
    """1 if the array has a row axis in front, 0 if it is one value; anything else is the caller's mistake."""
    extra = array.ndim - kind.rank
    if extra not in (0, 1) or (extra == 1 and array.shape[0] not in (1, batch)):
        raise expected(
            name,
            tuple(array.shape),
            f"{kind.rank} axes for one value, or those with {batch} rows in front",
            "Pass one value for all rows, or a list with one per row.",
        )
    return extra


def broadcast_rows(tree: T, batch: int) -> T:
    """Give every row field a leading axis of `batch`: a single value is repeated, one value per row is kept.

    Raises:
      ArgumentError: a field holds neither one value nor `batch` of them, or has another rank than it declares.
    """

    def on_row(name: str, value: Any, kind: _Row) -> Any:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        rank = _per_row(name, array, kind, batch)
        # On the host while it can be: a NumPy broadcast costs microseconds, a JAX dispatch far more.
        if isinstance(array, jax.Array):
            return jnp.broadcast_to(array.astype(kind.dtype), (batch, *array.shape[rank:]))
        return np.ascontiguousarray(np.broadcast_to(array.astype(kind.dtype), (batch, *array.shape[rank:])))

    return _map(tree, on_row, lambda leaf: leaf)


def row_axes(tree: T) -> T:
    """The same structure with 0 for fields that have a row axis and None for shared ones: `in_axes` of `jax.vmap`."""
    return _map(tree, lambda name, value, kind: 0, lambda leaf: None)


def row_leaves(tree: Any) -> list[Any]:
    """The values of all row fields, shared ones left out."""
    found: list[Any] = []

    def on_row(name: str, value: Any, kind: _Row) -> Any:
        found.append(value)
        return value

    _map(tree, on_row, lambda leaf: leaf)
    return found


def take_rows(tree: T, indices: Sequence[int], batch: int) -> T:
    """Rows `indices` of a tree for `batch` rows that has not been broadcast: single values stay single.

    Raises:
      ArgumentError: as `broadcast_rows`.
    """

    def on_row(name: str, value: Any, kind: _Row) -> Any:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        return array if _per_row(name, array, kind, batch) == 0 or len(array) == 1 else array[np.asarray(indices)]

    return _map(tree, on_row, lambda leaf: leaf)
