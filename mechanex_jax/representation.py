"""Short `repr`s: one line for objects that hold large arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_ELEMENTS = 8  # of an array that is written out
_ITEMS = 4  # of a list, a tuple or a mapping
_CHARACTERS = 80


def short(value: object, levels: int = 4) -> str:
    """The value as `repr` has it, in one line; of what is large or deep only the shape or the first items.

    >>> import numpy as np
    >>> short({3: np.zeros((2, 576), np.float32), 4: [1, 2, 3, 4, 5, 6]})
    '{3: float32[2, 576], 4: [1, 2, 3, 4, ... 6 in all]}'
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None and getattr(value, "size", 0) > _ELEMENTS:
        return f"{dtype}[{', '.join(map(str, shape))}]"
    if isinstance(value, (Mapping, list, tuple)) and not levels:
        return "..."
    if isinstance(value, Mapping):
        items = [f"{short(key, levels - 1)}: {short(item, levels - 1)}" for key, item in list(value.items())[:_ITEMS]]
        return f"{{{', '.join([*items, *_rest(len(value))])}}}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join([*(short(item, levels - 1) for item in value[:_ITEMS]), *_rest(len(value))])
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return " ".join(repr(value).split())
    text = " ".join(repr(value).split())
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."


def _rest(count: int) -> list[str]:
    return [f"... {count} in all"] if count > _ITEMS else []


def short_repr(self: object) -> str:
    """The `repr` of a dataclass whose fields may be large: `Name(field=..., ...)`, each field by `short`."""
    fields = [field.name for field in dataclasses.fields(self) if field.repr]  # type: ignore[arg-type]
    return f"{type(self).__name__}({', '.join(f'{name}={short(getattr(self, name))}' for name in fields)})"


def changed_repr(self: object) -> str:
    """The `repr` that `short_repr` writes, without fields at their default."""
    fields = [field for field in dataclasses.fields(self) if field.repr]  # type: ignore[arg-type]
    values = [(field.name, getattr(self, field.name), field.default) for field in fields]
    shown = [f"{name}={short(value)}" for name, value, default in values if value is not default and not _same(value, default)]
    return f"{type(self).__name__}({', '.join(shown)})"


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and isinstance(value, (str, int, float, bool)) and value == default
