"""Text to token ids and back, with the model's special ids and chat template."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechanex_jax.errors import CheckpointError, MechanexError
from mechanex_jax.tokenization import chat_template as chat
from mechanex_jax.tokenization.vocabulary import Vocabulary
from mechanex_jax.validation import text as check_text

_MOST_IDS = 2**24  # a limit far above any tokenizer: tables with a row an id are made
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer.

    Args:
      content: the text of a `tokenizer.json`.
      config: the content of `tokenizer_config.json`.
      ids: for `bos_token_id` and `eos_token_id`, further contents to look in (`generation_config.json`, `config.json`).
      size: the model's number of logits, where larger than the tokenizer's highest id.
      chat_template: a Jinja template; None takes the one of `config`.

    Raises:
      CheckpointError: the content is not a tokenizer.
    """

    def __init__(
        self,
        content: str,
        *,
        config: Mapping[str, Any] | None = None,
        ids: Sequence[Mapping[str, Any]] = (),
        size: int | None = None,
        chat_template: str | None = None,
    ):
        import tokenizers

        try:
            self._backend = tokenizers.Tokenizer.from_str(content)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exceptions, and its panics are not even those
            raise CheckpointError(
                f"tokenizer.json cannot be read ({error}); expected a file of the tokenizers library. Fetch the model again."
            ) from error
        # Settings left over from training would cut or pad prompts.
        self._backend.no_truncation()
        self._backend.no_padding()
        config = config or {}
        self._content, self._size = content, size
        self.chat_template = chat_template or chat.default_template(config.get("chat_template"))
        self._named = {key: _text(config[key]) for key in _NAMED if config.get(key)}
        eos = [self._backend.token_to_id(self._named["eos_token"])] if "eos_token" in self._named else []
        for more in ids:
            eos += _special_ids(more, "eos_token_id")
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(index for index in eos if index is not None))
        bos = [self._backend.token_to_id(self._named["bos_token"])] if "bos_token" in self._named else []
        for more in ids:
            bos += _special_ids(more, "bos_token_id")
        self.bos_id: int | None = next((index for index in bos if index is not None), None)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a checkpoint's folder.

        Raises:
          CheckpointError: no tokenizer there, or files that cannot be read.
        """
        folder = Path(folder)
        model, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
        config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        return cls(
            _content(folder),
            config=config,
            ids=(generation, model),
            size=_size(folder / "config.json", model.get("vocab_size")),
            chat_template=_read_text(template) if template.is_file() else None,
        )

    def __repr__(self) -> str:
        return f"Tokenizer({self.size:,} ids, eos {', '.join(map(str, self.eos_ids)) or 'none'})"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text.

        Args:
          text: any text; special tokens written out in it become their ids.
          add_special_tokens: whether BOS and the like are put around it, where `tokenizer.json`'s post-processor does.
            It alone decides, as in transformers: `add_bos_token` of `tokenizer_config.json` changes nothing.

        Raises:
          ArgumentError: no string, or one with half of a surrogate pair.
        """
        check_text("text", text)
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_chat(self, messages: chat.Messages) -> list[int]:
        """The ids of a conversation up to where the model's answer begins.

        Args:
          messages: `{"role": ..., "content": ...}` each, or a text, which is one user message.
        """
        return self.encode(self.apply_chat_template(messages), add_special_tokens=False)

    def apply_chat_template(self, messages: chat.Messages, *, add_generation_prompt: bool = True) -> str:
        """The conversation as the one text that the model was trained on.

        Args:
          messages: `{"role": ..., "content": ...}` each, or a text, which is one user message.
          add_generation_prompt: whether the text ends with the opening of the assistant's turn.

        Raises:
          ArgumentError: the model has no chat template, or its template refuses the messages.
        """
        return chat.render(self.chat_template, messages, add_generation_prompt, self._named)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens give none, and bytes that are no UTF-8 give U+FFFD.

        A leading space stays, because what a model continues with often begins with one.
        """
        return self.vocabulary.join(ids).decode("utf-8", errors="replace")

    @property
    def size(self) -> int:
        """The number of ids, as the model's logits have it."""
        return self.vocabulary.size

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of every token."""
        # Some models have fewer logits than tokens; the tokenizer's ids are then what counts.
        ids_end = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        size = max(self._size or 0, ids_end)
        if size > _MOST_IDS:
            raise CheckpointError(
                f"tokenizer.json: got ids up to {size - 1:,}; expected at most {_MOST_IDS:,} ids. The file is corrupt, or "
                "vocab_size of config.json is wrong: fetch the model again."
            )
        try:
            return Vocabulary.from_tokenizer_json(json.loads(self._content), size)
        except MechanexError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"tokenizer.json: got a vocabulary or decoder that cannot be read ({error!r}); expected those of the "
                "tokenizers library. Fetch the model again."
            ) from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's content."""
        return hashlib.sha256(self._content.encode()).hexdigest()


def _special_ids(content: Mapping[str, Any], key: str) -> list[int | None]:
    value = content.get(key)
    ids = value if isinstance(value, list) else [value]
    if not all(index is None or (type(index) is int and 0 <= index < 2**31) for index in ids):
        raise CheckpointError(
            f"{key}: got {str(value)[:120]}; expected a token id, a list of them, or null. Correct it in config.json or "
            "generation_config.json."
        )
    return ids


def _text(token: str | Mapping[str, str]) -> str:
    text = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise CheckpointError(
            f"tokenizer_config.json: got the token {str(token)[:120]}; expected a text, or an object with its content. "
            "Fetch the model again."
        )
    return text


def _json(path: Path) -> dict[str, Any]:
    """The file's content, empty if there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); the file is corrupt: fetch the model again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}; expected a JSON object. Fetch the model again.")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise CheckpointError(
            f"{path}: got bytes that are no text ({error}); expected UTF-8. Fetch the model again."
        ) from error


def _size(path: Path, size: object) -> int | None:
    if size is None or (type(size) is int and 1 <= size <= _MOST_IDS):
        return size
    raise CheckpointError(
        f"{path}: got vocab_size {str(size)[:120]}; expected a whole number from 1 to {_MOST_IDS:,}. Fetch the model again."
    )


def _content(folder: Path) -> str:
    path = folder / "tokenizer.json"
    if path.is_file():
        return _read_text(path)
    if (folder / "tokenizer.model").is_file():
        return _converted(folder)
    raise CheckpointError(f"{folder}: no tokenizer.json; expected it beside config.json. Add the model's own to the folder.")


def _converted(folder: Path) -> str:
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    except Exception as error:  # not installed, or one of the many that its conversion raises
        raise CheckpointError(
            f"{folder}: got tokenizer.model without tokenizer.json, and converting it failed ({error}). Install "
            "transformers and sentencepiece, or save a tokenizer.json with "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`."
        ) from error
