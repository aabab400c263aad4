"""A call on its way: rows that are checked, in parts that run in different ways, and what comes back of them."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mechanex_jax.engine.batch import Completion, Request
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.run import MICRO_BATCH, row_keys, run
from mechanex_jax.engine.run import stream as stream_pieces
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.rows import take_rows
from mechanex_jax.validation import check_seed

OnRows = Callable[[Sequence[int], Sequence[Completion]], None]


def ignore(indices: Sequence[int], completions: Sequence[Completion]) -> None:
    """Nobody wants to hear what is done."""


class Rows(Protocol):
    """Rows of a call, checked: nothing in them can fail on account of their arguments any more."""

    def run(self, *, micro_batch: int = ..., on_rows: OnRows = ...) -> list[Completion]:
        """Their completions, in order; `on_rows` is told of those that are done."""
        ...

    def stream(self) -> Iterator[str]:
        """The text of the first row in final pieces."""
        ...

    def trace(self, row: int, completion: Completion) -> dict[str, Any]:
        """What `include_trace=True` keeps of one of them."""
        ...


def seeds_of(seed: Any, rows: int) -> tuple[Sequence[int], Sequence[int]]:
    """(seed, index) of each row: one seed counts rows, a list gives every row the first draw of its own seed."""
    several = isinstance(seed, (list, tuple))
    if several and len(seed) != rows:
        raise expected("seed", Verbatim(f"{len(seed)} seeds"), f"one seed, or a list of {rows} (one per prompt)")
    for value in seed if several else [seed]:
        check_seed(value)
    if several:
        return [secrets.randbits(32) if value is None else value for value in seed], [0] * rows
    return [secrets.randbits(32) if seed is None else seed] * rows, range(rows)


def row_seed(seed: int, index: int) -> int:
    """The seed of the index-th of several texts under one seed; of the first, the seed itself."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Given:
    """What a call gives its rows.

    Attributes:
      loaded: the model of all of them.
      prompts: of each row.
      configs: its arguments.
      names: what errors call its prompt.
      seeds, indices: a row draws from fold_in(key(seed), index).
      transform, edits: the caller's own; their fields hold one value, or one per row.
    """

    loaded: Any
    prompts: Sequence[Any]
    configs: Sequence[GenerationConfig]
    names: Sequence[str]
    seeds: Sequence[int]
    indices: Sequence[int]
    transform: Any = None
    edits: Any = ()

    def take(self, chosen: Sequence[int]) -> Given:
        """Some of the rows, in this order."""
        names = ("prompts", "configs", "names", "seeds", "indices")
        columns = {name: [getattr(self, name)[row] for row in chosen] for name in names}
        transform, edits = take_rows((self.transform, self.edits), chosen, len(self.prompts))
        return dataclasses.replace(self, **columns, transform=transform, edits=edits)


@dataclasses.dataclass(frozen=True)
class Plain:
    """`Rows` that decode once.

    Attributes:
      given: what they were asked for.
      requests: one per row.
    """

    given: Given
    requests: list[Request]

    def run(self, *, micro_batch: int = MICRO_BATCH, on_rows: OnRows = ignore) -> list[Completion]:
        given = self.given
        own = {"transform": given.transform, "edits": given.edits}
        return run(given.loaded, self.requests, self._keys, **own, micro_batch=micro_batch, on_rows=on_rows)

    def stream(self) -> Iterator[str]:
        given = self.given
        return stream_pieces(given.loaded, self.requests[0], self._keys[0], transform=given.transform, edits=given.edits)

    @property
    def _keys(self) -> Any:
        return row_keys(self.given.seeds, self.given.indices)

    def trace(self, row: int, completion: Completion) -> dict[str, Any]:
        """What `include_trace=True` keeps of a row: what was asked, how it ended, and what the method has to tell."""
        request, given = self.requests[row], self.given
        return {
            "model": given.loaded.name,
            "sampling_method": request.config.method.name,
            "seed": given.seeds[row],
            "row": given.indices[row],
            "prompt_tokens": len(request.tokens),
            "tokens": len(completion.tokens),
            "finish_reason": completion.finish_reason,
            "text": completion.text,
            **completion.trace,
        }


@dataclasses.dataclass(frozen=True)
class Call:
    """A call in parts, each with the numbers of its rows.

    Attributes:
      parts: those that decode once, then those that go through a policy; none of them empty.
      configs: of all rows.
      details: return Completions instead of strings.
    """

    parts: list[tuple[list[int], Rows]]
    configs: list[GenerationConfig]
    details: bool

    def run(self, *, micro_batch: int = MICRO_BATCH, on_rows: OnRows = ignore) -> list[Completion]:
        done: list[Any] = [None] * len(self.configs)
        for chosen, rows in self.parts:
            for row, completion in zip(chosen, rows.run(micro_batch=micro_batch, on_rows=on_rows), strict=True):
                done[row] = completion
        return done

    def stream(self) -> Iterator[str]:
        """The text of the one row in final pieces."""
        return self.parts[0][1].stream()

    def traces(self, completions: Sequence[Completion]) -> list[dict[str, Any] | None]:
        """Of the rows that ask for one."""
        found: list[dict[str, Any] | None] = [None] * len(completions)
        for chosen, rows in self.parts:
            for own, row in enumerate(chosen):
                if self.configs[row].include_trace:
                    found[row] = rows.trace(own, completions[row])
        return found
