"""The tables of several machines behind one another, padded so that other machines of like size have the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mechanex_jax.constraints.token_index.build import Tables
from mechanex_jax.constraints.token_index.mask_rows import NEVER
from mechanex_jax.constraints.token_index.tokens_to_finish import FAR

_DEPTH = 256
# Each table's smallest size; beyond it sizes grow by factors of four, those of the mask rows of two.
_STATES, _COLUMNS, _SITES, _BLOCKS, _THRESHOLDS, _ROWS = 4096, 64, 1024, 1024, 4096, 512
_GROUPS, _ENTRIES, _REST_ROWS, _RESTS, _REST_ENDS = 4096, 4096, 256, 256, 256
_SEARCH = (4, 10, 31)  # halvings


def bucket(size: int, smallest: int, factor: int = 4) -> int:
    """`smallest` times a power of `factor`, at least `size`."""
    while smallest < size:
        smallest *= factor
    return smallest


def _fill(shape: tuple[int, ...], value: int = 0, dtype: Any = np.int32) -> np.ndarray:
    return np.full(shape, value, dtype) if value else np.zeros(shape, dtype)


def shared_fields(machines: Sequence[Tables], size: int) -> tuple[dict[str, Any], np.ndarray]:
    """The shared fields of an `automaton.Automaton`, but for the tokens' bytes.

    Args:
      machines: distinct.
      size: V.

    Returns:
      name -> array or static value; and int32 [M, 2], the number to add to each machine's states, and the mask row of its
      end-of-sequence ids.
    """
    largest: Callable[[Callable[[Tables], int]], int] = lambda of: max((of(m) for m in machines), default=1)
    total: Callable[[Callable[[Tables], int]], int] = lambda of: sum(of(m) for m in machines)
    labels = bucket(largest(lambda m: m.distance.shape[1]), 1)
    width = bucket(largest(lambda m: m.target.shape[1]), _COLUMNS)
    states = bucket(1 + total(lambda m: len(m.label)), _STATES)
    blocks = bucket(1 + total(lambda m: len(m.every)), _BLOCKS)
    groups = bucket(1 + total(lambda m: len(m.group_rest)), _GROUPS)
    masks = bucket(1 + total(lambda m: 1 + len(m.masks)), _ROWS, 2)
    entries = bucket(total(lambda m: len(m.entry_token)), _ENTRIES)
    thresholds = bucket(total(lambda m: len(m.threshold)), _THRESHOLDS)
    ends = bucket(total(lambda m: len(m.rest_ends)), _REST_ENDS)
    out: dict[str, Any] = {
        "moves": _fill((states, width, 2)),
        "label": _fill((states,), -1),
        "closed": _fill((states,), 0, bool),
        "returns": _fill((bucket(total(lambda m: len(m.returns)), _SITES), labels)),
        "distance": _fill((states, labels), FAR),
        "block": _fill((states,)),
        "every": _fill((blocks,)),
        "roomy": _fill((blocks, labels), NEVER),
        "thresholds": _fill((blocks, labels, 2)),
        "threshold": _fill((thresholds,)),
        "row": _fill((thresholds,)),
        "masks": _fill((masks, -(-size // 32)), 0, np.uint32),
        "groups": _fill((blocks, 2)),
        "group_rest": _fill((groups,)),
        "group_label": _fill((groups,)),
        "entries": _fill((groups, 2)),
        "entry_token": _fill((entries,)),
        "entry_group": _fill((entries,)),
        "rest_row": _fill((states,)),
        "rest": _fill(
            (
                bucket(1 + total(lambda m: len(m.rest)), _REST_ROWS),
                bucket(largest(lambda m: m.rest.shape[1]), _RESTS),
            )
        ),
        "rest_ends": _fill((ends, labels), FAR),
    }
    # What state 0, block 0 and row 0 say holds for all machines: dead, nothing allowed. Each machine's own come unused.
    names = ("states", "blocks", "thresholds", "masks", "groups", "entries", "sites", "rest", "rest_ends")
    base = dict.fromkeys(names, 0) | {"states": 1, "blocks": 1, "masks": 1, "rest": 1}
    placed = []
    for machine in machines:
        placed.append(_place(out, machine, base, labels))
    longest = largest(lambda m: int(np.diff(m.first_threshold).max(initial=0)))
    height = largest(lambda m: m.height) if machines else 0
    out["depth"] = bucket(height, _DEPTH, 2) if height else 0
    out["search"] = next(steps for steps in _SEARCH if longest < 1 << steps)
    return out, np.array(placed, np.int32).reshape(-1, 2)


def _place(out: dict[str, Any], machine: Tables, base: dict[str, int], labels: int) -> tuple[int, int]:
    """Write one machine's tables behind those before, and move `base` on."""
    states, width = machine.target.shape
    own = machine.distance.shape[1]
    moved = lambda numbers, name: np.where(numbers > 0, numbers + base[name], 0)
    at = slice(base["states"], base["states"] + states)
    target = moved(machine.target, "states")
    out["moves"][at, :width, 0] = target * 2 + (machine.stay & (target > 0))
    out["moves"][at, :width, 1] = np.where(machine.push >= 0, machine.push + base["sites"], -1)
    out["label"][at] = machine.label
    out["closed"][at] = (machine.label >= 0) & ~(target > 0).any(axis=1)
    out["distance"][at, :own] = machine.distance
    out["block"][at] = moved(machine.block, "blocks")
    out["rest_row"][at] = moved(machine.rest_row, "rest")
    sites = len(machine.returns)
    out["returns"][base["sites"] : base["sites"] + sites, :own] = moved(machine.returns, "states")
    blocks = len(machine.every)
    at = slice(base["blocks"], base["blocks"] + blocks)
    out["every"][at] = moved(machine.every, "masks")
    out["roomy"][at, :own] = machine.roomy
    first = (machine.first_threshold + base["thresholds"])[: blocks * own + 1]
    out["thresholds"][at, :own, 0], out["thresholds"][at, :own, 1] = first[:-1].reshape(-1, own), first[1:].reshape(-1, own)
    first = machine.first_group + base["groups"]
    out["groups"][at, 0], out["groups"][at, 1] = first[:-1], first[1:]
    at = slice(base["thresholds"], base["thresholds"] + len(machine.threshold))
    out["threshold"][at], out["row"][at] = machine.threshold, moved(machine.row, "masks")
    groups = len(machine.group_rest)
    at = slice(base["groups"], base["groups"] + groups)
    out["group_rest"][at], out["group_label"][at] = machine.group_rest, machine.group_label
    first = machine.first_entry + base["entries"]
    out["entries"][at, 0], out["entries"][at, 1] = first[:-1], first[1:]
    at = slice(base["entries"], base["entries"] + len(machine.entry_token))
    out["entry_token"][at] = machine.entry_token
    out["entry_group"][at] = base["groups"] + np.repeat(np.arange(groups), np.diff(machine.first_entry))
    left, label = np.divmod(-1 - np.minimum(machine.rest, -1), own)
    rest = np.where(machine.rest < 0, -1 - (left * labels + label), moved(machine.rest, "rest_ends"))
    out["rest"][base["rest"] : base["rest"] + len(rest), : rest.shape[1]] = rest
    out["rest_ends"][base["rest_ends"] : base["rest_ends"] + len(machine.rest_ends), :own] = machine.rest_ends
    masks, words = machine.masks.shape
    out["masks"][base["masks"] : base["masks"] + masks, :words] = machine.masks
    ends = base["masks"] + masks
    inside = machine.eos_ids[(machine.eos_ids >= 0) & (machine.eos_ids < machine.size)]
    np.bitwise_or.at(out["masks"][ends], inside >> 5, np.uint32(1) << (inside & 31).astype(np.uint32))
    offset = base["states"]
    sizes = (states, blocks, len(machine.threshold), masks + 1, groups, len(machine.entry_token), sites, len(rest))
    for name, step in zip(base, (*sizes, len(machine.rest_ends)), strict=True):
        base[name] += step
    return offset, ends
