"""The tokenizer inside a GGUF file, as the files that the Hugging Face libraries read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mechanex_jax.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from tokenizers.processors import PostProcessor

Fields: TypeAlias = Mapping[str, Any]
"""The metadata of a GGUF file: strings, numbers, booleans and lists of these, checked where they are read."""

# llama.cpp's kinds of token: unknown, control and unused stand for no text; user-defined ones are matched as they are.
_NO_TEXT = {2, 3, 5}
_USER_DEFINED = 4

_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def tokenizer_files(source: Path, fields: Fields) -> dict[str, str]:
    """The text of `tokenizer.json` and `tokenizer_config.json`.

    Args:
      source: the GGUF file, for error messages.
      fields: its metadata.

    Raises:
      CheckpointError: no tokenizer, or one of a kind that is not known here.
    """
    kind = _field(source, fields, "model")
    if kind != "gpt2":
        raise CheckpointError(
            f"{source}: got a tokenizer of kind {kind!r}; expected 'gpt2' (byte-level BPE). Load the model's "
            "safetensors with its tokenizer.json instead."
        )
    pre = fields.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{source}: got the pre-tokenizer {pre!r}; expected one of {', '.join(_PRE_TOKENIZERS)}. Load the model's "
            "safetensors with its tokenizer.json instead."
        )
    cut = _PRE_TOKENIZERS[pre]
    tokens = _field(source, fields, "tokens")
    kinds = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    roles = _roles(fields)
    around = {
        "bos": fields.get("tokenizer.ggml.add_bos_token", cut.adds_bos),
        "eos": fields.get("tokenizer.ggml.add_eos_token"),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.get("llama.context_length"),
        **{f"{role}_token": tokens[index] for role, index in roles.items()},
    }
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    merges = _field(source, fields, "merges")
    try:
        tokenizer = _byte_level_bpe(tokens, kinds, [_halves(merge) for merge in merges], cut.make(), cut.ignore_merges)
        tokenizer.post_processor = _surround({role: roles[role] for role, added in around.items() if added}, tokens)
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{source}: tokens and merges do not fit together ({error}). The file is corrupt.") from error
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
    }


def special_ids(fields: Fields) -> dict[str, int | list[int]]:
    """The ids of the tokens that begin, end and pad, as `config.json` names them; a separate end of turn ends as well."""
    roles = _roles(fields)
    ids: dict[str, int | list[int]] = {f"{role}_token_id": index for role, index in roles.items() if role != "unk"}
    turn = fields.get("tokenizer.ggml.eot_token_id")
    if turn is not None and turn != ids.get("eos_token_id"):
        ids["eos_token_id"] = [end for end in (roles.get("eos"), turn) if end is not None]
    return ids


def _field(source: Path, fields: Fields, key: str) -> Any:
    if f"tokenizer.ggml.{key}" not in fields:
        raise CheckpointError(f"{source}: no field tokenizer.ggml.{key}; expected a file with its tokenizer inside.")
    return fields[f"tokenizer.ggml.{key}"]


def _roles(fields: Fields) -> dict[str, int]:
    ids = {role: fields.get(f"tokenizer.ggml.{key}") for role, key in _ROLES.items()}
    return {role: index for role, index in ids.items() if index is not None}


def _halves(merge: str) -> tuple[str, str]:
    first, second = merge.split(" ", 1)
    return first, second


def _byte_level_bpe(
    tokens: list[str],
    kinds: list[int],
    merges: list[tuple[str, str]],
    pre_tokenizer: PreTokenizer,
    ignore_merges: bool,
) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    named = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in named if kind in _NO_TEXT])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == _USER_DEFINED])
    return tokenizer


def _surround(roles: Mapping[str, int], tokens: list[str]) -> PostProcessor:
    """Put BOS before and EOS after a text, whichever of them is given."""
    from tokenizers import processors

    pieces = {"bos": "", "eos": ""} | {role: tokens[index] for role, index in roles.items()}
    special = [(tokens[index], index) for index in roles.values()]
    single = [piece for piece in (pieces["bos"], "$A", pieces["eos"]) if piece]
    return processors.TemplateProcessing(single, [*single, "$B"], special)


def _gpt_2() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt_2()])


def _llama_3() -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_LLAMA_3_WORDS), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class _PreTokenizer(NamedTuple):
    """How text is cut, whether tokens that are whole words skip the merges, and whether texts begin with BOS by default."""

    make: Callable[[], PreTokenizer]
    ignore_merges: bool = False
    adds_bos: bool = False


_PRE_TOKENIZERS = {
    "smollm": _PreTokenizer(_smollm),
    "gpt-2": _PreTokenizer(_gpt_2),
    "llama-bpe": _PreTokenizer(_llama_3, ignore_merges=True, adds_bos=True),
}
"""By llama.cpp's names."""
