"""What steering costs: rows with vectors of their own against unsteered rows, and CAA against `transformers` with hooks.

    python benchmarks/steering.py [--rows 16] [--pairs 256] [--repeats 7]

Both sides of a comparison run in turn in one process, on the same cores (`taskset -c 0` for one); a ratio is the median over
the pairs of runs. CAA runs on the pairs that ship with the package, at eight layers; the peer is PyTorch with forward hooks,
batched by length in the same batches and without logits. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import mechanex_jax as mx
from mechanex_jax import edits
from mechanex_jax.steering import PRESETS, methods
from mechanex_jax.steering.batches import batches
from mechanex_jax.steering.examples import check_data, tokenize_data

PROMPT, NEW = 32, 64
HIDDEN = 16  # units of a gate


def seconds(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def compare(ours, theirs, repeats: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, after a first call of each, and the ratios theirs / ours of the pairs of runs."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return *(statistics.median(pair[side] for pair in pairs) for side in (0, 1)), [b / a for a, b in pairs]  # type: ignore


def rows_of_their_own(loaded, rows: int, repeats: int, gated: bool) -> None:
    """Decoding `rows` rows, each with another vector at eight layers, alone or behind gates, against the same rows without."""
    rng = np.random.default_rng(0)
    prompts, lengths = rng.integers(100, 40_000, (rows, PROMPT)), [PROMPT] * rows
    layers = methods.choose_layers(None, loaded.model.spec.layers)
    transform = mx.transforms.chain(mx.transforms.truncation(temperature=0.0))

    width = loaded.model.spec.width

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def values() -> edits.RowSteering:
        vectors = dict(zip(layers, normal(len(layers), width), strict=True))
        if not gated:
            return edits.RowSteering({"resid_pre": vectors})
        gates = (normal(width, HIDDEN), normal(HIDDEN), normal(HIDDEN), normal()[()])
        return edits.RowSteering(
            {}, tuple(edits.GatedVector("resid_pre", layer, vector, gates) for layer, vector in vectors.items())
        )

    steered = edits.steering([values() for _ in range(rows)], width)

    def run(chosen):
        options = {"key": jax.random.key(0), "max_new_tokens": NEW, "edits": chosen}
        program, carry = mx.loops.start(loaded.model, prompts, lengths, transform, **options)
        jax.block_until_ready(carry)
        return lambda: jax.block_until_ready(mx.loops.decode_chunk(program, carry, np.int32(NEW)))

    def timed(chosen) -> float:  # the prefill is not counted
        return seconds(run(chosen))

    for chosen in (steered, ()):
        timed(chosen)
    pairs = [(timed(steered), timed(())) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    steps = [1e3 * statistics.median(pair[side] for pair in pairs) / NEW for side in (0, 1)]
    print(f"{rows} rows{' behind gates' if gated else ''}, ms/step: {steps[0]:.1f} steered, {steps[1]:.1f} not;", end=" ")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


def data(loaded, pairs: int) -> list:
    sets = [preset.data() for preset in PRESETS.values()]
    found = [row for data in sets for row in zip(data.prompts, data.positives, data.negatives, strict=True)][:pairs]
    prompts, positives, negatives = zip(*found, strict=True)
    return tokenize_data(loaded, check_data(prompts, positives, negatives), chat=True)


def peer_caa(model, rows, layers) -> np.ndarray:
    """The same batches through PyTorch; hooks keep what enters each layer, and only the mean over answers stays."""
    kept: dict[int, torch.Tensor] = {}
    handles = [
        model.model.layers[layer].register_forward_pre_hook(lambda m, args, layer=layer: kept.__setitem__(layer, args[0]))
        for layer in layers
    ]
    sums, counts = np.zeros((2, len(layers), model.config.hidden_size)), np.zeros(2)
    with torch.inference_mode():
        for batch in batches(rows):
            tokens = torch.from_numpy(batch.tokens).long()
            attention = torch.arange(tokens.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
            model.model(tokens, attention_mask=attention.long(), use_cache=False)
            weights = batch.answers() / np.maximum(batch.answers().sum(-1), 1)[:, None]
            weights = torch.from_numpy(weights.astype(np.float32))
            means = torch.stack([torch.einsum("bs,bsd->bd", weights, kept[layer]) for layer in layers], 1).numpy()
            for row, index in enumerate(batch.indices):
                kind = 0 if rows[index].positive else 1
                sums[kind] += means[row]
                counts[kind] += 1
    for handle in handles:
        handle.remove()
    return sums[0] / counts[0] - sums[1] / counts[1]


def caa(loaded, pairs: int, repeats: int) -> None:
    rows, layers = data(loaded, pairs), methods.choose_layers(None, loaded.model.spec.layers)
    peer = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    # What enters the last steered layer needs no layer from there on; XLA drops them by itself.
    peer.model.layers = peer.model.layers[: max(layers) + 1]
    begun = time.perf_counter()
    ours = methods.make("caa", loaded, rows, layers).vectors
    first = time.perf_counter() - begun
    theirs = peer_caa(peer, rows, layers)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    found = compare(lambda: methods.make("caa", loaded, rows, layers), lambda: peer_caa(peer, rows, layers), repeats)
    tokens = sum(len(row.tokens) for row in rows)
    shapes = len({batch.tokens.shape for batch in batches(rows)})
    print(
        f"CAA over {len(rows) // 2} pairs, {tokens} tokens, {shapes} shapes: {found[0]:.1f} s, peer {found[1]:.1f} s;", end=" "
    )
    print(f"ratio {statistics.median(found[2]):.2f} ({min(found[2]):.2f}-{max(found[2]):.2f});", end=" ")
    print(f"first call {first:.1f} s; largest difference {error:.1e} of the largest coordinate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # those that XLA has, too
    mx.set_execution_mode("local")
    loaded = mx.load()
    print(f"{loaded.device}, {os.cpu_count()} CPUs, jax {jax.__version__}, torch {torch.__version__}")
    rows_of_their_own(loaded, options.rows, options.repeats, gated=False)
    rows_of_their_own(loaded, options.rows, options.repeats, gated=True)
    caa(loaded, options.pairs, options.repeats)


if __name__ == "__main__":
    main()
