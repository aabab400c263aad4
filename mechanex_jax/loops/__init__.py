"""Decoding loops: pure, without text. Anything with `init_cache` and `extend` decodes."""

from mechanex_jax.loops.autoregressive import decode, finish, start
from mechanex_jax.loops.beam import BeamResult, beam_decode
from mechanex_jax.loops.carry import Carry, DecodeResult, FinishReason, Program, result
from mechanex_jax.loops.chunks import advance
from mechanex_jax.loops.draft_length import DraftLengthController
from mechanex_jax.loops.drafters import Drafter, Proposal, model_drafter, prompt_lookup
from mechanex_jax.loops.ensemble import Ensemble, ensemble_decode, ensemble_model
from mechanex_jax.loops.forward import ForwardOutput, forward
from mechanex_jax.loops.language_model import LanguageModel
from mechanex_jax.loops.scoring import score, select
from mechanex_jax.loops.speculative import (
    SpeculationStats,
    speculative_advance,
    speculative_chunk,
    speculative_decode,
    speculative_start,
    speculative_stats,
)
from mechanex_jax.loops.step import decode_chunk
from mechanex_jax.loops.stop_strings import StopTable, stop_table
from mechanex_jax.loops.traceable import DecodedArrays, traceable_decode

__all__ = [
    "BeamResult",
    "Carry",
    "DecodeResult",
    "DecodedArrays",
    "DraftLengthController",
    "Drafter",
    "Ensemble",
    "FinishReason",
    "ForwardOutput",
    "LanguageModel",
    "Program",
    "Proposal",
    "SpeculationStats",
    "StopTable",
    "advance",
    "beam_decode",
    "decode",
    "decode_chunk",
    "ensemble_decode",
    "ensemble_model",
    "finish",
    "forward",
    "model_drafter",
    "prompt_lookup",
    "result",
    "score",
    "select",
    "speculative_advance",
    "speculative_chunk",
    "speculative_decode",
    "speculative_start",
    "speculative_stats",
    "start",
    "stop_table",
    "traceable_decode",
]
