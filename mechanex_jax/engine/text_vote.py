"""Ensembles whose members have tokenizers of their own: they vote on whole texts.

Each member generates a candidate from its own processed distribution. Every member scores all candidates, in its own tokens and
without any transform, and log-likelihoods per UTF-8 byte compare across tokenizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mechanex_jax import loops
from mechanex_jax.checkpoints import Tokenizer
from mechanex_jax.engine.batch import Batch
from mechanex_jax.engine.request import Completion
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loops.prefill import bucket

_MEMBER = 0x3E3BE2  # sets the members' random numbers apart from each other's steps


@dataclasses.dataclass(frozen=True)
class _Member:
    """Attributes:
    batch: the rows as this member sees them.
    edits: of its activations, for the padded rows.
    candidates: what it says, one completion per row.
    """

    batch: Batch
    edits: Any
    candidates: list[Completion]

    def has(self, reason: str) -> np.ndarray:
        """bool [B]: candidates that ended so. Without an end-of-sequence token, a constrained text ends in a dead end."""
        own = {"eos", "dead_end"} if reason == "eos" else set()
        reasons = {reason} if self.batch.loaded.tokenizer.eos_ids else own
        return np.array([candidate.finish_reason in reasons for candidate in self.candidates])


def text_vote(batch: Batch) -> list[Completion]:
    """The text that the members prefer, for every row; a member of weight 0 is absent.

    Rows of a batch have the same members, voting and weights.

    Raises:
      ArgumentError: a transform of the caller's own, which is written for one vocabulary.
    """
    if batch.transform is not None:
        raise expected(
            "transform", Verbatim("one for a single vocabulary"), "None in an ensemble of several tokenizers", "Leave it out."
        )
    config = batch.requests[0].config
    weights = np.ones(1 + len(batch.requests[0].members)) if config.ensemble_weights is None else config.ensemble_weights
    heard = np.flatnonzero(weights)
    members = [_member(part) for index, part in enumerate(_parts(batch)) if index in heard]
    likelihoods = np.array([[_loglikelihoods(m, other) for other in members] for m in members])
    names = [member.batch.loaded.name for member in members]

    def choose(row: int) -> Completion:
        said = [member.candidates[row] for member in members]
        sizes = [len(candidate.text.encode()) for candidate in said]
        best = loops.select(likelihoods[:, :, row], sizes, voting=config.voting, weights=[float(weights[i]) for i in heard])
        per_byte = likelihoods[:, :, row] / np.maximum(sizes, 1)
        candidates = [
            {
                "member": name,
                "text": candidate.text,
                "finish_reason": candidate.finish_reason,
                "loglikelihood_per_byte": dict(zip(names, per_byte[:, index].tolist(), strict=True)),
            }
            for index, (name, candidate) in enumerate(zip(names, said, strict=True))
        ]
        trace = {"members": names, "voting": config.voting, "winner": names[best], "candidates": candidates}
        return dataclasses.replace(said[best], trace=trace)

    return [choose(row) for row in range(len(batch.requests))]


def _parts(batch: Batch) -> Iterator[Batch]:
    """The batch as each member sees it. The loaded model draws as it does alone; edits act on it only."""
    yield batch
    for index, partner in enumerate(batch.requests[0].partners):
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _MEMBER), index))(batch.keys)  # noqa: B023
        requests = [request.members[index] for request in batch.requests]
        yield dataclasses.replace(batch, loaded=partner, requests=requests, keys=keys, edits=())


def _member(batch: Batch) -> _Member:
    arguments = batch.arguments()
    with jax.default_device(batch.loaded.device):
        found = loops.result(loops.finish(*loops.start(**arguments)))
    return _Member(batch, arguments["edits"], batch.completions(found))


def _spell(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that continues another. Some tokenizers put a space in front of a text, but none behind a newline."""
    plain = tokenizer.encode(text, add_special_tokens=False)
    behind = tokenizer.encode("\n" + text, add_special_tokens=False)
    for ids in (plain, *(behind[skipped:] for skipped in (1, 2, 3))):
        if tokenizer.vocabulary.join(ids) == text.encode():
            return ids
    return plain


def _loglikelihoods(member: _Member, other: _Member) -> np.ndarray:
    """ln p(text | prompt) of the other's candidate for each row, float64 [B]; of a dead end -inf.

    Where the candidate ended itself, the end counts: otherwise nothing would be likelier than to say nothing. What of a long
    text is beyond the member's context is taken to be as likely per byte as the part within.
    """
    loaded, requests = member.batch.loaded, member.batch.requests
    tokenizer, context = loaded.tokenizer, loaded.model.spec.context
    prompts = [request.tokens for request in requests]
    spelled = [_spell(tokenizer, candidate.text) for candidate in other.candidates]
    kept = [ids[: context - len(prompt)] for prompt, ids in zip(prompts, spelled, strict=True)]
    fits = [len(prompt) + len(ids) < context for prompt, ids in zip(prompts, spelled, strict=True)]
    ended = other.has("eos") & fits & bool(tokenizer.eos_ids)

    def total(end: int) -> np.ndarray:
        rows = [[*p, *ids, *([end] if e else [])] for p, ids, e in zip(prompts, kept, ended, strict=True)]
        rows += [rows[0]] * (bucket(len(rows), 1) - len(rows))
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = row
        begun = np.array([len(p) for p in prompts] + [len(prompts[0])] * (len(rows) - len(prompts)), np.int32)
        with jax.default_device(loaded.device):
            scores = loops.score(loaded.model, tokens, lengths, begun, edits=member.edits)
        return scores[: len(prompts)].astype(np.float64)

    totals = np.stack([total(end) for end in (tokenizer.eos_ids if ended.any() else [0])])
    found = np.where(ended, np.logaddexp.reduce(totals), totals[0])
    sizes = [[len(tokenizer.vocabulary.join(ids)) for ids in texts] for texts in (kept, spelled)]
    found *= np.maximum(sizes[1], 1) / np.maximum(sizes[0], 1)
    return np.where(other.has("dead_end"), -np.inf, found)
