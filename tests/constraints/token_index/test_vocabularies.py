"""Constraints over real vocabularies of every kind: byte-level BPE, Tekken, and SentencePiece with byte fallback.

All but the default model's come with mistral_common. SentencePiece files are read here, by hand: they are a protocol buffer.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jsonschema
import mistral_common
import numpy as np
import pytest
from sentencepiece_file import PIECES, fields

from mechanex_jax.checkpoints import Tokenizer
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.compiler import FRONT_ENDS
from mechanex_jax.constraints.device.token_mask import pack_constraints
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.constraints.token_index import build as tables
from mechanex_jax.tokenization.vocabulary import Vocabulary
from mechanex_jax.transforms.base import Step

DATA = Path(mistral_common.__file__).parent / "data"
TEKKEN = DATA / "tekken_240911.json"
UNKNOWN, CONTROL, UNUSED, BYTE = 2, 3, 5, 6  # kinds of pieces
TEXTS = ["Hello,  world!\n", "Zoë naïve 日本語 한국어", "👍🏽 e\u0301 \u200b", '{"a": [1.5e-3, true]}']

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "city": {"enum": ["Zürich", "東京", "São Paulo"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
    },
    "required": ["name", "city", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": ["integer", "array"], "items": {"$ref": "#/$defs/tag"}}},
}
PATTERN = r"[À-ÿ日本語]{2,6} (né|née|👍🏽){1,3} [a-z ]*\n?"
GRAMMAR = 'root ::= item ("→" item)*\nitem ::= [a-zé]+ | "(" root ")"\n'


def valid(text: str) -> bool:
    return jsonschema.Draft202012Validator(PERSON).is_valid(json.loads(text))


def derived(text: str) -> bool:
    """Whether the grammar accepts: innermost brackets become a mark until none is left."""
    items = "(?:I|[a-zé]+)(?:→(?:I|[a-zé]+))*"
    while (shorter := re.sub(rf"\({items}\)", "I", text)) != text:
        text = shorter
    return bool(re.fullmatch(items, text))


CONSTRAINTS = {
    "schema": ("json_schema", PERSON, valid),
    "regex": ("regex", PATTERN, lambda text: bool(re.fullmatch(PATTERN, text))),
    "grammar": ("grammar", GRAMMAR, derived),
}


# -- The vocabularies --------------------------------------------------------------------------------------------------------


def sentencepiece() -> Vocabulary:
    tokens: list[bytes | None] = []
    for number, content in fields(PIECES.read_bytes()):
        if number == 1:
            piece = dict(fields(content))
            text, kind = piece[1].decode(), piece.get(3, 1)
            spelled = bytes([int(text[1:-1], 16)]) if kind == BYTE else text.replace("▁", " ").encode()
            tokens.append(None if kind in (UNKNOWN, CONTROL, UNUSED) else spelled)
    return Vocabulary.from_tokens(tokens)


def tekken() -> Vocabulary:
    content = json.loads(TEKKEN.read_text())
    special = content["config"]["default_num_special_tokens"]
    listed = content["vocab"][: content["config"]["default_vocab_size"] - special]
    return Vocabulary.from_tokens([None] * special + [base64.b64decode(token["token_bytes"]) for token in listed])


@pytest.fixture(scope="module")
def vocabularies(smollm2_folder) -> dict[str, tuple[Vocabulary, int]]:
    """Vocabulary and end of sequence of each kind."""
    own = Tokenizer.from_folder(smollm2_folder)
    return {
        "byte-level": (own.vocabulary, own.eos_ids[0]),
        "tekken": (tekken(), 2),
        "sentencepiece": (sentencepiece(), 2),
    }


KINDS = ["byte-level", "tekken", "sentencepiece"]


@pytest.fixture(scope="module")
def built(vocabularies):
    @functools.cache
    def build(kind: str, name: str):
        front, source, _ = CONSTRAINTS[name]
        pushdown = FRONT_ENDS[front](source, JsonOptions()).compile()
        vocabulary, eos = vocabularies[kind]
        found = tables.build(pushdown, vocabulary, eos_ids=[eos])
        automaton = pack_constraints([found], vocabulary)
        per_row = ("start", "unconstrained", "max_free_depth", "eos_row", "quote_row", "classes")
        one = {field: getattr(automaton, field)[0] for field in per_row}
        return pushdown, found, jax.device_put(dataclasses.replace(automaton, **one))

    return build


@jax.jit
def _mask(automaton, state, remaining):
    step = Step(jnp.int32(0), remaining, jax.random.key(0))
    return automaton.apply(state, jnp.zeros(automaton.offsets.shape[0] - 1), step) == 0


@jax.jit
def _advance(automaton, state, token):
    return automaton.advance(state, token, None)


def one_by_one(matcher: Matcher, vocabulary: Vocabulary) -> set[int]:
    """What may come next, every token read by itself."""

    @functools.cache
    def after(text: bytes) -> Matcher | None:
        before = after(text[:-1]) if text else matcher
        if before is None or not text:
            return before
        moved = before.copy()
        return moved if moved.feed(text[-1:]) else None

    tokens = ((token, vocabulary.bytes_of(token)) for token in range(vocabulary.size))
    return {token for token, text in tokens if text and after(text) is not None}


def walk(automaton, vocabulary: Vocabulary, eos: int, remaining: int, rng: np.random.Generator) -> list[int]:
    """Tokens chosen at random, often short ones, until the end is chosen or all are spent."""
    lengths = np.diff(vocabulary.offsets)
    state, out = automaton.init(None, None), []
    while remaining:
        allowed = np.flatnonzero(_mask(automaton, state, jnp.int32(remaining)))
        assert len(allowed), vocabulary.join(out)
        short = allowed[lengths[allowed] <= 2]
        allowed = short if len(short) and rng.random() < 0.6 else allowed
        token = int(rng.choice(allowed))
        if token == eos:
            break
        out.append(token)
        state, remaining = _advance(automaton, state, jnp.int32(token)), remaining - 1
    return out


# -- The properties ----------------------------------------------------------------------------------------------------------


def test_the_bytes_of_tekkens_tokens_spell_what_mistral_common_encodes():
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    theirs, vocabulary = Tekkenizer.from_file(TEKKEN), tekken()
    assert (vocabulary.size, theirs.eos_id) == (theirs.n_words, 2)
    for text in TEXTS:
        assert vocabulary.join(theirs.encode(text, bos=False, eos=False)) == text.encode()


def test_the_pieces_of_a_sentencepiece_file_cover_all_bytes_and_its_ends_are_special():
    vocabulary = sentencepiece()
    assert vocabulary.size == 32_000 and vocabulary.special.nonzero()[0].tolist() == [0, 1, 2]
    assert [vocabulary.bytes_of(3 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert vocabulary.join([22557, 28725, 1526, 28808]) == b" Hello, world!"


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_chosen_the_text_is_one_that_is_asked_for(vocabularies, built, kind, name):
    (vocabulary, eos), (_, found, automaton) = vocabularies[kind], built(kind, name)
    rng, texts = np.random.default_rng(7), set()
    # With the least number of tokens, with hardly more, and with plenty.
    for extra in (0, 0, 1, 3, 10, 30, 60):
        text = vocabulary.join(walk(automaton, vocabulary, eos, found.minimum + extra, rng)).decode()
        assert CONSTRAINTS[name][2](text), text
        texts.add(text)
    assert len(texts) >= 4


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_tokens_one_by_one(vocabularies, built, kind, name):
    (vocabulary, eos), (pushdown, found, automaton) = vocabularies[kind], built(kind, name)
    rng, plenty = np.random.default_rng(11), 1_000_000
    tokens = walk(automaton, vocabulary, eos, found.minimum + 12, rng)
    looked_at = {0, len(tokens), *rng.choice(len(tokens), min(2, len(tokens)), replace=False).tolist()}
    matcher, state = Matcher(pushdown), automaton.init(None, None)
    for index in range(len(tokens) + 1):
        if index in looked_at:
            mask = set(np.flatnonzero(_mask(automaton, state, jnp.int32(plenty))).tolist())
            assert mask == one_by_one(matcher, vocabulary) | ({eos} if matcher.accepts() else set()), tokens[:index]
        if index < len(tokens):
            assert matcher.feed(vocabulary.bytes_of(tokens[index]))
            state = _advance(automaton, state, jnp.int32(tokens[index]))
