"""The grid of a search for a policy: an axis for each field that varies, a policy for each choice of values."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from mechanex_jax.errors import MechanexError, Verbatim, expected
from mechanex_jax.policy import controls, validate
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.merge import FIELDS
from mechanex_jax.policy.presets import PolicyDict
from mechanex_jax.storage.json_values import JsonValue, copied, plain

MAX_LISTED = 4096  # settings of a grid that is listed as a whole
_MAX_WITNESSES = 32  # settings that are read to find one in which a value is right

Setting: TypeAlias = tuple[int, ...]
"""The index of a value on each axis."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field of a policy, by its dotted path, and the values to try for it, none of them twice."""

    path: str
    values: list[object]


class Grid:
    """All settings of a search, and the policy of each.

    Args:
      base: what every setting starts from.
      space: {dotted path of a field: values}.
      check: raises MechanexError where a policy that was read cannot run.

    Raises:
      ArgumentError: a path that is no field, or something that is no list of values.
    """

    def __init__(self, base: Policy, space: object, check: Callable[[Policy], None]):
        if not isinstance(space, Mapping):
            raise expected("search_space", space, "a mapping of dotted paths to lists of values")
        self.axes = [_axis(path, values) for path, values in space.items()]
        self.size = math.prod(len(axis.values) for axis in self.axes)
        self._base = {name: value for name, value in base.given.items() if name != "id"}  # a tuned policy is another one
        self._check = check
        self._read_before: dict[tuple[tuple[int, int], ...], Policy | MechanexError] = {}

    def settings(self) -> Iterator[Setting]:
        """All settings, the last axis varying fastest."""
        return itertools.product(*(range(len(axis.values)) for axis in self.axes))

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw settings [count, axes], with each value of an axis as likely as the others."""
        return rng.integers(0, [len(axis.values) for axis in self.axes], (count, len(self.axes)))

    def mapping(self, setting: Setting) -> PolicyDict:
        """The policy of a setting as a user would write it, in values that JSON can hold."""
        mapping, policy = self._mapping(tuple(enumerate(setting))), self.policy(setting)
        if policy is not None and policy.constraints.json_schema is not None:  # may be given as a class
            mapping["constraints"]["json_schema"] = policy.constraints.json_schema
        return plain("policy", mapping)

    def values(self, setting: Setting) -> dict[str, JsonValue]:
        """{path: value} of a setting, as `mapping` holds them."""
        mapping = self.mapping(setting)
        places = {axis.path: axis.path.rpartition(".") for axis in self.axes}
        return {path: (mapping[section] if section else mapping)[field] for path, (section, _, field) in places.items()}

    def policy(self, setting: Setting) -> Policy | None:
        """The policy of a setting; None where its values make none that can run."""
        policy = self._read(tuple(enumerate(setting)))
        return None if isinstance(policy, MechanexError) else policy

    def error(self, setting: Setting) -> MechanexError:
        """What is wrong with a setting that makes no policy."""
        error = self._read(tuple(enumerate(setting)))
        assert isinstance(error, MechanexError)
        return error

    def check_values(self, rng: np.random.Generator) -> None:
        """Check that every value is right alone, or else with some values of the other axes.

        Raises:
          MechanexError: what is wrong with a value that is right in none of the settings that were read.
        """
        for at, axis in enumerate(self.axes):
            for index in range(len(axis.values)):
                alone = self._read(((at, index),))
                if isinstance(alone, MechanexError) and not self._has_witness(at, index, rng):
                    raise alone

    def _has_witness(self, at: int, index: int, rng: np.random.Generator) -> bool:
        """Whether one of some settings with this value makes a policy."""
        settings = self.sample(_MAX_WITNESSES, rng)
        if self.size <= MAX_LISTED:
            settings = rng.permutation(np.array([*self.settings()]))
            settings = settings[settings[:, at] == index][:_MAX_WITNESSES]
        settings[:, at] = index
        return any(self.policy(tuple(setting)) for setting in settings.tolist())

    def _read(self, chosen: tuple[tuple[int, int], ...]) -> Policy | MechanexError:
        """The policy with the chosen (axis, value) pairs, or what is wrong with it."""
        if chosen not in self._read_before:
            try:
                policy = validate.read(self._mapping(chosen), "search_space")
                self._check(policy)
            except MechanexError as error:
                policy = error
            self._read_before[chosen] = policy
        return self._read_before[chosen]

    def _mapping(self, chosen: Iterable[tuple[int, int]]) -> PolicyDict:
        """The base with the chosen (axis, value) pairs set."""
        mapping = copied(self._base)
        for axis, index in ((self.axes[at], index) for at, index in chosen):
            section, _, field = axis.path.rpartition(".")
            if section and mapping.get(section) is None:
                mapping[section] = {}
            (mapping[section] if section else mapping)[field] = copied(axis.values[index])
        return mapping


def _axis(path: object, values: object) -> Axis:
    if not isinstance(path, str) or path not in controls.fields():
        expectation = "dotted paths of a policy's fields, such as 'sampling.temperature'"
        raise expected("search_space", path, expectation, _closest(path))
    name = f"search_space[{path!r}]"
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise expected(name, values, "a list of values", "Write [...], also for one.")
    if not len(values):
        raise expected(name, Verbatim("no values"), "one or more", "Leave the path out to keep the base policy's value.")
    distinct: dict[str, object] = {}
    for value in values:
        distinct.setdefault(_canonical(value), value)
    return Axis(path, [*distinct.values()])


def _canonical(value: object) -> str:
    """A text that is the same for equal values; 1 and True differ."""
    try:
        return json.dumps(plain("value", value), sort_keys=True)
    except MechanexError:  # no JSON: a class that is a schema, or something that `read` will refuse
        return repr(value)


def _closest(path: object) -> str:
    """Advise the field of an argument of `generate`, or with this name in its section, or else the one spelled most alike."""
    if not isinstance(path, str):
        return ""
    fields = controls.fields()
    names = {**{field.rpartition(".")[2]: field for field in reversed(fields)}, **{field: field for field in fields}, **FIELDS}
    near = difflib.get_close_matches(path, names, n=1) or difflib.get_close_matches(path.rpartition(".")[2], names, n=1)
    return f"Did you mean {names[near[0]]!r}?" if near else ""
