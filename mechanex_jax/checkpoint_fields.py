"""The fields of a checkpoint's JSON files: used, without effect, or refused unless at their default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from mechanex_jax.errors import CheckpointError, shown

_FLOAT32 = 3.4028234663852886e38  # its largest number
_INT32 = 2**31 - 1  # positions and ids are int32 on the device

JsonObject: TypeAlias = dict[str, Any]
"""An object of a JSON file, whose values `Fields.check` looks at."""


class Kind(NamedTuple):
    """The values that a field may have, in words and as a test."""

    words: str
    accepts: Callable[[object], bool]

    def or_null(self) -> Kind:
        return Kind(f"{self.words}, or null", lambda value: value is None or self.accepts(value))


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def whole(most: int) -> Kind:
    """A whole number from 1 to `most`."""
    return Kind(f"a whole number from 1 to {most:,}", lambda value: _whole(value, 1, most))


def number(value: object) -> bool:
    """Whether a value is a number that float32 holds, neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FLOAT32 <= value <= _FLOAT32


def token_ids(value: object) -> bool:
    """Whether a value is a token id, a list of them, or None."""
    return value is None or all(_whole(index, 0, _INT32) for index in (value if isinstance(value, list) else [value]))


LAYERS = whole(10_000)
SIZE = whole(2**24)
POSITIONS = whole(_INT32)
POSITIVE = Kind("a positive number that float32 holds", lambda value: number(value) and value > 0)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object, or null", lambda value: value is None or isinstance(value, dict))
TOKEN_IDS = Kind("a token id, a list of them, or null", token_ids)


def check(value: object, name: str, kind: Kind, file: str = "config.json") -> None:
    """Refuse a value that is not of its kind.

    Raises:
      CheckpointError: with the name, the value and what is expected.
    """
    if not kind.accepts(value):
        raise CheckpointError(
            f"{file}: got {name} {shown(value)}; expected {kind.words}. Correct {file} or fetch the model again."
        )


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields that one class of `transformers` reads from a file, each in exactly one of three tables.

    Attributes:
      used: field -> the values that it may have.
      without_effect: fields that change nothing that the library computes.
      fixed: field -> its only accepted values.
      aliases: other name of a field -> the field.
      file: the name of the file, for messages.
    """

    used: Mapping[str, Kind]
    without_effect: frozenset[str]
    fixed: Mapping[str, tuple[object, ...]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    file: str = "config.json"

    def check(self, content: Mapping[str, object]) -> JsonObject:
        """The file's content with every alias under its field's own name.

        Raises:
          CheckpointError: a field has a value that it may not have.
        """
        checked = dict(content)
        for alias, name in self.aliases.items():
            if alias in checked and checked.setdefault(name, checked[alias]) != checked[alias]:
                raise CheckpointError(
                    f"{self.file}: got {name} {shown(checked[name])} and {alias} {shown(checked[alias])}; expected one value, "
                    "for they are two names of one field. Remove the wrong one."
                )
        for name, kind in self.used.items():
            if name in checked:
                check(checked[name], name, kind, self.file)
        for name, accepted in self.fixed.items():
            if name in checked and not any(checked[name] == value and type(checked[name]) is type(value) for value in accepted):
                words = " or ".join(map(repr, accepted))
                raise CheckpointError(
                    f"{self.file}: got {name} {shown(checked[name])}; expected {words}. Use a checkpoint without it."
                )
        return checked
