"""Where one row's text stands on the device."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.device import distinct

Array: TypeAlias = jax.Array | np.ndarray


class ConstraintState(NamedTuple):
    """Where one row's text stands.

    Attributes:
      state: int32 [], 0 is dead.
      height: int32 [], the number of return sites on the stack.
      stack: int32 [D], return sites, the bottom first.
      ahead: int32 [D + 1, K], tokens that are needed once the frame with so many sites below it has ended with each label.
      strings: what is remembered of distinct strings; None where no row has any.
    """

    state: jax.Array
    height: jax.Array
    stack: jax.Array
    ahead: jax.Array
    strings: distinct.DistinctState | None = None


def at(array: Array, *index: jax.Array | int) -> jax.Array:
    """`array[index]` for indices known to be inside."""
    return jnp.asarray(array).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


class HostConstraint(tuple[()]):
    """Carries a host object through a tree without being part of the compile key.

    As an empty tuple it equals every other one, which a dispatch finds out without calling Python.
    """

    value: CompiledConstraint | None = None

    @classmethod
    def of(cls, value: CompiledConstraint | None) -> HostConstraint:
        """A carrier of `value`."""
        host = cls()
        host.value = value
        return host
