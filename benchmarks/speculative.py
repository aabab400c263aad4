"""Speculative decoding by prompt lookup against plain decoding, and against `transformers`' assisted generation.

    python -m benchmarks.speculative [--batches 1 8] [--steps 4 8] [--new 128] [--repeats 3] [--without-peer]

Temperature 0, float32, the default model, up to the end of the text. Texts that repeat (summaries, code edits, JSON) and two
that don't; batches are the same prompt several times. All sides run in turn in one process; ratios are medians of repeats.
Times include the prefill. `predicted`, of the loop alone: tokens a round over what a round costs, in plain steps, from the
measured cost and share of verified rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import mechanex_jax as mx
from mechanex_jax.loops import DraftLengthController, decode, prompt_lookup, speculative_decode

from .speculative_texts import TASKS

GREEDY = mx.transforms.chain(mx.transforms.temperature(0.0))


def seconds(call) -> tuple[float, Any]:
    begun = time.perf_counter()
    out = call()
    return time.perf_counter() - begun, out


def measure(loaded: Any, peer: Any, batch: int, steps: int, new: int, repeats: int) -> None:
    """One table; costs are kept from text to text, as they are between the calls of a session."""
    tokenizer, controller, ratios = loaded.tokenizer, DraftLengthController(steps), {}
    print(f"\nbatch {batch}, at most {steps} drafted")
    print(
        "text               | tokens | plain tok/s | ours | ratio | predicted | tokens/round | accepted | same | HF -> assisted"
    )
    for name, (question, begun) in TASKS.items():
        text = tokenizer.apply_chat_template(question) + begun
        prompts = np.tile(np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32), (batch, 1))
        arguments: dict[str, Any] = {"key": jax.random.key(0), "max_new_tokens": new, "capacity": 512}
        arguments["eos_ids"] = tokenizer.eos_ids
        given = (loaded.model, prompts, prompts.shape[1], GREEDY)

        def plain(given=given, arguments=arguments):
            return decode(*given, **arguments)

        def ours(given=given, arguments=arguments):
            return speculative_decode(*given, drafter=prompt_lookup(), draft_length=controller, **arguments)

        def theirs(prompts=prompts, **extra: Any) -> int:
            assert peer is not None
            ids = torch.from_numpy(prompts.astype(np.int64))
            with torch.inference_mode():
                out = peer.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=2, **extra
                )
            return out.shape[1] - ids.shape[1]

        plain()
        ours()
        pairs, peers = [], []
        for _ in range(repeats):
            (a, wanted), (b, (out, stats)) = seconds(plain), seconds(ours)
            pairs.append((a, b))
            if peer is not None and batch == 1:  # `transformers` speculates for one row only
                runs = [seconds(theirs), seconds(lambda: theirs(prompt_lookup_num_tokens=steps))]
                peers.append([length / spent for spent, length in runs])
        plain_s, ours_s = (statistics.median(pair[i] for pair in pairs) for i in range(2))
        ratios[name] = statistics.median(a / b for a, b in pairs)
        share = float(stats.verified.sum() / stats.rounds.sum())
        per_round = float(stats.tokens.sum() / stats.rounds.sum())
        predicted = per_round / (1 + share * controller.price(steps))
        theirs_s = " -> ".join(f"{statistics.median(column):.1f}" for column in zip(*peers, strict=True)) or "-"
        total = int(stats.tokens.sum())
        print(
            f"{name:18s} | {total // batch:6d} | {total / plain_s:11.1f} | {total / ours_s:4.0f} | {ratios[name]:5.2f} | "
            f"{predicted:9.2f} | {per_round:12.2f} | {stats.accepted.sum() / max(stats.tested.sum(), 1):8.2f} | "
            f"{np.mean(out.tokens == wanted.tokens):4.0%} | {theirs_s}",
            flush=True,
        )
    for kind in ("summary", "code", "json", "prose"):
        own = [ratio for name, ratio in ratios.items() if name.startswith(kind)]
        print(f"{kind}: {statistics.geometric_mean(own):.2f} times plain decoding on average, {min(own):.2f} at least")
    costs = {s: round(1 + controller.price(s), 2) for s in sorted(controller.costs) if s}
    print(f"a verified round costs, in plain steps, by drafted tokens: {costs}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    mx.set_execution_mode("local")
    loaded = mx.load()
    peer = None if options.without_peer else AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    for batch in options.batches:
        for steps in options.steps:
            measure(loaded, peer, batch, steps, options.new, options.repeats)


if __name__ == "__main__":
    main()
