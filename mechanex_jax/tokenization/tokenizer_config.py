"""`tokenizer_config.json` and the files beside it: what of them counts, as transformers 5 reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mechanex_jax.checkpoint_fields import FLAG, OBJECT, Fields, JsonObject, Kind
from mechanex_jax.errors import CheckpointError
from mechanex_jax.storage.json_values import parse_json

if TYPE_CHECKING:
    from tokenizers import AddedToken

Config: TypeAlias = Mapping[str, Any]
"""The content of `tokenizer_config.json`; `FIELDS` checks its values."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ADDED = "AddedToken"  # what `__type` says of an object that is a token


def _is_token(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, dict)
        and isinstance(value.get("content"), str)
        and all(isinstance(value[flag], bool) for flag in _FLAGS if flag in value)
    )


def _is_added(value: object) -> bool:
    return isinstance(value, dict) and all(
        index.isascii() and index.isdigit() and isinstance(token, dict) and _is_token(token) for index, token in value.items()
    )


def _are_tokens(value: object) -> bool:
    tokens = value.values() if isinstance(value, dict) else value
    return value is None or (isinstance(value, (dict, list)) and all(map(_is_token, tokens)))  # pyright: ignore[reportArgumentType]


_TOKEN = Kind("a text, an object with its content, or null", lambda value: value is None or _is_token(value))
_TOKENS = Kind("a list of tokens, or null", _are_tokens)

FIELDS = Fields(
    used={
        "tokenizer_class": Kind("a text, or null", lambda value: value is None or isinstance(value, str)),
        **dict.fromkeys(SPECIAL_TOKENS, _TOKEN),
        "additional_special_tokens": _TOKENS,
        "extra_special_tokens": _TOKENS,
        "model_specific_special_tokens": OBJECT,
        "added_tokens_decoder": Kind("an object of tokens by their ids", _is_added),
        "split_special_tokens": FLAG,
        "add_prefix_space": FLAG.or_null(),
        "legacy": FLAG.or_null(),
        "chat_template": Kind("a text, several by their names, or null", lambda value: value is None or bool(_named(value))),
        "clean_up_tokenization_spaces": FLAG.or_null(),
    },
    without_effect=frozenset(
        {
            # transformers drops them where there is a tokenizer.json, whose post-processor decides
            "add_bos_token",
            "add_eos_token",
            # lengths, padding and truncation, which apply to no text here
            "model_max_length",
            "max_len",
            "max_length",
            "padding_side",
            "truncation_side",
            "truncation_strategy",
            "stride",
            "pad_to_multiple_of",
            "pad_token_type_id",
            "tokenizer_truncation",
            "tokenizer_padding",
            "_json_truncation",
            "_json_padding",
            "model_input_names",
            # files, which are found by their names
            "vocab_file",
            "merges_file",
            "tokenizer_file",
            "gguf_file",
            "added_tokens_file",
            "special_tokens_map_file",
            "vocab",
            "merges",
            "unk_id",
            "_spm_precompiled_charsmap",
            # of Python tokenizers and other libraries, or about the file itself
            "errors",
            "use_default_system_prompt",
            "auto_map",
            "backend",
            "files_loaded",
            "is_local",
            "local_files_only",
            "name_or_path",
            "processor_class",
            "verbose",
            "normalizer",
            "precompiled_charsmap",
            # of calls that the library does not make
            "chat_control_tokens",
            "response_schema",
            "response_template",
        }
    ),
    fixed={
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": (False, None),
        "fix_mistral_regex": (False, None),
        "fast_tokenizer_files": ([], ["tokenizer.json"]),
        "init_inputs": ([],),
        "post_processor": (None,),
        "tokenizer_object": (None,),
    },
    file="tokenizer_config.json",
)
"""Whatever else stands in the file is read by nothing, in transformers either."""


def read(folder: Path, model: Config, content: str) -> JsonObject:
    """The settings of a folder's tokenizer, as one `tokenizer_config.json` that needs no other file.

    Args:
      folder: the checkpoint's.
      model: the content of `config.json`.
      content: the text of `tokenizer.json`.

    Raises:
      CheckpointError: a file that cannot be read.
    """
    config = json_object(folder / "tokenizer_config.json")
    if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    if "added_tokens_decoder" not in config:
        config |= _special_tokens_map(folder / "special_tokens_map.json", config.get("extra_special_tokens"))
        added = folder / "added_tokens.json"
        if added.is_file():
            config["added_tokens_decoder"] = _added_tokens(added, config, content)
    if "extra_special_tokens" in config:
        config.pop("additional_special_tokens", None)
    config["tokenizer_class"] = _tokenizer_class(config, model)
    return config | _templates(folder)


def named_tokens(config: Config) -> dict[str, AddedToken | str]:
    """The special tokens that have a name: first `bos_token` and the like, then those of the model, such as `image_token`."""
    named = {name: config[name] for name in SPECIAL_TOKENS if name in config}
    others = {name: value for name, value in config.items() if name.endswith("_token") and name not in SPECIAL_TOKENS}
    named |= {name: value for name, value in others.items() if isinstance(value, dict) and value.get("__type") == _ADDED}
    named |= {name: value for name, value in others.items() if isinstance(value, str)}
    for group in (config.get("extra_special_tokens"), config.get("model_specific_special_tokens")):
        named |= group if isinstance(group, dict) else {}
    return {name: added_token(value) for name, value in named.items() if value is not None}


def extra_tokens(config: Config) -> list[AddedToken | str]:
    """The special tokens without a name."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    return [added_token(token) for token in extra] if isinstance(extra, list) else []


def added_token(value: object) -> AddedToken | str:
    """A token as the tokenizers library takes it.

    Raises:
      CheckpointError: neither a text nor an object with its content.
    """
    from tokenizers import AddedToken

    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not _is_token(value):
        raise CheckpointError(
            f"tokenizer_config.json: got the token {str(value)[:120]}; expected a text, or an object with its content. "
            "Fetch the model again."
        )
    return AddedToken(value["content"], **{flag: value[flag] for flag in _FLAGS if flag in value})


def default_template(stored: object) -> str | None:
    """The chat template for conversations without tools, out of `chat_template`, which may hold several by name."""
    return None if stored is None else _named(stored).get("default")


def _named(stored: object) -> dict[str, str]:
    """Templates by name; empty where the value is none."""
    if isinstance(stored, str):
        return {"default": stored}
    if isinstance(stored, list) and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in stored):
        stored = {item["name"]: item.get("template") for item in stored}
    return stored if isinstance(stored, dict) and all(isinstance(text, str) for text in stored.values()) else {}


def _special_tokens_map(path: Path, extra: object) -> JsonObject:
    """What `special_tokens_map.json` says in place of `tokenizer_config.json`."""
    stored = json_object(path)
    for key, value in stored.items():
        if key == "extra_special_tokens":
            known = extra if isinstance(extra, list) else []
            more = list(_marked(value)) if isinstance(value, list) else []
            stored[key] = [*known, *(token for token in more if token not in known)] if isinstance(value, list) else value
        elif isinstance(value, list):
            stored[key] = list(_marked(value))
        elif isinstance(value, dict):
            stored[key] = value | {"special": True, "__type": _ADDED}
    return stored


def _marked(tokens: list[object]) -> Iterator[object]:
    for token in tokens:
        yield token | {"special": True, "__type": _ADDED} if isinstance(token, dict) else token


def _added_tokens(path: Path, config: Config, content: str) -> JsonObject:
    """The tokens of `added_tokens.json`, and of `tokenizer.json`, which go before."""
    special = {str(_text(config[name])) for name in SPECIAL_TOKENS if config.get(name)}
    special |= {str(_text(token)) for token in config.get("extra_special_tokens") or ()}
    added: JsonObject = {}
    for text, index in json_object(path).items():
        if type(index) is not int:
            raise CheckpointError(f"{path}: got {str(index)[:120]} for {text!r}; expected an id. Fetch the model again.")
        added[str(index)] = {"content": text, "normalized": text not in special, "special": text in special}
    return added | {str(token["id"]): token for token in json.loads(content).get("added_tokens") or ()}


def _text(token: object) -> object:
    return token.get("content") if isinstance(token, Mapping) else token


def _tokenizer_class(config: Config, model: Config) -> str | None:
    """The class that transformers takes for this model."""
    if model.get("model_type") == "mistral":  # whichever is named: the class of its own needs a tekken.json
        return None
    default = "GPT2Tokenizer" if model.get("model_type") == "gpt2" else None
    return config.get("tokenizer_class") or model.get("tokenizer_class") or default


def _templates(folder: Path) -> JsonObject:
    """Files of chat templates, which replace those of `tokenizer_config.json`, all of them."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    templates = {name: read_text(path) for name, path in files.items() if path.is_file()}
    return {"chat_template": templates} if templates else {}


def json_object(path: Path) -> JsonObject:
    """A file's content, empty if there is none.

    Raises:
      CheckpointError: no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); the file is corrupt: fetch the model again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}; expected a JSON object. Fetch the model again.")
    return content


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
      CheckpointError: not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise CheckpointError(
            f"{path}: got bytes that are no text ({error}); expected UTF-8. Fetch the model again."
        ) from error
