"""Controllable text generation in JAX.

import mechanex_jax as mx
mx.load()
text = mx.generation.generate("The capital of France is", sampling_method="top-p")
"""

from mechanex_jax import constraints, edits, errors, generation, loops, policy, runtime, steering, transforms
from mechanex_jax.engine.request import Completion
from mechanex_jax.loops.forward import forward
from mechanex_jax.runtime import Mechanex

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
