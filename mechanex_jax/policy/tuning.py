"""Figures over many runs, and the search for the policy that does best.

The search tries settings of a grid (see `mechanex_jax.policy.grid`): one value for each of some fields. A grid that is too
large is covered first: each trial takes values that no trial had, on as many axes as it can, so that every value is tried after
as many trials as the longest axis has values. Which of these settings comes next, and all later trials, are decided by a model
of the trials so far, which takes a setting's utility for a sum of one effect for each value: the setting with the highest upper
confidence bound is tried.

Trials run with the same seeds, so that they differ in their settings alone. With `_MIN_HELD_OUT` prompts or more, a quarter of
them is held out: a best trial is partly luck, and the `_FINALISTS` best are compared on prompts that had no part in choosing
them.

Better means: a higher success rate, then a higher score, then fewer tokens, then tried earlier. Latency decides nothing, for
the same search would end differently on another day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.grid import MAX_LISTED, Grid, Setting
from mechanex_jax.policy.presets import PolicyDict
from mechanex_jax.policy.rounds import RunResult
from mechanex_jax.storage.json_values import JsonValue, copied
from mechanex_jax.warning import warn

_MIN_HELD_OUT = 4  # prompts, of which a quarter is held out
_FINALISTS = 3
_OPTIMISM = 2.5  # standard deviations between a setting's expected utility and its bound at first: the unknown is tried too
_NOISE = 0.05  # variance of a trial's utility around the sum of its effects, in units of the trials' variance


class Figures(TypedDict):
    """Means and counts over the runs of one policy on several prompts."""

    num_prompts: int
    success_rate: float
    avg_score: float
    avg_latency_ms: float
    avg_tokens: float
    pass_count: int
    fail_count: int


class Evaluation(Figures):
    """Figures, the runs that they are of, and for each run why nothing was accepted in it, or None."""

    outputs: list[RunResult]
    failures: list[str | None]


class Trial(Figures):
    """One setting that was tried: its policy, {path: value}, and the figures on the prompts held out, or None."""

    policy: PolicyDict
    values: dict[str, JsonValue]
    held_out: Figures | None


class SearchResult(TypedDict):
    """What `search` returns."""

    best_policy: PolicyDict
    best_trial: Trial
    trials: list[Trial]
    interrupted: bool


def figures(outputs: Sequence[RunResult]) -> Figures:
    """Means and counts over runs, at least one."""
    passed, total = sum(output["accepted"] for output in outputs), len(outputs)
    return {
        "num_prompts": total,
        "success_rate": passed / total,
        "avg_score": sum(output["score"] for output in outputs) / total,
        "avg_latency_ms": sum(output["latency_ms"] for output in outputs) / total,
        "avg_tokens": sum(output["tokens"] for output in outputs) / total,
        "pass_count": passed,
        "fail_count": total - passed,
    }


def evaluation(outputs: Sequence[RunResult], failures: Sequence[str | None]) -> Evaluation:
    """Figures over runs, at least one, together with the runs, and with why each failed, or None."""
    return {**figures(outputs), "outputs": list(outputs), "failures": list(failures)}


def search(
    base: Policy,
    space: Mapping[str, Sequence[object]] | None,
    max_trials: int,
    prompts: int,
    seed: int,
    evaluate: Callable[[Policy, Sequence[int]], Figures],
    report: Callable[[int, int], None],
    check: Callable[[Policy], None] = lambda policy: None,
) -> SearchResult:
    """Try settings, and say which policy did best.

    Args:
      base: what every trial starts from.
      space: {dotted path of a field: values}; none at all tries `base` alone. A setting whose values are right by themselves
        but make no policy together is passed over.
      max_trials: most settings to try, at least 1. A grid that is no larger is tried as a whole.
      prompts: how many there are, at least 1.
      seed: decides which prompts are held out, and which settings are tried.
      evaluate: (policy, numbers of prompts) -> figures of the policy on them.
      report: called with (trials done, trials in all); the finalists on the prompts held out count as trials.
      check: raises MechanexError where a policy that was read cannot run.

    Returns:
      best_policy: a mapping as `run` takes it: the base's with the values set, without an id.
      best_trial: one of the trials.
      trials: in order; each its figures, `policy`, `values` ({path: value}), and `held_out`, the figures on the prompts held
        out, or None.
      interrupted: whether Ctrl-C ended the search.

    Raises:
      ArgumentError: an unknown path (with the closest field), no values, or a value with which no policy can run; all before
        the first trial.
      KeyboardInterrupt: before a trial was complete.
    """
    grid = Grid(base, {} if space is None else space, check)
    rng = np.random.default_rng(seed)
    grid.check_values(rng)
    order = rng.permutation(prompts).tolist()
    held_out = sorted(order[: prompts // 4]) if prompts >= _MIN_HELD_OUT else []
    seen = sorted(set(range(prompts)) - set(held_out))
    sign = 1 if base.objective.maximize else -1

    whole = [setting for setting in grid.settings() if grid.policy(setting)] if grid.size <= max_trials else None
    if whole == []:
        raise grid.error(next(grid.settings()))
    planned = max_trials if whole is None else len(whole)
    total = planned + (min(_FINALISTS, planned) if held_out else 0)
    trials: list[Trial] = []
    utilities: dict[Setting, float] = {}
    finalists: list[tuple[Trial, Figures]] = []
    interrupted = False
    try:
        report(0, total)
        for setting in _proposals(grid, max_trials, utilities, rng) if whole is None else whole:
            result = evaluate(_policy(grid, setting), seen)
            trials.append({**result, "policy": grid.mapping(setting), "values": grid.values(setting), "held_out": None})
            utilities[setting] = result["success_rate"] + sign * result["avg_score"]
            report(len(trials), total)
        ranked = sorted(zip(trials, utilities, strict=True), key=lambda pair: _rank(pair[0], sign), reverse=True)
        for trial, setting in ranked[:_FINALISTS] if held_out else ():
            result = evaluate(_policy(grid, setting), held_out)
            trial["held_out"] = result
            finalists.append((trial, result))
            report(len(trials) + len(finalists), total)
    except KeyboardInterrupt:
        if not trials:
            raise
        interrupted = True
    if not trials:
        raise expected("search_space", Verbatim(f"none of {grid.size} settings that makes a policy"), "one at least")
    # Of equals `max` takes the first.
    if finalists and not interrupted:
        best = max(finalists, key=lambda pair: _rank(pair[1], sign)[:2])[0]
    else:
        best = max(trials, key=lambda trial: _rank(trial, sign))
    if not best["pass_count"]:
        warn(
            f"auto_tune: no text of the best trial was accepted ({best['num_prompts']} prompts, {len(trials)} trials); its "
            "score alone decided. Search other values, or loosen what the policy asks for."
        )
    return {"best_policy": copied(best["policy"]), "best_trial": best, "trials": trials, "interrupted": interrupted}


def _policy(grid: Grid, setting: Setting) -> Policy:
    """The policy of a setting that was proposed because it makes one."""
    policy = grid.policy(setting)
    assert policy is not None
    return policy


def _rank(result: Figures, sign: int) -> tuple[float, ...]:
    """Success rate, score and tokens, so that larger is better."""
    return result["success_rate"], sign * result["avg_score"], -result["avg_tokens"]


# --- which settings to try ---


def _proposals(grid: Grid, count: int, utilities: Mapping[Setting, float], rng: np.random.Generator) -> Iterator[Setting]:
    """At most `count` settings, none of them twice, each chosen when the trials before it are done.

    Args:
      grid: larger than `count`.
      count: number of trials.
      utilities: of the settings tried; the caller adds each before it asks for the next.
      rng: breaks ties.
    """
    whole = np.array(list(grid.settings())) if grid.size <= MAX_LISTED else None
    untried = [np.ones(len(axis.values), bool) for axis in grid.axes]
    for left in range(count, 0, -1):
        pool = _sampled_pool(grid, untried, utilities, rng) if whole is None else rng.permutation(whole)
        new_values = np.stack([values[pool[:, at]] for at, values in enumerate(untried)]).sum(0)
        bounds = _upper_bounds(pool, utilities, _OPTIMISM * left / count).round(9)
        order = np.lexsort((-bounds, -new_values))  # stable: the permutation breaks ties
        ranked = (tuple(setting) for setting in pool[order].tolist())
        setting = next((setting for setting in ranked if setting not in utilities and grid.policy(setting)), None)
        if setting is None:
            return
        for at, index in enumerate(setting):
            untried[at][index] = False
        yield setting


def _sampled_pool(
    grid: Grid, untried: Sequence[np.ndarray], utilities: Mapping[Setting, float], rng: np.random.Generator
) -> np.ndarray:
    """Settings of a grid that is too large to list: most with untried values, and all one step from the best."""
    pool = grid.sample(MAX_LISTED, rng)
    for at, values in enumerate(untried):
        if values.any():  # half of the settings get one on every axis that has some, the others on every second such axis
            forced = (np.arange(len(pool)) < len(pool) // 2) | (rng.random(len(pool)) < 0.5)
            pool[forced, at] = rng.choice(np.flatnonzero(values), forced.sum())
    if not utilities:
        return pool
    best = max(utilities, key=utilities.__getitem__)
    steps = [(*best[:at], index, *best[at + 1 :]) for at, axis in enumerate(grid.axes) for index in range(len(axis.values))]
    return np.concatenate([pool, np.array(steps)])


def _upper_bounds(pool: np.ndarray, utilities: Mapping[Setting, float], optimism: float) -> np.ndarray:
    """Upper confidence bounds of the utilities of settings: the expected utility, and `optimism` standard deviations on top.

    A utility is modeled as a mean, an effect for each value, all of one variance, and noise. Two settings then covary by the
    share of axes on which they agree, which is the kernel of the Gaussian process here (Bayesian ridge regression on which
    values were set); the rule is GP-UCB, https://arxiv.org/abs/0912.3995.

    Args:
      pool: settings [settings, axes].
      utilities: of the settings tried.
      optimism: the less of it, the less the unknown is tried; it falls as trials run out.

    Returns:
      [settings], in standard deviations of `utilities` from their mean; zeros where nothing was tried.
    """
    if not utilities:
        return np.zeros(len(pool))
    tried, values = np.array(list(utilities)), np.array(list(utilities.values()))
    spread = values.std()
    agreement = lambda some, others: (some[:, None] == others).mean(-1)
    covariance, with_pool = agreement(tried, tried) + _NOISE * np.eye(len(tried)), agreement(tried, pool)
    weights = np.linalg.solve(covariance, with_pool)  # [tried, settings]
    expectation = ((values - values.mean()) / (spread if spread > 0 else 1.0)) @ weights
    return expectation + optimism * np.sqrt(np.maximum(1 - (with_pool * weights).sum(0), 0))
