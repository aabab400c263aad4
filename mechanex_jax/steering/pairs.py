"""Contrastive pairs that a chat model writes under a JSON schema; the bad ones are dropped."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypedDict

from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import MechanexError, expected
from mechanex_jax.progress import Report, silent
from mechanex_jax.validation import integer
from mechanex_jax.warning import warn

_TEXT = {"type": "string", "minLength": 1, "maxLength": 400}
SCHEMA = {
    "type": "object",
    "properties": {"prompt": _TEXT, "positive": _TEXT, "negative": _TEXT},
    "required": ["prompt", "positive", "negative"],
    "additionalProperties": False,
}
# (prompts, configuration of all, seed of each) -> texts
Writer: TypeAlias = Callable[[Sequence[str], GenerationConfig, Sequence[int]], Sequence[str]]
_ATTEMPTS = 4  # generations per pair that is asked for, at most
_MAX_TOKENS = 400
# One per request, in turn: without them a small model asks the same question again and again.
_TOPICS = (
    "cooking",
    "a broken bicycle",
    "space travel",
    "a school essay",
    "moving house",
    "gardening",
    "a job interview",
    "bird watching",
    "savings",
    "a birthday",
    "chess",
    "old maps",
    "learning to swim",
    "a computer fault",
    "winter clothes",
    "a train journey",
    "music lessons",
    "neighbours",
    "volcanoes",
    "a letter to an office",
    "sleep",
    "painting a room",
    "percentages",
    "museums",
    "a lost key",
    "running",
    "the history of bread",
    "a film",
    "spreadsheets",
    "camping",
    "a houseplant",
    "tides",
    "buying a phone",
    "a quarrel",
    "bridges",
    "tea",
)


class Pair(TypedDict):
    """A prompt with two answers, of which one shows the trait and one its opposite."""

    prompt: str
    positive: str
    negative: str


class WrittenPairs(TypedDict):
    """The result of `generate_pairs`.

    Attributes:
      persona, persona_description: as they were asked for.
      total_pairs: how many pairs there are.
      pairs: rows for `generate_from_jsonl`.
      dropped: how many generations were unusable, by reason.
    """

    persona: str
    persona_description: str
    total_pairs: int
    pairs: list[Pair]
    dropped: dict[str, int]


def request(persona: str, description: str, topic: str) -> str:
    """The prompt that asks for one pair."""
    about = f" ({description.strip().rstrip('.')})" if description.strip() else ""
    return (
        f"Invent one example about {topic} that shows what it means to be {persona}{about}. Answer with a JSON object: "
        f'"prompt" is what a user asks, "positive" is an answer that is clearly {persona}, and "negative" is an answer to the '
        "same question that is clearly the opposite. One or two sentences each."
    )


def _normalized(text: str) -> str:
    """The text without case and spacing, by which equal ones are known."""
    return " ".join(text.casefold().split())


def parse(text: str) -> Pair | str:
    """Read a pair from a text; if it holds none, return the reason in a few words."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(parsed, Mapping) or set(parsed) != {"prompt", "positive", "negative"}:
        return "other keys"
    if not all(isinstance(value, str) and value.strip() for value in parsed.values()):
        return "a blank text"
    prompt, positive, negative = (parsed[name].strip() for name in ("prompt", "positive", "negative"))
    if len({_normalized(prompt), _normalized(positive), _normalized(negative)}) < 3:
        return "two equal texts"
    return {"prompt": prompt, "positive": positive, "negative": negative}


def generate_pairs(
    write: Writer,
    persona_name: str,
    persona_description: str,
    num_pairs: int,
    batch_size: int,
    *,
    seed: int,
    report: Report = silent,
) -> WrittenPairs:
    """Ask for pairs until there are enough; see `Steering.generate_pairs`.

    Args:
      write: texts for prompts under one configuration, each drawn with its own seed.
    """
    if not isinstance(persona_name, str) or not persona_name.strip():
        raise expected("persona_name", persona_name, "a word or a phrase, such as 'honest'")
    if not isinstance(persona_description, str):
        raise expected("persona_description", persona_description, "a string")
    for name, value in (("num_pairs", num_pairs), ("batch_size", batch_size)):
        integer(1)(name, value)
    config = GenerationConfig(
        max_tokens=_MAX_TOKENS, sampling_method="top-p", temperature=0.9, top_p=0.95, json_schema=SCHEMA, chat=True
    )
    pairs: list[Pair] = []
    seen: set[str] = set()
    dropped: collections.Counter[str] = collections.Counter()
    asked = 0
    while len(pairs) < num_pairs and asked < _ATTEMPTS * num_pairs:
        turn = range(asked, asked + min(batch_size, _ATTEMPTS * num_pairs - asked))
        asked += len(turn)
        texts = write(
            [request(persona_name.strip(), persona_description, _TOPICS[index % len(_TOPICS)]) for index in turn],
            config,
            [(seed + index) % 2**32 for index in turn],
        )
        for text in texts:
            pair = parse(text)
            if isinstance(pair, str):
                dropped[pair] += 1
                continue
            key = _normalized(pair["prompt"])
            if key in seen:
                dropped["the prompt of another pair"] += 1
                continue
            seen.add(key)
            pairs.append(pair)
        report(min(len(pairs), num_pairs), num_pairs)
    pairs = pairs[:num_pairs]
    if not pairs:
        raise MechanexError(
            f"generate_pairs: none of {asked} generations was usable ({dict(dropped)}). Use a larger chat model, or describe "
            "the persona more closely."
        )
    if len(pairs) < num_pairs:
        warn(f"generate_pairs: {len(pairs)} of {num_pairs} pairs after {asked} generations; dropped {dict(dropped)}.")
    return {
        "persona": persona_name.strip(),
        "persona_description": persona_description,
        "total_pairs": len(pairs),
        "pairs": pairs,
        "dropped": dict(dropped),
    }
