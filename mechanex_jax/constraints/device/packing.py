"""Tables of several constraints packed behind one another, padded so that others of like size have the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mechanex_jax.constraints.token_index.build import Tables
from mechanex_jax.constraints.token_index.mask_rows import NO_THRESHOLD
from mechanex_jax.constraints.token_index.tokens_to_finish import UNREACHABLE

_SMALLEST_DEPTH = 256
# Each array's smallest size; beyond it sizes grow by factors of four, those of the mask rows of two.
_STATES, _CLASSES, _SITES, _BLOCKS, _THRESHOLDS, _MASKS = 4096, 64, 1024, 1024, 4096, 512
_GROUPS, _ENTRIES, _SUFFIX_ROWS, _SUFFIXES, _SUFFIX_DISTANCES = 4096, 4096, 256, 256, 256
_BISECTIONS = (4, 10, 31)


def padded_size(size: int, smallest: int, factor: int = 4) -> int:
    """`smallest` times the least power of `factor` that makes it `size` or more."""
    while smallest < size:
        smallest *= factor
    return smallest


class PackedTables(NamedTuple):
    """M constraints in shared arrays.

    Attributes:
      arrays: the shared fields of a `token_mask.Constraint` by name, but for the tokens' bytes.
      max_depth, bisections: its static fields.
      distinct: whether some constraint has distinct strings.
      first_state: int [M], what is added to each constraint's states.
      eos_row, quote_row: int [M], the mask rows of each constraint's end-of-sequence ids and of tokens that begin with a quote.
    """

    arrays: dict[str, np.ndarray]
    max_depth: int
    bisections: int
    distinct: bool
    first_state: list[int]
    eos_row: list[int]
    quote_row: list[int]


def _filled(shape: tuple[int, ...], value: int = 0, dtype: npt.DTypeLike = np.int32) -> np.ndarray:
    return np.full(shape, value, dtype) if value else np.zeros(shape, dtype)


def pack_tables(tables: Sequence[Tables], size: int) -> PackedTables:
    """Pack distinct tables for `size` logits. State 0, block 0 and mask row 0 are those of a dead text, for all of them."""
    largest: Callable[[Callable[[Tables], int]], int] = lambda of: max((of(t) for t in tables), default=1)
    total: Callable[[Callable[[Tables], int]], int] = lambda of: sum(of(t) for t in tables)
    labels = padded_size(largest(lambda t: t.distance.shape[1]), 1)
    classes = padded_size(largest(lambda t: t.target.shape[1]), _CLASSES)
    states = padded_size(1 + total(lambda t: len(t.label)), _STATES)
    blocks = padded_size(1 + total(lambda t: len(t.all_tokens)), _BLOCKS)
    groups = padded_size(1 + total(lambda t: len(t.group_suffix)), _GROUPS)
    masks = padded_size(1 + total(lambda t: 1 + len(t.masks)), _MASKS, 2)
    entries = padded_size(total(lambda t: len(t.entry_token)), _ENTRIES)
    thresholds = padded_size(total(lambda t: len(t.threshold)), _THRESHOLDS)
    suffix_rows = padded_size(1 + total(lambda t: len(t.suffix_code)), _SUFFIX_ROWS)
    suffixes = padded_size(largest(lambda t: t.suffix_code.shape[1]), _SUFFIXES)
    distinct = any(t.quote_row for t in tables)
    arrays = {
        "moves": _filled((states, classes, 2)),
        "label": _filled((states,), -1),
        "closed": _filled((states,), 0, bool),
        "boundary": np.arange(states if distinct else 0, dtype=np.int32),
        "distinct_end": _filled((states if distinct else 0,), 0, bool),
        "returns": _filled((padded_size(total(lambda t: len(t.returns)), _SITES), labels)),
        "distance": _filled((states, labels), UNREACHABLE),
        "block": _filled((states,)),
        "all_tokens": _filled((blocks,)),
        "max_threshold": _filled((blocks, labels), NO_THRESHOLD),
        "threshold_range": _filled((blocks, labels, 2)),
        "threshold": _filled((thresholds,)),
        "mask_row": _filled((thresholds,)),
        "masks": _filled((masks, -(-size // 32)), 0, np.uint32),
        "group_range": _filled((blocks, 2)),
        "group_suffix": _filled((groups,)),
        "group_label": _filled((groups,)),
        "entry_range": _filled((groups, 2)),
        "entry_token": _filled((entries,)),
        "entry_group": _filled((entries,)),
        "suffix_row": _filled((states,)),
        "suffix_code": _filled((suffix_rows, suffixes)),
        "suffix_distance": _filled(
            (padded_size(total(lambda t: len(t.suffix_distance)), _SUFFIX_DISTANCES), labels), UNREACHABLE
        ),
    }
    at = _Place(state=1, block=1, mask=1, suffix_row=1)
    first_state, eos_row, quote_row = [], [], []
    for one in tables:
        first_state.append(at.state)
        eos_row.append(at.mask + len(one.masks))
        quote_row.append(at.mask + one.quote_row if one.quote_row else 0)
        at = _place(arrays, one, at, labels)
    height = largest(lambda t: t.max_depth) if tables else 0
    longest = largest(lambda t: int(np.diff(t.first_threshold).max(initial=0)))
    return PackedTables(
        arrays,
        max_depth=padded_size(height, _SMALLEST_DEPTH, 2) if height else 0,
        bisections=next(steps for steps in _BISECTIONS if longest < 1 << steps),
        distinct=distinct,
        first_state=first_state,
        eos_row=eos_row,
        quote_row=quote_row,
    )


class _Place(NamedTuple):
    """Where the next constraint's part of each kind of array begins."""

    state: int = 0
    block: int = 0
    threshold: int = 0
    mask: int = 0
    group: int = 0
    entry: int = 0
    site: int = 0
    suffix_row: int = 0
    suffix_distance: int = 0


def _place(arrays: dict[str, np.ndarray], tables: Tables, at: _Place, labels: int) -> _Place:
    """Write one constraint's tables to where `at` says. Returns where the next one's begin."""
    own_labels = tables.distance.shape[1]
    after = _Place(
        state=at.state + len(tables.label),
        block=at.block + len(tables.all_tokens),
        threshold=at.threshold + len(tables.threshold),
        mask=at.mask + len(tables.masks) + 1,  # one more for the end-of-sequence ids
        group=at.group + len(tables.group_suffix),
        entry=at.entry + len(tables.entry_token),
        site=at.site + len(tables.returns),
        suffix_row=at.suffix_row + len(tables.suffix_code),
        suffix_distance=at.suffix_distance + len(tables.suffix_distance),
    )
    moved = lambda numbers, offset: np.where(numbers > 0, numbers + offset, 0)

    states = slice(at.state, after.state)
    target = moved(tables.target, at.state)
    columns = target.shape[1]
    arrays["moves"][states, :columns, 0] = target * 2 + (tables.stay & (target > 0))
    arrays["moves"][states, :columns, 1] = np.where(tables.push >= 0, tables.push + at.site, -1)
    arrays["label"][states] = tables.label
    arrays["closed"][states] = (tables.label >= 0) & ~(target > 0).any(axis=1)
    if len(arrays["boundary"]):
        arrays["boundary"][states] = moved(tables.boundary, at.state)
        twins = tables.boundary[tables.boundary != np.arange(len(tables.boundary))]
        arrays["distinct_end"][at.state + twins] = True
    arrays["distance"][states, :own_labels] = tables.distance
    arrays["block"][states] = moved(tables.block, at.block)
    arrays["suffix_row"][states] = moved(tables.suffix_row, at.suffix_row)
    arrays["returns"][at.site : after.site, :own_labels] = moved(tables.returns, at.state)

    blocks = slice(at.block, after.block)
    arrays["all_tokens"][blocks] = moved(tables.all_tokens, at.mask)
    arrays["max_threshold"][blocks, :own_labels] = tables.max_threshold
    first = (tables.first_threshold + at.threshold)[: len(tables.all_tokens) * own_labels + 1]
    arrays["threshold_range"][blocks, :own_labels, 0] = first[:-1].reshape(-1, own_labels)
    arrays["threshold_range"][blocks, :own_labels, 1] = first[1:].reshape(-1, own_labels)
    arrays["threshold"][at.threshold : after.threshold] = tables.threshold
    arrays["mask_row"][at.threshold : after.threshold] = moved(tables.mask_row, at.mask)

    _write_ranges(arrays["group_range"][blocks], tables.first_group + at.group)
    groups, entries = slice(at.group, after.group), slice(at.entry, after.entry)
    arrays["group_suffix"][groups], arrays["group_label"][groups] = tables.group_suffix, tables.group_label
    _write_ranges(arrays["entry_range"][groups], tables.first_entry + at.entry)
    arrays["entry_token"][entries] = tables.entry_token
    arrays["entry_group"][entries] = np.repeat(np.arange(at.group, after.group), np.diff(tables.first_entry))

    # Codes below 0 hold a suffix and a label as one number, for which the number of labels is now another.
    suffix, label = np.divmod(-1 - np.minimum(tables.suffix_code, -1), own_labels)
    code = np.where(tables.suffix_code < 0, -1 - (suffix * labels + label), moved(tables.suffix_code, at.suffix_distance))
    arrays["suffix_code"][at.suffix_row : after.suffix_row, : code.shape[1]] = code
    arrays["suffix_distance"][at.suffix_distance : after.suffix_distance, :own_labels] = tables.suffix_distance

    arrays["masks"][at.mask : after.mask - 1] = tables.masks
    eos_ids = tables.eos_ids[(tables.eos_ids >= 0) & (tables.eos_ids < tables.size)]
    np.bitwise_or.at(arrays["masks"][after.mask - 1], eos_ids >> 5, np.uint32(1) << (eos_ids & 31).astype(np.uint32))
    return after


def _write_ranges(target: np.ndarray, first: np.ndarray) -> None:
    """Write where each part begins and ends, `first` being where they begin, with the last one's end behind."""
    target[:, 0], target[:, 1] = first[:-1], first[1:]
