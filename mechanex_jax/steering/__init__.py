"""`mx.steering`: vectors that steer generation, computed from examples, kept by id, measured.

The functions of this module work on the default session; `Mechanex(...).steering` has the same ones for a session of its own.
"""

from mechanex_jax import session
from mechanex_jax.steering.evaluation import Evaluation
from mechanex_jax.steering.methods import METHODS
from mechanex_jax.steering.presets import PRESETS
from mechanex_jax.steering.service import Steering
from mechanex_jax.steering.store import Store
from mechanex_jax.steering.vector import SteeringVector, VectorError

default = Steering(session.default)
add = default.add
delete = default.delete
describe = default.describe
evaluate = default.evaluate
find = default.find
generate_from_jsonl = default.generate_from_jsonl
generate_pairs = default.generate_pairs
generate_vectors = default.generate_vectors
get_vectors = default.get_vectors
list = default.list
load_vectors = default.load_vectors
plot = default.plot
preset = default.preset
resolve = default.resolve
save_vectors = default.save_vectors
texts = default.texts

__all__ = [
    "METHODS",
    "PRESETS",
    "Evaluation",
    "Steering",
    "SteeringVector",
    "Store",
    "VectorError",
    "add",
    "delete",
    "describe",
    "evaluate",
    "find",
    "generate_from_jsonl",
    "generate_pairs",
    "generate_vectors",
    "get_vectors",
    "list",
    "load_vectors",
    "plot",
    "preset",
    "resolve",
    "save_vectors",
    "texts",
]
