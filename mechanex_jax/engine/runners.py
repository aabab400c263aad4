"""How each loop runs a batch: the one table from a method's loop to what calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mechanex_jax import loops
from mechanex_jax.engine.batch import Batch
from mechanex_jax.engine.request import Completion
from mechanex_jax.engine.text_vote import text_vote


def _in_one_piece(runner: Runner, batch: Batch) -> Iterator[str]:
    if text := runner.run(batch)[0].text:
        yield text


@dataclasses.dataclass(frozen=True)
class Runner:
    """Attributes:
    run: all rows of a batch, to the end.
    stream: (this runner, a batch of one row) -> its text in final pieces; by default one piece.
    static: arguments in which rows that decode together agree, because they are part of the program.
    width: the argument that says how many rows of the loop one request takes; None is one.
    """

    run: Callable[[Batch], list[Completion]]
    stream: Callable[[Runner, Batch], Iterator[str]] = _in_one_piece
    static: tuple[str, ...] = ()
    width: str | None = None


def _autoregressive(batch: Batch) -> list[Completion]:
    with jax.default_device(batch.loaded.device):
        return batch.completions(loops.result(loops.finish(*loops.start(**batch.arguments()))))


def _stream_autoregressive(runner: Runner, batch: Batch) -> Iterator[str]:
    with jax.default_device(batch.loaded.device):
        program, carry = loops.start(**batch.arguments())
    yield from _pieces(batch, loops.advance(program, carry, seconds=0.05))


def _pieces(batch: Batch, carries: Iterable[loops.Carry]) -> Iterator[str]:
    """The text of a batch of one row, piece by piece."""
    detokenizer, seen, prompt = batch.detokenizer(0), 0, len(batch.requests[0].tokens)
    reason = int(loops.FinishReason.RUNNING)
    for latest in carries:
        length = int(latest.generated[0])
        tokens = np.asarray(latest.tokens[0])[prompt + seen : prompt + length]
        seen, reason = length, int(latest.finish[0])
        if piece := detokenizer.push(tokens):
            yield piece
    if piece := detokenizer.push((), last=True):
        yield piece
    batch.warn_of_dead_end(0, reason)


def _beam(batch: Batch) -> list[Completion]:
    configs = [request.config for request in batch.requests]
    arguments = batch.arguments()
    penalties = np.ones(len(arguments["prompt_lengths"]), np.float32)
    penalties[: len(configs)] = [config.length_penalty for config in configs]
    with jax.default_device(batch.loaded.device):
        found = loops.beam_decode(
            **arguments,
            beam_width=configs[0].beam_width,
            early_stopping=configs[0].early_stopping,
            length_penalty=penalties,
        )

    def hypothesis(row: int, rank: int, trace: Any = None) -> Completion:
        n = found.lengths[row, rank]
        outcome = found.tokens[row, rank, :n], found.logprobs[row, rank, :n], found.finish_reason[row, rank]
        return batch.completion(row, *outcome, trace)

    def best(row: int) -> Completion:
        ranked = [(rank, float(score)) for rank, score in enumerate(found.scores[row]) if np.isfinite(score)]
        kept = [
            {"text": h.text, "tokens": list(h.tokens), "score": score, "finish_reason": h.finish_reason}
            for h, score in ((hypothesis(row, rank), score) for rank, score in ranked)
        ]
        return hypothesis(row, 0, {"hypotheses": kept})

    return [best(row) for row in range(len(configs))]


def _speculate(batch: Batch) -> Iterator[Any]:
    """Carries, the last one finished. Without a draft model, prompt lookup. Noise is shared: the tokens are the plain ones."""
    config, partners = batch.requests[0].config, batch.requests[0].partners
    drafter = loops.model_drafter(partners[0].model, shared_noise=True) if partners else loops.prompt_lookup()
    arguments = batch.arguments()
    # What rounds cost is known from earlier calls of this size.
    kind = (len(arguments["prompt_lengths"]), partners[0].fingerprint if partners else None, config.speculative_steps)
    controller = batch.loaded.draft_lengths.setdefault(kind, loops.DraftLengthController(config.speculative_steps))
    with jax.default_device(batch.loaded.device):
        program, carry = loops.speculative_start(drafter=drafter, **arguments)
    yield carry
    yield from loops.speculative_advance(program, carry, controller)


def _speculative(batch: Batch) -> list[Completion]:
    *_, carry = _speculate(batch)
    found, stats = loops.result(carry.base), loops.speculative_stats(carry)
    drafted_by = batch.requests[0].partners[0].name if batch.requests[0].partners else "prompt lookup"

    def trace(row: int) -> dict[str, Any]:
        return {
            "draft_model": drafted_by,
            "rounds": int(stats.rounds[row]),
            "acceptance_rate": float(stats.acceptance_rate[row]),
            "tokens_per_round": float(stats.tokens_per_round[row]),
        }

    return batch.completions(found, trace)


def _stream_speculative(runner: Runner, batch: Batch) -> Iterator[str]:
    yield from _pieces(batch, (carry.base for carry in _speculate(batch)))


def _ensemble(batch: Batch) -> list[Completion]:
    """All members in one loop, because they share a tokenizer; steering acts on the loaded model."""
    config, partners = batch.requests[0].config, batch.requests[0].partners
    arguments = batch.arguments()
    own = (arguments.pop("edits"), *[None] * len(partners))
    with jax.default_device(batch.loaded.device):
        found = loops.ensemble_decode(
            [arguments.pop("model"), *(partner.model for partner in partners)],
            **arguments,
            voting=config.voting,
            weights=config.ensemble_weights,
            member_edits=own,
        )
    trace = {"members": [batch.loaded.name, *(partner.name for partner in partners)], "voting": config.voting}
    return batch.completions(found, lambda row: trace)


_ENSEMBLE = ("ensemble_models", "voting", "ensemble_weights")
RUNNERS: dict[str, Runner] = {
    "autoregressive": Runner(_autoregressive, _stream_autoregressive),
    "beam": Runner(_beam, static=("beam_width", "early_stopping"), width="beam_width"),
    "speculative": Runner(_speculative, _stream_speculative, static=("draft_model", "speculative_steps")),
    "ensemble": Runner(_ensemble, static=_ENSEMBLE),
    "text-vote": Runner(text_vote, static=_ENSEMBLE),
}
