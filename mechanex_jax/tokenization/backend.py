"""The `tokenizers.Tokenizer` of a checkpoint, as the class of transformers 5 that loads it makes it.

A class with its own constructor takes vocabulary, merges and post-processor from `tokenizer.json`, and makes the rest itself,
whatever the file says of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from mechanex_jax.errors import CheckpointError
from mechanex_jax.tokenization import tokenizer_config
from mechanex_jax.tokenization.tokenizer_config import Config

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Merges: TypeAlias = list[tuple[str, str]]
Vocabulary: TypeAlias = dict[str, int]
Named: TypeAlias = Mapping[str, "AddedToken | str"]
Make: TypeAlias = Callable[[Vocabulary, Merges, Config, Named], "Tokenizer"]

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _TokenizerClass(NamedTuple):
    """A class of transformers.

    Attributes:
      special_tokens: those that it has where no file names them; None is none.
      make: its tokenizer without added tokens and post-processor; None takes `tokenizer.json` as it is.
      marks_all: whether it adds all special tokens anew, with nothing but their text.
    """

    special_tokens: Mapping[str, str | None] = {}
    make: Make | None = None
    marks_all: bool = False


def build(content: str, config: Config) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer, and the texts of its named special tokens.

    Args:
      content: the text of a `tokenizer.json`.
      config: its settings, as `tokenizer_config.read` gives them.

    Raises:
      CheckpointError: files that cannot be read, or that ask for what is not followed here.
    """
    from tokenizers import Tokenizer

    config = tokenizer_config.FIELDS.check(config)
    name = (config.get("tokenizer_class") or "TokenizersBackend").removesuffix("Fast")
    if name == "LlamaTokenizer" and '"ByteLevel"' in content:  # Llama 3 names the class of Llama 2
        name = "TokenizersBackend"
    if name not in _CLASSES:
        raise CheckpointError(
            f"tokenizer_config.json: got tokenizer_class {name!r}; expected one of {', '.join(_CLASSES)}. If tokenizer.json "
            "is right as it is, name PreTrainedTokenizerFast there."
        )
    kind = _CLASSES[name]
    listed = config.get("added_tokens_decoder")
    try:
        stored = Tokenizer.from_str(content)
        padding = {"pad_token": stored.padding["pad_token"]} if stored.padding else {}
        named = tokenizer_config.named_tokens({**padding, **kind.special_tokens, **config})
        backend = stored if kind.make is None else _remade(content, stored, name, kind.make, config, named)
        tokens = _listed(listed) if listed is not None else stored.get_added_tokens_decoder()
        _add_tokens(backend, [token for _, token in sorted(tokens.items())], named, config)
    except CheckpointError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and its panics are not even those
        raise CheckpointError(
            f"tokenizer.json cannot be read ({error}); expected a file of the tokenizers library. Fetch the model again."
        ) from error
    for index, token in (listed or {}).items():
        got = backend.token_to_id(token["content"])
        if got != int(index):
            raise CheckpointError(
                f"tokenizer_config.json: got id {index} for {token['content']!r} in added_tokens_decoder; expected {got}, "
                "which it has with this tokenizer.json. Fetch the model again."
            )
    if config.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE":
        raise CheckpointError(
            "tokenizer_config.json: got clean_up_tokenization_spaces true; expected false, for spaces before punctuation would "
            "be removed from what the model says. Set it to false."
        )
    if kind.marks_all:
        backend.add_tokens([_special(str(token)) for token in [*named.values(), *tokenizer_config.extra_tokens(config)]])
    backend.encode_special_tokens = config.get("split_special_tokens", False)
    # Settings left over from training would cut or pad prompts.
    backend.no_truncation()
    backend.no_padding()
    return backend, {role: str(token) for role, token in named.items()}


def _remade(content: str, stored: Tokenizer, name: str, make: Make, config: Config, named: Named) -> Tokenizer:
    """A tokenizer that the class makes of the vocabulary, the merges and the post-processor of `tokenizer.json`."""
    model = json.loads(content)["model"]
    if type(stored.model).__name__ != "BPE":
        raise CheckpointError(
            f"tokenizer.json: got a {type(stored.model).__name__} model with tokenizer_class {name!r}; expected BPE, which "
            "that class makes. If tokenizer.json is right as it is, name PreTrainedTokenizerFast in tokenizer_config.json."
        )
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made = make(model["vocab"], [(first, second) for first, second in merges], config, named)
    made.post_processor = stored.post_processor  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _listed(tokens: Config) -> dict[int, AddedToken]:
    return {int(index): tokenizer_config.added_token(token) for index, token in tokens.items()}  # pyright: ignore[reportReturnType]


def _add_tokens(backend: Tokenizer, listed: list[AddedToken], named: Named, config: Config) -> None:
    """Add the listed tokens, and the special ones that are not among these or in `tokenizer.json`."""
    by_text = {str(token): token for token in listed}
    names = set(map(str, named.values()))
    known = {str(token) for token in backend.get_added_tokens_decoder().values()} | by_text.keys()
    tokens = list(listed)
    for token in [*named.values(), *tokenizer_config.extra_tokens(config)]:
        if str(token) not in known and str(token) not in map(str, tokens):
            tokens.append(_special(token) if isinstance(token, str) else token)
    for token in tokens:
        token.special = token.special or str(token) in names
    before = backend.get_added_tokens_decoder().values()
    backend.add_tokens([token for token in tokens if repr(token) not in set(map(repr, before))])


def _special(text: str) -> AddedToken:
    from tokenizers import AddedToken

    return AddedToken(text, special=True)


def _llama(vocab: Vocabulary, merges: Merges, config: Config, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    prefix = config.get("add_prefix_space") is not False  # null too
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _gpt_2(vocab: Vocabulary, merges: Merges, config: Config, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _qwen_2(vocab: Vocabulary, merges: Merges, config: Config, named: Named) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated")
    prefix = bool(config.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(prefix, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gemma(vocab: Vocabulary, merges: Merges, config: Config, named: Named) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = str(named.get("unk_token"))
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, unk_token=unknown, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


_END = "<|endoftext|>"
_GEMMA = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"}
_AS_STORED = _TokenizerClass()
_CLASSES: dict[str, _TokenizerClass] = {
    "PreTrainedTokenizer": _AS_STORED,
    "TokenizersBackend": _AS_STORED,
    "PythonBackend": _AS_STORED,
    "BloomTokenizer": _AS_STORED,
    "LlamaTokenizer": _TokenizerClass({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, _llama),
    "GPT2Tokenizer": _TokenizerClass({"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None}, _gpt_2),
    "Qwen2Tokenizer": _TokenizerClass({"unk_token": _END, "eos_token": _END, "pad_token": _END}, _qwen_2, marks_all=True),
    "GemmaTokenizer": _TokenizerClass(_GEMMA, _gemma),
}
"""By name, without "Fast" at its end. Another class is one more row, with what its constructor makes."""
