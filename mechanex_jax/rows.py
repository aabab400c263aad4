"""Row trees: pytrees written for one row of a batch, whose fields say how each row gets a value of its own.

Everything that acts on logits or activations is a frozen dataclass, registered as a pytree, and written for ONE row. `row_tree`
makes such a class; each field is declared by one of

  `row(rank)`   an array of `rank` axes for a single row, and one axis more, in front, for a batch;
  `shared()`    any pytree of arrays that all rows share, such as the tables of a constraint;
  `nested()`    another row tree, or a tuple of them;
  `static()`    a hashable value that belongs to the compile key. A field declared by nothing is static too.

The arrays are traced, so that another value never recompiles. From the declarations follow how to give every row its own value
(`broadcast_rows`) and what to `jax.vmap` over (`row_axes`). One value for all rows and one value per row end in one shape,
hence in one compilation, and a `[V]` bias is never mistaken for a `[B]` temperature.

>>> @row_tree
... class Scale:
...     factor: Array = row()
>>> scale = broadcast_rows(Scale(3.0), batch=2)
>>> scale.factor
array([3., 3.], dtype=float32)
>>> jax.vmap(lambda scale, x: scale.factor * x, in_axes=(row_axes(scale), 0))(scale, jnp.arange(2.0))
Array([0., 3.], dtype=float32)

Annotations of fields say what one row sees. They are not checked at run time, since a field holds an array of all rows outside
of `jax.vmap`, and an axis in the trees of `row_axes`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mechanex_jax.errors import expected
from mechanex_jax.representation import short_repr

T = TypeVar("T")
_KIND = "mechanex_jax.rows"

# What a host builds is NumPy, since a JAX dispatch costs far more; inside jit it is JAX.
Array: TypeAlias = jax.Array | np.ndarray

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike

    PerRow: TypeAlias = Float[ArrayLike, "*B"]
else:
    # One number for all rows, or one per row: a number, a list, or an array of NumPy, JAX or torch. At run time anything, since
    # what is wrong shall meet an ArgumentError, and not the type checker of the tests.
    PerRow = object


@dataclasses.dataclass(frozen=True)
class _Row:
    rank: int
    dtype: DTypeLike
    neutral: float | None = None


class _Kind(enum.Enum):
    SHARED = enum.auto()
    NESTED = enum.auto()
    STATIC = enum.auto()


def row(
    rank: int = 0, dtype: DTypeLike = jnp.float32, default: object = dataclasses.MISSING, neutral: float | None = None
) -> Any:
    """Declare a field with one value per row.

    Args:
      rank: axes of a single row's value; a batch has one more, in front.
      dtype: what values are converted to.
      default: None makes the field optional: absent, it has no leaves, and the tree's structure (the compile key) says so.
      neutral: the value with which the field has no effect, see `neutral_values`.
    """
    return dataclasses.field(default=default, metadata={_KIND: _Row(rank, dtype, neutral)})


def shared() -> Any:
    """Declare a field (any pytree of arrays) that all rows share, such as an automaton's tables."""
    return dataclasses.field(metadata={_KIND: _Kind.SHARED})


def nested() -> Any:
    """Declare a field that holds further row trees: one, or a tuple of them."""
    return dataclasses.field(metadata={_KIND: _Kind.NESTED})


def static() -> Any:
    """Declare a hashable field that belongs to the compile key."""
    return dataclasses.field(metadata={_KIND: _Kind.STATIC})


@dataclass_transform(frozen_default=True, field_specifiers=(row, shared, nested, static))
def row_tree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass, registered as a pytree; see the module for how its fields are declared."""
    if "__repr__" not in vars(cls):
        cls.__repr__ = short_repr  # type: ignore[method-assign]
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    kinds = {f.name: f.metadata.get(_KIND, _Kind.STATIC) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    meta = [name for name, kind in kinds.items() if kind is _Kind.STATIC]
    data = [name for name in kinds if name not in meta]
    jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)
    cls.__row_kinds__ = kinds  # type: ignore[attr-defined]
    cls.__no_type_check__ = True  # type: ignore[attr-defined]  # of `__init__` alone: methods are still checked
    return cls


def _kinds(cls: type) -> Mapping[str, _Row | _Kind]:
    return cls.__row_kinds__  # type: ignore[attr-defined]


@row_tree
class SharedDataclass:
    """A plain frozen dataclass as a row tree: all rows share its values, methods are called on a rebuilt instance.

    Attributes:
      cls: the dataclass.
      constants: (name, value) of the fields that are neither floats nor arrays; they belong to the compile key.
      arrays: the other fields by their names; traced.
    """

    cls: type = static()
    constants: tuple[tuple[str, object], ...] = static()
    arrays: Mapping[str, Array] = shared()

    def instance(self) -> object:
        """The dataclass with its traced values."""
        rebuilt = object.__new__(self.cls)  # __init__ and __post_init__ may check values, which are traced here
        for name, value in (*self.constants, *self.arrays.items()):
            object.__setattr__(rebuilt, name, value)
        return rebuilt


def split_dataclass(value: object) -> tuple[tuple[tuple[str, object], ...], dict[str, Array]]:
    """The fields of a plain frozen dataclass for `SharedDataclass`: its constants, and its floats and arrays.

    Raises:
      ArgumentError: not an instance of a frozen dataclass, or a field that is neither a float, an array nor hashable.
    """
    name = type(value).__name__
    if not dataclasses.is_dataclass(value) or isinstance(value, type) or not type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise expected(name, value, "a frozen dataclass", "Write @row_tree (from mechanex_jax.rows) above the class.")
    constants: list[tuple[str, object]] = []
    arrays: dict[str, Array] = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if isinstance(content, float | np.floating):
            arrays[field.name] = as_field(content)
        elif isinstance(content, jax.Array | np.ndarray):
            arrays[field.name] = content
        else:
            try:
                hash(content)
            except TypeError as error:
                action = "Make it an array or a tuple; or declare its fields with @row_tree (from mechanex_jax.rows)."
                raise expected(f"{name}.{field.name}", content, "a float, an array or a hashable value", action) from error
            constants.append((field.name, content))
    return tuple(constants), arrays


def neutral_values(cls: type) -> dict[str, float]:
    """The neutral value of every row field of a row tree that declares one, in the order of the fields."""
    return {name: kind.neutral for name, kind in _kinds(cls).items() if isinstance(kind, _Row) and kind.neutral is not None}


def columns(cls: type[T], fields: Mapping[str, Sequence[float]]) -> T:
    """A row tree of `cls` from one list per field, with a number for each row [B]; other fields have their defaults.

    Whole numbers beyond int32 become its largest.
    """
    kinds = {name: kind for name, kind in _kinds(cls).items() if isinstance(kind, _Row)}
    whole = {name for name, kind in kinds.items() if jnp.issubdtype(kind.dtype, jnp.integer)}
    lists = {name: np.minimum(values, np.iinfo(np.int32).max) if name in whole else values for name, values in fields.items()}
    return cls(**{name: np.asarray(values, kinds[name].dtype) for name, values in lists.items()})


def as_field(value: object, dtype: DTypeLike = jnp.float32) -> Array:
    """An array of `dtype`; on the host (NumPy) unless `value` is already JAX's, since a JAX dispatch costs far more."""
    return value.astype(dtype) if isinstance(value, jax.Array) else np.asarray(value, dtype)


def is_row_tree(value: object) -> bool:
    """Whether the class of `value` was made by `row_tree`."""
    return hasattr(type(value), "__row_kinds__")


def _map(tree: object, on_row: Callable[[str, Any, _Row], object], on_shared: Callable[[Any], object]) -> Any:
    """The same structure with every row field and every shared leaf replaced; None and static fields stay."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(_map(part, on_row, on_shared) for part in tree)
    if not is_row_tree(tree):
        raise TypeError(f"{type(tree).__name__} is not a row tree: declare its fields with @row_tree")
    changed = {}
    for name, kind in _kinds(type(tree)).items():
        value = getattr(tree, name)
        if kind is _Kind.NESTED:
            changed[name] = _map(value, on_row, on_shared)
        elif isinstance(kind, _Row) and value is not None:
            changed[name] = on_row(f"{type(tree).__name__}.{name}", value, kind)
        elif kind is _Kind.SHARED and value is not None:
            changed[name] = jax.tree.map(on_shared, value)
    return dataclasses.replace(tree, **changed)  # type: ignore[type-var]


def _row_axis(name: str, array: Array, kind: _Row, batch: int) -> int:
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

    Args:
      tree: a row tree, a tuple of them, or None.
      batch: B.

    Raises:
      ArgumentError: a field holds neither one value nor `batch` of them, or has another rank than it declares.
    """

    def on_row(name: str, value: object, kind: _Row) -> Array:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        axis = _row_axis(name, array, kind, batch)
        # On the host while it can be: a NumPy broadcast costs microseconds, a JAX dispatch far more.
        if isinstance(array, jax.Array):
            return jnp.broadcast_to(array.astype(kind.dtype), (batch, *array.shape[axis:]))
        return np.ascontiguousarray(np.broadcast_to(array.astype(kind.dtype), (batch, *array.shape[axis:])))

    return _map(tree, on_row, lambda leaf: leaf)


def row_axes(tree: T) -> T:
    """The same structure with 0 for fields that have a row axis and None for shared ones: `in_axes` of `jax.vmap`."""
    return _map(tree, lambda name, value, kind: 0, lambda leaf: None)


def row_leaves(tree: object) -> list[Array]:
    """The values of all row fields, shared ones left out."""
    leaves: list[Array] = []

    def on_row(name: str, value: Array, kind: _Row) -> Array:
        leaves.append(value)
        return value

    _map(tree, on_row, lambda leaf: leaf)
    return leaves


def only_row(tree: T) -> T:
    """The row of a tree for one row, without the row axis: what one row sees, outside of `jax.vmap` too."""
    return _map(tree, lambda name, value, kind: value[0], lambda leaf: leaf)


def take_rows(tree: T, indices: Sequence[int], batch: int) -> T:
    """Rows `indices` of a tree for `batch` rows that has not been broadcast: single values stay single.

    Raises:
      ArgumentError: as `broadcast_rows`.
    """

    def on_row(name: str, value: object, kind: _Row) -> Array:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        return array if _row_axis(name, array, kind, batch) == 0 or len(array) == 1 else array[np.asarray(indices)]

    return _map(tree, on_row, lambda leaf: leaf)
