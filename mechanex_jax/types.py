"""Shape names used in signatures, and the small records that several layers pass on.

Dimensions: B rows, S positions of one call, T cache positions, V vocabulary, L layers, D model width, H head width,
K key/value heads, N generated tokens, E end-of-sequence ids.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
from jaxtyping import Float32, Int32, Key

Logits: TypeAlias = Float32[jax.Array, " V"]
Token: TypeAlias = Int32[jax.Array, ""]
RowKey: TypeAlias = Key[jax.Array, ""]
