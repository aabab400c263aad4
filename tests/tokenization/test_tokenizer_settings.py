"""A folder's tokenizer gives the ids and the text that transformers gives, whatever its settings, or is refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanex_jax.checkpoints import Tokenizer
from mechanex_jax.errors import CheckpointError
from mechanex_jax.tokenization.detokenizer import Detokenizer
from tests.support.tokenizer_folders import KINDS, Files, hostile_texts

TEXTS = hostile_texts()
ROLES = ["bos_token", "eos_token", "unk_token", "pad_token", "image_token"]
TEMPLATE = "|".join("{{ " + role + " }}" for role in ROLES)


def _config(**changes: Any) -> Callable[[Files], None]:
    return lambda files: files.config.update(changes)


def _added(content: str, **flags: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, "lstrip": False, "rstrip": False, "single_word": False} | flags


def _no_added(files: Files) -> None:
    files.tokenizer["added_tokens"] = []
    files.tokenizer["post_processor"] = None


def _no_config(files: Files) -> None:
    files.config.clear()


def _decoder(**flags: bool) -> Callable[[Files], None]:
    """`added_tokens_decoder` with all tokens, with changed flags."""

    def change(files: Files) -> None:
        tokens = {
            str(token["id"]): {key: token[key] for key in token if key != "id"} for token in files.tokenizer["added_tokens"]
        }
        files.config["added_tokens_decoder"] = {index: token | flags for index, token in tokens.items()}

    return change


def _decoder_of_some(files: Files) -> None:
    _decoder()(files)
    tokens = files.config["added_tokens_decoder"]
    files.config["added_tokens_decoder"] = {index: tokens[index] for index in list(tokens)[:3]}
    files.special = {"bos_token": "<|im_start|>"}  # not read beside added_tokens_decoder


def _map(**tokens: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files.special = tokens

    return change


def _added_file(files: Files) -> None:
    top = 1 + max(token["id"] for token in files.tokenizer["added_tokens"])
    top = max(top, len(files.tokenizer["model"]["vocab"]))
    files.added = {"<new>": top, "<img>": top + 1}
    files.config["pad_token"] = "<img>"


def _left_from_training(files: Files) -> None:
    files.tokenizer["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    files.tokenizer["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }


def _plain(files: Files) -> None:
    for token in files.tokenizer["added_tokens"]:
        token["special"] = False


SETTINGS: dict[str, Callable[[Files], None]] = {
    "as it is": _config(),
    "no tokenizer_config.json": _no_config,
    "split_special_tokens": _config(split_special_tokens=True),
    "add_prefix_space": _config(add_prefix_space=True),
    "no add_prefix_space": _config(add_prefix_space=False),
    "legacy": _config(legacy=True),
    "legacy null": _config(legacy=None),
    "legacy without a prefix": _config(legacy=True, add_prefix_space=False),
    "BOS and EOS asked for": _config(add_bos_token=True, add_eos_token=True),
    "BOS not asked for": _config(add_bos_token=False),
    "for another kind": _config(
        do_lower_case=True, strip_accents=True, errors="strict", use_fast=False, unk_id=3, sp_model_kwargs={}
    ),
    "lengths": _config(model_max_length=4, padding_side="left", truncation_side="left", max_length=2),
    "truncation and padding in tokenizer.json": _left_from_training,
    "no added tokens in tokenizer.json": _no_added,
    "added tokens that are not special": _plain,
    "special tokens without an id": _config(bos_token="<new>", pad_token="<img>"),
    "a special token that is a word": _config(pad_token="the"),
    "a special token that strips": _config(pad_token=_added("<x1>", lstrip=True, rstrip=True), eos_token=_added("<new>")),
    "special tokens null": _config(bos_token=None, eos_token=None, unk_token=None),
    "additional_special_tokens": _config(additional_special_tokens=["<x1>", "<img>", "<tool>"]),
    "additional_special_tokens that strip": _config(additional_special_tokens=[_added("<x1>", lstrip=True, special=True)]),
    "extra_special_tokens": _config(extra_special_tokens=["<new>"], additional_special_tokens=["<img>"]),
    "extra_special_tokens by name": _config(extra_special_tokens={"image_token": "<img>"}),
    "a token of the model": _config(image_token="<img>", boi_token="<x1>"),
    "a token of the model as an object": _config(image_token=_added("<img>", rstrip=True)),
    "added_tokens_decoder": _decoder(),
    "added_tokens_decoder that strips": _decoder(lstrip=True, rstrip=True),
    "added_tokens_decoder that normalises": _decoder(normalized=True),
    "added_tokens_decoder of single words": _decoder(single_word=True),
    "added_tokens_decoder of some": _decoder_of_some,
    "special_tokens_map.json": _map(eos_token="<|im_end|>", pad_token={"content": "<x1>", "lstrip": True, "rstrip": False}),
    "special_tokens_map.json with more": _map(additional_special_tokens=["<x1>"], image_token="<img>"),
    "special_tokens_map.json with extras": _map(extra_special_tokens=["<x1>", {"content": "<img>", "rstrip": True}]),
    "added_tokens.json": _added_file,
}


# The normalizer of such a folder puts a space before the added token itself, which then shows in the library's text, even
# where the token is special and skipped. Ours is the token's own content, or nothing. The ids are equal.
DECODED_WITH_THEIR_SPACE = {
    (kind, setting)
    for kind in ("Llama 2, generic", "Llama 2 without a class")
    for setting in ("added_tokens_decoder that normalises", "added_tokens.json")
}


def _both(kind: str, change: Callable[[Files], None], folder: Path):
    from transformers import AutoTokenizer

    files = KINDS[kind]()
    change(files)
    files.templates = {"chat_template.jinja": TEMPLATE}
    files.write(folder)
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_equal_transformers(kind: str, setting: str, tmp_path: Path) -> None:
    ours, theirs = _both(kind, SETTINGS[setting], tmp_path)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    messages = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages, tokenize=False)
    encoded = []
    for text in TEXTS:
        for special in (True, False):
            encoded.append(ours.encode(text, add_special_tokens=special))
            assert encoded[-1] == theirs.encode(text, add_special_tokens=special), (text, special)
    if (kind, setting) in DECODED_WITH_THEIR_SPACE:
        return
    letter = theirs.convert_tokens_to_ids("a")
    texts = theirs.batch_decode([[letter, *ids] for ids in encoded], skip_special_tokens=True)
    assert [ours.decode([letter, *ids]) for ids in encoded] == texts  # a space at the very beginning is ours to keep
    draw = random.Random(0)
    for ids, text in zip(encoded[::9], texts[::9], strict=True):
        stream, pieces, rest = Detokenizer(ours.vocabulary.join), "", [letter, *ids]
        while rest:
            size = draw.randrange(1, 4)
            pieces += stream.push(rest[:size])
            rest = rest[size:]
        assert pieces + stream.push([], last=True) == text
    assert ours.size >= len(theirs)


REFUSED = {
    "a class that is not known": (_config(tokenizer_class="T5Tokenizer"), "Llama 2", "tokenizer_class 'T5Tokenizer'"),
    "Llama's class with another model": (
        _config(tokenizer_class="LlamaTokenizer"),
        "Unigram",
        "a Unigram model with tokenizer_class",
    ),
    "spaces cleaned up": (_config(clean_up_tokenization_spaces=True), "Unigram", "clean_up_tokenization_spaces true"),
    "Mistral's expression": (_config(fix_mistral_regex=True), "Llama 3", "fix_mistral_regex True"),
    "a flag that is none": (_config(split_special_tokens="no"), "Llama 3", "split_special_tokens 'no'"),
    "a token that is a number": (_config(extra_special_tokens=[3]), "Llama 3", "extra_special_tokens"),
    "an id that it does not have": (
        _config(added_tokens_decoder={"9999": {"content": "<new>"}}),
        "Llama 3",
        "id 9999 for '<new>'",
    ),
    "templates that are none": (_config(chat_template=[{"name": []}]), "Llama 3", "chat_template"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_not_followed_are_refused_by_name(case: str, tmp_path: Path) -> None:
    change, kind, words = REFUSED[case]
    files = KINDS[kind]()
    change(files)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.from_folder(files.write(tmp_path))
