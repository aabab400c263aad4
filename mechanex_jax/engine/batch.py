"""`Batch`: requests that decode together as the arrays that a loop takes, and what it returns as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, Key

from mechanex_jax import edits as edit
from mechanex_jax import rows, transforms
from mechanex_jax.constraints.device.token_mask import pack_constraints
from mechanex_jax.edits import Edit
from mechanex_jax.engine.methods import NEUTRAL_SUBSET
from mechanex_jax.engine.request import Completion, Request
from mechanex_jax.engine.seeds import row_keys
from mechanex_jax.loading import LoadedModel
from mechanex_jax.loops import DecodeResult, FinishReason, stop_table
from mechanex_jax.loops.prefill import bucket
from mechanex_jax.tokenization.detokenizer import Detokenizer
from mechanex_jax.transforms import LogitsTransform
from mechanex_jax.transforms.base import Chain, Guarded, transform_names
from mechanex_jax.transforms.truncation import truncation_rows
from mechanex_jax.warning import warn


def _transform(loaded: LoadedModel, requests: Sequence[Request], user: LogitsTransform | None) -> LogitsTransform:
    """One chain for all rows: what a row does not ask for is neutral, what no row asks for is absent."""
    vocabulary = loaded.model.spec.vocabulary
    configs = [request.config for request in requests]
    parts: list[LogitsTransform] = []
    # First, so that truncation acts on legal tokens.
    for tables in ([request.constraint for request in requests], [request.forbidden for request in requests]):
        if any(table is not None for table in tables):
            parts.append(pack_constraints(tables, loaded.tokenizer.vocabulary, token_bytes=loaded.token_bytes))
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
    if user is not None:  # as custom logits processors in `transformers`: what follows acts on its output
        parts.append(Guarded(user))
    parts.append(truncation_rows([config.values(config.method.truncation) for config in configs]))
    if any(config.method.subset for config in configs):
        # The truncation before has divided by the temperature already.
        subsets = [{**NEUTRAL_SUBSET, **config.values(config.method.subset)} for config in configs]
        columns = {name: [subset[name] for subset in subsets] for name in NEUTRAL_SUBSET}
        parts.append(transforms.determinantal(loaded.directions, **columns))
    return Chain(tuple(parts))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that decode together, padded to a bucket of rows by repeating the first with nothing to generate.

    Attributes:
      loaded: the model.
      requests: the rows, without the padding.
      keys: typed keys, one per row, the padding included; `Batch.of` makes them from the requests' seeds.
      transform: the caller's own LogitsTransform, for these rows, or None.
      edits: the caller's own edits, for these rows.
    """

    loaded: LoadedModel
    requests: Sequence[Request]
    keys: Key[jax.Array, " B"]
    transform: LogitsTransform | None = None
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(
        cls, loaded: LoadedModel, requests: Sequence[Request], transform: LogitsTransform | None, edits: tuple[Edit, ...]
    ) -> Batch:
        """A batch whose rows draw from their requests' seeds."""
        padded = [requests[row] for row in _padded(len(requests), bucket(len(requests), 1))]
        return cls(loaded, requests, row_keys([(request.seed, request.index) for request in padded]), transform, edits)

    def arguments(self) -> dict[str, Any]:
        """What every loop takes, by name."""
        spec, tokenizer = self.loaded.model.spec, self.loaded.tokenizer
        chosen = _padded(len(self.requests), len(self.keys))
        requests = [self.requests[row] for row in chosen]
        configs = [request.config for request in requests]
        lengths = np.array([len(request.tokens) for request in requests], np.int32)
        prompts = np.zeros((len(chosen), lengths.max()), np.int32)
        for row, request in enumerate(requests):
            prompts[row, : lengths[row]] = request.tokens
        max_new = np.minimum([config.max_tokens for config in configs], spec.context - lengths)
        max_new[len(self.requests) :] = 0
        stops = [config.stops for config in configs] if any(config.stop for config in configs) else None
        user, user_edits = self.transform, self.edits
        if user is not None or user_edits:
            user, user_edits = rows.take_rows((user, user_edits), chosen, len(self.requests))
        return {
            "model": self.loaded.model,
            "prompt_tokens": prompts,
            "prompt_lengths": lengths,
            "transform": _transform(self.loaded, requests, user),
            "edits": (*edit.steering([request.steering for request in requests], spec.width), *user_edits),
            "stops": None if stops is None else stop_table(stops, *self.loaded.token_bytes),
            "key": self.keys,
            "max_new_tokens": max_new,
            "eos_ids": tokenizer.eos_ids,
        }

    def completion(
        self,
        row: int,
        tokens: Int32[np.ndarray, " N"],
        logprobs: Float32[np.ndarray, " N"],
        reason: int,
        trace: Mapping[str, object] | None = None,
    ) -> Completion:
        """A row's text from its arrays without their padding."""
        self.warn_of_dead_end(row, reason)
        ids = tuple(tokens.tolist())
        text = self.detokenizer(row).push(ids, last=True)
        return Completion(text, ids, tuple(logprobs.tolist()), FinishReason(reason).name.lower(), trace or {})

    def completions(
        self, result: DecodeResult, trace: Callable[[int], Mapping[str, object] | None] = lambda row: None
    ) -> list[Completion]:
        """The texts that a loop returned, the padding rows left out."""
        return [
            self.completion(row, result.tokens[row, :n], result.logprobs[row, :n], result.finish_reason[row], trace(row))
            for row, n in enumerate(result.lengths[: len(self.requests)])
        ]

    def warn_of_dead_end(self, row: int, reason: int) -> None:
        """Warn where a row ended because no token was possible, naming what may have forbidden them all."""
        if reason != FinishReason.DEAD_END:
            return
        request, config = self.requests[row], self.requests[row].config
        causes = {
            "its constraint": request.constraint is not None,
            "forbidden_terms": request.forbidden is not None,
            "logit_bias": any(value == -np.inf for value in (config.logit_bias or {}).values()),
            "min_tokens": bool(config.min_tokens),
            f"the transform {transform_names(self.transform)}": self.transform is not None,
            "its edits or steering": bool(self.edits) or request.steering is not None,
        }
        candidates = [name for name, present in causes.items() if present] or ["the model, whose logits are not finite"]
        warn(
            f"finish_reason='dead_end' in row {row}: every token was forbidden, or a logit was NaN. "
            f"Possible causes: {', '.join(candidates)}.",
            RuntimeWarning,
        )

    def detokenizer(self, row: int) -> Detokenizer:
        """A fresh detokenizer with the stop strings of a row."""
        config = self.requests[row].config
        return Detokenizer(self.loaded.tokenizer.vocabulary.join, config.stops if config.stop else ())


def _padded(rows: int, size: int) -> list[int]:
    """Numbers of the rows of a batch and, up to its size, the first one again."""
    return [*range(rows), *[0] * (size - rows)]
