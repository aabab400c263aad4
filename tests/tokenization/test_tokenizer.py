"""Text to ids and back: as the model's own tokenizer does it, and byte for byte."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from mechanex_jax.checkpoints import Tokenizer
from mechanex_jax.errors import ArgumentError, CheckpointError
from mechanex_jax.tokenization.vocabulary import Vocabulary

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "   runs   of\t\twhitespace \n\n\n and lines\r\n  ",
    "In 2024, 1234567890 and 3.14159e-10; ²³ ½ ١٢٣ Ⅷ",
    "don't I'll we've HE'S",
    "def f(x):\n    return {k: v for k, v in x.items()}  # ok",
    "日本語のテキスト、中文字符。 한국어",
    "مرحبا שלום नमस्ते",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷",
    "e\u0301 é ﬁ \u200b\u00a0\u2028\ufeff",
    "\x00\x01\x7f\x80",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start",
]
CHARACTERS = "ab Z09.,'\n\t\u00e9\u00a0\u00ad\u4e2d\u0301\u200d\U0001f44d\U0001f3fd\u0915\u0008€"


@pytest.fixture(scope="module")
def ours(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_folder)


@pytest.fixture(scope="module")
def theirs(smollm2_folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder)


def _random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(CHARACTERS, k=draw.randrange(40))) for _ in range(count)]


# --- the real model's tokenizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
def test_encoding_equals_transformers(ours: Tokenizer, theirs, special: bool):
    for text in [*TEXTS, *_random_texts(200)]:
        assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special), text


def test_digits_are_cut_one_by_one(ours: Tokenizer):
    # The published tokenizer's ids for this text.
    assert [ours.decode([index]) for index in ours.encode("in 2024")] == ["in", " ", "2", "0", "2", "4"]


def test_the_special_ids_are_the_models(ours: Tokenizer, theirs):
    assert ours.bos_id == theirs.bos_token_id == 1
    assert ours.eos_ids == (theirs.eos_token_id,) == (2,)
    assert ours.size == len(theirs) == 49152


def test_the_bytes_of_a_texts_tokens_are_the_text(ours: Tokenizer):
    for text in [*TEXTS[:-1], *_random_texts(300)]:
        ids = ours.encode(text)
        assert ours.vocabulary.join(ids) == text.encode()
        assert ours.decode(ids) == text


def test_decoding_equals_the_tokenizers_librarys(ours: Tokenizer, smollm2_folder: Path):
    library = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    draw = np.random.default_rng(0)
    for _ in range(200):  # any ids: invalid UTF-8 and special tokens too
        ids = draw.integers(0, 49152, 30).tolist()
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_tokens_that_hold_half_a_character(ours: Tokenizer):
    emoji = "\U0001f9ff"
    ids = ours.encode(emoji)
    assert len(ids) > 1 and all(not _is_text(ours.vocabulary.bytes_of(index)) for index in ids)
    assert ours.decode(ids) == emoji
    assert "\ufffd" in ours.decode(ids[:1])


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi <b>&amp;</b> \n"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "日本 {{ 7 * 7 }} {% raw %}"},
        {"role": "user", "content": ""},
    ],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("opened", [True, False])
def test_the_chat_template_equals_transformers(ours: Tokenizer, theirs, conversation, opened: bool):
    text = theirs.apply_chat_template(conversation, add_generation_prompt=opened, tokenize=False)
    assert ours.apply_chat_template(conversation, add_generation_prompt=opened) == text
    if opened:
        ids = theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(conversation) == ids


def test_a_text_is_one_user_message(ours: Tokenizer):
    assert ours.encode_chat("Hi") == ours.encode_chat([{"role": "user", "content": "Hi"}])


def test_a_fingerprint_is_the_contents(ours: Tokenizer, smollm2_folder: Path):
    again = Tokenizer.from_folder(smollm2_folder)
    assert again.fingerprint == ours.fingerprint and again.vocabulary.fingerprint == ours.vocabulary.fingerprint
    other = _byte_level()
    assert other.fingerprint != ours.fingerprint and other.vocabulary.fingerprint != ours.vocabulary.fingerprint


# --- small tokenizers of each kind ---------------------------------------------------------------------------------


def _byte_level_backend() -> tokenizers.Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(letters)} | {"he": 256, "Ġhe": 257}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e"), ("Ġ", "he")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    backend.add_tokens([AddedToken("<tool> ü", normalized=False)])
    return backend


def _byte_level(**options) -> Tokenizer:
    return Tokenizer(_byte_level_backend().to_str(), **options)


def _pieces_backend(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer as SentencePiece models are converted: spaces as a letter, bytes for what has no piece."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "h",
        "e",
        "l",
        "o",
        "he",
        "▁he",
        "é",
    ]
    if kind == "unigram":
        model = models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], unk_id=0, byte_fallback=True)
    else:
        vocab = {piece: index for index, piece in enumerate(pieces)}
        model = models.BPE(vocab, [("h", "e"), ("▁", "he")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    if kind == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        space = decoders.Replace("▁", " ")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        space = decoders.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return backend


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    index = backend.token_to_id(token)
    assert index is not None
    return index


@pytest.mark.parametrize("kind", ["metaspace", "normalizer", "unigram"])
def test_sentencepiece_tokens_join_to_the_text_with_its_leading_space(kind: str):
    backend = _pieces_backend(kind)
    tokenizer = Tokenizer(backend.to_str(), config={"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    for text in ("hello he", "hé  日本 👍", "e\n"):
        ids = tokenizer.encode(text)
        assert ids[0] == 1 and ids == backend.encode(text).ids
        assert tokenizer.decode(ids) == " " + text
        assert tokenizer.decode(ids) == backend.decode(ids)
    vocabulary = tokenizer.vocabulary
    assert vocabulary.special.nonzero()[0].tolist() == [0, 1, 2]
    assert vocabulary.bytes_of(3 + 0xE9) == b"\xe9" and vocabulary.bytes_of(_id(backend, "é")) == "é".encode()
    assert vocabulary.bytes_of(_id(backend, "▁he")) == b" he"


def test_special_tokens_and_holes_have_no_bytes_and_added_ones_their_own():
    content = json.loads(_byte_level_backend().to_str())
    vocabulary = Vocabulary.from_tokenizer_json(content, size=270)
    assert vocabulary.size == 270 and vocabulary.offsets.dtype == np.int32 and vocabulary.bytes.dtype == np.uint8
    assert vocabulary.special.nonzero()[0].tolist() == [258, 259, *range(261, 270)]
    assert all(vocabulary.bytes_of(index) == b"" for index in vocabulary.special.nonzero()[0].tolist())
    assert vocabulary.bytes_of(260) == "<tool> ü".encode() and vocabulary.bytes_of(257) == b" he"
    assert {vocabulary.bytes_of(index) for index in range(256)} == {bytes([byte]) for byte in range(256)}
    with pytest.raises(ArgumentError, match="at least 261"):
        Vocabulary.from_tokenizer_json(content, size=260)
    for outside in (-1, 270):
        with pytest.raises(ArgumentError, match="0 to 269"):
            vocabulary.bytes_of(outside)
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.offsets[0] = 1


def test_a_byte_level_token_that_spells_no_bytes_is_its_own_text():
    content = json.loads(_byte_level_backend().to_str())
    for index, token in enumerate(("a b", "\u00a0", "é\u00ad", "中"), start=261):
        content["model"]["vocab"][token] = index
        vocabulary = Vocabulary.from_tokenizer_json(content)
        assert vocabulary.bytes_of(index).decode() == decoders.ByteLevel().decode([token]) == token


def test_a_decoder_that_is_not_known_is_named():
    content = json.loads(_byte_level_backend().to_str())
    for decoder, name in ((decoders.WordPiece(), "WordPiece"), (decoders.CTC(), "CTC"), (None, "None")):
        stored = json.loads(decoder.__getstate__()) if decoder else None
        with pytest.raises(CheckpointError, match=f"decoder is {name}"):
            Vocabulary.from_tokenizer_json(content | {"decoder": stored})


# --- what surrounds a text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
@pytest.mark.parametrize("processed", [True, False])
def test_bos_and_eos_surround_a_text_as_in_transformers(tmp_path: Path, bos, eos, processed: bool):
    from transformers import AutoTokenizer

    backend = _byte_level_backend()
    if processed:
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 258)])
    asked = {"add_bos_token": bos, "add_eos_token": eos}
    config = {key: value for key, value in asked.items() if value is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "he he", "<s>he"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


def test_truncation_and_padding_left_in_the_file_do_not_apply():
    backend = _byte_level_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    assert len(Tokenizer(backend.to_str()).encode("abcd")) == 4


def test_every_file_that_names_an_end_counts(tmp_path: Path):
    _byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 259]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5, "bos_token_id": 258, "vocab_size": 300}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.bos_id, tokenizer.size) == ((259, 258, 5), 258, 300)


def test_folders_without_a_readable_tokenizer_say_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model without tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        Tokenizer.from_folder(tmp_path)


# --- chat templates ------------------------------------------------------------------------------------------------

ELABORATE = """{%- set ns = namespace(count=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'skip' -%}{%- continue -%}{%- endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- if message.role == 'bad' -%}{{ raise_exception('no bad role') }}{%- endif -%}
    {{ bos_token }}[{{ message.role | upper }}]
    {% generation %}{{ message | tojson }}{% endgeneration %}
{% endfor -%}
{{ ns.count }} {{ tools is none }} {{ strftime_now('%Y') | length }}
{%- if add_generation_prompt %}{{ eos_token }}{% endif %}"""


def test_templates_find_what_transformers_gives_them(tmp_path: Path):
    from transformers import AutoTokenizer

    _byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "old",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(ELABORATE)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    conversation = [{"role": role, "content": "<é> 'q' & \"d\""} for role in ("user", "skip", "assistant")]
    expected = theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(conversation) == expected and "<é>" in expected
    with pytest.raises(ArgumentError, match="no bad role"):
        ours.apply_chat_template([{"role": "bad", "content": ""}])


def test_of_several_templates_the_default_is_taken():
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "plain"}]
    assert _byte_level(config={"chat_template": named}).apply_chat_template("x") == "plain"


def test_a_model_without_a_template_says_what_to_do():
    for config in ({}, {"chat_template": [{"name": "rag", "template": "rag"}]}):
        with pytest.raises(ArgumentError, match=re.escape("plain prompt, or add a chat_template.jinja")):
            _byte_level(config=config).encode_chat("hi")


def test_messages_of_another_form_are_refused(ours: Tokenizer):
    for messages in ([{"role": "user"}], ["hi"], [("user", "hi")]):
        with pytest.raises(ArgumentError, match="messages: got"):
            ours.encode_chat(messages)  # type: ignore[arg-type]


def test_a_template_cannot_reach_out_of_its_sandbox():
    tokenizer = _byte_level(chat_template="{{ messages.__class__.__mro__[-1].__subclasses__() }}")
    with pytest.raises(ArgumentError, match="unsafe"):
        tokenizer.apply_chat_template("x")
