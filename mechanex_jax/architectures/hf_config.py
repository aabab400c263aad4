"""What the configurations of all families have in common: quantised weights are refused, inherited fields mean the same."""

from __future__ import annotations

from mechanex_jax.architectures.config import CheckpointConfig
from mechanex_jax.errors import CheckpointError


def refuse_quantization(hf: CheckpointConfig) -> None:
    """Refuse the configuration of quantised weights, which would be read as if they were the numbers themselves."""
    for key in ("quantization_config", "compression_config"):
        quantization = hf.get(key)
        if quantization is not None:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise CheckpointError(
                f"config.json: got {key} with quant_method {method!r}; expected weights that are not quantised. "
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
