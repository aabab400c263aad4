"""The part of `mx.steering` that measures vectors: numbers, texts side by side, pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any, TypedDict, Unpack

from mechanex_jax import edits
from mechanex_jax.engine.config import PARAMETERS, per_row
from mechanex_jax.engine.run import MICRO_BATCH
from mechanex_jax.engine.seeds import row_seeds
from mechanex_jax.errors import NotLocalError, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.progress import is_shown
from mechanex_jax.signatures import check_keywords, suggests_arguments
from mechanex_jax.steering import plots
from mechanex_jax.steering.evaluation import Evaluation, at_layers, check_strengths, measure
from mechanex_jax.steering.examples import check_texts, tokenize_answers, tokenize_texts
from mechanex_jax.steering.reference_texts import TEXTS
from mechanex_jax.steering.requests import complete
from mechanex_jax.steering.vector import LayerVectors
from mechanex_jax.steering.vectors import SavedVectors
from mechanex_jax.validation import number

_TEXTS = 8  # paragraphs on which the cost is measured where the caller gives none
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


class EvaluationOptions(TypedDict, total=False):
    """Arguments of `evaluate`, which documents them, that `plot` passes on."""

    test_prompts: Sequence[str] | None
    persona_description: str | None
    strength: float
    prompts: Sequence[str] | None
    strengths: Sequence[float]
    unrelated: Sequence[str] | None
    chat: bool
    max_tokens: int
    model: str | None
    budget_s: float | None
    progress: bool | None


class VectorMeasurer(SavedVectors):
    """Vectors measured over strengths. See `SavedVectors` for the arguments."""

    @suggests_arguments
    def evaluate(
        self,
        steering_vector_id: str | LayerVectors,
        positive_texts: Sequence[str] | None = None,
        negative_texts: Sequence[str] | None = None,
        test_prompts: Sequence[str] | None = None,
        persona_description: str | None = None,
        strength: float = 1.0,
        *,
        prompts: Sequence[str] | None = None,
        strengths: Sequence[float] = STRENGTHS,
        unrelated: Sequence[str] | None = None,
        layer_idxs: Collection[int] | None = None,
        chat: bool = False,
        max_tokens: int = 64,
        model: str | None = None,
        budget_s: float | None = None,
        progress: bool | None = None,
    ) -> Evaluation:
        """Measure a vector over strengths: its effect on the likelihood of answers, its cost, and texts side by side.

        Args:
          steering_vector_id: an id, or {layer: vector}.
          positive_texts, negative_texts: answers whose log-probabilities are compared; both or neither.
          test_prompts: continued greedily at each strength.
          persona_description: for the hosted service's judge; there is none here, and another value than None raises.
          strength: a factor on all strengths.
          prompts: what the answers answer, paired as in `generate_vectors`; None takes each text by itself.
          strengths: at which to measure.
          unrelated: texts on which the cost is measured; None is eight paragraphs of plain prose that come with the library.
          layer_idxs: only these of the vector's layers.
          chat: prompts are a user's messages, in the model's chat template.
          max_tokens: of each continuation.
          model, progress: as for `generate_vectors`.
          budget_s: seconds for the numbers; where they don't suffice, the numbers are of fewer texts, with a warning that says
            of how many and what all would take. None is no limit. The continuations are one batch, and come on top.

        Returns:
          An `Evaluation` with `.table()` and `.to_dict()`.

        Raises:
          ArgumentError: a bad argument, an unknown id, a vector of another model.
          NotLocalError: persona_description.
        """
        (evaluation,) = self._evaluate(
            [at_layers(self.resolve(steering_vector_id, self._loaded(model)), layer_idxs)],
            positive_texts,
            negative_texts,
            test_prompts=test_prompts,
            persona_description=persona_description,
            strength=strength,
            prompts=prompts,
            strengths=strengths,
            unrelated=unrelated,
            chat=chat,
            max_tokens=max_tokens,
            model=model,
            budget_s=budget_s,
            progress=progress,
        )
        return evaluation

    def _evaluate(
        self,
        steerings: Sequence[edits.RowSteering],
        positive_texts: Sequence[str] | None,
        negative_texts: Sequence[str] | None,
        *,
        test_prompts: Sequence[str] | None = None,
        persona_description: str | None = None,
        strength: float = 1.0,
        prompts: Sequence[str] | None = None,
        strengths: Sequence[float] = STRENGTHS,
        unrelated: Sequence[str] | None = None,
        chat: bool = False,
        max_tokens: int = 64,
        model: str | None = None,
        budget_s: float | None = None,
        progress: bool | None = None,
    ) -> list[Evaluation]:
        """Evaluate several steerings, whose rows run together; see `evaluate`."""
        if persona_description is not None:
            raise NotLocalError("persona_description: there is no judge here; leave it out, and read the texts side by side.")
        rising = check_strengths(strengths)
        (factor,) = check_strengths([strength])
        if budget_s is not None:
            number(0, open_low=True)("budget_s", budget_s)
        loaded = self._loaded(model)
        steerings = [steering.scaled(factor) for steering in steerings]
        if (positive_texts is None) != (negative_texts is None):
            raise expected("negative_texts", negative_texts, "texts of both kinds, or none of either")
        answers = []
        if positive_texts is not None:
            answers = tokenize_answers(loaded, prompts, positive_texts, negative_texts, chat=chat)
        other = tokenize_texts(loaded, TEXTS[:_TEXTS] if unrelated is None else check_texts("unrelated", unrelated))
        to_continue = () if test_prompts is None else check_texts("test_prompts", test_prompts)
        with progress_bar("Measuring", enabled=is_shown(progress), unit="rows") as report:
            evaluations = measure(loaded, steerings, rising, answers, other, budget_s=budget_s, report=report)
        if not to_continue:
            return evaluations
        options = {"chat": chat, "max_tokens": max_tokens}
        continued = [self._continue(loaded, to_continue, steering, rising, **options) for steering in steerings]
        return [
            dataclasses.replace(evaluation, prompts=to_continue, texts=texts)
            for evaluation, texts in zip(evaluations, continued, strict=True)
        ]

    def texts(
        self,
        steering_vector_id: str | LayerVectors,
        prompts: Sequence[str],
        strengths: Sequence[float] = STRENGTHS,
        *,
        model: str | None = None,
        **options: Any,
    ) -> tuple[tuple[str, ...], ...]:
        """Greedy continuations side by side: for each prompt one text per strength.

        Args:
          steering_vector_id: an id, or {layer: vector}.
          prompts: at least one.
          strengths: any number; all rows decode together.
          model: which loaded model; None is the one loaded last.
          options: `seed`, `batch_size`, and the arguments of `generate_batch` that take one decoding.

        Raises:
          As `resolve` and `generate_batch`.
        """
        check_keywords("texts", options, ("strengths", "model", "seed", "batch_size", *PARAMETERS))
        loaded = self._loaded(model)
        steering, rising = self.resolve(steering_vector_id, loaded), check_strengths(strengths)
        return self._continue(loaded, check_texts("prompts", prompts), steering, rising, **options)

    def _continue(
        self,
        loaded: LoadedModel,
        prompts: Sequence[str],
        steering: edits.RowSteering,
        strengths: Sequence[float],
        *,
        seed: int | Sequence[int | None] | None = None,
        batch_size: int = MICRO_BATCH,
        **options: Any,
    ) -> tuple[tuple[str, ...], ...]:
        """Greedy continuations of each prompt at each strength; all rows decode together."""
        rows = [prompt for prompt in prompts for _ in strengths]
        configs = per_row({"sampling_method": "greedy", **options}, len(rows))
        steered = [steering.scaled(strength) for _ in prompts for strength in strengths]
        added = edits.steering(steered, loaded.model.spec.width)
        seeds = row_seeds(seed, len(rows))
        texts = complete(self.requests(loaded), rows, configs, seeds, edits=added, batch_size=batch_size)
        return tuple(tuple(texts[first : first + len(strengths)]) for first in range(0, len(texts), len(strengths)))

    def plot(
        self,
        steering_vector_id: str,
        path: str | os.PathLike[str],
        positive_texts: Sequence[str] | None = None,
        negative_texts: Sequence[str] | None = None,
        **options: Unpack[EvaluationOptions],
    ) -> dict[str, Evaluation]:
        """Draw effect against cost over strengths, for each layer of a vector by itself and for all together.

        Args:
          steering_vector_id: an id.
          path: the picture; its suffix says which kind.
          positive_texts, negative_texts: answers; with them the effect is the difference of their log-probabilities, without
            them the change of projection.
          options: as for `evaluate`.

        Returns:
          The evaluations that are drawn, by "all layers" and "layer L".

        Raises:
          MechanexError: matplotlib is not installed (`pip install 'mechanex_jax[plot]'`). As `evaluate` otherwise.
        """
        vector = self.store.get(steering_vector_id)
        plots.figure_class()  # before a minute of work for nothing
        check_keywords("plot", options, EvaluationOptions.__annotations__)
        whole = self.resolve(steering_vector_id, self._loaded(options.get("model")))
        chosen = {"all layers": whole}
        if len(vector.layers) > 1:
            chosen |= {f"layer {layer}": at_layers(whole, [layer]) for layer in vector.layers}
        measured = self._evaluate([*chosen.values()], positive_texts, negative_texts, **options)
        evaluations = dict(zip(chosen, measured, strict=True))
        plots.plot(evaluations, path, title=f"{vector.name or steering_vector_id} ({vector.method}, {vector.model})")
        return evaluations
