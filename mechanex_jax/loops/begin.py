"""How a batch begins: everything broadcast to its rows, the prompts in the cache, and the first carry."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from mechanex_jax import rows
from mechanex_jax.edits import Edit
from mechanex_jax.loops.carry import Carry, FinishReason, Program
from mechanex_jax.loops.inputs import DecodeInputs, RowKeys
from mechanex_jax.loops.language_model import ModelCache
from mechanex_jax.loops.prefill import prefill
from mechanex_jax.loops.stop_strings import IDLE, StopTable
from mechanex_jax.transforms.base import LogitsTransform, init_rows


def broadcast(inputs: DecodeInputs, copies: int = 1) -> tuple[LogitsTransform, tuple[Edit, ...], StopTable | None]:
    """Transform, edits and stops with one value per row, `copies` neighbouring rows for each prompt.

    Raises:
      ArgumentError: a field holds neither one value nor one for each of B rows.
    """
    trees, batch = (inputs.transform, inputs.edits, inputs.stops), len(inputs.prompt_lengths)
    if copies > 1:
        trees = rows.take_rows(trees, np.repeat(np.arange(batch), copies).tolist(), batch)
    return rows.broadcast_rows(trees, batch * copies)


def carry_of(
    program: Program,
    cache: ModelCache,
    history: Int32[jax.Array, "B T"],
    lengths: Int32[jax.Array, " B"],
    max_new: Int32[jax.Array, " B"],
    key: RowKeys,
    eos_ids: Int32[jax.Array, " E"],
) -> Carry:
    """The carry after prefill."""
    batch, capacity = history.shape
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    return Carry(
        cache=cache,
        tokens=history,
        prompt_lengths=lengths,
        generated=jnp.zeros(batch, jnp.int32),
        max_new=max_new,
        key=keys,
        eos_ids=jnp.broadcast_to(eos_ids, (batch, len(eos_ids))),
        transform_state=init_rows(program.transform, history, lengths),
        stop_state=jnp.full(batch, IDLE, jnp.int32) if program.stops is None else jnp.asarray(program.stops.root),
        finish=jnp.where(max_new > 0, jnp.int32(FinishReason.RUNNING), jnp.int32(FinishReason.LENGTH)),
        logprobs=jnp.zeros((batch, capacity), jnp.float32),
    )


# One program, so that a cold start does not compile dozens of small ones. Unused weights are kept as inputs, so that the
# carry is committed to their device from the start: else a prompt of one token, which needs no prefill, would compile the loop
# a second time for its second chunk.
_carry_of = partial(jax.jit, keep_unused=True, donate_argnames="cache")(carry_of)


def begin(inputs: DecodeInputs) -> tuple[Program, Carry]:
    """Prefill all but the last token of each prompt."""
    on_host = broadcast(inputs)
    program = Program(inputs.model, *jax.device_put(on_host))
    cache = prefill(inputs.model, (on_host[1], program.edits), inputs.history, inputs.prompt_lengths)
    carry = _carry_of(program, cache, inputs.history, inputs.prompt_lengths, inputs.max_new, inputs.key, inputs.eos_ids)
    return program, carry
