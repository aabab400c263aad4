"""Decoding loops: pure, without text. Anything with `init_cache` and `extend` decodes."""

from mechanex_jax.loops.autoregressive import (
    Carry,
    DecodeResult,
    FinishReason,
    Program,
    advance,
    decode,
    decode_chunk,
    finish,
    result,
    start,
)
from mechanex_jax.loops.forward import ForwardOutput, forward
from mechanex_jax.loops.stops import StopTable, stop_table

__all__ = [
    "Carry",
    "DecodeResult",
    "FinishReason",
    "ForwardOutput",
    "Program",
    "StopTable",
    "advance",
    "decode",
    "decode_chunk",
    "finish",
    "forward",
    "result",
    "start",
    "stop_table",
]
