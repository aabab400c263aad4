"""One pass over given tokens: logits and activations, without generating."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import rows
from mechanex_jax.edits import SITES, compose
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
    out = model.extend(cache, tokens, lengths, edits, logits="all", capture=capture)
    return ForwardOutput(out.logits, out.captured)


def forward(model: Any, tokens: Any, *, lengths: Any = None, edits: Any = None, capture: Any = ()) -> ForwardOutput:
    """Logits and activations of given tokens.

    Args:
      model: a `Model`, or what `mx.load` returns.
      tokens: int32 [B, S] or [S], padded on the right.
      lengths: int32 [B], real tokens per row; None: all of them.
      edits: an Edit or several.
      capture: one of `mx.edits.SITES` or several.

    Returns:
      A ForwardOutput; for tokens [S] without the batch axis.

    Raises:
      ArgumentError: tokens of another rank or outside the vocabulary, an unknown site.
    """
    model = getattr(model, "model", model)
    ids = np.asarray(tokens)
    batch = ids[None] if ids.ndim == 1 else ids
    if batch.ndim != 2 or not batch.size or not np.issubdtype(batch.dtype, np.integer):
        raise expected("tokens", (ids.dtype.name, ids.shape), "integers [B, S] or [S]")
    if batch.min() < 0 or batch.max() >= model.spec.vocabulary:
        raise expected("tokens", [int(batch.min()), int(batch.max())], f"ids from 0 to {model.spec.vocabulary - 1}")
    sites = (capture,) if isinstance(capture, str) else tuple(capture)
    for site in sites:
        if site not in SITES:
            raise expected("capture", site, f"one of {', '.join(SITES)}")
    rows_of = rows.broadcast_rows(compose(edits), len(batch))
    real = np.full(len(batch), batch.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    out = _forward(model, jnp.asarray(batch, jnp.int32), jnp.asarray(real), rows_of, sites)
    return jax.tree.map(lambda leaf: leaf[0], out) if ids.ndim == 1 else out
