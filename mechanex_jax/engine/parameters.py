"""How an argument of `generate` is declared: once, in the metadata of its field in `GenerationConfig`.

What the rest of the library needs to know of an argument is derived from there: the checks, which arguments are lists for one
row already, the fields of a policy and the options of the command line.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mechanex_jax.validation import Check

_KEY = "mechanex_jax.parameter"


@dataclasses.dataclass(frozen=True)
class Option:
    """The option of the command line that gives an argument.

    Attributes:
      help: one line of description.
      panel: the heading that it stands under.
      flag: such as "--method", where it is not the argument's name.
      metavar: the word that stands for the value in the help.
      type: type of the value on the command line, where it is not the argument's: the path of a file that holds it, or a list
        for an option that may be repeated.
    """

    help: str
    panel: str
    flag: str | None = None
    metavar: str | None = None
    type: object = None


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Declaration of one argument of `generate`.

    Attributes:
      default: the value of an argument that is left out.
      check: raises an ArgumentError for (name, value) that cannot be used; the default is never checked.
      none_means: the number that a sampling method uses where the argument is None.
      listed: the value for one row is a list already; in a batch, a list of lists (or of None) gives every row its own.
      constraint: the kind of constraint that it holds, as `constraints.compiler` calls it; None if it constrains nothing.
      policy: dotted path of the field of a policy that says the same; None if the argument belongs to the call alone.
      needs_policy: whether any other value than the default takes more than one decoding, hence a policy.
      option: its option on the command line; None if it has none.
    """

    default: object
    check: Check | None = None
    none_means: float | None = None
    listed: bool = False
    constraint: str | None = None
    policy: str | None = None
    needs_policy: bool = False
    option: Option | None = None


def parameter(
    default: object,
    check: Check | None = None,
    *,
    none_means: float | None = None,
    listed: bool = False,
    constraint: str | None = None,
    policy: str | None = None,
    needs_policy: bool = False,
    option: Option | None = None,
) -> Any:
    """A dataclass field with its declaration; arguments as the attributes of `Parameter`."""
    declaration = Parameter(default, check, none_means, listed, constraint, policy, needs_policy, option)
    return dataclasses.field(default=default, metadata={_KEY: declaration})


def parameters_of(cls: type) -> dict[str, Parameter]:
    """The declarations of a dataclass's fields by name, in their order."""
    return {field.name: field.metadata[_KEY] for field in dataclasses.fields(cls) if _KEY in field.metadata}
