"""Greedy tokens of 200 prompts with and without drafts, on the default model.

    python -m benchmarks.draft_identity [--new 32] [--rows 40] [--steps 4]

Drafted by prompt lookup, by the model's own first layers, and by a small random model. A row may differ only where float noise
decides: after a gap below 1e-4 between the two best logits, as a forward pass without a cache has them. Each is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

import mechanex_jax as mx
from mechanex_jax.architectures.model import Model, parameter_shapes
from mechanex_jax.loops import decode, model_drafter, prompt_lookup, speculative_decode

DATA = Path(__file__).parent.parent / "tests" / "data"
GREEDY = mx.transforms.chain(mx.transforms.temperature(0.0))
GAP = 1e-4


def first_layers(model: Model, layers: int) -> Model:
    """The same model, cut off behind its first layers."""
    config: Any = model.spec
    static = dataclasses.replace(model.static, config=dataclasses.replace(config, layers=layers))
    weights = dict(zip(parameter_shapes(model.static), model.params, strict=True))
    return Model(tuple(weights[path] for path in parameter_shapes(static)), static)


def random_model(model: Model) -> Model:
    """Two layers of random weights, of the given model's width and vocabulary."""
    small, rng = first_layers(model, 2), np.random.default_rng(0)
    params = [jax.device_put(rng.standard_normal(p.shape, np.float32) * 576**-0.5) for p in small.params]
    return Model(tuple(params), small.static)


def batches(loaded: Any, rows: int):
    """(ids of each row, padded [B, S], lengths) of all prompts, those of like length together."""
    files = ("prompts.txt", "more_prompts.txt")
    lines = [line for name in files for line in (DATA / name).read_text("utf-8").splitlines()]
    texts = sorted((loaded.tokenizer.encode(json.loads(line)) for line in lines), key=len)
    for start in range(0, len(texts), rows):
        part = texts[start : start + rows]
        lengths = np.array([len(text) for text in part], np.int32)
        prompts = np.zeros((len(part), lengths.max()), np.int32)
        for row, text in enumerate(part):
            prompts[row, : len(text)] = text
        yield part, prompts, lengths


def gap_at(model: Model, prompt: list[int], tokens: np.ndarray, at: int) -> float:
    best = np.sort(np.asarray(mx.forward(model, np.concatenate([prompt, tokens[:at]])).logits)[-1])
    return float(best[-1] - best[-2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    mx.set_execution_mode("local")
    loaded = mx.load()
    arguments = {"key": jax.random.key(0), "max_new_tokens": options.new, "eos_ids": loaded.tokenizer.eos_ids, "capacity": 256}
    parts = list(batches(loaded, options.rows))
    plain = [decode(loaded.model, prompts, lengths, GREEDY, **arguments) for _, prompts, lengths in parts]
    drafters = {
        "prompt lookup": prompt_lookup(),
        "first 4 layers": model_drafter(first_layers(loaded.model, 4)),
        "random": model_drafter(random_model(loaded.model)),
    }
    print(f"{sum(len(p) for p, _, _ in parts)} prompts, {options.new} tokens, {options.steps} drafted, {options.rows} rows")
    for name, drafter in drafters.items():
        begun, wrong, excused, tested, accepted = time.perf_counter(), 0, 0, 0, 0
        for (part, prompts, lengths), wanted in zip(parts, plain, strict=True):
            out, counts = speculative_decode(
                loaded.model,
                prompts,
                lengths,
                GREEDY,
                drafter=drafter,
                steps=options.steps,
                adaptive=False,
                **arguments,
            )
            tested, accepted = tested + counts.tested.sum(), accepted + counts.accepted.sum()
            for row in np.flatnonzero((out.tokens != wanted.tokens).any(axis=1)):
                at = int(np.flatnonzero(out.tokens[row] != wanted.tokens[row])[0])
                gap = gap_at(loaded.model, part[row], wanted.tokens[row], at)
                wrong, excused = wrong + (gap >= GAP), excused + (gap < GAP)
                print(f"  {loaded.tokenizer.decode(part[row])!r}, token {at}: gap {gap:.1e}")
        print(
            f"{name:15s} | {wrong} differ | {excused} more after a gap below {GAP} | {accepted} of {tested} proposals accepted "
            f"| {time.perf_counter() - begun:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
