"""Speculative decoding by prompt lookup against plain decoding, and against `transformers`' assisted generation.

    python benchmarks/speculative.py [--batches 1 8] [--new 96] [--repeats 3] [--identical 200]

Temperature 0, float32, the default model. Repetitive texts (a summary that quotes, a code edit, JSON) and a novel one. All
sides run in turn in one process; ratios are medians over the pairs. `predicted` is tokens per round over the measured cost of
a round, in plain steps. `--identical N` compares N greedy prompts token by token instead. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import mechanex_jax as mx
from mechanex_jax.loops import Pace, decode, prompt_lookup, speculative_decode

GREEDY = mx.transforms.chain(mx.transforms.temperature(0.0))
ARTICLE = (
    "The Rosetta Stone is a stele of granodiorite inscribed with three versions of a decree issued in 196 BC. The top and "
    "middle texts are in Ancient Egyptian using hieroglyphic and Demotic scripts, while the bottom is in Ancient Greek. The "
    "decree has only minor differences across the three versions, making the Rosetta Stone key to deciphering Egyptian scripts."
)
CODE = """def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("sides must not be negative")
    return width * height


def perimeter(width, height):
    if width < 0 or height < 0:
        raise ValueError("sides must not be negative")
    return 2 * (width + height)
"""
JSON = "\n".join(f'{{"id": {i}, "name": "item {i}", "price": {10 * i}, "in_stock": true}}' for i in range(1, 6))
TASKS = {
    "summary": f"Summarise this text in two sentences that quote it word for word:\n\n{ARTICLE}",
    "code edit": f"Add a docstring to each function and repeat the rest of the code as it is:\n\n{CODE}",
    "json": f"Continue this list with items 6 to 12, in the same format:\n\n{JSON}",
    "novel": "Write a short story about a lighthouse keeper who collects sounds.",
}


def seconds(call) -> tuple[float, Any]:
    begun = time.perf_counter()
    out = call()
    return time.perf_counter() - begun, out


def chat(loaded, text: str) -> np.ndarray:
    return np.asarray(loaded.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"), np.int32)


def measure(loaded, peer, batch: int, new: int, repeats: int) -> None:
    pace = Pace()
    for name, text in TASKS.items():
        prompts = np.tile(chat(loaded, text), (batch, 1))
        arguments = {"key": jax.random.key(0), "max_new_tokens": new, "capacity": 512}

        def plain():
            return decode(loaded.model, prompts, prompts.shape[1], GREEDY, **arguments)  # noqa: B023

        def ours():
            return speculative_decode(
                loaded.model,
                prompts,  # noqa: B023
                prompts.shape[1],  # noqa: B023
                GREEDY,
                drafter=prompt_lookup(),
                pace=pace,
                **arguments,  # noqa: B023
            )

        def theirs(**extra):
            ids = torch.from_numpy(prompts.astype(np.int64))  # noqa: B023
            with torch.inference_mode():
                return peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=new,
                    max_new_tokens=new,
                    pad_token_id=2,
                    **extra,
                )

        plain()
        ours()
        pairs = []
        for _ in range(repeats):
            (a, wanted), (b, (out, stats)) = seconds(plain), seconds(ours)
            # `transformers` speculates for one row only.
            c = seconds(lambda: theirs())[0] if batch == 1 else float("nan")
            d = seconds(lambda: theirs(prompt_lookup_num_tokens=4))[0] if batch == 1 else float("nan")
            pairs.append((a, b, c, d))
        plain_s, ours_s, hf_s, assisted_s = (statistics.median(p[i] for p in pairs) for i in range(4))
        ratio = statistics.median(p[0] / p[1] for p in pairs)
        cost = {s: round(pace.cost(s) / pace.cost(0), 2) for s in pace.costs if len(pace.costs[s]) > 1}
        per_round = float(stats.tokens.sum() / stats.rounds.sum())
        mean_cost = cost.get(pace.steps, float("nan"))
        print(
            f"{batch:5d} | {name:9s} | {batch * new / plain_s:9.1f} | {batch * new / ours_s:9.1f} | {ratio:5.2f} | "
            f"{per_round / mean_cost:9.2f} | {per_round:10.2f} | {np.nanmean(stats.acceptance_rate):10.2f} | "
            f"{np.mean(out.tokens == wanted.tokens):6.1%} | {new / hf_s:6.1f} -> {new / assisted_s:6.1f} | {cost}",
            flush=True,
        )


def identical(loaded, count: int, new: int) -> None:
    """Greedy tokens of `count` prompts with and without drafts; a difference is excused by a gap below 1e-4, and counted."""
    lines = (Path(__file__).parent.parent / "tests/data/prompts.txt").read_text().splitlines()
    texts = [chat(loaded, line) for line in (lines * (count // max(len(lines), 1) + 1))[:count]]
    different, excused = 0, 0
    for start in range(0, count, 8):
        part = texts[start : start + 8]
        lengths = np.array([len(text) for text in part], np.int32)
        prompts = np.zeros((len(part), lengths.max()), np.int32)
        for row, text in enumerate(part):
            prompts[row, : len(text)] = text
        arguments = {"key": jax.random.key(0), "max_new_tokens": new, "capacity": 512}
        wanted = decode(loaded.model, prompts, lengths, GREEDY, **arguments)
        out, _ = speculative_decode(
            loaded.model, prompts, lengths, GREEDY, drafter=prompt_lookup(), adaptive=False, **arguments
        )
        for row in np.flatnonzero((out.tokens != wanted.tokens).any(axis=1)):
            at = np.flatnonzero(out.tokens[row] != wanted.tokens[row])[0]
            best = np.sort(
                np.asarray(mx.forward(loaded.model, np.concatenate([part[row], wanted.tokens[row, :at]])).logits)[-1]
            )
            gap = float(best[-1] - best[-2])
            different, excused = different + (gap >= 1e-4), excused + (gap < 1e-4)
            print(f"prompt {start + row}, token {at}: gap {gap:.1e}")
    print(f"{count} prompts, {new} tokens: {different} differ, {excused} more after a gap below 1e-4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--identical", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    mx.set_execution_mode("local")
    loaded = mx.load()
    if options.identical:
        identical(loaded, options.identical, options.new)
        return
    peer = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    print("batch | text | plain tok/s | ours | ratio | predicted | tokens/round | acceptance | same | HF -> assisted | costs")
    for batch in options.batches:
        measure(loaded, peer, batch, options.new, options.repeats)


if __name__ == "__main__":
    main()
