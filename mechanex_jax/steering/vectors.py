"""The part of `mx.steering` that keeps vectors, exchanges them with other programs and looks them up for generation."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from mechanex_jax import edits
from mechanex_jax.errors import expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.progress import is_shown
from mechanex_jax.session import Session
from mechanex_jax.steering import formats, presets
from mechanex_jax.steering.requests import RequestBuilder
from mechanex_jax.steering.store import Store
from mechanex_jax.steering.vector import LayerName, LayerVectors, VectorSummary, from_mapping


class StoredSummary(VectorSummary):
    """What is known of a stored vector besides its numbers, its id included."""

    id: str


class SavedVectors:
    """The steering vectors of one session: kept by id, read from and written to files, looked up for generation.

    Args:
      session: holds the models.
      store: where vectors are kept; None is the user's data folder.
    """

    def __init__(self, session: Session, store: Store | None = None):
        self.session = session
        self.store = store or Store()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session!r})"

    def _loaded(self, model: LoadedModel | str | None) -> LoadedModel:
        """The model itself, or the loaded one of this name; None is the one loaded last."""
        if model is not None and not isinstance(model, str):
            return model
        return self.session.local_model(model)

    def add(
        self,
        vectors: LayerVectors | str | os.PathLike[str],
        name: str | None = None,
        label: str | None = None,
        *,
        model: str | None = None,
    ) -> str:
        """Keep vectors made elsewhere.

        Args:
          vectors: {layer: vector} or a file that `load_vectors` reads; a safetensors file of this library keeps its gate.
          name, label: your own words, kept with the vector.
          model: the loaded model that they are for; None is the one loaded last.

        Returns:
          The id of the new vector.

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

    def get_vectors(self, vector_id: str) -> dict[LayerName, Float32[np.ndarray, " D"]]:
        """Read a stored vector as {layer: vector}, as `steering_vector` takes it; a gate is left out.

        Raises:
          ArgumentError: no vector of this id; the message lists those there are.
          VectorError: its file is corrupt.
        """
        return self.store.get(vector_id).by_layer()

    def find(self, id_or_name: str) -> str:
        """The id of the stored vector of this id or name; an id goes before a name.

        Raises:
          ArgumentError: no vector has it, or several have the name; the message lists their ids.
        """
        if id_or_name in self.store.ids():
            return id_or_name
        named = [id for id, vector in self.store.items() if vector.name == id_or_name]
        if len(named) > 1:
            raise expected("steering_vector", id_or_name, f"one of the {len(named)} vectors of this name: {', '.join(named)}")
        if not named:
            self.store.get(id_or_name)  # raises, and lists those there are
        return named[0]

    def describe(self, vector_id: str) -> StoredSummary:
        """Describe a stored vector: all that is known of it besides its numbers.

        Raises:
          ArgumentError, VectorError: as `get_vectors`.
        """
        return {"id": vector_id, **self.store.get(vector_id).summary()}

    def save_vectors(self, vectors_or_id: str | LayerVectors, path: str | os.PathLike[str]) -> None:
        """Write vectors to a file for other programs.

        Args:
          vectors_or_id: an id, or {layer: vector} for the model loaded last.
          path: ends with .json ({layer: numbers}, as the hosted service's client writes it), .safetensors (with all that is
            known, the gate too) or .gguf (a control vector of llama.cpp: `direction.N` is added behind block N, so a vector
            that enters layer l is written as `direction.{l - 1}`; layers 0 and 1 have no name there).

        Raises:
          ArgumentError: an unknown id, another suffix, or what the kind of file cannot hold.
        """
        if isinstance(vectors_or_id, str):
            vector = self.store.get(vectors_or_id)
        else:
            vector = from_mapping(vectors_or_id, self._loaded(None))
        formats.save(vector, path)

    def load_vectors(self, path: str | os.PathLike[str]) -> dict[LayerName, Float32[np.ndarray, " D"]]:
        """Read {layer: vector} from a file: JSON, safetensors or a GGUF control vector, whatever its name.

        Layers are ints, or names such as `blocks.11.hook_resid_post`, where control vectors of other programs act.

        Raises:
          ArgumentError: no such file.
          VectorError: it holds no vectors, or is corrupt.
        """
        return formats.load(path)

    def list(self) -> list[StoredSummary]:
        """Describe all stored vectors, oldest first. A corrupt file is warned of and left alone."""
        return [{"id": id, **vector.summary()} for id, vector in self.store.items()]

    def delete(self, vector_id: str) -> None:
        """Remove a stored vector.

        Raises:
          ArgumentError: no vector of this id.
        """
        self.store.delete(vector_id)

    def resolve(self, spec: str | LayerVectors, model: LoadedModel | str | None = None) -> edits.RowSteering:
        """The steering that generation adds at strength 1, for an id or {layer: vector}.

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

    def preset(
        self, name: str, strength: float = 0.0, model: LoadedModel | str | None = None, method: str | None = None
    ) -> edits.RowSteering:
        """The steering that generation adds for a preset, strength included. Its vector is made on first use.

        Args:
          name: one of `PRESETS`.
          strength: 0, the default of `steering_strength`, is the preset's own.
          model: as for `resolve`.
          method: the name of the method that makes its vector; None is the preset's own.

        Raises:
          ArgumentError: an unknown preset or method; the message lists all.
        """
        preset = presets.find(name)
        steering_method = preset.find_method(method)
        with progress_bar(f"Making the preset {preset.name}", enabled=is_shown(None), unit="answers") as report:
            vector = presets.load_or_make(self._loaded(model), preset, self.store, steering_method, report=report)
        return vector.steering(strength or preset.strength)

    def requests(self, loaded: LoadedModel) -> RequestBuilder:
        """A builder of requests that knows this service's vectors and presets, and the session's models."""
        return RequestBuilder(
            loaded,
            resolve=lambda id: self.resolve(id, loaded),
            preset=lambda name, strength: self.preset(name, strength, loaded),
            partners=lambda names: self.session.partners(names, beside=loaded),
        )
