"""Controllable text generation in JAX.

import mechanex_jax as mx
mx.load()
text = mx.generation.generate("The capital of France is", sampling_method="top-p")
"""

from mechanex_jax import xla

xla.avoid_wrong_reductions()  # before anything below can start a backend
xla.mapping_guard()

from mechanex_jax import constraints, edits, errors, generation, loops, policy, runtime, steering, transforms  # noqa: E402
from mechanex_jax.engine.request import Completion  # noqa: E402
from mechanex_jax.loops.forward import forward  # noqa: E402
from mechanex_jax.runtime import Mechanex  # noqa: E402

__version__ = "0.1.0"

load = runtime.default.load
unload = runtime.default.unload
set_key = runtime.default.set_key
set_execution_mode = runtime.default.set_execution_mode

__all__ = [
    "Completion",
    "Mechanex",
    "constraints",
    "edits",
    "errors",
    "forward",
    "generation",
    "load",
    "loops",
    "policy",
    "set_execution_mode",
    "set_key",
    "steering",
    "transforms",
    "unload",
]
