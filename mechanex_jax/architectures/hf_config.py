"""The fields of HF's `config.json`: which a family uses, which change nothing, and which it refuses unless at their default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mechanex_jax.architectures.config import CheckpointConfig
from mechanex_jax.errors import CheckpointError, shown

_INT32 = 2**31 - 1  # positions and ids are int32 on the device
_FLOAT32 = 3.4028234663852886e38  # its largest number


class Kind(NamedTuple):
    """The values that a field may have, in words and as a test."""

    words: str
    accepts: Callable[[object], bool]

    def or_null(self) -> Kind:
        return Kind(f"{self.words}, or null", lambda value: value is None or self.accepts(value))


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def whole(most: int) -> Kind:
    """A whole number from 1 to `most`."""
    return Kind(f"a whole number from 1 to {most:,}", lambda value: _whole(value, 1, most))


def number(value: object) -> bool:
    """Whether a value is a number that float32 holds, neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FLOAT32 <= value <= _FLOAT32


def token_ids(value: object) -> bool:
    """Whether a value is a token id, a list of them, or None."""
    return value is None or all(_whole(index, 0, _INT32) for index in (value if isinstance(value, list) else [value]))


LAYERS = whole(10_000)
SIZE = whole(2**24)
POSITIONS = whole(_INT32)
POSITIVE = Kind("a positive number that float32 holds", lambda value: number(value) and value > 0)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object, or null", lambda value: value is None or isinstance(value, dict))
TOKEN_IDS = Kind("a token id, a list of them, or null", token_ids)


def check(value: object, name: str, kind: Kind) -> None:
    """Refuse a value that is not of its kind.

    Raises:
      CheckpointError: with the name, the value and what is expected.
    """
    if not kind.accepts(value):
        raise CheckpointError(
            f"config.json: got {name} {shown(value)}; expected {kind.words}. Correct config.json or fetch the model again."
        )


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of one family's configuration class in `transformers`, each in exactly one of three tables.

    Attributes:
      used: field -> the values that it may have.
      without_effect: fields that change nothing in the logits of a decoder.
      fixed: field -> its only accepted values.
      aliases: other name of a field -> the field.
    """

    used: Mapping[str, Kind]
    without_effect: frozenset[str]
    fixed: Mapping[str, tuple[object, ...]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def check(self, hf: CheckpointConfig) -> CheckpointConfig:
        """The configuration with every alias under its field's own name.

        Raises:
          CheckpointError: a field has a value that it may not have, or the weights are quantised.
        """
        refuse_quantization(hf)
        hf = dict(hf)
        for alias, name in self.aliases.items():
            if alias in hf and hf.setdefault(name, hf[alias]) != hf[alias]:
                raise CheckpointError(
                    f"config.json: got {name} {shown(hf[name])} and {alias} {shown(hf[alias])}; expected one value, for they "
                    "are two names of one field. Remove the wrong one."
                )
        for name, kind in self.used.items():
            if name in hf:
                check(hf[name], name, kind)
        for name, accepted in self.fixed.items():
            if name in hf and not any(hf[name] == value and type(hf[name]) is type(value) for value in accepted):
                words = " or ".join(map(repr, accepted))
                raise CheckpointError(
                    f"config.json: got {name} {shown(hf[name])}; expected {words}. Use a checkpoint without it."
                )
        return hf


def refuse_quantization(hf: CheckpointConfig) -> None:
    """Refuse the configuration of quantised weights, which would be read as if they were the numbers themselves."""
    for key in ("quantization_config", "compression_config"):
        quantization = hf.get(key)
        if quantization is not None:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise CheckpointError(
                f"config.json: got {key} with quant_method {shown(method)}; expected weights that are not quantised. "
                "Load the original checkpoint, or a GGUF file of the model."
            )


# Fields of `PretrainedConfig`, which every configuration class inherits.
INHERITED_WITHOUT_EFFECT = frozenset(
    {
        "transformers_version",
        "architectures",
        "output_hidden_states",
        "return_dict",
        "dtype",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
    }
)
INHERITED_FIXED: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "per_layer_config": (None,),  # an attribute rather than a field of the class
}
