"""A batch on its way: requests that decode together, as the arrays that a loop takes, and what comes back as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mechanex_jax import edits as edit
from mechanex_jax import rows, transforms
from mechanex_jax.constraints.device.token_mask import pack_constraints
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.methods import NEUTRAL, NEUTRAL_SUBSET
from mechanex_jax.loading import LoadedModel
from mechanex_jax.loops import DecodeResult, FinishReason, stop_table
from mechanex_jax.loops.prefill import bucket
from mechanex_jax.tokenization.detokenizer import Detokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """One row: what to continue and how.

    Attributes:
      tokens: ids of the prompt, at least one.
      config: the row's arguments.
      steering: an `edits.RowSteering`, strengths applied, or None.
      constraint: tables for this model's vocabulary, or None.
      forbidden: tables of the texts without the row's forbidden terms, or None.
      partners: other models that the row asks for: its draft, or the further members of its ensemble.
      members: where tokenizers of an ensemble differ, what each of `partners` is asked, in its own tokens.
    """

    tokens: tuple[int, ...]
    config: GenerationConfig
    steering: Any = None
    constraint: Any = None
    forbidden: Any = None
    partners: tuple[LoadedModel, ...] = ()
    members: tuple[Request, ...] = ()

    @property
    def loop(self) -> str:
        """Which of `mechanex_jax.engine.runners` runs it."""
        return "text-vote" if self.members else self.config.loop


@dataclasses.dataclass(frozen=True)
class Completion:
    """What `details=True` returns.

    Attributes:
      text: the continuation, ended before a stop string.
      tokens: ids generated, an end-of-sequence id and the tokens of a stop string included; of an ensemble with several
        tokenizers, in that of the member whose text was chosen.
      logprobs: of each token, under the model itself (temperature 1, before any transform).
      finish_reason: "eos", "stop", "length", or "dead_end" where every token was forbidden.
      trace: what the method has to tell besides; for beam search the other hypotheses.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    trace: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)


def _transform(loaded: LoadedModel, requests: Sequence[Request], user: Any) -> Any:
    """One chain for all rows: what a row does not ask for is neutral, what no row asks for is absent."""
    vocabulary = loaded.model.spec.vocabulary
    configs = [request.config for request in requests]
    parts: list[Any] = []
    # First, so that truncation acts on legal tokens.
    for machines in ([request.constraint for request in requests], [request.forbidden for request in requests]):
        if any(machine is not None for machine in machines):
            parts.append(pack_constraints(machines, loaded.tokenizer.vocabulary, token_bytes=loaded.token_bytes))
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
    truncations, subsets = [c.truncation for c in configs], [c.subset for c in configs]
    parts.append(transforms.truncation(**{name: [row[name] for row in truncations] for name in NEUTRAL}))
    if any(subset["subset_size"] for subset in subsets):
        # The truncation before has divided by the temperature already.
        columns = {name: [subset[name] for subset in subsets] for name in NEUTRAL_SUBSET}
        parts.append(transforms.determinantal(loaded.directions, **columns))
    if user is not None:
        parts.append(user)
    return transforms.chain(*parts)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that decode together, padded to a bucket of rows by repeating the first with nothing to generate.

    Attributes:
      loaded: the model.
      requests: the rows, without the padding.
      keys: typed keys, one per request.
      transform: the caller's own LogitsTransform, for these rows, or None.
      edits: the caller's own edits, for these rows.
    """

    loaded: LoadedModel
    requests: Sequence[Request]
    keys: jax.Array
    transform: Any = None
    edits: Any = ()

    def arguments(self) -> dict[str, Any]:
        """What every loop takes, by name."""
        spec, tokenizer = self.loaded.model.spec, self.loaded.tokenizer
        size = bucket(len(self.requests), 1)
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
        return {
            "model": self.loaded.model,
            "prompt_tokens": prompts,
            "prompt_lengths": lengths,
            "transform": _transform(self.loaded, requests, user),
            "edits": (*edit.steering([r.steering for r in requests], spec.width), *user_edits),
            "stops": stop_table(stops, *self.loaded.token_bytes) if any(stops) else None,
            "key": self.keys[np.array(chosen)],
            "max_new_tokens": max_new,
            "eos_ids": tokenizer.eos_ids,
        }

    def completion(self, row: int, tokens: np.ndarray, logprobs: np.ndarray, reason: int, trace: Any = None) -> Completion:
        """Arrays without their padding -> text."""
        ids = tuple(tokens.tolist())
        text = self.detokenizer(row).push(ids, last=True)
        return Completion(text, ids, tuple(logprobs.tolist()), FinishReason(reason).name.lower(), trace or {})

    def completions(self, found: DecodeResult, trace: Callable[[int], Any] = lambda row: None) -> list[Completion]:
        """What a loop returned, the padding rows left out."""
        return [
            self.completion(row, found.tokens[row, :n], found.logprobs[row, :n], found.finish_reason[row], trace(row))
            for row, n in enumerate(found.lengths[: len(self.requests)])
        ]

    def detokenizer(self, row: int) -> Detokenizer:
        return Detokenizer(self.loaded.tokenizer.vocabulary.bytes_of, self.requests[row].config.stops)
