"""What constraints cost: to compile, from the cache, in the decoding loop; beside llguidance and XGrammar in the same run.

    python -m benchmarks.constraints [--compile] [--cache] [--loop] [--callback] [--host] [--batches 1 8 32] [--repeats 5]

Without a section's flag all sections run.

- compile: from what a user writes to arrays on the device, each source once and with nothing remembered of others like it, for
  49k ids (the default model's), 131k (Tekken) and 262k (the default model's with random pairs of tokens joined).
  The peers do less at this point: theirs is a parser, whose masks are worked out while decoding.
- cache: a constraint that was compiled before.
- loop: a decode step with and without a constraint, chunks of the two in turn; and mask and advance alone, without the model,
  for the tokens that the loop has chosen.
- callback: the same loop with masks of the peers, asked for through `jax.pure_callback`.
- host: `transformers` on PyTorch with the peers' masks in a LogitsProcessor, one prompt, greedy.

Needs the `test` extra; XGrammar is used where it is installed. Ratios are medians over pairs. llguidance
chooses other tokens than the rest: of all that spell bytes which must come, it allows the tokenizer's usual ones alone.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import llguidance
import numpy as np

import mechanex_jax as mx
from benchmarks.constraint_peers import PEERS, Asked, HostMask, extended, tekken
from benchmarks.schemas import MIXES, OTHERS, SCHEMAS, SIX_FIELDS, SOURCES
from mechanex_jax import rows
from mechanex_jax.constraints import cache, compiler
from mechanex_jax.constraints.device.token_mask import pack_constraints
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.constraints.token_index import build
from mechanex_jax.constraints.token_index.trie import TokenTries
from mechanex_jax.transforms.base import Step, advance_rows, apply_rows, init_rows

PROMPT, STEPS, CHUNK, HOST_NEW = 24, 64, 8, 48
MAX_NEW, CAPACITY = 220, 256  # far more than is decoded: no row comes near the end of its budget


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


# compile


def forget_parts() -> None:
    """Empty the bounded caches of the front ends: those keep parts of earlier sources, the others what never changes."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mechanex_jax.constraints."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear") and value.cache_info().maxsize is not None:
                    value.cache_clear()


def ours_compiled(kind: str, source: Any, target: compiler.Target) -> tuple[float, float, float, build.Tables]:
    """Seconds of the front end, the tables and the way to the device, and the tables."""
    forget_parts()
    begun = time.perf_counter()
    pushdown = compiler.FRONT_ENDS[kind](source, JsonOptions()).compile()
    read = time.perf_counter()
    built = build.build(pushdown, target.vocabulary, eos_ids=target.eos_ids, logits=target.logits)
    made = time.perf_counter()
    jax.block_until_ready(jax.device_put(pack_constraints([built], target.vocabulary)))
    return read - begun, made - read, time.perf_counter() - made, built


def peer_compiled(peer: Any, kind: str, source: Any) -> tuple[float, float] | None:
    """Seconds to compile, and until the first mask is there as well; None where the peer refuses the source."""
    begun = time.perf_counter()
    try:
        compiled = peer.compile(kind, source)
    except Exception:  # each library has its own
        return None
    made = time.perf_counter() - begun
    peer.fill(peer.matcher(compiled), np.zeros((1, peer.words), np.int32))
    return made, time.perf_counter() - begun


def spread(values: list[float]) -> str:
    """Median, 95th percentile and largest of some seconds, as milliseconds."""
    if not values:
        return f"{'-':>7} | {'-':>7} | {'-':>7}"
    return " | ".join(f"{1e3 * value:7.1f}" for value in (median(values), np.percentile(values, 95), max(values)))


def compile_section(loaded: Any, options: argparse.Namespace) -> None:
    target = compiler.Target.of(loaded)
    real = target.vocabulary
    vocabularies = {"default model's": (target, SOURCES[: options.sources])}
    fewer = [*SOURCES[::5], OTHERS[3]][: options.sources]
    if options.large:
        for name, make, eos in (
            ("Tekken", tekken, (2,)),
            ("extended", lambda: extended(real, 262_144), target.eos_ids),
        ):
            vocabulary = make()
            vocabularies[name] = (compiler.Target(vocabulary, eos, vocabulary.size), fewer)
    first = seconds(lambda: ours_compiled("json_schema", SIX_FIELDS, compiler.Target.of(loaded)))
    print(
        f"\ncompile, ms; six fields as the first constraint of a process, imports and the vocabulary's trie: {1e3 * first:.0f}"
    )
    for name, (target, sources) in vocabularies.items():
        vocabulary = target.vocabulary
        once = seconds(lambda: TokenTries(vocabulary, target.eos_ids))  # noqa: B023
        print(f"\n{name} vocabulary, {target.logits} ids; {1e3 * once:.0f} ms once for the vocabulary")
        for _, kind, source in (SOURCES[0], *OTHERS[2:]):
            ours_compiled(kind, source, target)  # imports, and tables that never change
        peers = {peer: make(target) for peer, make in PEERS.items()}
        parts, biggest, theirs = [], 0, {peer: [] for peer in peers}
        lines = []
        for title, kind, source in sources:
            front, built, placed, made = ours_compiled(kind, source, target)
            parts.append((front, built, placed, front + built + placed))
            biggest = max(biggest, made.bytes)
            line = [f"{1e3 * part:8.1f}" for part in parts[-1]] + [f"{made.stats['states']:7d} | {made.stats['rows']:5d}"]
            for peer, at in peers.items():
                found = peer_compiled(at, kind, source)
                theirs[peer].append(found)
                line.append(f"{1e3 * found[1]:10.1f}" if found else f"{'refused':>10}")
            lines.append(f"{title:18} | " + " | ".join(line))
        if options.each:
            print("source             | front end |  tables |  device | together | states |  rows | " + " | ".join(peers))
            print("\n".join(lines))
        print(f"{len(sources):3d} sources            |  median |     95% | largest | refused")
        for at, label in enumerate(("front end", "tables", "to the device", "ours together")):
            print(f"{label:22} | {spread([part[at] for part in parts])} |")
        for peer, found in theirs.items():
            held = [one for one in found if one]
            for at, label in enumerate((f"{peer}, compile", f"{peer}, first mask")):
                print(f"{label:22} | {spread([one[at] for one in held])} | {len(found) - len(held):7d}")
        six = median(sum(ours_compiled("json_schema", SIX_FIELDS, target)[:3]) for _ in range(3))
        print(f"six fields: {1e3 * six:.1f} ms; largest tables {biggest / 1e6:.1f} MB")


# cache


def cache_section(loaded: Any, options: argparse.Namespace) -> None:
    ask = functools.partial(mx.constraints.compile, json_schema=SIX_FIELDS, tokenizer=loaded)
    ask()
    disk, memory = [], []
    for _ in range(options.repeats):
        cache.forget()
        disk.append(seconds(ask))
        memory.append(seconds(ask))
    print(f"\ncache, six fields: {1e3 * median(disk):.2f} ms from disk, {1e3 * median(memory):.2f} ms from memory")


# loop, callback


def prompts_of(loaded: Any, batch: int) -> tuple[np.ndarray, np.ndarray]:
    out, lengths = np.zeros((batch, PROMPT), np.int32), np.zeros(batch, np.int32)
    for row in range(batch):
        ids = loaded.tokenizer.encode(f"{SCHEMAS[row % len(SCHEMAS)][1]} As JSON:")[:PROMPT]
        out[row, : len(ids)], lengths[row] = ids, len(ids)
    return out, lengths


def sources_of(mix: str, batch: int) -> list[Any]:
    return [MIXES[mix][row % len(MIXES[mix])] for row in range(batch)]


def our_transform(loaded: Any, sources: list[Any]) -> Any:
    target = compiler.Target.of(loaded)
    made = [None if s is None else compiler.compile_for("json_schema", s, JsonOptions(), target).tables for s in sources]
    if (least := max(one.minimum for one in made if one)) > MAX_NEW:
        raise SystemExit(f"the shortest text takes {least} tokens, more than {MAX_NEW}")
    return pack_constraints(made, target.vocabulary, token_bytes=loaded.token_bytes)


def begin(loaded: Any, batch: int, *transforms: Any) -> tuple[Any, Any]:
    prompts, lengths = prompts_of(loaded, batch)
    chained = mx.transforms.chain(*transforms, mx.transforms.truncation(temperature=0.0))
    arguments = {"key": jax.random.key(0), "max_new_tokens": MAX_NEW, "capacity": CAPACITY}
    return jax.block_until_ready(mx.loops.start(loaded.model, prompts, lengths, chained, **arguments))


def in_turn(loaded: Any, batch: int, sides: dict[str, tuple[Any, ...]], options: argparse.Namespace) -> Any:
    """For each side ms per step of every chunk, chunks of all sides in turn; and the tokens chosen."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    chosen: dict[str, np.ndarray] = {}
    for repeat in range(options.repeats + 1):  # the first compiles
        states = {name: begin(loaded, batch, *transforms) for name, transforms in sides.items()}
        for turn in range(options.steps // CHUNK):
            names = list(sides) if turn % 2 else list(sides)[::-1]
            for name in names:
                program, carry = states[name]
                begun = time.perf_counter()
                carry = jax.block_until_ready(mx.loops.decode_chunk(program, carry, np.int32(CHUNK)))
                if repeat:
                    spent[name].append((time.perf_counter() - begun) * 1e3 / CHUNK)
                states[name] = program, carry
        for name, (_, carry) in states.items():
            if not np.all(np.asarray(carry.generated) == options.steps):
                raise SystemExit(f"{name}: rows have ended before {options.steps} tokens")
            chosen[name] = mx.loops.result(carry).tokens[:, : options.steps]
    return spent, chosen


def ratio(of: list[float], to: list[float]) -> str:
    found = sorted(a / b for a, b in zip(of, to, strict=True))
    low, high = np.percentile(found, [25, 75])
    return f"{median(found):6.3f} ({low:.3f}-{high:.3f})"


@jax.jit
def replay(transform: Any, state: Any, logits: jax.Array, tokens: jax.Array) -> Any:
    """Mask and advance for tokens [B, N] that are known, without a model."""
    batch, steps = tokens.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(batch))

    def body(i: jax.Array, held: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        state, best = held
        step = Step(jnp.full(batch, i), jnp.full(batch, MAX_NEW, jnp.int32) - i, keys)
        best = jnp.maximum(best, jnp.argmax(apply_rows(transform, state, logits, step), axis=-1).astype(jnp.int32))
        return advance_rows(transform, state, tokens[:, i], step), best

    return jax.lax.fori_loop(0, steps, body, (state, jnp.zeros(batch, jnp.int32)))


def alone(loaded: Any, transform: Any, tokens: np.ndarray, repeats: int) -> float:
    """Milliseconds that a step's mask and advance take, less what reading the logits takes anyway."""
    batch = len(tokens)
    logits = jax.random.normal(jax.random.key(1), (batch, loaded.model.spec.vocabulary))
    prompts, lengths = prompts_of(loaded, batch)
    calls = []
    for side in (mx.transforms.chain(transform), mx.transforms.chain()):
        side = jax.device_put(rows.broadcast_rows(side, batch))
        state = init_rows(side, jnp.asarray(prompts), jnp.asarray(lengths))
        calls.append(functools.partial(replay, side, state, logits, tokens))
    for call in calls:
        jax.block_until_ready(call())
    spent = [[seconds(lambda: jax.block_until_ready(call())) for call in calls] for _ in range(max(5, repeats))]  # noqa: B023
    return median(masked - plain for masked, plain in spent) * 1e3 / tokens.shape[1]


def loop_section(loaded: Any, options: argparse.Namespace) -> None:
    print(f"\nloop, {options.steps} tokens a row; ratios: median of chunks (quartiles)")
    print("batch | rows     | free ms/step | constrained | ratio                | mask and advance alone, ms | share of a step")
    for batch in options.batches:
        for mix in MIXES if batch > 1 else ("closed", "open"):
            ours = our_transform(loaded, sources_of(mix, batch))
            spent, chosen = in_turn(loaded, batch, {"free": (), "ours": (ours,)}, options)
            free, held = median(spent["free"]), median(spent["ours"])
            own = alone(loaded, ours, chosen["ours"], options.repeats)
            compared = ratio(spent["ours"], spent["free"])
            print(f"{batch:5d} | {mix:8} | {free:12.2f} | {held:11.2f} | {compared:20} | {own:26.3f} | {own / free:.2%}")


def callback_section(loaded: Any, options: argparse.Namespace) -> None:
    print(f"\ncallback, {options.steps} tokens a row; ratios to ours: median of chunks (quartiles)")
    print(
        "batch | rows     | masks by   | ours ms/step | theirs | ratio                | alone: ours ms | theirs | same tokens"
    )
    target, text = compiler.Target.of(loaded), (loaded.folder / "tokenizer.json").read_text("utf-8")
    for batch in options.batches:
        for mix in ("closed", "open"):
            sources = sources_of(mix, batch)
            ours = our_transform(loaded, sources)
            for name, make in PEERS.items():
                mask = HostMask(np.arange(batch, dtype=np.int32), Asked(make(target, text), sources))
                spent, chosen = in_turn(loaded, batch, {"ours": (ours,), "theirs": (mask,)}, options)
                steps = [median(spent[side]) for side in ("ours", "theirs")]
                compared, same = ratio(spent["theirs"], spent["ours"]), np.mean(chosen["ours"] == chosen["theirs"])
                own = [alone(loaded, one, chosen[side], options.repeats) for one, side in ((ours, "ours"), (mask, "theirs"))]
                print(
                    f"{batch:5d} | {mix:8} | {name:10} | {steps[0]:12.2f} | {steps[1]:6.2f} | {compared:20} | "
                    f"{own[0]:14.3f} | {own[1]:6.3f} | {same:.1%}"
                )


# host


def host_section(loaded: Any, options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

    class Masked(LogitsProcessor):
        def __init__(self, peer: Any, compiled: Any, prompt: int):
            self._peer, self._matcher, self._prompt = peer, peer.matcher(compiled), prompt
            self._words = np.zeros((1, peer.words), np.int32)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] > self._prompt:
                self._peer.accept(self._matcher, int(input_ids[0, -1]))
            self._peer.fill(self._matcher, self._words)
            bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")[: scores.shape[1]]
            return scores.masked_fill(torch.from_numpy(bits == 0), float("-inf"))

    torch.set_num_threads(os.cpu_count() or 1)
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    prompts, lengths = prompts_of(loaded, 1)
    ids, new = torch.from_numpy(prompts[:, : lengths[0]]).long(), options.host_tokens

    def theirs(peer: Any, compiled: Any) -> np.ndarray:
        masks = LogitsProcessorList([Masked(peer, compiled, ids.shape[1])])
        length = {"min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 2}
        neutral = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=masks, **length, **neutral)
        return made[:, ids.shape[1] :].numpy()

    print(f"\nhost: {new} tokens, prefill included, {loaded.device}, against transformers on CPU in float32")
    print("rows     | masks by   | ours tok/s | theirs tok/s | ratio (quartiles)    | same tokens")
    for mix in ("closed", "open"):
        (source,) = sources_of(mix, 1)
        transform = our_transform(loaded, [source])

        def ours() -> np.ndarray:
            program, carry = begin(loaded, 1, transform)  # noqa: B023
            return mx.loops.result(mx.loops.decode_chunk(program, carry, np.int32(new))).tokens[:, :new]

        for name, make in PEERS.items():
            peer = make(compiler.Target.of(loaded), (loaded.folder / "tokenizer.json").read_text("utf-8"))
            compiled = peer.compile("json_schema", source)
            same = np.mean(ours() == theirs(peer, compiled))
            pairs = [(seconds(ours), seconds(lambda: theirs(peer, compiled))) for _ in range(options.repeats)]  # noqa: B023
            rates = [new / median(pair[side] for pair in pairs) for side in (0, 1)]
            compared = ratio([pair[1] for pair in pairs], [pair[0] for pair in pairs])
            print(f"{mix:8} | {name:10} | {rates[0]:10.1f} | {rates[1]:12.1f} | {compared:20} | {same:.1%}")


SECTIONS: dict[str, Callable[[Any, argparse.Namespace], None]] = {
    "compile": compile_section,
    "cache": cache_section,
    "loop": loop_section,
    "callback": callback_section,
    "host": host_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SECTIONS:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"tokens in the loop, a multiple of {CHUNK}")
    parser.add_argument("--host-tokens", type=int, default=HOST_NEW)
    parser.add_argument("--sources", type=int, default=len(SOURCES), help="compile only so many")
    parser.add_argument("--each", action="store_true", help="compile: a line for each source")
    parser.add_argument("--no-large", dest="large", action="store_false", help="compile: the default vocabulary only")
    options = parser.parse_args()
    mx.set_execution_mode("local")
    loaded = mx.load()
    wanted = [name for name in SECTIONS if getattr(options, name)] or list(SECTIONS)
    print(f"{loaded.device}, {os.cpu_count()} CPUs, jax {jax.__version__}, llguidance {llguidance.get_version()}")
    for name in wanted:
        SECTIONS[name](loaded, options)


if __name__ == "__main__":
    main()
