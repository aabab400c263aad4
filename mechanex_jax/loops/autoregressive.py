"""Decoding one token after the other: prefill, then one `lax.while_loop`.

The prompt's last token is not prefilled. The loop's first step reads it like every later token, so prefill needs no logits, and
the loop's body, the expensive part to compile, is the same for every prompt length.
"""

from __future__ import annotations

import numpy as np

from mechanex_jax.edits import Edits
from mechanex_jax.loops.begin import begin
from mechanex_jax.loops.carry import Carry, DecodeResult, FinishReason, Program, result
from mechanex_jax.loops.chunks import advance
from mechanex_jax.loops.inputs import AnyKeys, IntPerRow, TokenIds, Tokens, decode_inputs
from mechanex_jax.loops.language_model import LanguageModel, ModelHandle
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.transforms import LogitsTransform
from mechanex_jax.transforms.base import transform_names
from mechanex_jax.warning import warn


def start(
    model: LanguageModel | ModelHandle,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow | None,
    transform: LogitsTransform | None,
    *,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: AnyKeys,
    max_new_tokens: IntPerRow,
    eos_ids: TokenIds = (),
    capacity: int | None = None,
    pad_id: int = 0,
    spare: int = 0,
) -> tuple[Program, Carry]:
    """Prefill all but the last token of each prompt. Arguments as for `decode`; `spare` positions more are held for drafts.

    >>> program, carry = start(toy(), [[1, 2, 3]], 3, None, key=jax.random.key(0), max_new_tokens=6)
    >>> carry.tokens.shape, carry.generated.tolist()
    ((1, 256), [0])
    """
    inputs = decode_inputs(
        model,
        prompt_tokens,
        prompt_lengths,
        transform,
        edits=edits,
        stops=stops,
        key=key,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        capacity=capacity,
        pad_id=pad_id,
        spare=spare,
    )
    return begin(inputs)


def finish(program: Program, carry: Carry) -> Carry:
    """Run to the end: the last carry of `advance`.

    >>> program, carry = mx.loops.start(toy(), [[1, 2, 3]], 3, None, key=jax.random.key(0), max_new_tokens=6)
    >>> finish(program, carry).generated.tolist()
    [6]
    """
    for latest in advance(program, carry):
        carry = latest
    return carry


def decode(
    model: LanguageModel | ModelHandle,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow | None,
    transform: LogitsTransform | None,
    *,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: AnyKeys,
    max_new_tokens: IntPerRow,
    eos_ids: TokenIds = (),
    capacity: int | None = None,
    pad_id: int = 0,
) -> DecodeResult:
    """Generate for a batch of ragged prompts.

    >>> greedy, key = mx.transforms.temperature(0.0), jax.random.key(0)
    >>> out = decode(toy(), [[1, 2, 3], [4, 0, 0]], [3, 1], greedy, key=key, max_new_tokens=[4, 2])
    >>> out.tokens.tolist(), out.lengths.tolist()
    ([[2, 9, 3, 2], [0, 0, 0, 0]], [4, 2])

    Args:
      model: a `LanguageModel`: weights, `init_cache` and `extend`; or what `mx.load` returns.
      prompt_tokens: whole numbers [B, S], padded on the right, or a list whose rows differ in length.
      prompt_lengths: whole numbers [B], at least 1 each, or one for all rows; None: as long as the rows are.
      transform: written for one row; its fields hold one value, or one per row. None is the identity.
      edits: an Edit or several, applied to the model's activations.
      stops: from `stop_table`, or None.
      key: a key, of which row i uses fold_in(key, i), or B keys; those of `jax.random.PRNGKey` do too. Random numbers of a row
        depend on its key and its step only, not on the batch around it.
      max_new_tokens: one number or one per row [B]; traced.
      eos_ids: ids that end a row.
      capacity: cache positions to allocate; by default the next power of two that is enough.
      pad_id: fills `tokens` behind each row's end.

    Returns:
      A DecodeResult with N = the largest max_new_tokens.

    Raises:
      ArgumentError: shapes that don't fit each other, ids outside the vocabulary, or traced arguments (`traceable_decode`).
    """
    program, carry = start(
        model,
        prompt_tokens,
        prompt_lengths,
        transform,
        edits=edits,
        stops=stops,
        key=key,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        capacity=capacity,
        pad_id=pad_id,
    )
    decoded = result(finish(program, carry), pad_id)
    warn_of_dead_ends(decoded, transform)
    return decoded


def warn_of_dead_ends(decoded: DecodeResult, transform: LogitsTransform | None) -> None:
    """Warn where rows ended because no token was possible."""
    dead = np.flatnonzero(decoded.finish_reason == FinishReason.DEAD_END).tolist()
    if dead:
        cause = "the model's logits" if transform is None else f"the transform {transform_names(transform)}, or the model"
        message = f"finish_reason: dead_end in rows {dead}: every token was forbidden, or a logit was NaN, by {cause}."
        warn(message, RuntimeWarning)
