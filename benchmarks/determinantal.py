"""Diversity against quality of determinantal sampling beside the truncations, on the default model; what a step costs.

    python -m benchmarks.determinantal [--texts 256] [--tokens 24] [--quick]

Every method draws the same number of texts from the same prompts with the same keys. Columns: distinct 1- and 2-grams (their
share of all) and self-BLEU (of each text against the others, BLEU-4 by tokens with add-1 smoothing; lower is more diverse),
both within groups of 16 texts of one prompt, and the mean log-probability of a token under the model itself. First at
temperature 1, then at the temperature at which the mean log-probability is that of the reference, REFERENCE, found by a scan in
one batch and one correction. There, differences from the reference have intervals of 95%, by 2,000 bootstrap samples of groups.
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
    "top-k 8": {"top_k": 8},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "typical 0.95": {"typical_p": 0.95},
    **{f"ads k=8 beta={b}": {"subset_size": 8, "beta": b} for b in (0.1, 0.3, 0.5)},
}
REFERENCE = "top-k 8"
GROUP = 16
SCAN = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)


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
    return statistics.fmean(bleu(text, [other for j, other in enumerate(texts) if j != i]) for i, text in enumerate(texts))


class Sampler:
    """Draws texts of the four prompts in turn; all methods share one program: what a method does not use is neutral."""

    def __init__(self, loaded: Any, length: int, batch: int = 64):
        self.model, self.length, self.batch = loaded.model, length, batch
        self.directions = tx.directions(loaded.model.unembedding().T)
        ids = [loaded.tokenizer.encode(PROMPTS[row % len(PROMPTS)]) for row in range(batch)]
        self.lengths = np.array([len(text) for text in ids], np.int32)
        self.prompts = np.zeros((batch, self.lengths.max()), np.int32)
        for row, text in enumerate(ids):
            self.prompts[row, : len(text)] = text

    def draw(self, settings: dict[str, Any], temperature: Any, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [N, T], log-probabilities [N, T]); row i continues prompt i modulo 4."""
        values = NEUTRAL | settings | {"temperature": np.broadcast_to(np.asarray(temperature, np.float32), self.batch)}
        ads = {key: values.pop(key) for key in ("subset_size", "beta")}
        transform = tx.chain(tx.truncation(**values), tx.determinantal(self.directions, **ads))
        found = []
        for part in range(-(-count // self.batch)):
            key = jax.random.fold_in(jax.random.key(seed), part)
            out = decode(self.model, self.prompts, self.lengths, transform, key=key, max_new_tokens=self.length)
            found.append((out.tokens, out.logprobs))
        return np.concatenate([tokens for tokens, _ in found])[:count], np.concatenate([p for _, p in found])[:count]

    def temperature_for(self, settings: dict[str, Any], quality: float) -> float:
        """At which the mean log-probability is `quality`, by a quadratic through a scan."""
        heats = np.repeat(SCAN, self.batch // len(SCAN))
        _, logprobs = self.draw(settings, heats, self.batch, seed=1)
        fine = np.linspace(SCAN[0], SCAN[-1], 1000)
        fitted = np.polyval(np.polyfit(heats, logprobs.mean(axis=1), 2), fine)
        return float(fine[np.argmin(np.abs(fitted - quality))])


def groups_of(tokens: np.ndarray) -> np.ndarray:
    """[groups, 3]: distinct-1, distinct-2 and self-BLEU of each group of texts of one prompt."""
    found = []
    for prompt in range(len(PROMPTS)):
        texts = tokens[prompt :: len(PROMPTS)].tolist()
        for first in range(0, len(texts) - GROUP + 1, GROUP):
            group = texts[first : first + GROUP]
            found.append((distinct(group, 1), distinct(group, 2), self_bleu(group)))
    return np.array(found)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Of the mean, 95%, by the bootstrap."""
    chosen = np.random.default_rng(0).integers(0, len(differences), (2000, len(differences)))
    low, high = np.percentile(differences[chosen].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def table(loaded: Any, texts: int, length: int) -> None:
    sampler = Sampler(loaded, length)
    print(f"{texts} texts of {length} tokens for each method, {loaded.name}\n\nat temperature 1")
    print("method         | distinct-1 | distinct-2 | self-BLEU | mean log-probability")

    def row(name: str, heat: float) -> tuple[np.ndarray, float]:
        tokens, logprobs = sampler.draw(METHODS[name], heat, texts)
        found, quality = groups_of(tokens), float(logprobs.mean())
        one, two, alike = found.mean(axis=0)
        print(f"{name:14s} | {one:10.3f} | {two:10.3f} | {alike:9.3f} | {quality:8.3f}", end="", flush=True)
        return found, quality

    first = {}
    for name in METHODS:
        first[name] = row(name, 1.0)
        print(flush=True)
    reference, wanted = first[REFERENCE]
    print(f"\nat the mean log-probability of {REFERENCE}; differences from it with intervals of 95%")
    for name in METHODS:
        if name != REFERENCE:
            near = sampler.temperature_for(METHODS[name], wanted)
            # The scan is small: the line through two full draws corrects it.
            there, here = float(sampler.draw(METHODS[name], near, texts)[1].mean()), first[name][1]
            heat = 1.0 + (near - 1.0) * (wanted - here) / (there - here) if abs(there - here) > 0.01 else near
            found, _ = row(name, heat)
            for label, column in (("distinct-2", 1), ("self-BLEU", 2)):
                away = found[:, column] - reference[:, column]
                low, high = interval(away)
                print(f" | {label} {away.mean():+.3f} [{low:+.3f}, {high:+.3f}]", end="")
            print(f" | T = {heat:.2f}", flush=True)


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
    parser.add_argument("--texts", type=int, default=256, help="of each method")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="costs only")
    options = parser.parse_args()
    loaded = mx.load()
    if not options.quick:
        table(loaded, options.texts, options.tokens)
    overhead(loaded, 9)


if __name__ == "__main__":
    main()
