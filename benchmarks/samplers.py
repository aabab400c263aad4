"""What each sampling method adds to a decoding step: transform and draw, against greedy by `jnp.argmax`.

    python -m benchmarks.samplers [--quick]

Every method runs in one jitted loop over changing logits, as in decoding, so that nothing is hoisted out of it. Rounds
of all methods are interleaved in one process, and medians are shown: the whole cost, and what is added to greedy, in ms
and in hundredths of a decoding step of the default model (DECODE_MS). "all:" has all five stages in one program.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mechanex_jax import rows
from mechanex_jax import transforms as tx
from mechanex_jax.transforms.base import apply_rows

# ms of a decoding step of the 135M default model at T = 1,024 on 2 CPU cores, by batch.
DECODE_MS = {1: 31.0, 8: 58.0, 32: 132.0}
POOL = 4


def pool_of_logits(batch: int, vocab: int, seed: int = 0) -> jax.Array:
    """float32 [POOL, B, V]: Zipf-like, some sharp and some flat; near half of them need over 64 tokens for P = 0.9."""
    rng = np.random.default_rng(seed)
    sharpness = rng.uniform(1.0, 2.6, size=(POOL, batch, 1))
    # A head of its own, then a Zipf tail: log-probability falls with the log of the rank.
    ranks = rng.permuted(np.broadcast_to(np.arange(1.0, vocab + 1, dtype=np.float32), (POOL, batch, vocab)), axis=-1)
    logits = -sharpness * np.log(ranks + 3.0) + 0.3 * rng.standard_normal(ranks.shape, dtype=np.float32)
    return jnp.asarray(logits, jnp.float32)


@functools.partial(jax.jit, static_argnames="steps")
def decode_with(transform: Any, pool: jax.Array, keys: jax.Array, steps: int) -> jax.Array:
    """Transform and draw `steps` times; `transform=None` is greedy."""
    batch = pool.shape[1]

    def body(index: Any, tokens: jax.Array) -> jax.Array:
        # Which logits come next depends on the tokens, as in decoding.
        logits = pool[(index + tokens[0]) % POOL]
        if transform is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        here = jnp.full((batch,), index, jnp.int32)
        step_keys = jax.vmap(jax.random.fold_in)(keys, here)
        step = tx.Step(here, here + 1, step_keys)
        return tx.draw_rows(step_keys, apply_rows(transform, state, logits, step))

    state = None if transform is None else tuple(() for _ in transform.parts)
    return lax.fori_loop(0, steps, body, jnp.zeros((batch,), jnp.int32))


def methods() -> dict[str, Any]:
    plain = {
        "draw only": tx.chain(),
        "temperature": tx.chain(tx.temperature(0.7)),
        "T=0, fused": tx.chain(tx.temperature(0.0)),
        "top-k 50": tx.chain(tx.top_k(50)),
        "top-k 500": tx.chain(tx.top_k(500)),
        "top-p 0.9": tx.chain(tx.top_p(0.9)),
        "top-p 0.9, T=0.7": tx.chain(tx.truncation(0.7, top_p=0.9)),
        "min-p 0.05": tx.chain(tx.min_p(0.05)),
        "typical 0.95": tx.chain(tx.typical_p(0.95)),
    }
    one_program = {
        "all: neutral": (1.0, 2**31 - 1, 1.0, 0.0, 1.0),
        "all: top-k 50": (1.0, 50, 1.0, 0.0, 1.0),
        "all: top-p 0.9": (1.0, 2**31 - 1, 0.9, 0.0, 1.0),
        "all: typical 0.95": (1.0, 2**31 - 1, 1.0, 0.0, 0.95),
        "all: all active": (0.9, 400, 0.95, 0.02, 0.95),
    }
    return plain | {name: tx.chain(tx.truncation(*values)) for name, values in one_program.items()}


def measure(batch: int, vocab: int, rounds: int, budget_ms: float, only: str | None) -> None:
    pool = pool_of_logits(batch, vocab)
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), batch)
    contenders = {"greedy": None} | {n: rows.broadcast_rows(t, batch) for n, t in methods().items() if not only or only in n}
    steps, times = {}, {name: [] for name in contenders}
    for name, transform in contenders.items():
        decode_with(transform, pool, keys, 4).block_until_ready()
        start = time.perf_counter()
        decode_with(transform, pool, keys, 4).block_until_ready()
        each = (time.perf_counter() - start) * 1e3 / 4
        steps[name] = 4 * max(1, min(50, round(budget_ms / max(each, 1e-3) / 4)))
        decode_with(transform, pool, keys, steps[name]).block_until_ready()
    for _ in range(rounds):
        for name, transform in contenders.items():
            start = time.perf_counter()
            decode_with(transform, pool, keys, steps[name]).block_until_ready()
            times[name].append((time.perf_counter() - start) * 1e3 / steps[name])
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\nV = {vocab:,}, batch {batch}: greedy {medians['greedy']:.3f} ms a step")
    for name, value in medians.items():
        if name != "greedy":
            added = value - medians["greedy"]
            share = f"{100 * added / DECODE_MS[batch]:6.2f}% of a step" if batch in DECODE_MS and vocab < 100_000 else ""
            print(f"  {name:20s} {value:8.3f} ms, added {added:+8.3f} ms {share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="V = 49,152 only, few rounds")
    parser.add_argument("--only", help="only methods whose name contains this")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    arguments = parser.parse_args()
    for vocab in (49_152,) if arguments.quick else (49_152, 262_144):
        for batch in arguments.batch:
            rounds, budget_ms = (5, 40.0) if arguments.quick else (9, 150.0)
            measure(batch, vocab, rounds, budget_ms, arguments.only)


if __name__ == "__main__":
    main()
