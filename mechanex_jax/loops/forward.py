"""One pass over given tokens: logits and activations, without generating."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import rows
from mechanex_jax.edits import SITES, check, compose
from mechanex_jax.errors import expected


class ForwardOutput(NamedTuple):
    """Attributes:
    logits: float32 [B, S, V]; beyond a row's length they mean nothing.
    activations: site -> [B, L, S, D], after the edits made there.
    """

    logits: jax.Array
    activations: dict[str, jax.Array]


@partial(jax.jit, static_argnames="capture")
def _forward(model: Any, tokens: jax.Array, lengths: jax.Array, edits: Any, capture: tuple[str, ...]) -> ForwardOutput:
    cache = model.init_cache(*tokens.shape)
    out = model.extend(cache, tokens, lengths, edits, prompt_lengths=lengths, logits="all", capture=capture)
    return ForwardOutput(out.logits, out.captured)


def forward(model: Any, tokens: Any, *, lengths: Any = None, edits: Any = None, capture: Any = ()) -> ForwardOutput:
    """Logits and activations of given tokens.

    Args:
      model: a `Model`, or what `mx.load` returns.
      tokens: int32 [B, S] or [S], padded on the right; S is at most the model's context.
      lengths: int32 [B], real tokens per row; None: all of them.
      edits: an Edit or several.
      capture: one of `mx.edits.SITES` or several.

    Returns:
      A ForwardOutput; for tokens [S] without the batch axis.

    Raises:
      ArgumentError: tokens of another rank, outside the vocabulary or too many, lengths that don't fit, an unknown site.
    """
    model = getattr(model, "model", model)
    ids = np.asarray(tokens)
    batch = ids[None] if ids.ndim == 1 else ids
    if batch.ndim != 2 or not batch.size or not np.issubdtype(batch.dtype, np.integer):
        raise expected("tokens", (ids.dtype.name, ids.shape), "integers [B, S] or [S]")
    if batch.min() < 0 or batch.max() >= model.spec.vocabulary:
        raise expected("tokens", [int(batch.min()), int(batch.max())], f"ids from 0 to {model.spec.vocabulary - 1}")
    if batch.shape[1] > model.spec.context:
        raise expected("tokens", f"{batch.shape[1]} positions", f"at most {model.spec.context}, the model's context")
    real = np.full(len(batch), batch.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    if real.shape != (len(batch),) or real.min() < 1 or real.max() > batch.shape[1]:
        raise expected("lengths", real.tolist(), f"1 to {batch.shape[1]} for each of {len(batch)} rows")
    sites = (capture,) if isinstance(capture, str) else tuple(capture)
    for site in sites:
        if site not in SITES:
            raise expected("capture", site, f"one of {', '.join(SITES)}")
    check(edits, model.spec.layers, model.spec.width)
    rows_of = rows.broadcast_rows(compose(edits), len(batch))
    out = _forward(model, jnp.asarray(batch, jnp.int32), jnp.asarray(real), rows_of, sites)
    return jax.tree.map(lambda leaf: leaf[0], out) if ids.ndim == 1 else out
