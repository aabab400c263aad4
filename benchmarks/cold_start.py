"""A cold process to its first text, and peak memory, against `transformers` on PyTorch reading the same safetensors.

    python benchmarks/cold_start.py [--repeats 5]

Each side runs in processes of its own, in turn, with warm caches on disk (the model is converted, programs are compiled).
Memory is the process's peak resident set less what it holds after its imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

PROMPT = "The capital of France is"
NEW = 16
MEASURE = """
import json, os, resource, sys
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
def report(base, text):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"text": text, "base": base, "above": peak - base}), flush=True)
"""
OURS = f"""
import mechanex_jax as mx, mechanex_jax.architectures
base = resident()
mx.set_execution_mode("local")
mx.load(progress=False)
report(base, mx.generation.generate({PROMPT!r}, {NEW}, "greedy"))
"""
PEER = f"""
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaForCausalLM
torch.set_num_threads(2)
base = resident()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = tokenizer({PROMPT!r}, return_tensors="pt")
with torch.inference_mode():
    out = model.generate(**ids, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens={NEW})
report(base, tokenizer.decode(out[0, ids.input_ids.shape[1]:]))
"""


def run(code: str, folder: str) -> dict:
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURE + code, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - begun
    process.wait()
    return {"seconds": seconds, **json.loads(line)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    from mechanex_jax import checkpoints

    checkpoint = checkpoints.resolve()
    weights = checkpoint.tensors().nbytes / 1e6
    sides = {"ours": OURS, "peer": PEER}
    for code in sides.values():
        run(code, str(checkpoint.folder))  # fills caches
    rounds = [{side: run(code, str(checkpoint.folder)) for side, code in sides.items()} for _ in range(repeats)]
    assert len({r["text"] for both in rounds for r in both.values()}) == 1, rounds[0]
    print("side | seconds to first text | peak MB above imports | times the weights")
    for side in sides:
        seconds, above = (statistics.median(both[side][key] for both in rounds) for key in ("seconds", "above"))
        print(f"{side} | {seconds:21.2f} | {above:21.0f} | {above / weights:.2f}")
    ratio = statistics.median(both["ours"]["seconds"] / both["peer"]["seconds"] for both in rounds)
    print(f"ours / peer, seconds: {ratio:.2f}")


if __name__ == "__main__":
    main()
