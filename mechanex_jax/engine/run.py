"""Requests to completions: rows of a kind decode together, in micro-batches, and come back in order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import rows
from mechanex_jax.edits import compose
from mechanex_jax.engine.batch import Batch, Completion, Request
from mechanex_jax.engine.runners import RUNNERS, Runner
from mechanex_jax.loading import LoadedModel

MICRO_BATCH = 32


@partial(jax.jit, static_argnames="impl")
def _row_keys(seeds: jax.Array, indices: jax.Array, impl: str = "threefry2x32") -> jax.Array:
    # By name: the "rbg" generator draws differently under vmap, and rows would depend on each other.
    data = jnp.stack([jnp.zeros_like(seeds), seeds], axis=-1)
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data, impl=impl), indices)


def row_keys(seeds: Sequence[int], indices: Sequence[int]) -> jax.Array:
    """fold_in(key(seed), index) for each pair; typed keys [B]."""
    return _row_keys(np.asarray(seeds, np.uint32), np.asarray(indices, np.uint32))


def run(
    loaded: LoadedModel,
    requests: Sequence[Request],
    keys: jax.Array,
    *,
    transform: Any = None,
    edits: Any = None,
    micro_batch: int = MICRO_BATCH,
    on_rows: Callable[[Sequence[int], Sequence[Completion]], None] = lambda indices, completions: None,
) -> list[Completion]:
    """Decode all requests, in micro-batches of rows of like length, and return them in the order given.

    Args:
      loaded: the model.
      requests: any number of rows; their methods may differ.
      keys: typed keys, one per request.
      transform: a LogitsTransform to apply after the method's; its fields hold one value or one per request.
      edits: edits to apply after the steering vectors.
      micro_batch: rows of a loop that decode together; memory is bounded by it.
      on_rows: called with the indices and completions of each micro-batch as it ends.
    """
    own, total = (transform, compose(edits)), len(requests)
    done: list[Completion | None] = [None] * len(requests)
    for runner, chosen in _micro_batches(requests, micro_batch):
        batch = Batch(loaded, [requests[i] for i in chosen], keys[np.array(chosen)], *rows.take_rows(own, chosen, total))
        completions = runner.run(batch)
        for index, completion in zip(chosen, completions, strict=True):
            done[index] = completion
        on_rows(chosen, completions)
    return [completion for completion in done if completion is not None]


def _micro_batches(requests: Sequence[Request], size: int) -> Iterator[tuple[Runner, list[int]]]:
    """Rows that can decode together, alike in steps first, then in prompt length: they then waste little on each other."""
    groups: dict[tuple[str, Hashable], list[int]] = {}
    for index, request in enumerate(requests):
        group = RUNNERS[request.loop].group(request.config)
        groups.setdefault((request.loop, group), []).append(index)
    for members in groups.values():
        first_of = requests[members[0]]
        runner = RUNNERS[first_of.loop]
        step = max(1, size // runner.width(first_of.config))
        order = sorted(members, key=lambda i: (requests[i].config.max_tokens, len(requests[i].tokens)))
        for first in range(0, len(order), step):
            yield runner, order[first : first + step]


def stream(loaded: LoadedModel, request: Request, key: jax.Array, *, transform: Any = None, edits: Any = None) -> Iterator[str]:
    """The text of one request in final pieces; joined, they are the text that `run` returns."""
    runner = RUNNERS[request.loop]
    return runner.stream(runner, Batch(loaded, [request], key[None], transform, compose(edits)))
