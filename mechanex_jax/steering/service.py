"""`Steering`, the service behind `mx.steering`."""

from __future__ import annotations

from mechanex_jax.steering.making import VectorMaker
from mechanex_jax.steering.measuring import VectorMeasurer


class Steering(VectorMaker, VectorMeasurer):
    """The steering vectors of one session.

    `VectorMaker` makes them (`generate_vectors`, `generate_from_jsonl`, `generate_pairs`), `SavedVectors` keeps them and
    looks them up for generation (`add`, `list`, `save_vectors`, `resolve`, `preset`, ...), `VectorMeasurer` measures them
    (`evaluate`, `texts`, `plot`).

    Args:
      session: holds the models that vectors are made for and texts are continued by.
      store: where vectors are kept; None is the user's data folder.
    """
