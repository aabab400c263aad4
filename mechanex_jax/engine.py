"""Strings to arrays and back: tokenise, bucket the shapes, build the transform and the edits, call the loop, detokenise."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import edits as edit
from mechanex_jax import rows, transforms
from mechanex_jax.config import GenerationConfig
from mechanex_jax.errors import NotLocalError, Said, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.loops import autoregressive as loop
from mechanex_jax.loops.stops import stop_table
from mechanex_jax.methods import NEUTRAL
from mechanex_jax.text import Detokenizer

MICRO_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Request:
    """One row: what to continue and how.

    Attributes:
      tokens: ids of the prompt, at least one.
      config: the row's arguments.
      steering: as `edits.parse_steering` returns it, or None.
    """

    tokens: tuple[int, ...]
    config: GenerationConfig
    steering: Any = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """What `details=True` returns.

    Attributes:
      text: the continuation, ended before a stop string.
      tokens: ids generated, an end-of-sequence id and the tokens of a stop string included.
      logprobs: of each token, under the model itself (temperature 1, before any transform).
      finish_reason: "eos", "stop", "length", or "dead_end" where every token was forbidden.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


def prepare(loaded: LoadedModel, prompt: Any, config: GenerationConfig, name: str = "prompt") -> Request:
    """Tokenise one prompt and check it against the model.

    Raises:
      ArgumentError: not a string, empty without a BOS, longer than the context, or arguments that this model can't serve.
    """
    if not isinstance(prompt, str) and not (config.chat and isinstance(prompt, list)):
        raise expected(name, prompt, "a string (with chat=True also a list of messages)")
    if isinstance(prompt, str) and not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise expected(name, prompt, "text that UTF-8 can hold", "It has half of a surrogate pair: decode the input properly.")
    tokenizer, spec = loaded.tokenizer, loaded.model.spec
    tokens = tokenizer.encode_chat(prompt) if config.chat else tokenizer.encode(str(prompt))
    if not tokens and tokenizer.bos_id is not None:
        tokens = [tokenizer.bos_id]
    if not tokens:
        raise expected(name, prompt, "at least one token", f"{loaded.name} has no beginning-of-sequence token to start from.")
    if len(tokens) >= spec.context:
        raise expected(
            name,
            Said(f"{len(tokens)} tokens"),
            f"at most {spec.context - 1}, the context of {loaded.name} less one",
            "Shorten it.",
        )
    for token in config.logit_bias or ():
        if int(token) >= spec.vocabulary:
            raise expected("logit_bias", token, f"token ids below {spec.vocabulary}")
    vectors = config.steering_vector
    if isinstance(vectors, str):
        raise NotLocalError("steering_vector: stored vectors are not available in this version; pass {layer: vector}.")
    steering = None if vectors is None else edit.parse_steering(vectors, spec.width, spec.layers)
    if steering is not None and config.steering_strength == 0:
        warnings.warn("steering_vector has no effect: steering_strength is 0, its default.", UserWarning, stacklevel=2)
    return Request(tuple(tokens), config, steering)


@partial(jax.jit, static_argnames="impl")
def _row_keys(seeds: jax.Array, indices: jax.Array, impl: str = "threefry2x32") -> jax.Array:
    # By name: the "rbg" generator draws differently under vmap, and rows would depend on each other.
    data = jnp.stack([jnp.zeros_like(seeds), seeds], axis=-1)
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data, impl=impl), indices)


def row_keys(seeds: Sequence[int], indices: Sequence[int]) -> jax.Array:
    """fold_in(key(seed), index) for each pair; typed keys [B]."""
    return _row_keys(np.asarray(seeds, np.uint32), np.asarray(indices, np.uint32))


def _transform(loaded: LoadedModel, configs: Sequence[GenerationConfig], user: Any) -> Any:
    """One chain for all rows: what a row does not ask for is neutral, what no row asks for is absent."""
    vocabulary = loaded.model.spec.vocabulary
    parts: list[Any] = []
    penalties = {name: [getattr(c, f"{name}_penalty") for c in configs] for name in ("repetition", "presence", "frequency")}
    if any(value is not None for column in penalties.values() for value in column):
        neutral = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0}
        filled = {n: [neutral[n] if v is None else v for v in column] for n, column in penalties.items()}
        parts.append(transforms.penalties(vocabulary, **filled))
    if any(c.logit_bias for c in configs):
        bias = np.zeros((len(configs), vocabulary), np.float32)
        for row, config in enumerate(configs):
            for token, value in (config.logit_bias or {}).items():
                bias[row, int(token)] = value
        parts.append(transforms.logit_bias(bias))
    if any(c.min_tokens for c in configs):
        parts.append(transforms.min_new_tokens([c.min_tokens for c in configs], loaded.tokenizer.eos_ids))
    wanted = [{**NEUTRAL, **c.method.truncation(c)} for c in configs]
    parts.append(transforms.truncation(**{name: [row[name] for row in wanted] for name in NEUTRAL}))
    if user is not None:
        parts.append(user)
    return transforms.chain(*parts)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that decode together, padded to a bucket of rows by repeating the first with nothing to generate."""

    loaded: LoadedModel
    requests: Sequence[Request]
    keys: jax.Array
    transform: Any = None
    edits: Any = ()

    def start(self) -> tuple[loop.Program, loop.Carry]:
        spec, tokenizer = self.loaded.model.spec, self.loaded.tokenizer
        size = loop.bucket(len(self.requests), 1)
        padding = size - len(self.requests)
        chosen = [*range(len(self.requests)), *[0] * padding]
        requests = [self.requests[i] for i in chosen]
        configs = [r.config for r in requests]
        lengths = np.array([len(r.tokens) for r in requests], np.int32)
        prompts = np.zeros((size, lengths.max()), np.int32)
        for row, request in enumerate(requests):
            prompts[row, : lengths[row]] = request.tokens
        max_new = np.minimum([c.max_tokens for c in configs], spec.context - lengths)
        max_new[len(self.requests) :] = 0
        stops = [c.stops for c in configs]
        user, user_edits = rows.take_rows((self.transform, self.edits), chosen, len(self.requests))
        steered = edit.steering([r.steering for r in requests], [c.steering_strength for c in configs], spec.width)
        with jax.default_device(self.loaded.device):
            return loop.start(
                self.loaded.model,
                prompts,
                lengths,
                _transform(self.loaded, configs, user),
                edits=(*steered, *user_edits),
                stops=stop_table(stops, *self.loaded.token_bytes) if any(stops) else None,
                key=self.keys[np.array(chosen)],
                max_new_tokens=max_new,
                eos_ids=tokenizer.eos_ids,
            )

    def completions(self, result: loop.DecodeResult) -> list[Completion]:
        """The padding rows left out."""
        return [self._completion(row, result) for row in range(len(self.requests))]

    def _completion(self, row: int, result: loop.DecodeResult) -> Completion:
        length = int(result.lengths[row])
        tokens = tuple(result.tokens[row, :length].tolist())
        text = self.detokenizer(row).push(tokens, last=True)
        reason = loop.FinishReason(result.finish_reason[row]).name.lower()
        return Completion(text, tokens, tuple(result.logprobs[row, :length].tolist()), reason)

    def detokenizer(self, row: int) -> Detokenizer:
        return Detokenizer(self.loaded.tokenizer.vocabulary.bytes_of, self.requests[row].config.stops)


def run(
    loaded: LoadedModel,
    requests: Sequence[Request],
    keys: jax.Array,
    *,
    transform: Any = None,
    edits: Any = None,
    micro_batch: int = MICRO_BATCH,
    on_rows: Callable[[Sequence[int], Sequence[Completion]], None] = lambda indices, completions: None,
) -> list[Completion]:
    """Decode all requests, in micro-batches of rows of like length, and return them in the order given.

    Args:
      loaded: the model.
      requests: any number of rows.
      keys: typed keys, one per request.
      transform: a LogitsTransform to apply after the method's; its fields hold one value or one per request.
      edits: edits to apply after the steering vectors.
      micro_batch: rows that decode together; memory is bounded by it.
      on_rows: called with the indices and completions of each micro-batch as it ends.
    """
    own, total = (transform, edit.compose(edits)), len(requests)
    # Alike in steps first, then in prompt length: rows of a micro-batch then waste little on each other.
    order = sorted(range(len(requests)), key=lambda i: (requests[i].config.max_tokens, len(requests[i].tokens)))
    done: list[Completion | None] = [None] * len(requests)
    for first in range(0, len(order), micro_batch):
        chosen = order[first : first + micro_batch]
        batch = Batch(
            loaded,
            [requests[i] for i in chosen],
            keys[np.array(chosen)],
            *rows.take_rows(own, chosen, total),
        )
        program, carry = batch.start()
        completions = batch.completions(loop.result(loop.finish(program, carry)))
        for index, completion in zip(chosen, completions, strict=True):
            done[index] = completion
        on_rows(chosen, completions)
    return [completion for completion in done if completion is not None]


def stream(loaded: LoadedModel, request: Request, key: jax.Array, *, transform: Any = None, edits: Any = None) -> Iterator[str]:
    """The text of one request in final pieces; joined, they are the text that `run` returns."""
    batch = Batch(loaded, [request], key[None], transform, edit.compose(edits))
    program, carry = batch.start()
    detokenizer, seen = batch.detokenizer(0), 0
    for latest in loop.advance(program, carry, seconds=0.05):
        length, prompt = int(latest.generated[0]), len(request.tokens)
        tokens = np.asarray(latest.tokens[0])[prompt + seen : prompt + length]
        seen = length
        if piece := detokenizer.push(tokens):
            yield piece
    if piece := detokenizer.push((), last=True):
        yield piece
