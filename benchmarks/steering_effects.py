"""What steering does to the default model, on prompts and pairs that no vector was made from.

    python -m benchmarks.steering_effects [--methods] [--gates] [--presets] [--prompts 100] [--max-tokens 64]

Methods: vectors from the presets' pairs; the logit difference (mean log-probability per token, positive answers less negative
ones) on held-out pairs, over strengths -2 to 2, with 95% intervals over answers. Gates: what a vector behind its perceptrons
moves, in nats of KL to the unsteered model, on held-out positive answers, on negative ones and on unrelated text, beside the
same vector without gates; and the AUC of the gates on these pairs. Presets: the metric of `benchmarks.steering_metrics` on
greedy chat answers with the preset at its own strength against without, paired by prompt, with a 95% bootstrap interval of the
mean difference; and the loss on unrelated text against the unsteered one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import mechanex_jax as mx
from benchmarks.steering_metrics import TEXT_METRICS, words
from mechanex_jax import edits
from mechanex_jax.steering import evaluation, perceptron, reference_texts
from mechanex_jax.steering.activations import read_answers
from mechanex_jax.steering.examples import tokenize_answers, tokenize_texts
from mechanex_jax.steering.presets import PRESETS
from mechanex_jax.steering.scoring import score

DATA = Path(__file__).parent / "data"
LONGER = {"json_compliance": 96}  # tokens, where an answer has to be complete
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def interval(differences: np.ndarray, repeats: int = 10_000) -> tuple[float, float]:
    """95% bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (repeats, len(differences))).mean(-1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def held_out_pairs(loaded, names, tokens: int = 32) -> list:
    """Both answers of each pair, the first tokens of each: what comes late in a long one is hardly about the trait."""
    pairs = [row for name in names for row in rows(DATA / f"{name}_pairs.jsonl")]
    prompts, positive, negative = ([row[key] for row in pairs] for key in ("prompt", "positive", "negative"))
    return [example.cut(tokens) for example in tokenize_answers(loaded, prompts, positive, negative, chat=True)]


def make(loaded, name: str, method: str, **settings) -> str:
    pairs = PRESETS[name].data()
    layers = PRESETS[name].layers(loaded.model.spec.layers)
    answers = (pairs.prompts, pairs.positives, pairs.negatives)
    return mx.steering.generate_vectors(*answers, layers, method, chat=True, **settings)


def methods(loaded, names) -> None:
    print("method | trait | " + " | ".join(f"{strength:+g}" for strength in STRENGTHS) + " | rises")
    for method in mx.steering.METHODS:
        curves = []
        for name in names:
            vector = make(loaded, name, method)
            answers = held_out_pairs(loaded, [name])
            steering = mx.steering.resolve(vector)
            scores = score(loaded, answers, [steering.scaled(strength) for strength in STRENGTHS])[:, 0]
            kinds = np.array([example.positive for example in answers])
            curves.append(scores[:, kinds] - scores[:, ~kinds])  # [strengths, pairs]
            mean = curves[-1].mean(-1)
            print(
                f"{method} | {name} | " + " | ".join(f"{m:+.3f}" for m in mean) + f" | {bool((np.diff(mean) > 0).all())}",
                flush=True,
            )
            mx.steering.delete(vector)
        every = np.concatenate(curves, axis=-1)
        error = 1.96 * every.std(-1) / np.sqrt(every.shape[-1])
        cells = " | ".join(f"{m:+.3f} ± {e:.3f}" for m, e in zip(every.mean(-1), error, strict=True))
        print(f"{method} | all {every.shape[-1]} pairs | {cells} | {bool((np.diff(every.mean(-1)) > 0).all())}", flush=True)


def gates(loaded, names) -> None:
    print("trait | AUC by answer | KL with gates: positives, negatives, other text | KL without gates: the same")
    for name in names:
        vector = make(loaded, name, "steering-perceptrons")
        gated = mx.steering.resolve(vector)
        plain = edits.RowSteering({"resid_pre": {gate.layer: gate.vector for gate in gated.gates}})
        answers, other = held_out_pairs(loaded, [name]), tokenize_texts(loaded, reference_texts.TEXTS)
        kinds = np.array([example.positive for example in answers])
        layers = [gate.layer for gate in gated.gates]
        inputs = np.moveaxis(read_answers(loaded, answers, layers, "resid_pre"), 1, 0)
        weights = tuple(np.stack(parts) for parts in zip(*(gate.perceptron for gate in gated.gates), strict=True))
        aucs = [perceptron.auc(row[kinds], row[~kinds]) for row in perceptron.gate_logits(weights, inputs)]
        cells = []
        for steering in (gated, plain):
            on_answers, on_other = (score(loaded, e, [steering], compare=True)[0, 2] for e in (answers, other))
            found = (on_answers[kinds], on_answers[~kinds], on_other)
            cells.append(", ".join(f"{values.mean():.3f}" for values in found))
        print(f"{name} | {min(aucs):.3f} to {max(aucs):.3f} | {cells[0]} | {cells[1]}", flush=True)
        mx.steering.delete(vector)


def truthfulness(loaded, items, steering) -> tuple[np.ndarray, np.ndarray]:
    """Per question, how much likelier the true answer is than the false one: unsteered and steered."""
    examples = tokenize_answers(
        loaded, [i["prompt"] for i in items], [i["true"] for i in items], [i["false"] for i in items], chat=True
    )
    scores = score(loaded, examples, [steering.scaled(0), steering])[:, 0]
    kinds = np.array([example.positive for example in examples])
    return tuple(scores[:, kinds] - scores[:, ~kinds])


def answers(items, preset: str | None, tokens: int, strength: float = 0.0) -> list[str]:
    return mx.generation.generate_batch(
        [item["prompt"] for item in items],
        chat=True,
        sampling_method="greedy",
        max_tokens=tokens,
        steering_preset=preset,
        steering_strength=strength,
    )


def measured(loaded, name, items, tokens, strength=0.0) -> tuple[np.ndarray, np.ndarray, tuple[float, float] | None]:
    """The metric per prompt without and with a preset, and mean words without and with."""
    if name == "truthfulness":
        return *truthfulness(loaded, items, mx.steering.preset(name, strength)), None
    texts = [answers(items, None, tokens), answers(items, name, tokens, strength)]
    metric = TEXT_METRICS[name]
    values = [np.array([metric(t, item) for t, item in zip(side, items, strict=True)]) for side in texts]
    before, after = (float(np.mean([words(text) for text in side])) for side in texts)
    return values[0], values[1], (before, after)


def loss_added(loaded, name, strength=0.0) -> float:
    """Share by which the loss on unrelated text grows."""
    texts = tokenize_texts(loaded, reference_texts.TEXTS)
    (measured,) = evaluation.measure(loaded, [mx.steering.preset(name, strength)], (0.0, 1.0), [], texts)
    loss = measured.loss
    return loss[1] / loss[0] - 1


def presets(loaded, names, count: int, tokens: int) -> None:
    print("preset | strength | without | with | difference (95%) | excludes 0 | loss on other text | words without, with")
    for name in names:
        items = rows(DATA / f"{name}_prompts.jsonl")[:count]
        before, after, lengths = measured(loaded, name, items, LONGER.get(name, tokens))
        low, high = interval(after - before)
        shown = "-" if lengths is None else f"{lengths[0]:.0f}, {lengths[1]:.0f}"
        print(
            f"{name} | {PRESETS[name].strength:g} | {before.mean():.3f} | {after.mean():.3f} | "
            f"{(after - before).mean():+.3f} ({low:+.3f} to {high:+.3f}) | {low > 0} | "
            f"{loss_added(loaded, name):+.1%} | {shown}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--gates", action="store_true")
    parser.add_argument("--presets", action="store_true")
    parser.add_argument("--names", nargs="+", default=list(PRESETS))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    mx.set_execution_mode("local")
    loaded = mx.load()
    chosen = [part for part in ("methods", "gates", "presets") if getattr(options, part)] or ["methods", "gates", "presets"]
    if "methods" in chosen:
        methods(loaded, options.names)
    if "gates" in chosen:
        gates(loaded, options.names)
    if "presets" in chosen:
        presets(loaded, options.names, options.prompts, options.max_tokens)


if __name__ == "__main__":
    main()
