"""Transforms of logits: the protocol, how to compose them, and a factory per method.

Order in a step: constraint mask, penalties and bias, your own transform, then temperature,
and the truncations (`transforms.truncation`), then the draw.
"""

from mechanex_jax.rows import nested, row, row_tree, shared, static
from mechanex_jax.transforms import truncation as _truncations  # the module, before the function of its name
from mechanex_jax.transforms.base import LogitsTransform, Stateless, Step, chain, stateless
from mechanex_jax.transforms.determinantal import Determinantal, Directions, determinantal, directions
from mechanex_jax.transforms.draw import argmax_rows, draw, draw_rows
from mechanex_jax.transforms.penalties import (
    LogitBias,
    MinNewTokens,
    Penalties,
    frequency_penalty,
    logit_bias,
    min_new_tokens,
    penalties,
    presence_penalty,
    repetition_penalty,
)
from mechanex_jax.transforms.truncation import *  # noqa: F403 - its __all__, so that a new one is named once

__all__ = [
    "Determinantal",
    "Directions",
    "LogitBias",
    "LogitsTransform",
    "MinNewTokens",
    "Penalties",
    "Stateless",
    "Step",
    "argmax_rows",
    "chain",
    "determinantal",
    "directions",
    "draw",
    "draw_rows",
    "frequency_penalty",
    "logit_bias",
    "min_new_tokens",
    "nested",
    "penalties",
    "presence_penalty",
    "repetition_penalty",
    "row",
    "row_tree",
    "shared",
    "stateless",
    "static",
]
__all__ += _truncations.__all__
