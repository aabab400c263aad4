"""Contrastive examples: prompts and answers as a user gives them, checked, paired and tokenized."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mechanex_jax.errors import ArgumentError, Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.storage.json_values import parse_json

_SHOWN = 5  # bad lines spelled out in one error
_SPELLINGS = {"positive": ("positive_answer", "positive"), "negative": ("negative_answer", "negative")}
_LINE = '{"prompt": "...", "positive": "...", "negative": "..."}'


@dataclasses.dataclass(frozen=True)
class ContrastiveData:
    """Prompts and answers as the caller gave them, checked.

    Attributes:
      prompts, positives: texts, at least one of each.
      negatives: texts, or empty where there are none.
    """

    prompts: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()

    def digest(self, **options: bool) -> str:
        """SHA-256 of the texts and of the options that decide their tokens."""
        content = [self.prompts, self.positives, self.negatives, sorted(options.items())]
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
        """The example with no more than `count` tokens of its answer."""
        return dataclasses.replace(self, tokens=self.tokens[: self.start + count])


def check_texts(name: str, values: object) -> tuple[str, ...]:
    """Check that an argument is a list of texts, and return them.

    Raises:
      ArgumentError: no list, an empty one, or something in it that is no text or a blank one.
    """
    if isinstance(values, str) or not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise expected(name, values, "a list of strings")
    texts = tuple(values)
    if not texts:
        raise expected(name, [], "at least one string")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise expected(f"{name}[{index}]", text, "a string that is not blank")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise expected(f"{name}[{index}]", text, f"Unicode text ({error.reason})") from error
    return texts


def check_data(prompts: object, positives: object, negatives: object = None) -> ContrastiveData:
    """Check three lists of texts. Negatives are None or a list, not an empty one.

    Raises:
      ArgumentError: see `check_texts`.
    """
    checked = () if negatives is None else check_texts("negative_answers", negatives)
    return ContrastiveData(check_texts("prompts", prompts), check_texts("positive_answers", positives), checked)


def read_rows(
    source: str | os.PathLike[str] | Iterable[Mapping[str, object]], *, negatives: bool | None = None
) -> ContrastiveData:
    """Read rows with `prompt`, `positive_answer` or `positive`, and `negative_answer` or `negative`.

    Args:
      source: a file of JSON lines, or the rows themselves.
      negatives: whether rows must have a negative answer; None: all of them or none.

    Raises:
      ArgumentError: an unreadable file, or rows of another form: all of them are named by their line, up to five.
    """
    where, rows = ("line", _lines(Path(source))) if isinstance(source, (str, os.PathLike)) else ("row", _numbered(source))
    parsed: list[tuple[str, str, str | None]] = []
    problems: list[str] = []
    for number, row in rows:
        try:
            parsed.append(_parse_row(row, negatives))
        except (ArgumentError, ValueError) as error:
            problems.append(f"{where} {number}: {error}")
    origin = str(source) if where == "line" else "rows"
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ArgumentError("\n  ".join([f"{origin}: {len(problems)} cannot be used.", *problems[:_SHOWN], *more]))
    if not parsed:
        raise expected(origin, Verbatim("no rows"), f"at least one, such as {_LINE}")
    prompts, positives, third = zip(*parsed, strict=True)
    lacking = [index for index, value in enumerate(third) if value is None]
    if 0 < len(lacking) < len(third):
        raise expected(origin, Verbatim(f"{len(lacking)} rows without a negative answer"), "one in all rows, or in none")
    return check_data(prompts, positives, None if lacking else third)


def _numbered(rows: object) -> Iterable[tuple[int, object]]:
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise expected("rows", rows, f"a path, or a list of objects such as {_LINE}")
    return enumerate(rows)


def _lines(path: Path) -> Iterable[tuple[int, object]]:
    if not path.is_file():
        raise expected("path", str(path), "a file of JSON lines")
    return [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]


def _parse_row(row: object, negatives: bool | None) -> tuple[str, str, str | None]:
    """(prompt, positive answer, negative answer) of a row, or of the bytes of a line."""
    if isinstance(row, bytes):
        try:
            row = parse_json(row.decode("utf-8-sig"))
        except ValueError as error:
            raise ArgumentError(f"got no JSON ({error}); expected an object such as {_LINE}") from error
    if not isinstance(row, Mapping):
        raise expected("row", row, f"an object such as {_LINE}")
    positive, negative = (_value_of(row, name) for name in _SPELLINGS)
    prompt_text, positive_text = _text_of("prompt", row.get("prompt")), _text_of("positive", positive)
    return prompt_text, positive_text, None if negative is None and not negatives else _text_of("negative", negative)


def _value_of(row: Mapping[str, object], name: str) -> object:
    """The value under one of a name's spellings; None if it is absent."""
    values = [row[key] for key in _SPELLINGS[name] if row.get(key) is not None]
    if len(values) > 1:
        raise expected(name, Verbatim(f"both {' and '.join(_SPELLINGS[name])}"), "one of them")
    return values[0] if values else None


def _text_of(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise expected(" or ".join(_SPELLINGS.get(name, (name,))), value, f"a string that is not blank, as in {_LINE}")
    return value


def _tokenize(loaded: LoadedModel, prompt: str, answer: str, chat: bool) -> tuple[tuple[int, ...], int]:
    """Ids of prompt and answer, and where the answer begins. A token that holds the end of the one and the beginning of the
    other belongs to the answer."""
    tokenizer = loaded.tokenizer
    if chat:
        head = tokenizer.encode_chat(prompt)
        return (*head, *tokenizer.encode(answer, add_special_tokens=False)), len(head)
    head, both = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    start = next((i for i, (a, b) in enumerate(zip(head, both, strict=False)) if a != b), min(len(head), len(both)))
    return tuple(both), start


def tokenize_data(loaded: LoadedModel, data: ContrastiveData, *, chat: bool = False, ended: bool = False) -> list[Example]:
    """Tokenize every prompt and answer that belong together, positives first.

    As many answers as prompts pair up; otherwise every prompt goes with every answer. A plain text is prompt and answer
    joined as they are; with `chat` the prompt is a user's message and the answer is the model's. With `ended` the token that
    ends a text, or a turn, follows every answer.

    Raises:
      ArgumentError: an answer that adds no token, or more tokens than the model's context; `ended`, and no token ends a text.
    """
    examples: list[Example] = []
    end = loaded.tokenizer.eos_ids[:1] if ended else ()
    if ended and not end:
        raise expected("ended", True, f"False, because no token of {loaded.name} ends a text")
    for positive, answers in ((True, data.positives), (False, data.negatives)):
        paired = len(answers) == len(data.prompts)
        for group, answer in enumerate(answers):
            for prompt in [data.prompts[group]] if paired else data.prompts:
                tokens, start = _tokenize(loaded, prompt, answer, chat)
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
                examples.append(Example(tokens, start, positive, group))
    return examples


def tokenize_texts(loaded: LoadedModel, texts: Sequence[str], *, positive: bool = True) -> list[Example]:
    """Tokenize texts without prompts: every token but the first counts as the answer.

    Raises:
      ArgumentError: a text of one token, or of more than the model's context.
    """
    examples = []
    for index, text in enumerate(texts):
        tokens = loaded.tokenizer.encode(text)
        if not 2 <= len(tokens) <= loaded.model.spec.context:
            raise expected("texts", Verbatim(f"a text of {len(tokens)} tokens"), f"2 to {loaded.model.spec.context}")
        examples.append(Example(tuple(tokens), 1, positive, index))
    return examples


def tokenize_answers(loaded: LoadedModel, prompts: object, positive: object, negative: object, *, chat: bool) -> list[Example]:
    """Check and tokenize answers to be compared: with their prompts, or by themselves where `prompts` is None.

    Raises:
      ArgumentError: as `check_data`, `tokenize_data` and `tokenize_texts`, or `chat` without prompts.
    """
    if prompts is not None:
        return tokenize_data(loaded, check_data(prompts, positive, negative), chat=chat)
    if chat:
        raise expected("prompts", None, "the users' messages that the answers are for", "Give prompts, or leave out chat.")
    sides = (check_texts("positive_texts", positive), check_texts("negative_texts", negative))
    return [x for kind, texts in zip((True, False), sides, strict=True) for x in tokenize_texts(loaded, texts, positive=kind)]
