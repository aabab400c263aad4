"""Contrastive data: what a user gives, checked, paired, tokenised and put into batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechanex_jax.errors import ArgumentError, Verbatim, expected

_LAYERS = 8  # that are steered where the caller names none
_SHOWN = 5  # bad lines spelled out in one error
_NAMES = {"positive": ("positive_answer", "positive"), "negative": ("negative_answer", "negative")}
_LINE = '{"prompt": "...", "positive": "...", "negative": "..."}'


@dataclasses.dataclass(frozen=True)
class Data:
    """Prompts and answers as the caller gave them, checked.

    Attributes:
      prompts, positives: texts, at least one of each.
      negatives: texts, or empty where there are none.
    """

    prompts: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()

    def digest(self, **more: Any) -> str:
        """SHA-256 of the texts and of what else decides the tokens."""
        content = [self.prompts, self.positives, self.negatives, sorted(more.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with one answer, as tokens.

    Attributes:
      tokens: ids of both.
      start: where the answer begins among them.
      positive: whether the answer is one of the positives.
      group: index of the answer among its kind. A pair is one group: a split for training and testing keeps it together.
    """

    tokens: tuple[int, ...]
    start: int
    positive: bool
    group: int

    def cut(self, count: int) -> Example:
        """With no more than `count` tokens of the answer."""
        return dataclasses.replace(self, tokens=self.tokens[: self.start + count])


def texts(name: str, values: Any) -> tuple[str, ...]:
    """A list of texts.

    Raises:
      ArgumentError: no list, an empty one, or something in it that is no text or a blank one.
    """
    if isinstance(values, str) or not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise expected(name, values, "a list of strings")
    found = tuple(values)
    if not found:
        raise expected(name, [], "at least one string")
    for index, value in enumerate(found):
        if not isinstance(value, str) or not value.strip():
            raise expected(f"{name}[{index}]", value, "a string that is not blank")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise expected(f"{name}[{index}]", value, f"Unicode text ({error.reason})") from error
    return found


def check(prompts: Any, positives: Any, negatives: Any = None) -> Data:
    """The three lists as `Data`. Negatives are None or a list, not an empty one.

    Raises:
      ArgumentError: see `texts`.
    """
    checked = () if negatives is None else texts("negative_answers", negatives)
    return Data(texts("prompts", prompts), texts("positive_answers", positives), checked)


def read_rows(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], *, negatives: bool | None = None) -> Data:
    """Rows with `prompt`, `positive_answer` or `positive`, and `negative_answer` or `negative`.

    Args:
      source: a file of JSON lines, or the rows themselves.
      negatives: whether rows must have a negative answer; None: all of them or none.

    Raises:
      ArgumentError: an unreadable file, or rows of another form: all of them are named by their line, up to five.
    """
    where, rows = ("line", _lines(Path(source))) if isinstance(source, (str, os.PathLike)) else ("row", _numbered(source))
    found: list[tuple[str, str, str | None]] = []
    problems: list[str] = []
    for number, row in rows:
        try:
            found.append(_row(row, negatives))
        except (ArgumentError, ValueError) as error:
            problems.append(f"{where} {number}: {error}")
    origin = str(source) if where == "line" else "rows"
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ArgumentError("\n  ".join([f"{origin}: {len(problems)} cannot be used.", *problems[:_SHOWN], *more]))
    if not found:
        raise expected(origin, Verbatim("no rows"), f"at least one, such as {_LINE}")
    prompts, positives, third = zip(*found, strict=True)
    lacking = [index for index, value in enumerate(third) if value is None]
    if 0 < len(lacking) < len(third):
        raise expected(origin, Verbatim(f"{len(lacking)} rows without a negative answer"), "one in all rows, or in none")
    return check(prompts, positives, None if lacking else third)


def _numbered(rows: Any) -> Iterator[tuple[int, Any]]:
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise expected("rows", rows, f"a path, or a list of objects such as {_LINE}")
    return enumerate(rows)


def _lines(path: Path) -> list[tuple[int, Any]]:
    if not path.is_file():
        raise expected("path", str(path), "a file of JSON lines")
    return [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]


def _row(row: Any, negatives: bool | None) -> tuple[str, str, str | None]:
    if isinstance(row, bytes):
        try:
            row = json.loads(row.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"got no JSON ({error}); expected an object such as {_LINE}") from error
    if not isinstance(row, Mapping):
        raise expected("row", row, f"an object such as {_LINE}")
    values: dict[str, Any] = {"prompt": row.get("prompt")}
    for name, spellings in _NAMES.items():
        given = [row[key] for key in spellings if row.get(key) is not None]
        if len(given) > 1:
            raise expected(name, Verbatim(f"both {' and '.join(spellings)}"), "one of them")
        values[name] = given[0] if given else None
    optional = () if negatives else ("negative",)
    for name, value in values.items():
        if not (isinstance(value, str) and value.strip()) and not (value is None and name in optional):
            raise expected(" or ".join(_NAMES.get(name, (name,))), value, f"a string that is not blank, as in {_LINE}")
    return values["prompt"], values["positive"], values["negative"]


def _tokenise(loaded: Any, prompt: str, answer: str, chat: bool) -> tuple[tuple[int, ...], int]:
    """Ids of prompt and answer, and where the answer begins. A token that holds the end of the one and the beginning of the
    other belongs to the answer."""
    tokenizer = loaded.tokenizer
    if chat:
        head = tokenizer.encode_chat(prompt)
        return (*head, *tokenizer.encode(answer, add_special_tokens=False)), len(head)
    head, both = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    start = next((i for i, (a, b) in enumerate(zip(head, both, strict=False)) if a != b), min(len(head), len(both)))
    return tuple(both), start


def examples(loaded: Any, data: Data, *, chat: bool = False, ended: bool = False) -> list[Example]:
    """Every prompt and answer that belong together, positives first.

    As many answers as prompts pair up; otherwise every prompt goes with every answer. A plain text is prompt and answer
    joined as they are; with `chat` the prompt is a user's message and the answer is the model's. With `ended` the token that
    ends a text, or a turn, follows every answer.

    Raises:
      ArgumentError: an answer that adds no token, or more tokens than the model's context; `ended`, and no token ends a text.
    """
    found, end = [], loaded.tokenizer.eos_ids[:1] if ended else ()
    if ended and not end:
        raise expected("ended", True, f"False, because no token of {loaded.name} ends a text")
    for positive, answers in ((True, data.positives), (False, data.negatives)):
        paired = len(answers) == len(data.prompts)
        for group, answer in enumerate(answers):
            for prompt in [data.prompts[group]] if paired else data.prompts:
                tokens, start = _tokenise(loaded, prompt, answer, chat)
                name = f"{'positive' if positive else 'negative'}_answers[{group}]"
                tokens = (*tokens, *end)
                if start >= len(tokens) - len(end):
                    raise expected(name, answer, "an answer that adds a token to its prompt")
                if len(tokens) > loaded.model.spec.context:
                    raise expected(
                        name,
                        Verbatim(f"{len(tokens)} tokens with its prompt"),
                        f"at most {loaded.model.spec.context}, the context of {loaded.name}",
                        "Shorten it.",
                    )
                found.append(Example(tokens, start, positive, group))
    return found


@dataclasses.dataclass(frozen=True)
class ExampleBatch:
    """Examples that run together, padded on the right, and with rows of length 1 that mean nothing.

    Attributes:
      indices: which examples these are; fewer than B in a padded batch.
      tokens: int32 [B, S].
      lengths, starts: int32 [B]. `starts` is 1 in rows of padding: they have no answer.
    """

    indices: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray

    def answers(self) -> np.ndarray:
        """bool [B, S], true at the tokens of the answers."""
        positions = np.arange(self.tokens.shape[1])
        return (positions >= self.starts[:, None]) & (positions < self.lengths[:, None])


def width(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: few shapes to compile, and at most a third of a row is padding."""
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def batches(rows: Sequence[Example], *, positions: int = 2048) -> Iterator[ExampleBatch]:
    """All examples, longest first, `positions` (rows times width) at a time."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    first = 0
    while first < len(order):
        size = width(len(rows[order[first]].tokens))
        most = max(1, positions // size)
        chosen = order[first : first + most]
        # A first batch that is not full is the only one; a last one keeps the shape that is compiled, if it is like it.
        yield pad([rows[i] for i in chosen], np.array(chosen), min(most, 1 << (len(rows) - 1).bit_length()), size)
        first += most


def pad(rows: Sequence[Example], indices: np.ndarray, count: int, size: int) -> ExampleBatch:
    """A batch of `count` rows and `size` positions."""
    tokens, lengths, starts = np.zeros((count, size), np.int32), np.ones(count, np.int32), np.ones(count, np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = row.tokens
        lengths[index], starts[index] = len(row.tokens), row.start
    return ExampleBatch(indices, tokens, lengths, starts)


def layers_of(layer_idxs: Any, depth: int) -> tuple[int, ...]:
    """The layers to steer, rising; None is eight from two thirds of the depth on.

    Raises:
      ArgumentError: empty, not whole numbers, beyond the model, or one twice.
    """
    if layer_idxs is None:
        first = math.floor(2 * depth / 3)
        return tuple(range(first, min(first + _LAYERS, depth)))
    if isinstance(layer_idxs, (str, Mapping)) or not isinstance(layer_idxs, Iterable):
        raise expected("layer_idxs", layer_idxs, "a list of layers, or None")
    given = list(layer_idxs)
    whole = all(isinstance(layer, numbers.Integral) and not isinstance(layer, bool) for layer in given)
    if not given or not whole or min(given) < 0 or max(given) >= depth or len(set(given)) != len(given):
        raise expected("layer_idxs", given, f"at least one layer from 0 to {depth - 1}, each once")
    return tuple(sorted(int(layer) for layer in given))
