"""What the best of n texts costs, and what it brings where unit tests choose.

    python benchmarks/policies.py [--prompt 256] [--new 64] [--repeats 5]
    python benchmarks/policies.py --pass-at-1 [--seeds 3] [--max-tokens 96] [--temperature 0.6]

Cost: `best_of_n=8` against one `generate_batch` of 8 such rows, and against eight calls of `generate`; same prompt, same steps,
in turn in one process; ratios are medians over the repeats.

Quality: the small tasks of data/coding_tasks.jsonl, asked in the chat template. A text is chosen by the likes of a user's first
tests (`tests`), and passes if it also meets tests that had no part in choosing it (`checks`). Candidates have seeds of their
own that do not depend on how many there are, so that one run with the most candidates holds the runs with fewer; that its own
choice is the one made here is checked. Intervals are percentiles of a bootstrap over tasks, 95%.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

import mechanex_jax as mx
from mechanex_jax.policy import run_unit_tests
from mechanex_jax.policy.sandbox.code_blocks import extract_code

SENTENCE = "The keeper of the lighthouse wrote down every sound that the sea made, and what the weather was on that day. "
COUNTS = (1, 2, 4, 8)
TASKS = Path(__file__).parent / "data" / "coding_tasks.jsonl"


def seconds(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def cost(loaded, length: int, new: int, repeats: int) -> None:
    """Ratios of wall time, every row decoding `new` tokens."""
    tokenizer = loaded.tokenizer
    prompt = tokenizer.decode(tokenizer.encode(SENTENCE * (length // 10))[:length])
    options = {"max_tokens": new, "min_tokens": new, "seed": 0}
    n = COUNTS[-1]
    sides = {
        "best": lambda: mx.generation.generate(prompt, best_of_n=n, **options),
        "batch": lambda: mx.generation.generate_batch([prompt] * n, **options),
        "calls": lambda: [mx.generation.generate(prompt, max_tokens=new, min_tokens=new, seed=seed) for seed in range(n)],
    }
    for call in sides.values():
        call()
    runs = [{name: seconds(call) for name, call in sides.items()} for _ in range(repeats)]
    print(f"best_of_n = {n}, {len(tokenizer.encode(prompt))} prompt tokens, {new} new, {repeats} repeats")
    for name, words, target in (("batch", f"one batch of {n} rows", 1.15), ("calls", f"{n} calls", 0.45)):
        ratios = [run["best"] / run[name] for run in runs]
        times = [statistics.median(run[side] for run in runs) for side in ("best", name)]
        print(
            f"  against {words:20}: {times[0]:6.2f} s, {times[1]:6.2f} s; ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f}-{max(ratios):.3f}), target at most {target}"
        )


def chosen(candidates: list[dict]) -> dict:
    """Accepted before score before likelihood, as policies choose."""
    return max(candidates, key=lambda c: (c["accepted"], c["score"], c.get("likelihood", -np.inf), c["confidence"]))


def pass_at_1(seeds: int, max_tokens: int, temperature: float) -> None:
    tasks = [json.loads(line) for line in TASKS.read_text().splitlines()]
    options = {"chat": True, "max_tokens": max_tokens, "temperature": temperature, "sampling_method": "top-p", "top_p": 0.95}
    options |= {"best_of_n": COUNTS[-1], "code_unit_tests": [task["tests"] for task in tasks], "details": True}
    passed = np.zeros((len(COUNTS), len(tasks), seeds))
    begun = time.perf_counter()
    for seed in range(seeds):
        found = mx.generation.generate_batch([task["prompt"] for task in tasks], seed=seed, **options)
        texts: list[list[str]] = []
        for completion in found:
            candidates = completion.trace["candidates"]
            assert chosen(candidates)["output"] == completion.text
            texts.append([chosen(candidates[:count])["output"] for count in COUNTS])
        jobs = [(at, task) for task in range(len(tasks)) for at in range(len(COUNTS))]

        def passes(job: tuple[int, int], texts: list[list[str]] = texts) -> bool:
            at, task = job
            tests = [*tasks[task]["tests"], *tasks[task]["checks"]]
            return run_unit_tests(extract_code(texts[task][at]), tests, 3000).passed

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (at, task), ok in zip(jobs, pool.map(passes, jobs), strict=True):
                passed[at, task, seed] = ok
        print(f"seed {seed}: {[f'{value:.0%}' for value in passed[:, :, seed].mean(1)]}", flush=True)
    taken = time.perf_counter() - begun
    print(f"{len(tasks)} tasks, {seeds} seeds, temperature {temperature}, at most {max_tokens} tokens; {taken:.0f} s")
    levels = list(dict.fromkeys(task["level"] for task in tasks))
    print(f"best_of_n | pass@1 (95%)        | {' | '.join(f'{level:6}' for level in levels)}")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(tasks), (10_000, len(tasks)))
    for at, count in enumerate(COUNTS):
        rates = passed[at].mean(1)
        low, high = np.percentile(rates[drawn].mean(1), [2.5, 97.5])
        by_level = [np.mean([rates[i] for i, task in enumerate(tasks) if task["level"] == level]) for level in levels]
        print(f"{count:9} | {rates.mean():5.1%} ({low:5.1%}-{high:5.1%}) | {' | '.join(f'{rate:6.1%}' for rate in by_level)}")
    for at, task in enumerate(tasks):
        print(f"  {task['prompt'][24:60]:36} " + "  ".join(f"{rate:4.0%}" for rate in passed[:, at].mean(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pass-at-1", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.6)
    options = parser.parse_args()
    mx.set_execution_mode("local")
    loaded = mx.load()
    print(f"{loaded.name} on {loaded.device}, {platform.machine()}, {os.cpu_count()} CPUs, jax {jax.__version__}", flush=True)
    if options.pass_at_1:
        pass_at_1(options.seeds, options.max_tokens, options.temperature)
    else:
        cost(loaded, options.prompt, options.new, options.repeats)


if __name__ == "__main__":
    main()
