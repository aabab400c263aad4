"""The bytes of every token: what decoding, stop strings and constraints all read.

Text is bytes here, because a token may hold half a character: joined, the tokens of a text give the text's UTF-8.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mechanex_jax.errors import CheckpointError, expected

TokenizerJson: TypeAlias = Mapping[str, Any]
"""The content of a `tokenizer.json`, or an object in it: the form is the `tokenizers` library's."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_HARMLESS = {"Fuse", "Strip", "ByteFallback"}  # decoders that leave a token's own bytes as they are, or are read below


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes of all tokens, one after another.

    Attributes:
      offsets: int32 `[V + 1]`; token `i` is `bytes[offsets[i]:offsets[i + 1]]`.
      bytes: uint8, all tokens one after another.
      special: bool `[V]`; tokens that stand for no text (controls, padding, ids without a token). They have no bytes.
    """

    offsets: np.ndarray
    bytes: np.ndarray
    special: np.ndarray

    def __repr__(self) -> str:
        return f"Vocabulary({self.size:,} ids, {len(self.bytes):,} bytes)"

    @classmethod
    def from_tokens(cls, tokens: Iterable[bytes | None]) -> Vocabulary:
        """Make a vocabulary from each id's bytes; None marks a special token."""
        listed = list(tokens)
        offsets = np.zeros(len(listed) + 1, np.int32)
        np.cumsum([len(token or b"") for token in listed], out=offsets[1:])
        joined = np.frombuffer(b"".join(token or b"" for token in listed), np.uint8)
        special = np.array([token is None for token in listed], bool)
        for array in (offsets, special):
            array.setflags(write=False)
        return cls(offsets, joined, special)

    @classmethod
    def from_tokenizer_json(cls, content: TokenizerJson, size: int | None = None) -> Vocabulary:
        """Read the vocabulary of a `tokenizer.json`.

        Args:
          content: the parsed file. Byte-level tokenizers (GPT-2, Llama 3, SmolLM2) and SentencePiece ones (Llama 2,
            Mistral) are understood.
          size: the model's number of logits, where it is larger than the tokenizer's highest id: the ids between are
            special. None takes the tokenizer's own size.

        Raises:
          CheckpointError: the tokenizer spells its tokens in a way that is not known here.
          ArgumentError: `size` is below the tokenizer's own.
        """
        model = content["model"]
        ids = _ids(model["vocab"])
        added = content.get("added_tokens") or []
        ids_end = 1 + max((*ids.values(), *(token["id"] for token in added)), default=-1)
        if size is not None and size < ids_end:
            raise expected("size", size, f"at least {ids_end}, the tokenizer's own", "Does the tokenizer belong to the model?")
        spell = _spelling(content)
        tokens: list[bytes | None] = [None] * (size or ids_end)
        for text, index in ids.items():
            tokens[index] = spell(text)
        for index in _unknown(model, ids):
            tokens[index] = None
        for token in added:
            tokens[token["id"]] = None if token["special"] else token["content"].encode()
        return cls.from_tokens(tokens)

    @property
    def size(self) -> int:
        """The number of ids, V."""
        return len(self.special)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token, empty for a special one."""
        if not 0 <= token < self.size:
            raise expected("token", token, f"an id from 0 to {self.size - 1}")
        return self.bytes[self.offsets[token] : self.offsets[token + 1]].tobytes()

    def join(self, tokens: Iterable[int]) -> bytes:
        """The bytes of a sequence."""
        return b"".join(self.bytes_of(int(token)) for token in tokens)

    @functools.cached_property
    def longest(self) -> int:
        """The number of bytes of the longest token, at least 1."""
        return max(int(np.diff(self.offsets).max(initial=1)), 1)

    @functools.cached_property
    def single_bytes(self) -> np.ndarray:
        """int32 [256], the last token of each single byte; -1 if there is none."""
        tokens = np.full(256, -1, np.int32)
        single = np.flatnonzero(np.diff(self.offsets) == 1)
        tokens[self.bytes[self.offsets[single]]] = single
        return tokens

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content: equal for tokenizers with which the same ids mean the same text."""
        digest = hashlib.sha256()
        for array in (self.offsets, self.bytes, self.special):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _ids(vocab: dict[str, int] | list[tuple[str, float]]) -> dict[str, int]:
    # Unigram lists [piece, score] by id, the others map each piece to its id.
    return vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}


def _unknown(model: TokenizerJson, ids: Mapping[str, int]) -> Iterable[int]:
    """The ids that stand for text which the tokenizer cannot spell."""
    named = {index for piece, index in ids.items() if piece == model.get("unk_token")}
    return named | ({model["unk_id"]} if model.get("unk_id") is not None else set())


def _spelling(content: TokenizerJson) -> Callable[[str], bytes]:
    """The function from a token's spelling in the file to its bytes, by the file's decoder."""
    decoder: TokenizerJson = content.get("decoder") or {"type": None}
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = {part["type"] for part in parts}
    spaces = [space for part in parts if (space := _space(part)) is not None]
    if "ByteLevel" in kinds and kinds <= _HARMLESS | {"ByteLevel"}:
        return _spell_byte_level
    if len(spaces) == 1 and kinds <= _HARMLESS | {"Metaspace", "Replace"}:
        return functools.partial(_spell_pieces, space=spaces[0], byte_tokens="ByteFallback" in kinds)
    raise CheckpointError(
        f"The tokenizer's decoder is {', '.join(sorted(map(str, kinds)))}; expected ByteLevel, or Metaspace / "
        "Replace with ByteFallback. Models with other tokenizers (WordPiece, for one) cannot be used for generation "
        "here."
    )


def _space(part: TokenizerJson) -> str | None:
    """The character that a decoder turns into a space, if it is one that does."""
    if part["type"] == "Metaspace":
        return part["replacement"]
    if part["type"] == "Replace" and part["content"] == " ":
        return part["pattern"].get("String")
    return None


def _spell_pieces(text: str, *, space: str, byte_tokens: bool) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text) if byte_tokens else None
    return bytes([int(match[1], 16)]) if match else text.replace(space, " ").encode()


@functools.cache
def _byte_level_table() -> dict[int, int]:
    """GPT-2's spelling of bytes as printable characters, as a table for `str.translate` into Latin-1."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    # A character of the hidden range never spells a byte: sent beyond Latin-1, it makes the encoding below fail.
    table = dict.fromkeys(hidden, 0xFFFF)
    return table | {byte: byte for byte in shown} | {256 + rank: byte for rank, byte in enumerate(hidden)}


def _spell_byte_level(text: str) -> bytes:
    try:
        return text.translate(_byte_level_table()).encode("latin-1")
    except UnicodeEncodeError:  # not a spelling of bytes: the token is its own text
        return text.encode()
