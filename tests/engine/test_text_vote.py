"""Ensembles of models with different tokenizers: every member speaks, every member scores, and the best text wins."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import oracles
import pytest
import tokenizers
from sentencepiece_file import PIECES, fields

from mechanex_jax import loading
from mechanex_jax.engine.text_vote import _spell
from mechanex_jax.errors import ArgumentError

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
PROMPT = "The capital of France is"
ENSEMBLE = {"sampling_method": "ensemble-sampling", "max_tokens": 8}


def sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """Mistral's: a piece is merged from two others, the likeliest first, and a space is put in front of every text."""
    pieces = [dict(fields(content)) for number, content in fields(PIECES.read_bytes()) if number == 1]
    vocabulary = {piece[1].decode(): index for index, piece in enumerate(pieces)}
    merges = []
    for text, rank in vocabulary.items():
        if pieces[rank].get(3, 1) == 1:
            halves = [(text[:at], text[at:]) for at in range(1, len(text))]
            merges += [(rank, *half) for half in halves if half[0] in vocabulary and half[1] in vocabulary]
    ordered = [(a, b) for _, a, b in sorted(merges, key=lambda merge: (merge[0], vocabulary[merge[1]], vocabulary[merge[2]]))]
    bpe = tokenizers.models.BPE(vocabulary, ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(bpe)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


@pytest.fixture(scope="module")
def small(mx, tmp_path_factory):
    """Two small random models under names of their own: "pieces" has Mistral's SentencePiece tokenizer, "letters" a BPE of 300
    tokens, a context of 320 positions and no chat template.

    Returns name -> (ours, that of `transformers`).
    """
    pieces = oracles.saved(oracles.llama(vocab_size=32000), tmp_path_factory.mktemp("pieces"), seed=3)
    sentencepiece_tokenizer().save(str(pieces / "tokenizer.json"))
    (pieces / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (pieces / "chat_template.jinja").write_text(TEMPLATE)
    letters = oracles.saved(oracles.gpt2(vocab_size=320), tmp_path_factory.mktemp("letters"), seed=4)
    oracles.save_tokenizer(letters)
    session = mx.runtime.default.session
    folders = {"pieces": pieces, "letters": letters}
    loaded = {name: loading.load(folder) for name, folder in folders.items()}
    session._models = {**loaded, **session._models}
    yield {name: (loaded[name], oracles.theirs(folder)) for name, folder in folders.items()}
    for name in loaded:
        session._models.pop(name)


def per_byte(model, hf, prompt: list[int], text: str, ended: bool) -> float:
    """The oracle: log-likelihood of a text behind a prompt, over its bytes."""
    ids = _spell(model.tokenizer, text)
    assert model.tokenizer.vocabulary.join(ids) == text.encode()
    ends = model.tokenizer.eos_ids if ended else ()
    log_p = np.asarray(jax.nn.log_softmax(oracles.logits_of(hf, [[*prompt, *ids]])))[0]
    total = sum(log_p[len(prompt) + at - 1, token] for at, token in enumerate(ids))
    if ends:
        total += np.log(np.exp(log_p[-1, list(ends)]).sum())
    return float(total / max(len(text.encode()), 1))


def ask(mx, prompt=PROMPT, **arguments):
    text = mx.generation.generate(prompt, include_trace=True, **(ENSEMBLE | arguments))
    return text, mx.generation.last_trace


@pytest.fixture(scope="module")
def peer(smollm2_folder):
    return oracles.theirs(smollm2_folder)


@pytest.mark.parametrize("voting", ["majority", "mean", "product"])
def test_each_member_scores_each_candidate_and_the_vote_picks_one(mx, loaded, small, peer, voting):
    _, trace = ask(mx, ensemble_models=["pieces", "letters"], voting=voting, seed=3, ensemble_weights=[2, 1, 1])
    models = {loaded.name: (loaded, peer)} | {model.name: (model, hf) for model, hf in small.values()}
    assert trace["members"] == list(models) == [candidate["member"] for candidate in trace["candidates"]]
    scores = np.zeros((3, 3))
    for c, candidate in enumerate(trace["candidates"]):
        for m, (name, (model, hf)) in enumerate(models.items()):
            prompt = model.tokenizer.encode(PROMPT)
            scores[m, c] = per_byte(model, hf, prompt, candidate["text"], candidate["finish_reason"] == "eos")
            assert candidate["loglikelihood_per_byte"][name] == pytest.approx(scores[m, c], rel=1e-3, abs=1e-3)
    shares = np.array([0.5, 0.25, 0.25])
    votes = np.bincount(scores.argmax(axis=1), shares, minlength=3)
    mean = shares @ np.exp(scores)
    best = {"mean": mean, "product": shares @ scores, "majority": np.where(votes == votes.max(), mean, -1)}[voting].argmax()
    assert trace["winner"] == trace["candidates"][best]["member"] and trace["text"] == trace["candidates"][best]["text"]


def test_every_candidate_is_what_its_member_says_alone(mx, small):
    drawn = {"temperature": 0.0, "seed": 1}
    _, trace = ask(mx, ensemble_models=["pieces", "letters"], **drawn)
    for candidate, name in zip(trace["candidates"], [None, "pieces", "letters"], strict=True):
        alone = mx.generation.generate(PROMPT, sampling_method="top-p", max_tokens=8, model=name, **drawn)
        assert candidate["text"] == alone


def test_a_member_without_weight_is_absent(mx, loaded, small):
    drawn = {"seed": 5, "temperature": 1.0}
    text, trace = ask(mx, ensemble_models=["pieces", "letters"], ensemble_weights=[1, 0, 0], **drawn)
    assert text == mx.generation.generate(PROMPT, sampling_method="top-p", max_tokens=8, **drawn)
    assert trace["members"] == [loaded.name]


def test_batches_streams_and_single_calls_say_the_same(mx, small):
    prompts = ["Once upon a time", "A", PROMPT]
    arguments = ENSEMBLE | {"ensemble_models": ["pieces"], "seed": [7, 8, 9], "max_tokens": [4, 8, 6], "temperature": 0.6}
    voting = ["mean", "majority", "mean"]
    texts = mx.generation.generate_batch(prompts, voting=voting, include_trace=True, **arguments)
    traces = mx.generation.last_trace
    for row, prompt in enumerate(prompts):
        own = arguments | {name: arguments[name][row] for name in ("seed", "max_tokens")} | {"voting": voting[row]}
        assert mx.generation.generate(prompt, **own) == texts[row]
        assert "".join(mx.generation.stream(prompt, **own)) == texts[row]
        assert traces[row]["winner"] in traces[row]["members"]
    assert len({candidate["text"] for trace in traces for candidate in trace["candidates"]}) == 6


def test_rows_of_one_tokenizer_and_of_several_share_a_batch(mx, loaded, small):
    members = [["pieces"], [loaded.name, "pieces"], None]
    methods = ["ensemble-sampling"] * 2 + ["top-p"]
    common = {"max_tokens": 5, "temperature": 0.0}
    texts = mx.generation.generate_batch([PROMPT] * 3, sampling_method=methods, ensemble_models=members, **common)
    assert texts[0] == texts[1]
    assert texts[2] == mx.generation.generate(PROMPT, sampling_method="top-p", **common)


def test_every_members_candidate_keeps_the_constraint_in_its_own_tokens(mx, small):
    pattern = r"(yes|no), [0-9]{2,4}\."
    _, trace = ask(mx, ensemble_models=["pieces", "letters"], regex_pattern=pattern, seed=2, max_tokens=16, temperature=2.0)
    assert len({candidate["text"] for candidate in trace["candidates"]}) > 1
    for candidate in trace["candidates"]:
        assert re.fullmatch(pattern, candidate["text"])
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    text, _ = ask(mx, ensemble_models=["pieces"], json_schema=schema, seed=2, max_tokens=24)
    assert isinstance(json.loads(text)["n"], int)


def test_steering_acts_on_the_loaded_model_alone_when_it_speaks_and_when_it_scores(mx, loaded, small):
    vector = {15: (40 * np.random.default_rng(0).standard_normal(576) / 24).tolist()}
    drawn = {"temperature": 0.0, "ensemble_models": ["pieces"]}
    plain = ask(mx, **drawn)[1]["candidates"]
    steered = ask(mx, steering_vector=vector, steering_strength=2.0, **drawn)[1]["candidates"]
    assert steered[0]["text"] != plain[0]["text"] and steered[1]["text"] == plain[1]["text"]
    # The other member's candidate is the same, and only the loaded model has changed its mind about it.
    before, after = (candidates[1]["loglikelihood_per_byte"] for candidates in (plain, steered))
    name, other = loaded.name, small["pieces"][0].name
    assert abs(before[name] - after[name]) > 1e-2
    assert before[other] == pytest.approx(after[other], abs=1e-5)


def test_each_member_reads_its_own_chat_template_and_stop_strings_end_all(mx, loaded, small):
    arguments = {"ensemble_models": ["pieces"], "chat": True, "temperature": 0.0, "stop": ["a", "e"], "max_tokens": 24}
    _, trace = ask(mx, "Name a city.", **arguments)
    prompts = [model.tokenizer.apply_chat_template("Name a city.") for model in (loaded, small["pieces"][0])]
    assert "<|im_start|>user" in prompts[0] and prompts[1] == "[user] Name a city.\n[assistant]"
    for candidate, name in zip(trace["candidates"], [None, "pieces"], strict=True):
        expected = mx.generation.generate(
            "Name a city.",
            sampling_method="top-p",
            model=name,
            **{k: v for k, v in arguments.items() if k != "ensemble_models"},
        )
        assert candidate["text"] == expected and not set("ae") & set(expected)


def test_to_say_nothing_is_as_likely_as_the_end_and_not_certain(mx, loaded, small, peer):
    """Under a constraint that only the empty text meets; a member without an end of sequence has nothing to say against it."""
    members = ["pieces", "letters"]
    text, trace = ask(mx, ensemble_models=members, regex_pattern="a{0}", seed=1, voting="product")
    models = [(loaded, peer), *(small[name] for name in members)]
    expected = [per_byte(model, hf, model.tokenizer.encode(PROMPT), "", True) for model, hf in models]
    assert text == "" and expected[0] < -1 and expected[1] < -1 and expected[2] == 0
    for candidate in trace["candidates"]:
        assert candidate["text"] == ""
        assert list(candidate["loglikelihood_per_byte"].values()) == pytest.approx(expected, rel=1e-3)


def test_a_tokenizer_that_adds_a_space_spells_continuations_without_it(small):
    tokenizer = small["pieces"][0].tokenizer
    for text in (" Paris", "Paris", "\nParis\n", "", "  two", "é!"):
        assert tokenizer.vocabulary.join(_spell(tokenizer, text)) == text.encode()
    assert tokenizer.vocabulary.join(tokenizer.encode("Paris", add_special_tokens=False)) == b" Paris"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logit_bias": {5: 1.0}}, "logit_bias.*another tokenizer"),
        ({"prompt": "the future " * 200}, "letters.*320.*|letters.*319"),
        ({"chat": True}, "letters.*can't take part.*chat template"),
        ({"regex_pattern": "a{12}", "max_tokens": 6}, "max_tokens"),
        ({"ensemble_weights": [1]}, "ensemble_weights"),
        ({"ensemble_models": ["letters", "letters"], "ensemble_weights": [1, 2, 3]}, "distinct members"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_members_that_do_not_fit_are_refused_with_the_reason(mx, small, compilations, arguments, words):
    settings = ENSEMBLE | {"ensemble_models": ["letters"]} | arguments

    def call():
        with pytest.raises(ArgumentError, match=words):
            mx.generation.generate(settings.pop("prompt", PROMPT), **settings)

    assert compilations(call) == 0


def test_what_is_made_for_one_vocabulary_is_refused(mx, loaded, small):
    ready = mx.constraints.compile(regex="a+", tokenizer=loaded)
    for arguments in ({"constraint": ready}, {"transform": mx.transforms.temperature(0.5)}):
        with pytest.raises(ArgumentError, match="tokenizer"):
            mx.generation.generate(PROMPT, ensemble_models=["letters"], **ENSEMBLE, **arguments)
