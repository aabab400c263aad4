"""Diversity against quality of determinantal sampling beside the truncations, on the default model; what a step costs.

    python -m benchmarks.determinantal [--rows 64] [--tokens 24] [--quick]

Every method draws the same number of texts from the same prompts with the same keys: `rows` of each prompt. Columns: distinct
1- and 2-grams (their share of all), self-BLEU (of each text against up to 16 others of its prompt, BLEU-4 by tokens with add-1
smoothing; lower is more diverse), and the mean log-probability of a token under the model itself. A method is better than
another where it is more diverse at no lower log-probability, so top-k and top-p are shown for several settings.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import os
import statistics
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

import mechanex_jax as mx
from mechanex_jax import rows
from mechanex_jax import transforms as tx
from mechanex_jax.loops import decode

from .samplers import DECODE_MS, decode_with, pool_of_logits

PROMPTS = (
    "My favourite thing about winter is",
    "The old man opened the door and",
    "Three ideas for a science project are",
    "Scientists have discovered that",
)
NEUTRAL = {"temperature": 1.0, "top_k": 2**31 - 1, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "subset_size": 0, "beta": 0.3}
METHODS = {
    **{f"top-k {k}": {"top_k": k} for k in (4, 8, 16, 50)},
    **{f"top-p {p}": {"top_p": p} for p in (0.5, 0.7, 0.9)},
    **{f"min-p {m}": {"min_p": m} for m in (0.05, 0.2)},
    **{f"typical {t}": {"typical_p": t} for t in (0.5, 0.95)},
    **{f"ads k={k} beta={b}": {"subset_size": k, "beta": b} for k in (4, 8) for b in (0.1, 0.3, 0.5)},
}


def grams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def distinct(texts: list[list[int]], n: int) -> float:
    said = [gram for text in texts for gram in grams(text, n)]
    return len(set(said)) / len(said)


def bleu(text: list[int], others: list[list[int]]) -> float:
    """BLEU-4 with add-1 smoothing; all texts are of one length, so there is no penalty for brevity."""
    total = 0.0
    for n in range(1, 5):
        counts = collections.Counter(grams(text, n))
        best: collections.Counter[tuple[int, ...]] = collections.Counter()
        for other in others:
            best |= collections.Counter(grams(other, n))
        total += math.log((sum((counts & best).values()) + 1) / (sum(counts.values()) + 1))
    return math.exp(total / 4)


def self_bleu(texts: list[list[int]]) -> float:
    return statistics.fmean(
        bleu(t, [texts[(i + j) % len(texts)] for j in range(1, min(17, len(texts)))]) for i, t in enumerate(texts)
    )


def table(loaded: Any, each: int, length: int, batch: int = 32) -> None:
    """All methods share one program: what a method does not use is neutral."""
    directions = tx.directions(loaded.model.unembedding().T)
    print(f"{each * len(PROMPTS)} texts of {length} tokens for each method, {loaded.name}")
    print(f"{'method':20s} | distinct-1 | distinct-2 | self-BLEU | mean log-probability")
    for name, settings in METHODS.items():
        values = NEUTRAL | settings
        ads = {key: values.pop(key) for key in ("subset_size", "beta")}
        transform = tx.chain(tx.truncation(**values), tx.determinantal(directions, **ads))
        measured = []
        for index, prompt in enumerate(PROMPTS):
            ids = np.tile(np.array(loaded.tokenizer.encode(prompt), np.int32), (batch, 1))
            texts, logprobs = [], []
            for part in range(0, each, batch):
                key = jax.random.fold_in(jax.random.key(index), part)
                out = decode(loaded.model, ids, ids.shape[1], transform, key=key, max_new_tokens=length)
                texts += out.tokens[: each - part].tolist()
                logprobs += out.logprobs[: each - part].tolist()
            measured.append((distinct(texts, 1), distinct(texts, 2), self_bleu(texts), float(np.mean(logprobs))))
        one, two, alike, quality = (statistics.fmean(column) for column in zip(*measured, strict=True))
        print(f"{name:20s} | {one:10.3f} | {two:10.3f} | {alike:9.3f} | {quality:8.3f}", flush=True)


def overhead(loaded: Any, rounds: int) -> None:
    """Transform and draw in one loop, against a plain draw; rounds interleaved, medians."""
    directions = tx.directions(loaded.model.unembedding().T)
    print("\nbatch | method   | ms a step | added to a draw | of a decoding step")
    for batch in (1, 8, 32):
        pool = pool_of_logits(batch, loaded.model.spec.vocabulary)
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), batch)
        chosen = {"draw": (), "top-k 50": (tx.top_k(50),)}
        chosen |= {f"ads {k}": (tx.determinantal(directions, k),) for k in (0, 8, 16)}
        contenders = {name: rows.broadcast_rows(tx.chain(*parts), batch) for name, parts in chosen.items()}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for round_, (name, transform) in itertools.product(range(rounds + 1), contenders.items()):
            begun = time.perf_counter()
            decode_with(transform, pool, keys, 24).block_until_ready()
            if round_:  # the first compiles
                times[name].append((time.perf_counter() - begun) * 1e3 / 24)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, value in medians.items():
            added = value - medians["draw"]
            print(f"{batch:5d} | {name:8s} | {value:9.2f} | {added:15.2f} | {added / DECODE_MS[batch]:17.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="texts of each of the four prompts")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="costs only")
    options = parser.parse_args()
    loaded = mx.load()
    if not options.quick:
        table(loaded, options.rows, options.tokens)
    overhead(loaded, 9)


if __name__ == "__main__":
    main()
