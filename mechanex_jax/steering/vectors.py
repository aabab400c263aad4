"""The part of `mx.steering` that keeps vectors and exchanges them with other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechanex_jax import edits
from mechanex_jax.loading import LoadedModel
from mechanex_jax.session import Session
from mechanex_jax.steering import formats
from mechanex_jax.steering.store import Store
from mechanex_jax.steering.vector import from_mapping


class SavedVectors:
    """The steering vectors of one session: kept by id, read from and written to files.

    Args:
      session: holds the models.
      store: where vectors are kept; None is the user's data folder.
    """

    def __init__(self, session: Session, store: Store | None = None):
        self.session = session
        self.store = store or Store()

    def _loaded(self, model: LoadedModel | str | None) -> LoadedModel:
        if model is not None and not isinstance(model, str):
            return model
        return self.session.local_model(model)

    def add(
        self,
        vectors: Mapping[Any, Any] | str | os.PathLike[str],
        name: str | None = None,
        label: str | None = None,
        *,
        model: str | None = None,
    ) -> str:
        """Keep vectors made elsewhere; returns their id.

        Args:
          vectors: {layer: vector} or a file that `load_vectors` reads; a safetensors file of this library keeps its gate.
          name, label: words of yours, kept with the vector.
          model: the loaded model that they are for; None is the one loaded last.

        Raises:
          ArgumentError: another width or layers than the model's, or a file of another model.
          VectorError: a corrupt file.
        """
        loaded = self._loaded(model)
        if isinstance(vectors, Mapping):
            return self.store.add(from_mapping(vectors, loaded, name=name, label=label))
        whole = formats.read_whole(vectors)
        if whole is None:
            return self.store.add(from_mapping(formats.load(vectors), loaded, name=name, label=label))
        whole.check_model(loaded)
        return self.store.add(whole)

    def get_vectors(self, vector_id: str) -> dict[Any, np.ndarray]:
        """{layer: float32 [D]} of a stored vector, as `steering_vector` takes it; a gate is left out.

        Raises:
          ArgumentError: no vector of this id; the message lists those there are.
          VectorError: its file is corrupt.
        """
        return self.store.get(vector_id).by_layer()

    def describe(self, vector_id: str) -> dict[str, Any]:
        """What is known of a stored vector besides its numbers; raises as `get_vectors`."""
        return {"id": vector_id, **self.store.get(vector_id).summary()}

    def save_vectors(self, vectors_or_id: str | Mapping[Any, Any], path: str | os.PathLike[str]) -> None:
        """Write vectors to a file for other programs.

        Args:
          vectors_or_id: an id, or {layer: vector} for the model loaded last.
          path: ends with .json ({layer: numbers}, as the hosted service's client writes it), .safetensors (with all that is
            known, the gate too) or .gguf (a control vector of llama.cpp: `direction.N` is added behind block N, so a vector
            that enters layer l is written as `direction.{l - 1}`; layers 0 and 1 have no name there).

        Raises:
          ArgumentError: an unknown id, another suffix, or what the kind of file cannot hold.
        """
        by_id = isinstance(vectors_or_id, str)
        vector = self.store.get(vectors_or_id) if by_id else from_mapping(vectors_or_id, self._loaded(None))
        formats.save(vector, path)

    def load_vectors(self, path: str | os.PathLike[str]) -> dict[Any, np.ndarray]:
        """{layer: float32 [D]} of a file: JSON, safetensors or a GGUF control vector, whatever its name.

        Layers are ints, or names such as `blocks.11.hook_resid_post`, where control vectors of other programs act.

        Raises:
          ArgumentError: no such file.
          VectorError: it holds no vectors, or is corrupt.
        """
        return formats.load(path)

    def list(self) -> list[dict[str, Any]]:
        """What is known of all stored vectors, oldest first. A corrupt file is warned of and left alone."""
        return [{"id": id, **vector.summary()} for id, vector in self.store.items()]

    def delete(self, vector_id: str) -> None:
        """Remove a stored vector.

        Raises:
          ArgumentError: no vector of this id.
        """
        self.store.delete(vector_id)

    def resolve(self, spec: str | Mapping[Any, Any], model: Any = None) -> edits.RowSteering:
        """What generation adds at strength 1: of an id, or of {layer: vector}.

        Args:
          spec: as `steering_vector` takes it.
          model: a LoadedModel or a loaded model's name; None is the one loaded last.

        Raises:
          ArgumentError: an unknown id, a vector made for another model (both are named), another width or layer.
          VectorError: a corrupt file.
        """
        loaded = self._loaded(model)
        if isinstance(spec, str):
            vector = self.store.get(spec)
            vector.check_model(loaded)
            return vector.steering()
        return edits.parse_steering(spec, loaded.model.spec.width, loaded.model.spec.layers)
