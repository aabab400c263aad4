"""Decoding speed against `transformers` on PyTorch: same weights, float32, greedy, 32 prompt tokens, 64 new ones.

    python benchmarks/decode.py [--batches 1 8 32] [--repeats 5]

Both sides run in turn in one process, two threads each; the ratio is the median over the pairs. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import mechanex_jax as mx
from mechanex_jax.engine import run as engine
from mechanex_jax.engine.config import GenerationConfig

PROMPT, NEW = 32, 64


def seconds(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def read_bandwidth() -> float:
    """GB/s at which XLA reads a matrix as large as the model in a matrix-vector product, the best of several."""
    matrix = jnp.ones((4096, 32768), jnp.float32)
    product = jax.jit(lambda x, m: x @ m)
    vector = jnp.ones((1, 4096), jnp.float32)
    product(vector, matrix).block_until_ready()
    return max(matrix.nbytes / seconds(lambda: product(vector, matrix).block_until_ready()) for _ in range(7)) / 1e9


def peer_generate(model, prompts: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(prompts)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            pad_token_id=2,
        )
    return out[:, PROMPT:].numpy()


def ours_generate(loaded, prompts: np.ndarray) -> np.ndarray:
    config = GenerationConfig(max_tokens=NEW, min_tokens=NEW, sampling_method="greedy")
    requests = [engine.Request(tuple(row.tolist()), config) for row in prompts]
    done = engine.run(loaded, requests, engine.row_keys([0] * len(prompts), range(len(prompts))))
    return np.array([completion.tokens for completion in done])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    loaded = mx.load()
    mx.set_execution_mode("local")
    peer = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    bandwidth = read_bandwidth()
    print(f"{loaded.device}, {os.cpu_count()} CPUs, jax {jax.__version__}, torch {torch.__version__}")
    print(f"read bandwidth {bandwidth:.1f} GB/s, weights {loaded.bytes / 1e6:.0f} MB")
    print("batch | ours tok/s | peer tok/s | ratio (min-max) | weights read, share of bandwidth | same tokens | first call s")
    rng = np.random.default_rng(0)
    for batch in options.batches:
        prompts = rng.integers(100, 40_000, (batch, PROMPT))
        first = seconds(lambda: ours_generate(loaded, prompts))  # noqa: B023
        same = np.mean(ours_generate(loaded, prompts) == peer_generate(peer, prompts))
        pairs = []
        for _ in range(options.repeats):
            ours = seconds(lambda: ours_generate(loaded, prompts))  # noqa: B023
            pairs.append((ours, seconds(lambda: peer_generate(peer, prompts))))  # noqa: B023
        rates = [statistics.median(batch * NEW / pair[side] for pair in pairs) for side in (0, 1)]
        ratios = [theirs / ours for ours, theirs in pairs]
        share = loaded.bytes * (NEW + 1) / statistics.median(pair[0] for pair in pairs) / 1e9 / bandwidth
        print(
            f"{batch:5d} | {rates[0]:10.1f} | {rates[1]:10.1f} | {statistics.median(ratios):5.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {share:32.0%} | {same:11.1%} | {first:.1f}"
        )
    allocation(loaded)


def allocation(loaded) -> None:
    """The same tokens with more cache positions allocated, and how often what compiles."""
    print("\nbatch | ms/step, 128 positions | 1,024 positions | ratio")
    transform = mx.transforms.chain(mx.transforms.truncation(temperature=0.0))
    for batch in (1, 8, 32):
        prompts = np.full((batch, PROMPT), 100)

        def run(capacity: int) -> float:
            arguments = {"key": jax.random.key(0), "max_new_tokens": NEW, "capacity": capacity}
            program, carry = mx.loops.start(loaded.model, prompts, [PROMPT] * batch, transform, **arguments)  # noqa: B023
            jax.block_until_ready(carry)
            return seconds(lambda: jax.block_until_ready(mx.loops.decode_chunk(program, carry, np.int32(NEW))))

        for capacity in (128, 1024):
            run(capacity)
        pairs = [(run(128), run(1024)) for _ in range(5)]
        small, large = (statistics.median(pair[i] for pair in pairs) * 1e3 / NEW for i in (0, 1))
        print(f"{batch:5d} | {small:22.1f} | {large:15.1f} | {statistics.median(b / a for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
