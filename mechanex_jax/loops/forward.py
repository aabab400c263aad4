"""One pass over given tokens: logits and activations, without generating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, Integer

from mechanex_jax import rows
from mechanex_jax.edits import SITES, Edit, Edits, check
from mechanex_jax.errors import expected
from mechanex_jax.loops.inputs import Tokens, Whole, unwrap
from mechanex_jax.loops.language_model import LanguageModel, ModelHandle, logits_of
from mechanex_jax.rows import Array
from mechanex_jax.xla import relieve_mappings

if TYPE_CHECKING:
    _TokensOfForward: TypeAlias = Tokens | Integer[Array, " S"] | Sequence[Whole]
    _Lengths: TypeAlias = Integer[Array, " B"] | Sequence[Whole] | None
    _Edits: TypeAlias = Edits
else:  # at run time `forward` itself says what is wrong with them
    _TokensOfForward = _Lengths = _Edits = object


class ForwardOutput(NamedTuple):
    """The result of `forward`; for one text without the batch axis.

    Attributes:
      logits: beyond a row's length they mean nothing.
      activations: by site, after the edits made there.
    """

    logits: Float32[jax.Array, "*B S V"]
    activations: Mapping[str, Float[jax.Array, "*B L S D"]]


@partial(jax.jit, static_argnames="capture")
def _forward(
    model: LanguageModel,
    tokens: Int32[jax.Array, "B S"],
    lengths: Int32[jax.Array, " B"],
    edits: tuple[Edit, ...],
    capture: tuple[str, ...],
) -> ForwardOutput:
    cache = model.init_cache(*tokens.shape)
    out = model.extend(cache, tokens, lengths, edits, prompt_lengths=lengths, logits="all", capture=capture)
    return ForwardOutput(logits_of(out), out.captured)


def forward(
    model: LanguageModel | ModelHandle,
    tokens: _TokensOfForward,
    *,
    lengths: _Lengths = None,
    edits: _Edits = None,
    capture: str | Sequence[str] = (),
) -> ForwardOutput:
    """Compute logits and activations of given tokens.

    >>> forward(toy(), [[1, 2, 3], [4, 5, 0]], lengths=[3, 2]).logits.shape
    (2, 3, 11)

    Args:
      model: a `LanguageModel`, or what `mx.load` returns.
      tokens: whole numbers [B, S] or [S], padded on the right; S is at most the model's context.
      lengths: whole numbers [B], real tokens per row; None: all of them.
      edits: an Edit or several.
      capture: one of `mx.edits.SITES` or several.

    Returns:
      A ForwardOutput; for tokens [S] without the batch axis.

    Raises:
      ArgumentError: tokens of another rank, outside the vocabulary or too many, lengths that don't fit, an unknown site.
    """
    relieve_mappings()
    model = unwrap(model)
    ids = np.asarray(tokens)
    batch = ids[None] if ids.ndim == 1 else ids
    if batch.ndim != 2 or not batch.size or not np.issubdtype(batch.dtype, np.integer):
        raise expected("tokens", (ids.dtype.name, ids.shape), "integers [B, S] or [S]")
    if batch.min() < 0 or batch.max() >= model.spec.vocabulary:
        raise expected("tokens", [int(batch.min()), int(batch.max())], f"ids from 0 to {model.spec.vocabulary - 1}")
    if model.spec.context is not None and batch.shape[1] > model.spec.context:
        raise expected("tokens", f"{batch.shape[1]} positions", f"at most {model.spec.context}, the model's context")
    real = np.full(len(batch), batch.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    if real.shape != (len(batch),) or real.min() < 1 or real.max() > batch.shape[1]:
        raise expected("lengths", real.tolist(), f"1 to {batch.shape[1]} for each of {len(batch)} rows")
    sites = (capture,) if isinstance(capture, str) else tuple(capture)
    for site in sites:
        if site not in SITES:
            raise expected("capture", site, f"one of {', '.join(SITES)}")
    checked_edits = check(edits, model.spec.layers, model.spec.width)
    edits_of_rows = rows.broadcast_rows(checked_edits, len(batch))
    out = _forward(model, jnp.asarray(batch, jnp.int32), jnp.asarray(real), edits_of_rows, sites)
    return jax.tree.map(lambda leaf: leaf[0], out) if ids.ndim == 1 else out
