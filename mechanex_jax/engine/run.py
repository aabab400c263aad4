"""Requests to completions: rows that can decode together do, in micro-batches, and come back in order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeAlias

from mechanex_jax import rows
from mechanex_jax.edits import Edit
from mechanex_jax.engine.batch import Batch
from mechanex_jax.engine.request import Completion, Request
from mechanex_jax.engine.runners import RUNNERS, Runner
from mechanex_jax.loading import LoadedModel
from mechanex_jax.transforms import LogitsTransform

MICRO_BATCH = 32
OnRows: TypeAlias = Callable[[Sequence[int], Sequence[Completion]], None]


def ignore(indices: Sequence[int], completions: Sequence[Completion]) -> None:
    """Do nothing with rows that are done: the neutral `on_rows`."""


def run(
    loaded: LoadedModel,
    requests: Sequence[Request],
    *,
    transform: LogitsTransform | None = None,
    edits: tuple[Edit, ...] = (),
    micro_batch: int = MICRO_BATCH,
    on_rows: OnRows = ignore,
) -> list[Completion]:
    """Decode all requests, in micro-batches of rows of like length, and return them in the order given.

    Args:
      loaded: the model.
      requests: any number of rows; their methods may differ.
      transform: a LogitsTransform to apply after constraint, penalties and bias, before temperature and truncation;
        its fields hold one value or one per request.
      edits: edits to apply after the steering vectors.
      micro_batch: rows of a loop that decode together; memory is bounded by it.
      on_rows: called with the indices and completions of each micro-batch as it ends.
    """
    caller, total = (transform, edits), len(requests)
    done: list[Completion | None] = [None] * len(requests)
    for runner, chosen in _micro_batches(requests, micro_batch):
        chosen_rows = [requests[index] for index in chosen]
        batch = Batch.of(loaded, chosen_rows, *(rows.take_rows(caller, chosen, total) if any(caller) else caller))
        completions = runner.run(batch)
        for index, completion in zip(chosen, completions, strict=True):
            done[index] = completion
        on_rows(chosen, completions)
    return [completion for completion in done if completion is not None]


def _micro_batches(requests: Sequence[Request], size: int) -> Iterator[tuple[Runner, list[int]]]:
    """Rows that can decode together, alike in steps first, then in prompt length: they then waste little on each other."""
    groups: dict[tuple[str, Hashable], list[int]] = {}
    for index, request in enumerate(requests):
        loop = request.loop
        static = [getattr(request.config, name) for name in RUNNERS[loop].static]
        key = tuple(tuple(value) if isinstance(value, list) else value for value in static)
        groups.setdefault((loop, key), []).append(index)
    for (loop, _), members in groups.items():
        runner = RUNNERS[loop]
        width = 1 if runner.width is None else getattr(requests[members[0]].config, runner.width)
        step = max(1, size // width)
        order = sorted(members, key=lambda i: (requests[i].config.max_tokens, len(requests[i].tokens)))
        for first in range(0, len(order), step):
            yield runner, order[first : first + step]


def stream(
    loaded: LoadedModel, request: Request, *, transform: LogitsTransform | None = None, edits: tuple[Edit, ...] = ()
) -> Iterator[str]:
    """The text of one request in final pieces; joined, they are the text that `run` returns."""
    runner = RUNNERS[request.loop]
    return runner.stream(runner, Batch.of(loaded, [request], transform, edits))
