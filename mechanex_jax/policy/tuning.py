"""What many runs come to, and the search for the policy that does best.

The search tries settings of a grid, one value for each of some fields. A grid that is too large is covered first: each trial
takes values that no trial had, on as many axes as it can, so that every value is tried after as many trials as the longest
axis has values. Which of them go together, and what is tried after that, is what a model of the trials so far hopes most of
(`_hopes`): it takes a setting's worth for a sum of one effect for each value.

Trials run with the same seeds, so that they differ in what is set alone. With `_FEW` prompts or more, a quarter of them is
held out: a best trial is partly luck, and the `_FINALISTS` best are compared on prompts that had no part in choosing them.

Better means: a higher success rate, then a higher score, then fewer tokens, then tried earlier. Latency decides nothing, for
the same search would end differently on another day.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mechanex_jax.errors import MechanexError, Verbatim, expected
from mechanex_jax.policy import controls
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.merge import FIELDS
from mechanex_jax.storage.json_values import copied, plain

_FEW = 4
_FINALISTS = 3
_ENUMERATED = 4096  # settings of a grid that is looked at as a whole; of a larger one, as many are drawn for each trial
_WITNESSES = 32  # settings that are looked at for one in which a value is right
_HOPE = 2.5  # standard deviations that a setting's worth is overrated by at first: what is uncertain is tried too
_NOISE = 0.05  # variance of a trial's worth around the sum of its effects, in units of the trials' variance

Setting = tuple[int, ...]
"""The index of a value on each axis."""
Figures = dict[str, Any]
"""What `evaluation` returns."""


def evaluation(outputs: Sequence[Mapping[str, Any]]) -> Figures:
    """Of runs as `policy.run` returns them, at least one."""
    passed, total = sum(output["accepted"] for output in outputs), len(outputs)
    mean = lambda name: sum(output[name] for output in outputs) / total
    return {
        "num_prompts": total,
        "success_rate": passed / total,
        "avg_score": mean("score"),
        "avg_latency_ms": mean("latency_ms"),
        "avg_tokens": mean("tokens"),
        "pass_count": passed,
        "fail_count": total - passed,
        "outputs": list(outputs),
    }


def search(
    base: Policy,
    space: Mapping[str, Sequence[Any]] | None,
    max_trials: int,
    prompts: int,
    seed: int,
    tried: Callable[[Policy, Sequence[int]], Figures],
    report: Callable[[int, int], None],
    check: Callable[[Policy], None] = lambda policy: None,
) -> dict[str, Any]:
    """Try settings, and say which policy did best.

    Args:
      base: what every trial starts from.
      space: {dotted path of a field: values}; none at all tries `base` alone. A setting whose values are right by themselves
        but make no policy together is passed over.
      max_trials: most settings to try, at least 1. A grid that is no larger is tried as a whole.
      prompts: how many there are, at least 1.
      seed: of what is held out, and of which settings are tried.
      tried: (policy, numbers of prompts) -> what the policy comes to on them, as `evaluation` returns it.
      report: told of what is done and how much there is: trials, and the best of them once more on what is held out.
      check: raises MechanexError where a policy that was read cannot run.

    Returns:
      best_policy: a mapping as `run` takes it: the base's with the values set, without an id.
      best_trial: one of the trials.
      trials: in order; each the figures of `evaluation` without outputs, `policy`, `values` ({path: value}), and `held_out`,
        the figures on the prompts held out, or None.
      interrupted: whether Ctrl-C ended the search.

    Raises:
      ArgumentError: an unknown path (with the closest field), no values, or a value with which no policy can run; all before
        the first trial.
      KeyboardInterrupt: before a trial was complete.
    """
    grid = _Grid(base, {} if space is None else space, check)
    rng = np.random.default_rng(seed)
    grid.check_values(rng)
    order = rng.permutation(prompts).tolist()
    held = sorted(order[: prompts // 4]) if prompts >= _FEW else []
    seen = sorted(set(range(prompts)) - set(held))
    sign = 1 if base.objective.maximize else -1

    small = [setting for setting in grid.settings() if grid.policy(setting)] if grid.size <= max_trials else None
    if small == []:
        raise grid.wrong(next(grid.settings()))
    planned = max_trials if small is None else len(small)
    total = planned + (min(_FINALISTS, planned) if held else 0)
    trials: list[Figures] = []
    worths: dict[Setting, float] = {}
    finalists: list[Figures] = []
    interrupted = False
    try:
        report(0, total)
        for setting in _chosen(grid, max_trials, worths, rng) if small is None else small:
            found = tried(grid.policy(setting), seen)
            trials.append(
                {**_figures(found), "policy": grid.mapping(setting), "values": grid.values(setting), "held_out": None}
            )
            worths[setting] = found["success_rate"] + sign * found["avg_score"]
            report(len(trials), total)
        ranked = sorted(zip(trials, worths, strict=True), key=lambda pair: _rank(pair[0], sign), reverse=True)
        for trial, setting in ranked[:_FINALISTS] if held else ():
            trial["held_out"] = _figures(tried(grid.policy(setting), held))
            finalists.append(trial)
            report(len(trials) + len(finalists), total)
    except KeyboardInterrupt:
        if not trials:
            raise
        interrupted = True
    if not trials:
        raise expected("search_space", Verbatim(f"none of {grid.size} settings that makes a policy"), "one at least")
    # Of equals `max` takes the first.
    if finalists and not interrupted:
        best = max(finalists, key=lambda trial: _rank(trial["held_out"], sign)[:2])
    else:
        best = max(trials, key=lambda trial: _rank(trial, sign))
    return {"best_policy": copied(best["policy"]), "best_trial": best, "trials": trials, "interrupted": interrupted}


def _figures(found: Figures) -> Figures:
    return {name: value for name, value in found.items() if name != "outputs"}


def _rank(figures: Figures, sign: int) -> tuple[float, ...]:
    """Larger is better."""
    return figures["success_rate"], sign * figures["avg_score"], -figures["avg_tokens"]


# --- settings ---


@dataclasses.dataclass(frozen=True)
class _Axis:
    path: str
    values: list[Any]


class _Grid:
    """All settings: of each axis one value.

    Raises:
      ArgumentError: a path that is no field, or values that are none.
    """

    def __init__(self, base: Policy, space: Any, check: Callable[[Policy], None]):
        if not isinstance(space, Mapping):
            raise expected("search_space", space, "a mapping of dotted paths to lists of values")
        self.axes = [_axis(path, values) for path, values in space.items()]
        self.size = math.prod(len(axis.values) for axis in self.axes)
        self._base = {name: value for name, value in base.given.items() if name != "id"}  # a tuned policy is another one
        self._check = check
        self._found: dict[tuple[tuple[int, int], ...], Policy | MechanexError] = {}

    def settings(self) -> Iterator[Setting]:
        return itertools.product(*(range(len(axis.values)) for axis in self.axes))

    def drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, axes] of settings, each value of an axis as likely as the others."""
        return rng.integers(0, [len(axis.values) for axis in self.axes], (count, len(self.axes)))

    def mapping(self, setting: Setting) -> dict[str, Any]:
        """The policy of a setting as it would be written, in JSON's terms."""
        mapping, policy = self._with(tuple(enumerate(setting))), self.policy(setting)
        if policy.constraints.json_schema is not None:  # may be given as a class
            mapping["constraints"]["json_schema"] = policy.constraints.json_schema
        return plain("policy", mapping)

    def values(self, setting: Setting) -> dict[str, Any]:
        """{path: value}, as `mapping` has them."""
        mapping = {"": self.mapping(setting)}
        mapping |= mapping[""]
        places = ((axis.path, axis.path.rpartition(".")) for axis in self.axes)
        return {path: mapping[section][field] for path, (section, _, field) in places}

    def policy(self, setting: Setting) -> Any:
        """The policy of a setting; None where its values make none that can run."""
        found = self._read(tuple(enumerate(setting)))
        return None if isinstance(found, MechanexError) else found

    def wrong(self, setting: Setting) -> MechanexError:
        """What is wrong with a setting that makes no policy."""
        found = self._read(tuple(enumerate(setting)))
        assert isinstance(found, MechanexError)
        return found

    def check_values(self, rng: np.random.Generator) -> None:
        """Every value is right alone, or else with some values of the other axes.

        Raises:
          MechanexError: what is wrong with a value that is right with none of those looked at.
        """
        for at, axis in enumerate(self.axes):
            for index in range(len(axis.values)):
                alone = self._read(((at, index),))
                if isinstance(alone, MechanexError) and not self._witness(at, index, rng):
                    raise alone

    def _witness(self, at: int, index: int, rng: np.random.Generator) -> bool:
        others = self.drawn(_WITNESSES, rng)
        if self.size <= _ENUMERATED:
            others = rng.permutation(np.array([*self.settings()]))
            others = others[others[:, at] == index][:_WITNESSES]
        others[:, at] = index
        return any(self.policy(tuple(setting)) for setting in others.tolist())

    def _read(self, chosen: tuple[tuple[int, int], ...]) -> Policy | MechanexError:
        """The policy with the chosen (axis, value) pairs, or what is wrong with it."""
        if chosen not in self._found:
            try:
                found = controls.read(self._with(chosen), "search_space")
                self._check(found)
            except MechanexError as error:
                found = error
            self._found[chosen] = found
        return self._found[chosen]

    def _with(self, chosen: Iterable[tuple[int, int]]) -> dict[str, Any]:
        mapping = copied(self._base)
        for axis, index in ((self.axes[at], index) for at, index in chosen):
            section, _, field = axis.path.rpartition(".")
            if section and mapping.get(section) is None:
                mapping[section] = {}
            (mapping[section] if section else mapping)[field] = copied(axis.values[index])
        return mapping


def _axis(path: Any, values: Any) -> _Axis:
    fields = controls.fields()
    if path not in fields:
        raise expected(
            "search_space", path, "dotted paths of a policy's fields, such as 'sampling.temperature'", _closest(path)
        )
    name = f"search_space[{path!r}]"
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise expected(name, values, "a list of values", "Write [...], also for one.")
    if not len(values):
        raise expected(name, Verbatim("no values"), "one or more", "Leave the path out to keep the base policy's value.")
    found: dict[str, Any] = {}
    for value in values:  # what is given twice is tried once
        found.setdefault(_written(value), value)
    return _Axis(path, [*found.values()])


def _written(value: Any) -> str:
    """What is the same for the same values: 1 and True are two."""
    try:
        return json.dumps(plain("value", value), sort_keys=True)
    except MechanexError:  # no JSON: a class that is a schema, or something that `read` will refuse
        return repr(value)


def _closest(path: Any) -> str:
    """Advice: the field of a name of `generate`'s, or with this name in its section, or else the one spelled most alike."""
    if not isinstance(path, str):
        return ""
    fields = controls.fields()
    names = {**{field.rpartition(".")[2]: field for field in reversed(fields)}, **{field: field for field in fields}, **FIELDS}
    near = difflib.get_close_matches(path, names, n=1) or difflib.get_close_matches(path.rpartition(".")[2], names, n=1)
    return f"Did you mean {names[near[0]]!r}?" if near else ""


# --- which to try ---


def _chosen(grid: _Grid, count: int, worths: Mapping[Setting, float], rng: np.random.Generator) -> Iterator[Setting]:
    """At most `count` settings, each but once, as trials go on.

    Args:
      grid: larger than `count`.
      count: of trials.
      worths: of the settings tried; the caller adds each before it asks for the next.
      rng: breaks ties.
    """
    whole = np.array(list(grid.settings())) if grid.size <= _ENUMERATED else None
    untried = [np.ones(len(axis.values), bool) for axis in grid.axes]
    for left in range(count, 0, -1):
        pool = _pool(grid, untried, worths, rng) if whole is None else rng.permutation(whole)
        new = np.stack([values[pool[:, at]] for at, values in enumerate(untried)]).sum(0)
        order = np.lexsort((-_hopes(pool, worths, _HOPE * left / count).round(9), -new))  # stable: the permutation breaks ties
        ranked = (tuple(setting) for setting in pool[order].tolist())
        setting = next((setting for setting in ranked if setting not in worths and grid.policy(setting)), None)
        if setting is None:
            return
        for at, index in enumerate(setting):
            untried[at][index] = False
        yield setting


def _pool(grid: _Grid, untried: Sequence[np.ndarray], worths: Mapping[Setting, float], rng: np.random.Generator) -> np.ndarray:
    """Settings of a grid that is too large to look at all: most with untried values, and all one step from the best."""
    pool = grid.drawn(_ENUMERATED, rng)
    for at, values in enumerate(untried):
        if values.any():  # on every axis that has some for half of the settings; of the others on every second axis
            forced = (np.arange(len(pool)) < len(pool) // 2) | (rng.random(len(pool)) < 0.5)
            pool[forced, at] = rng.choice(np.flatnonzero(values), forced.sum())
    if not worths:
        return pool
    best = max(worths, key=worths.__getitem__)
    steps = [(*best[:at], index, *best[at + 1 :]) for at, axis in enumerate(grid.axes) for index in range(len(axis.values))]
    return np.concatenate([pool, np.array(steps)])


def _hopes(pool: np.ndarray, worths: Mapping[Setting, float], hope: float) -> np.ndarray:
    """An optimistic guess at what settings are worth: its mean, and `hope` standard deviations on top.

    A worth is taken for a mean, an effect for each value, all of one variance, and noise. Then settings go together by the
    share of axes on which they agree, which is the kernel of the Gaussian process here (Bayesian ridge regression on which
    values were set); the guess is GP-UCB, https://arxiv.org/abs/0912.3995.

    Args:
      pool: [settings, axes].
      worths: of the settings tried.
      hope: less of it looks less for what is unknown; it falls as trials run out.

    Returns:
      [settings], in standard deviations of `worths` from their mean; zeros where nothing was tried.
    """
    if not worths:
        return np.zeros(len(pool))
    tried, values = np.array(list(worths)), np.array(list(worths.values()))
    spread = values.std()
    agree = lambda some, others: (some[:, None] == others).mean(-1)
    known, between = agree(tried, tried) + _NOISE * np.eye(len(tried)), agree(tried, pool)
    weights = np.linalg.solve(known, between)  # [tried, settings]
    guess = ((values - values.mean()) / (spread if spread > 0 else 1.0)) @ weights
    return guess + hope * np.sqrt(np.maximum(1 - (between * weights).sum(0), 0))
