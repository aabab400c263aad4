"""What `benchmarks/constraints.py` compares with: masks of llguidance and XGrammar, and larger vocabularies."""

from __future__ import annotations

import base64
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import llguidance
import llguidance.numpy
import numpy as np

from mechanex_jax import rows
from mechanex_jax.constraints.compiler import Target
from mechanex_jax.tokenization.vocabulary import Vocabulary

try:
    import xgrammar as _xgrammar
except ImportError:
    _xgrammar = None

xgrammar: Any = _xgrammar


def tekken() -> Vocabulary:
    """Mistral's, of 131,072 ids."""
    import mistral_common

    (path,) = (Path(mistral_common.__file__).parent / "data").glob("tekken_240911.json")
    content = json.loads(path.read_text("utf-8"))
    size, special = content["config"]["default_vocab_size"], content["config"]["default_num_special_tokens"]
    listed = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"][: size - special]]
    return Vocabulary.from_tokens([None] * special + listed)


def extended(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """The vocabulary with random pairs of its tokens joined to further ones."""
    tokens = [None if special else vocabulary.bytes_of(i) for i, special in enumerate(vocabulary.special)]
    real = [token for token in tokens if token]
    known, rng = set(real), np.random.default_rng(0)
    while len(tokens) < size:
        for left, right in rng.integers(0, len(real), (size - len(tokens), 2)):
            joined = real[left] + real[right]
            if joined not in known:
                known.add(joined)
                tokens.append(joined)
    return Vocabulary.from_tokens(tokens)


class _Tokens:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, target: Target):
        vocabulary = target.vocabulary
        self.eos_token_id = target.eos_ids[0]
        self.special_token_ids = np.flatnonzero(vocabulary.special).tolist()
        self.tokens = [
            f"<|special {i}|>".encode() if special else vocabulary.bytes_of(i) for i, special in enumerate(vocabulary.special)
        ]
        self._single = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._single.get(text[i : i + 1], self.eos_token_id) for i in range(len(text))]


class LLGuidance:
    """llguidance's masks; compact JSON, as ours."""

    def __init__(self, target: Target, text: str | None = None):
        self.words = -(-target.logits // 32)
        # Of the tokens that spell forced bytes it allows the usual ones alone: in the loop it wants the text of tokenizer.json.
        given = llguidance.TokenizerWrapper(_Tokens(target)) if text is None else text
        self._tokenizer = llguidance.LLTokenizer(given, n_vocab=target.logits, eos_token=list(target.eos_ids))

    def compile(self, kind: str, source: Any) -> Any:
        matcher = llguidance.LLMatcher
        if kind == "json_schema":
            compact: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
            grammar = matcher.grammar_from_json_schema(source, overrides=compact)
        else:
            grammar = matcher.grammar_from_regex(source) if kind == "regex" else matcher.grammar_from_lark(source)
        made = matcher(self._tokenizer, grammar, log_level=0)
        if made.is_error():
            raise ValueError(made.get_error())
        return made

    def matcher(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def accept(self, matcher: Any, token: int) -> None:
        matcher.consume_token(token)

    def fill(self, matcher: Any, words: np.ndarray) -> None:
        """The mask, into int32 [1, W]."""
        llguidance.numpy.fill_next_token_bitmask(matcher, words)


class XGrammar:
    """XGrammar's masks; compact JSON, and open objects open, as ours."""

    def __init__(self, target: Target, text: str | None = None):
        vocabulary = target.vocabulary
        listed = [vocabulary.bytes_of(i) for i in range(vocabulary.size)]
        info = xgrammar.TokenizerInfo(listed, vocab_size=target.logits, stop_token_ids=list(target.eos_ids))
        self.words = -(-target.logits // 32)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=os.cpu_count() or 1, cache_enabled=False)

    def compile(self, kind: str, source: Any) -> Any:
        if kind == "json_schema":
            style = {"any_whitespace": False, "separators": (",", ":"), "strict_mode": False}
            return self._compiler.compile_json_schema(json.dumps(source), **style)
        if kind == "regex":
            return self._compiler.compile_regex(source)
        return self._compiler.compile_grammar(source) if "::=" in source else self._compiler.compile_lark(source)

    def matcher(self, compiled: Any) -> Any:
        return xgrammar.GrammarMatcher(compiled)

    def accept(self, matcher: Any, token: int) -> None:
        matcher.accept_token(token)

    def fill(self, matcher: Any, words: np.ndarray) -> None:
        import torch

        matcher.fill_next_token_bitmask(torch.from_numpy(words))


PEERS: dict[str, Any] = {"llguidance": LLGuidance} | ({} if xgrammar is None else {"XGrammar": XGrammar})


class Asked:
    """The peers' matchers of a batch, behind a callback."""

    def __init__(self, peer: Any, sources: list[Any]):
        made = [None if source is None else peer.compile("json_schema", source) for source in sources]
        self._fresh = [None if one is None else functools.partial(peer.matcher, one) for one in made]
        self._peer = peer
        self._rows: list[Any] = [None] * len(sources)
        self._read = [0] * len(sources)

    def words(self, number: Any, index: Any, token: Any) -> np.ndarray:
        """int32 [B, W]: for rows that stand at `index`, where `token` was chosen last. To ask again changes nothing."""
        out = np.full((len(number), self._peer.words), -1, np.int32)
        for at, (row, step, last) in enumerate(zip(np.asarray(number), np.asarray(index), np.asarray(token), strict=True)):
            fresh = self._fresh[row]
            if fresh is None:
                continue
            if step == 0:
                self._rows[row], self._read[row] = fresh(), 0
            elif step > self._read[row]:
                self._peer.accept(self._rows[row], int(last))
                self._read[row] = int(step)
            self._peer.fill(self._rows[row], out[at : at + 1])
        return out


@rows.row_tree
class HostMask:
    """A LogitsTransform that asks the host what is allowed."""

    number: Any = rows.row(0, jnp.int32)
    asked: Asked = rows.static()

    def init(self, prompt: Any, length: Any) -> jax.Array:
        return jnp.int32(-1)

    def apply(self, state: jax.Array, logits: jax.Array, step: Any) -> jax.Array:
        shape = jax.ShapeDtypeStruct((self.asked._peer.words,), jnp.int32)
        words = jax.pure_callback(self.asked.words, shape, self.number, step.index, state, vmap_method="expand_dims")
        bits = (words[:, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
        return jnp.where(bits.astype(jnp.bool_).reshape(-1)[: logits.shape[0]], logits, -jnp.inf)

    def advance(self, state: jax.Array, token: jax.Array, step: Any) -> jax.Array:
        return token
