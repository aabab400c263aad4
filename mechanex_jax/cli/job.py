"""Batch jobs: from a file of prompts to a file of texts, stopped at any moment and continued later.

A job has no state besides its output file. Each finished row is a line there, appended and synced to disk as its
micro-batch ends; a job that is run again checks that the lines belong to it, drops a torn one at the end, and goes on
with the rows that are missing. What a row draws from depends on the job's seed and the row's index only, so that its
text does not depend on where a job was stopped.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import secrets
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mechanex_jax.checkpoints import default_name
from mechanex_jax.checkpoints.catalogue import find
from mechanex_jax.cli.job_output import Output
from mechanex_jax.engine.batch import Completion
from mechanex_jax.engine.config import LIST_TYPED, GenerationConfig
from mechanex_jax.engine.run import MICRO_BATCH
from mechanex_jax.engine.seeds import as_seed, line_seed
from mechanex_jax.errors import ArgumentError, MechanexError, expected
from mechanex_jax.progress import Report, silent
from mechanex_jax.storage.json_values import JsonValue, parse_json

if TYPE_CHECKING:
    from mechanex_jax.runtime import Mechanex

DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}
_KEYS = ("prompt", "id", "seed", *DEFAULTS)
_EXAMPLE = '{"prompt": "Once upon a time"}'
_SHOWN = 5  # bad lines spelled out in one error


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the input, checked.

    Attributes:
      prompt: a text; with `chat` also a list of messages.
      arguments: of `generate`, where they differ from its defaults.
      seed: the line's own, or None.
      label: {"id": ...} where the line has an id, else empty.
    """

    prompt: str | list[JsonValue]
    arguments: dict[str, Any]
    seed: int | None
    label: dict[str, JsonValue]


def parse_row(line: bytes, defaults: Mapping[str, object]) -> Row:
    """Read one input line; its arguments replace `defaults`.

    Raises:
      ArgumentError: no JSON object, no prompt, an unknown key, or an argument that `generate` would refuse.
    """
    try:
        item = parse_json(line)
    except ValueError as error:
        raise ArgumentError(f"got no JSON ({error}); expected an object such as {_EXAMPLE}.") from error
    if not isinstance(item, dict) or "prompt" not in item:
        raise expected("row", item, f"an object with a prompt, such as {_EXAMPLE}")
    for key in item:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise expected("key", key, 'prompt, id, seed or an argument of generate, such as "temperature"', hint)
    arguments = {**defaults, **{name: item[name] for name in DEFAULTS if name in item}}
    config = GenerationConfig(**arguments)
    prompt, seed = item["prompt"], item.get("seed")
    if not isinstance(prompt, str) and not (config.chat and isinstance(prompt, list)):
        raise expected("prompt", prompt, 'a string (with "chat": true also a list of messages)')
    check_text("row", item)
    as_seed(seed)
    changed = {name: value for name, value in arguments.items() if value != DEFAULTS[name]}
    return Row(prompt, changed, seed, {"id": item["id"]} if "id" in item else {})


def check_text(name: str, value: object) -> None:
    """Refuse strings that are no Unicode text: half of a surrogate pair, or bytes of another encoding on the command line.

    Raises:
      ArgumentError: there is such a string in `value`.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise expected(name, value, f"Unicode text ({error.reason})") from error


class Job:
    """A batch of prompts on its way from one file of JSON lines to another.

    Input, one object a line: `prompt`; if wanted `id` (anything), `seed`, and arguments of `generate`. Blank lines
    don't count. Output, one object a line: `index` (of the row, from 0), `id`, `prompt`, `text`, `finish_reason`,
    `tokens` (how many), `batch_seed`, `seed` (`generate` with it gives this text), `model`, `arguments` (those not at
    their defaults). The lines come as micro-batches of like rows finish; `finish` puts them into the input's order.

    Opening checks what can be checked without the model and changes nothing in an output that is there already.

    Args:
      source: the input.
      target: the output; rows that it has already are not run again.
      model: catalogue name, hub id or folder, as the output records it; None is the default model.
      seed: 0 to 4294967295; None continues with the output's, or draws one.
      defaults: arguments of `generate` for rows that don't have their own.
      batch_size: rows that decode together; it bounds memory, and what is lost when the process is killed.
      overwrite: start anew whatever `target` holds.

    Raises:
      ArgumentError: bad input lines, or an output that holds something else than the beginning of this job.
      MechanexError: another process is writing the output.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        model: str | None = None,
        seed: int | None = None,
        defaults: Mapping[str, object] | None = None,
        batch_size: int = MICRO_BATCH,
        overwrite: bool = False,
    ):
        self.source, self.target = Path(source), Path(target)
        if not self.source.is_file():
            raise expected("input", str(source), "a file of JSON lines")
        if self.target.exists() and self.source.samefile(self.target):
            raise expected("output", str(target), "another file than the input")
        entry = find(model) if model else None
        self._model = entry.name if entry else model or default_name()
        self._defaults, self._batch_size = dict(defaults or {}), batch_size
        # For each row, where its line begins, the line's number, and what it costs. Rows themselves stay in the file.
        self._offsets, self._lines, self._costs = array("Q"), array("Q"), array("Q")
        self._input = open(self.source, "rb")  # noqa: SIM115 (closed by close)
        self._output = Output(self.target, overwrite)
        try:
            self._scan()
            seeds = (seed, self._output.batch_seed, secrets.randbits(32))
            self._seed = next(value for value in seeds if value is not None)
            self._compare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total(self) -> int:
        """Rows of the input."""
        return len(self._offsets)

    @property
    def done(self) -> int:
        """Rows of the output."""
        return len(self._output.offsets)

    def run(self, session: Mechanex, report: Report = silent) -> None:
        """Run the rows that the output lacks on the session's model.

        Raises:
          ArgumentError: rows that this model can't serve, such as prompts longer than its context. Nothing has run.
        """
        loaded = session.local_model(None)

        def fits(index: int) -> None:
            row = self._row(index)
            config = GenerationConfig(**row.arguments)
            if config.needs_policy:
                session.policy.prepare(loaded, [row.prompt], [config], [(0, 0)], ["prompt"], None, ())
            else:
                session.steering.requests(loaded).build(row.prompt, config)

        pending = [index for index in range(self.total) if index not in self._output.offsets]
        self._check(pending, fits)
        # Rows alike in steps and length waste little on each other. In this order whole micro-batches are done when a
        # job is stopped, and the rest decodes in the same company as without the stop.
        pending.sort(key=self._costs.__getitem__)
        self._output.begin()
        report(self.done, self.total)
        for first in range(0, len(pending), self._batch_size):
            chosen = pending[first : first + self._batch_size]
            rows = [self._row(index) for index in chosen]
            stamps = [self._stamp(index, row) for index, row in zip(chosen, rows, strict=True)]
            seeds = [stamp["seed"] for stamp in stamps]
            options = {**_columns(rows), "seed": seeds, "batch_size": len(rows), "details": True}
            completions = cast(list[Completion], session.generation.generate_batch([row.prompt for row in rows], **options))
            self._output.append([_result(stamp, c) for stamp, c in zip(stamps, completions, strict=True)])
            report(self.done, self.total)

    def finish(self) -> None:
        """Put a complete output into the input's order."""
        if self.done == self.total:
            self._output.begin()
            self._output.sort()

    def close(self) -> None:
        """Close both files."""
        self._input.close()
        self._output.close()

    def _scan(self) -> None:
        offset = 0
        for number, line in enumerate(self._input, 1):
            if line.strip():
                self._offsets.append(offset)
                self._lines.append(number)
            offset += len(line)
        if not self._offsets:
            raise expected("input", f"{self.source} without a row", f"JSON lines such as {_EXAMPLE}")
        self._check(range(self.total), lambda index: self._costs.append(_cost(self._row(index))))

    def _check(self, indices: Iterable[int], check: Callable[[int], None]) -> None:
        """Call `check` for all rows before anything is raised, so that one look at the error is enough."""
        problems = []
        for index in indices:
            try:
                check(index)
            except (MechanexError, ValueError, NotImplementedError) as error:
                problems.append(f"line {self._lines[index]}: {error}")
        if len(problems) == 1:
            raise ArgumentError(f"{self.source}, {problems[0]}")
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            head = f"{self.source}: {len(problems)} lines cannot be used."
            raise ArgumentError("\n  ".join([head, *problems[:_SHOWN], *more]))

    def _row(self, index: int) -> Row:
        self._input.seek(self._offsets[index])
        return parse_row(self._input.readline(), self._defaults)

    def _stamp(self, index: int, row: Row) -> dict[str, Any]:
        """The fields of a row's output that identify it, without its result."""
        seed = line_seed(self._seed, index) if row.seed is None else row.seed
        head = {"index": index, **row.label, "prompt": row.prompt}
        return {**head, "batch_seed": self._seed, "seed": seed, "model": self._model, "arguments": row.arguments}

    def _compare(self) -> None:
        """Check that every line of the output is one that this job would write."""
        for index in self._output.offsets:
            if index >= self.total:
                raise self._foreign(f"got row {index}, but {self.source} ends with row {self.total - 1}")
            written, stamp = self._output.read(index), self._stamp(index, self._row(index))
            for name in (*stamp, "id"):
                got, due = written.get(name), stamp.get(name)
                if got != due:
                    here = f"line {self._lines[index]} of {self.source} and the options ask for {_short(due)}"
                    raise self._foreign(f"got row {index} with {name} {_short(got)}, but {here}")

    def _foreign(self, what: str) -> ArgumentError:
        return ArgumentError(
            f"{self.target}: {what}. It belongs to another job: repeat that one's input and options, name another "
            "output, or overwrite this one."
        )


def _cost(row: Row) -> int:
    """A number that sorts rows by steps first, then by the prompt's length."""
    steps = row.arguments.get("max_tokens", DEFAULTS["max_tokens"])
    return min(steps, 2**31) << 32 | len(str(row.prompt))


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows' arguments as `generate_batch` takes them: one list per argument that any row has."""
    columns = {}
    for name in sorted({name for row in rows for name in row.arguments}):
        values = [row.arguments.get(name, DEFAULTS[name]) for row in rows]
        listed = name in LIST_TYPED  # a list for each row then, or a list of strings would be taken as every row's
        columns[name] = [[value] if listed and isinstance(value, str) else value for value in values]
    return columns


def _result(stamp: Mapping[str, object], completion: Completion) -> dict[str, object]:
    """A row's output: what it is called, its result, and the rest of its stamp."""
    head = {name: stamp[name] for name in ("index", "id", "prompt") if name in stamp}
    result = {"text": completion.text, "finish_reason": completion.finish_reason, "tokens": len(completion.tokens)}
    return {**head, **result, **stamp}


def _short(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else shown[:77] + "..."
