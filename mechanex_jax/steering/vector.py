"""`SteeringVector`: vectors of a model with the record of their making, and the safetensors file that holds both."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypedDict

import numpy as np
from jaxtyping import Float32

from mechanex_jax import edits
from mechanex_jax.errors import ArgumentError, MechanexError, Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.storage.json_values import parse_json

_KEY, _FORMAT = "mechanex_jax.steering", 1
Metrics: TypeAlias = Mapping[str, Sequence[float]]
"""How the making of a vector went: numbers by layer or by step, under their names."""
LayerName: TypeAlias = int | str
"""How `steering_vector` names a layer: its index for `resid_pre`, else `blocks.L.hook_SITE`."""
LayerVectors: TypeAlias = Mapping[int, object] | Mapping[str, object] | Mapping[LayerName, object]
"""{layer: vector} as a user gives it: a vector is [D], [1, D] or [1, 1, D], as a list or an array of any library."""


class VectorError(MechanexError):
    """A file is corrupt, or holds no steering vector."""


class PerceptronWeights(NamedTuple):
    """One gate per layer: sigmoid(w2 · tanh(w1ᵀx + b1) + b2) of an activation x, see `mx.edits.gate`."""

    w1: Float32[np.ndarray, "N D H"]
    b1: Float32[np.ndarray, "N H"]
    w2: Float32[np.ndarray, "N H"]
    b2: Float32[np.ndarray, " N"]


class VectorSummary(TypedDict):
    """The fields of a `SteeringVector` that are no arrays, as JSON."""

    name: str | None
    label: str | None
    method: str
    model: str
    fingerprint: str
    site: str
    layers: list[int]
    data: str
    created: str
    metrics: Metrics


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringVector:
    """Vectors of one or more layers of one model, and how they were made.

    Attributes:
      vectors: one per layer, at strength 1.
      layers: N indices, rising.
      site: where they are added.
      method: the name of the method that made them.
      model, fingerprint: name and fingerprint of the model they belong to.
      data: SHA-256 of the texts they were made from; "" where that isn't known.
      perceptron: None, or the weights of a gate per layer.
      name, label: the user's words.
      created: ISO 8601, UTC.
      metrics: how the making went.
    """

    vectors: Float32[np.ndarray, "N D"]
    layers: tuple[int, ...]
    site: str
    method: str
    model: str
    fingerprint: str
    data: str = ""
    perceptron: PerceptronWeights | None = None
    name: str | None = None
    label: str | None = None
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    )
    metrics: Metrics = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        title = [repr(self.name)] if self.name is not None else []
        layers = f"{self.site} at {len(self.layers)} layers" if len(self.layers) > 4 else f"{self.site} at {list(self.layers)}"
        return f"SteeringVector({', '.join([*title, self.method, self.model, layers, f'width {self.vectors.shape[-1]}'])})"

    def steering(self, strength: float = 1.0) -> edits.RowSteering:
        """What generation adds: the vectors times `strength`, behind their gates where there are any."""
        if self.perceptron is None:
            steering = edits.RowSteering({self.site: dict(zip(self.layers, self.vectors, strict=True))})
        else:
            gates = zip(*self.perceptron, strict=True)
            gated = (
                edits.GatedVector(self.site, layer, vector, gate)
                for layer, vector, gate in zip(self.layers, self.vectors, gates, strict=True)
            )
            steering = edits.RowSteering({}, tuple(gated))
        return steering.scaled(strength)

    def by_layer(self) -> dict[LayerName, Float32[np.ndarray, " D"]]:
        """{layer: vector} as `steering_vector` takes it; other sites than `resid_pre` by their hook's name."""
        return {layer_name(self.site, layer): vector for layer, vector in zip(self.layers, self.vectors, strict=True)}

    def check_model(self, loaded: LoadedModel) -> None:
        """Raise ArgumentError unless the vector was made for this model."""
        if self.fingerprint != loaded.fingerprint:
            other = self.model if self.model != loaded.name else f"other weights under the name {self.model}"
            raise expected(
                "steering_vector",
                Verbatim(f"a vector made for {other}"),
                f"one made for {loaded.name}, the model that is steered",
                "Make one with generate_vectors on that model.",
            )

    def summary(self) -> VectorSummary:
        """Everything but arrays, as JSON."""
        return {
            "name": self.name,
            "label": self.label,
            "method": self.method,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "site": self.site,
            "layers": list(self.layers),
            "data": self.data,
            "created": self.created,
            "metrics": self.metrics,
        }

    def to_bytes(self) -> bytes:
        """A safetensors file: `vectors` [N, D], the perceptron's arrays, and the rest as metadata."""
        from safetensors.numpy import save

        tensors = {"vectors": np.ascontiguousarray(self.vectors, np.float32)}
        if self.perceptron is not None:
            for name, array in zip(PerceptronWeights._fields, self.perceptron, strict=True):
                tensors[f"perceptron.{name}"] = np.ascontiguousarray(array, np.float32)
        content = {"format": _FORMAT, "sha256": _digest(tensors), **self.summary()}
        return save(tensors, {_KEY: json.dumps(content)})

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> SteeringVector:
        """The vector of a file's bytes.

        Raises:
          VectorError: it is corrupt, or no steering vector; the message names `where`.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            record = parse_json(metadata(content)[_KEY])
            tensors = load(content)
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']!r}, which this version does not know")
            if record["sha256"] != _digest(tensors):
                raise ValueError("arrays that differ from their checksum")
            perceptron = None
            if "perceptron.w1" in tensors:
                perceptron = PerceptronWeights(*(tensors[f"perceptron.{name}"] for name in PerceptronWeights._fields))
            fields = {f.name for f in dataclasses.fields(cls)} - {"vectors", "perceptron", "layers"}
            layers = tuple(map(int, record["layers"]))
            if tensors["vectors"].shape[0] != len(layers):
                raise ValueError(f"{len(layers)} layers and vectors of shape {tensors['vectors'].shape}")
            return cls(tensors["vectors"], layers, perceptron=perceptron, **{name: record[name] for name in fields})
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise VectorError(
                f"{where}: got {error!r}; expected a steering vector as this library writes it. The file is corrupt or of "
                "another kind: delete it, or put a copy in its place."
            ) from error


def layer_name(site: str, layer: int) -> LayerName:
    """The name of a layer in `steering_vector`."""
    return layer if site == "resid_pre" else f"blocks.{layer}.hook_{site}"


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file's bytes; empty if it has none.

    Raises:
      ValueError: the bytes are no whole safetensors file.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"{len(content)} bytes, which is no whole safetensors file")
    return parse_json(content[8 : 8 + length]).get("__metadata__") or {}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def from_mapping(
    vectors: LayerVectors, loaded: LoadedModel, *, name: str | None = None, label: str | None = None
) -> SteeringVector:
    """{layer: vector}, all at one site, as a `SteeringVector` of this model.

    Raises:
      ArgumentError: as `edits.parse_steering`, or layers of several sites.
    """
    spec = loaded.model.spec
    additions = edits.parse_steering(vectors, spec.width, spec.layers).additions
    if len(additions) > 1:
        raise ArgumentError(f"vectors: got the sites {', '.join(additions)}; expected one. Store each by itself.")
    ((site, by_layer),) = additions.items()
    layers = tuple(sorted(by_layer))
    matrix = np.stack([by_layer[layer] for layer in layers])
    return SteeringVector(
        matrix, layers, site, "given", model=loaded.name, fingerprint=loaded.fingerprint, name=name, label=label
    )
