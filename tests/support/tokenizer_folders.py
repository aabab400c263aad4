"""Small trained tokenizers of every kind, as folders, and texts that are hard to cut."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, don't you think? They've 1234 and 2024 reasons; he'll see 3.14.",
    "def hello(name):\n    return f'Hello, {name}!'\n\n\tprint(hello('the world'))  # the end\r\n",
    "Привет, мир! Это короткий текст. 日本語のテキスト、中文字符。 한국어 مرحبا بالعالم שלום עולם éàü naïve café",
    "the the the there then they hello hello help    and   spaces <user> tool_call { } [ ]",
] * 3
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_SEEN = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass
class Files:
    """The content of a tokenizer's folder; an attribute that is empty gives no file."""

    tokenizer: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=lambda: {"model_type": "llama"})
    special: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        named = {
            "tokenizer.json": self.tokenizer,
            "tokenizer_config.json": self.config,
            "config.json": self.model,
            "special_tokens_map.json": self.special,
            "added_tokens.json": self.added,
        }
        for name, content in named.items():
            if content:
                (folder / name).write_text(json.dumps(content), "utf-8")
        for name, text in self.templates.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        return folder


@functools.cache
def _byte_level(kind: str) -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    if kind == "llama 3":
        words = pre_tokenizers.Split(Regex(WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    elif kind == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    if kind == "llama 3":
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return backend.to_str()


@functools.cache
def _pieces(kind: str) -> str:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    scores = [(piece, -float(rank + 1)) for rank, piece in enumerate(pieces)]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True) if kind == "unigram" else model)
    space = decoders.Replace("▁", " ")
    strip = [decoders.Strip(" ", 1)]
    if kind == "llama 2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        strip = []
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        space, strip = decoders.Metaspace(prepend_scheme="always"), []
    backend.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return backend.to_str()


def _kind(make: Callable[[str], str], kind: str, name: str | None, model: str = "llama") -> Callable[[], Files]:
    def files() -> Files:
        config = dict(_SEEN) | ({"tokenizer_class": name} if name else {})
        return Files(json.loads(make(kind)), copy.deepcopy(config), {"model_type": model})

    return files


KINDS: dict[str, Callable[[], Files]] = {
    "byte level, generic": _kind(_byte_level, "gpt 2", "PreTrainedTokenizerFast"),
    "byte level, digits, as GPT-2": _kind(_byte_level, "smollm", "GPT2Tokenizer"),
    "GPT-2 without a class": _kind(_byte_level, "gpt 2", None, "gpt2"),
    "GPT-2 with another class": _kind(_byte_level, "llama 3", "PreTrainedTokenizerFast", "gpt2"),
    "Llama 3": _kind(_byte_level, "llama 3", "PreTrainedTokenizerFast"),
    "Llama 3 that names Llama 2's class": _kind(_byte_level, "llama 3", "LlamaTokenizerFast"),
    "Qwen 2": _kind(_byte_level, "llama 3", "Qwen2Tokenizer"),
    "Llama 2": _kind(_pieces, "llama 2", "LlamaTokenizer"),
    "Llama 2, generic": _kind(_pieces, "llama 2", "PreTrainedTokenizerFast"),
    "Llama 2 without a class": _kind(_pieces, "llama 2", None),
    "Mistral": _kind(_pieces, "metaspace", "LlamaTokenizer", "mistral"),
    "Gemma": _kind(_pieces, "gemma", "GemmaTokenizerFast"),
    "Metaspace as Llama": _kind(_pieces, "metaspace", "LlamaTokenizerFast"),
    "Unigram": _kind(_pieces, "unigram", "PreTrainedTokenizerFast"),
}

FRAGMENTS = [
    *("\x00", "\x01\x08\x1b", "\x7f\x80\x9f", "\u00ad", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\ue000"),
    *("e\u0301", "\u0301\u0302\u0303", "ﬁ", "\uff21", "ß", "İı", "ǅ", "\u1e9b\u0323", "क्षि", "ประเทศ"),
    *("👍🏽", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇫🇷🇩", "\u200d", "\ufe0f"),
    *("مرحبا", "שלום", "\u202eabc\u202c", "\u200f", "\u2066x\u2069"),
    *("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<tool>", "<|im_", "im_end|>", "< s>", "<S>", "<s><s>", " <s> "),
    *("<new>", "<img>", " <x1>", "<x1> ", "<0x41>", "▁", "▁▁the", "Ġthe", "Ċ", "##"),
    *(" ", "  ", " " * 17, "\t\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\u00a0", "\u2003", "\u2028", "\u3000", "\v\f"),
    *("the", " the", "Hello", "don't", "WE'LL", "3.14159", "1234567890", "٣٤", "²½Ⅷ", "a" * 300, "the" * 80, "x1y2z3"),
    *("日本語", "中文,", "한국어", "Привет", "naïve café", "…—“”", "{}[]()", "\\u0041", "%s%d", "!!!???", ",.;"),
]


def hostile_texts(count: int = 200) -> list[str]:
    """Texts of fragments, some alone and the others drawn, the same on every call."""
    draw = random.Random(12)
    texts = ["", *FRAGMENTS, *(f" {fragment}" for fragment in FRAGMENTS[::4]), *(f"{fragment} " for fragment in FRAGMENTS[::5])]
    while len(texts) < count:
        texts.append("".join(draw.choices(FRAGMENTS, k=draw.randrange(2, 9))))
    return texts[:count]
