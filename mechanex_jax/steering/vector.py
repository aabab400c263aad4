"""A steering vector with what is known of its making, and its bytes: one safetensors file."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechanex_jax import edits
from mechanex_jax.errors import ArgumentError, MechanexError, Verbatim, expected

_KEY, _FORMAT = "mechanex_jax.steering", 1
_GATE = ("w1", "b1", "w2", "b2")


class VectorError(MechanexError):
    """A file of a steering vector is corrupt, or is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringVector:
    """Vectors of one or more layers of one model, and how they were made.

    Attributes:
      vectors: float32 [N, D].
      layers: N indices, rising.
      site: where they are added.
      method: that made them.
      model, fingerprint: name and fingerprint of the model they belong to.
      data: SHA-256 of what they were made from; "" where that isn't known.
      perceptron: None, or (w1 [N, D, H], b1 [N, H], w2 [N, H], b2 [N]), see `mx.edits.gate`.
      name, label: the user's words.
      created: ISO 8601, UTC.
      metrics: of the making.
    """

    vectors: np.ndarray
    layers: tuple[int, ...]
    site: str
    method: str
    model: str
    fingerprint: str
    data: str = ""
    perceptron: tuple[np.ndarray, ...] | None = None
    name: str | None = None
    label: str | None = None
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    )
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def steering(self, strength: float = 1.0) -> edits.RowSteering:
        """What generation adds, times `strength`."""
        if self.perceptron is None:
            found = edits.RowSteering({self.site: dict(zip(self.layers, self.vectors, strict=True))})
        else:
            gates = zip(self.layers, self.vectors, *self.perceptron, strict=True)
            found = edits.RowSteering(
                {}, tuple(edits.GatedVector(self.site, layer, vector, (*gate,)) for layer, vector, *gate in gates)
            )
        return found.scaled(strength)

    def by_layer(self) -> dict[Any, np.ndarray]:
        """{layer: float32 [D]} as `steering_vector` takes it; other sites than `resid_pre` by their hook's name."""
        return {layer_key(self.site, layer): vector for layer, vector in zip(self.layers, self.vectors, strict=True)}

    def check_model(self, loaded: Any) -> None:
        """Raise unless the vector was made for this model."""
        if self.fingerprint != loaded.fingerprint:
            other = self.model if self.model != loaded.name else f"other weights under the name {self.model}"
            raise expected(
                "steering_vector",
                Verbatim(f"a vector made for {other}"),
                f"one made for {loaded.name}, the model that is steered",
                "Make one with generate_vectors on that model.",
            )

    def summary(self) -> dict[str, Any]:
        """Everything but arrays, JSON."""
        fields = ("name", "label", "method", "model", "fingerprint", "site", "layers", "data", "created", "metrics")
        return {name: getattr(self, name) for name in fields} | {"layers": list(self.layers)}

    def to_bytes(self) -> bytes:
        """A safetensors file: `vectors` [N, D], the perceptron's arrays, and the rest as metadata."""
        from safetensors.numpy import save

        tensors = {"vectors": np.ascontiguousarray(self.vectors, np.float32)}
        for name, array in zip(_GATE, self.perceptron or (), strict=False):
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
            known = json.loads(metadata(content)[_KEY])
            tensors = load(content)
            if known["format"] != _FORMAT:
                raise ValueError(f"format {known['format']!r}, which this version does not know")
            if known["sha256"] != _digest(tensors):
                raise ValueError("arrays that differ from their checksum")
            gate = tuple(tensors[f"perceptron.{name}"] for name in _GATE) if "perceptron.w1" in tensors else None
            fields = {f.name for f in dataclasses.fields(cls)} - {"vectors", "perceptron", "layers"}
            layers = tuple(map(int, known["layers"]))
            if tensors["vectors"].shape[0] != len(layers):
                raise ValueError(f"{len(layers)} layers and vectors of shape {tensors['vectors'].shape}")
            return cls(tensors["vectors"], layers, perceptron=gate, **{name: known[name] for name in fields})
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VectorError(
                f"{where}: got {error!r}; expected a steering vector as this library writes it. The file is corrupt or of "
                "another kind: delete it, or put a copy in its place."
            ) from error


def layer_key(site: str, layer: int) -> int | str:
    """How `steering_vector` names a layer: its index for `resid_pre`, else `blocks.L.hook_SITE`."""
    return layer if site == "resid_pre" else f"blocks.{layer}.hook_{site}"


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file's bytes; empty if it has none.

    Raises:
      ValueError: no such file.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"{len(content)} bytes, which is no whole safetensors file")
    return json.loads(content[8 : 8 + length]).get("__metadata__") or {}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def from_mapping(vectors: Any, loaded: Any, **about: Any) -> SteeringVector:
    """{layer: vector}, all at one site, as a `SteeringVector` of this model.

    Raises:
      ArgumentError: as `edits.parse_steering`, or layers of several sites.
    """
    spec = loaded.model.spec
    parsed = edits.parse_steering(vectors, spec.width, spec.layers).additions
    if len(parsed) > 1:
        raise ArgumentError(f"vectors: got the sites {', '.join(parsed)}; expected one. Store each by itself.")
    ((site, found),) = parsed.items()
    layers = tuple(sorted(found))
    matrix = np.stack([found[layer] for layer in layers])
    return SteeringVector(
        matrix, layers, site, **{"method": "given", **about}, model=loaded.name, fingerprint=loaded.fingerprint
    )
