"""`mx.steering`: make, keep, measure and exchange steering vectors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mechanex_jax import edits
from mechanex_jax.engine.config import GenerationConfig, per_row
from mechanex_jax.engine.run import MICRO_BATCH, run
from mechanex_jax.engine.seeds import row_seeds
from mechanex_jax.errors import NotLocalError, Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.steering import evaluation, plots
from mechanex_jax.steering import examples as data
from mechanex_jax.steering import pairs as pair_writer
from mechanex_jax.steering.making import VectorMaker, show_progress
from mechanex_jax.steering.reference_texts import TEXTS
from mechanex_jax.steering.requests import RequestBuilder
from mechanex_jax.validation import check_seed

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


class Steering(VectorMaker):
    """Steering vectors in one session: made, kept, measured.

    Args:
      session: holds the models that vectors are made for and texts are continued by.
      store: where vectors are kept; None is the user's data folder.
    """

    def generate_pairs(
        self,
        persona_name: str,
        persona_description: str = "",
        num_pairs: int = 50,
        batch_size: int = 5,
        *,
        model: str | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> dict[str, Any]:
        """Let the loaded chat model write contrastive pairs under a JSON schema.

        Pairs that are no JSON (cut off at the end), hold blank or equal texts, or repeat a prompt are dropped, and others are
        generated in their place, up to four generations for each pair that is asked for.

        Args:
          persona_name: the trait, such as "honest".
          persona_description: more about it.
          num_pairs: how many; fewer may come, with a warning.
          batch_size: generations that run together.
          model, seed, progress: as for `generate_vectors`.

        Returns:
          persona, persona_description, total_pairs, pairs (rows for `generate_from_jsonl`), dropped (how many, by reason).

        Raises:
          ArgumentError: a bad argument. MechanexError: not one generation was usable.
        """
        check_seed(seed)
        with progress_bar("Writing pairs", enabled=show_progress(progress), unit="pairs") as report:

            def write(prompts: Sequence[str], config: GenerationConfig, seeds: Sequence[int]) -> Sequence[str]:
                rows = [(value, 0) for value in seeds]
                return self._complete(self._loaded(model), prompts, [config] * len(prompts), rows)

            return pair_writer.generate_pairs(
                write,
                persona_name,
                persona_description,
                num_pairs,
                batch_size,
                seed=seed or 0,
                report=report,
            )

    def evaluate(
        self,
        steering_vector_id: str | Mapping[Any, Any],
        positive_texts: Sequence[str] | None = None,
        negative_texts: Sequence[str] | None = None,
        test_prompts: Sequence[str] | None = None,
        persona_description: str | None = None,
        strength: float = 1.0,
        *,
        prompts: Sequence[str] | None = None,
        strengths: Sequence[float] = STRENGTHS,
        unrelated: Sequence[str] | None = None,
        layer_idxs: Sequence[int] | None = None,
        chat: bool = False,
        max_tokens: int = 64,
        model: str | None = None,
        progress: bool | None = None,
    ) -> evaluation.Evaluation:
        """Measure a vector over strengths: what it does to the likelihood of answers, what it costs, and texts side by side.

        Args:
          steering_vector_id: an id, or {layer: vector}.
          positive_texts, negative_texts: answers whose log-probabilities are compared; both or neither.
          test_prompts: continued greedily at each strength.
          persona_description: for the hosted service's judge; there is none here, and another value than None raises.
          strength: a factor on all strengths.
          prompts: what the answers answer, paired as in `generate_vectors`; None takes each text by itself.
          strengths: at which to measure.
          unrelated: texts on which the cost is measured; None is plain prose that the library brings along.
          layer_idxs: only these of the vector's layers.
          chat: prompts are a user's messages, in the model's chat template.
          max_tokens: of each continuation.
          model, progress: as for `generate_vectors`.

        Returns:
          An `Evaluation` with `.table()` and `.to_dict()`.

        Raises:
          ArgumentError: a bad argument, an unknown id, a vector of another model.
          NotLocalError: persona_description.
        """
        if persona_description is not None:
            raise NotLocalError("persona_description: there is no judge here; leave it out, and read the texts side by side.")
        found = evaluation.check_strengths(strengths)
        (factor,) = evaluation.check_strengths([strength])
        loaded = self._loaded(model)
        steering = evaluation.at_layers(self.resolve(steering_vector_id, loaded), layer_idxs).scaled(factor)
        if (positive_texts is None) != (negative_texts is None):
            raise expected("negative_texts", negative_texts, "texts of both kinds, or none of either")
        answers = (
            [] if positive_texts is None else data.tokenize_answers(loaded, prompts, positive_texts, negative_texts, chat=chat)
        )
        other = data.tokenize_texts(loaded, TEXTS if unrelated is None else data.check_texts("unrelated", unrelated))
        asked = () if test_prompts is None else data.check_texts("test_prompts", test_prompts)
        with progress_bar("Measuring", enabled=show_progress(progress), unit="texts") as report:
            measured = evaluation.measure(loaded, steering, found, answers, other, report=report)
        if not asked:
            return measured
        continued = self._continue(loaded, asked, steering, found, chat=chat, max_tokens=max_tokens)
        return dataclasses.replace(measured, prompts=asked, texts=continued)

    def texts(
        self,
        steering_vector_id: str | Mapping[Any, Any],
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
        loaded = self._loaded(model)
        steering, checked = self.resolve(steering_vector_id, loaded), evaluation.check_strengths(strengths)
        return self._continue(loaded, data.check_texts("prompts", prompts), steering, checked, **options)

    def requests(self, loaded: LoadedModel) -> RequestBuilder:
        """A builder of requests that knows this service's vectors and presets, and the session's models."""
        return RequestBuilder(
            loaded,
            resolve=lambda id: self.resolve(id, loaded),
            preset=lambda name, strength: self.preset(name, strength, loaded),
            partners=lambda names: self.session.partners(names, beside=loaded),
        )

    def _complete(
        self,
        loaded: LoadedModel,
        prompts: Sequence[str],
        configs: Sequence[GenerationConfig],
        seeds: Sequence[tuple[int, int]],
        *,
        edits: tuple[edits.Edit, ...] = (),
        batch_size: int = MICRO_BATCH,
    ) -> list[str]:
        """The texts of rows that decode once.

        Raises:
          ArgumentError: a row that would need a policy.
        """
        for config in configs:
            if config.needs_policy:
                raise expected("options", Verbatim("an argument that needs a policy"), "arguments of one decoding")
        builder, numbered = self.requests(loaded), enumerate(zip(prompts, configs, seeds, strict=True))
        requests = [
            builder.build(prompt, config, seed=seed, index=index, name=f"prompts[{row}]")
            for row, (prompt, config, (seed, index)) in numbered
        ]
        return [completion.text for completion in run(loaded, requests, edits=edits, micro_batch=batch_size)]

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
        texts = self._complete(loaded, rows, configs, row_seeds(seed, len(rows)), edits=added, batch_size=batch_size)
        return tuple(tuple(texts[first : first + len(strengths)]) for first in range(0, len(texts), len(strengths)))

    def plot(
        self,
        steering_vector_id: str,
        path: str | os.PathLike[str],
        positive_texts: Sequence[str] | None = None,
        negative_texts: Sequence[str] | None = None,
        **more: Any,
    ) -> dict[str, evaluation.Evaluation]:
        """A picture of effect against cost over strengths, for each layer of a vector by itself and for all together.

        Args:
          steering_vector_id: an id.
          path: the picture; its suffix says which kind.
          positive_texts, negative_texts: answers; with them the effect is the difference of their log-probabilities, without
            them the change of projection.
          more: as for `evaluate`.

        Returns:
          What is plotted.

        Raises:
          MechanexError: matplotlib is not installed (`pip install 'mechanex_jax[plot]'`). As `evaluate` otherwise.
        """
        vector = self.store.get(steering_vector_id)
        plots.figure_class()
        texts = (positive_texts, negative_texts)
        found = {"all layers": self.evaluate(steering_vector_id, *texts, **more)}
        if len(vector.layers) > 1:
            for layer in vector.layers:
                found[f"layer {layer}"] = self.evaluate(steering_vector_id, *texts, layer_idxs=[layer], **more)
        plots.plot(found, path, title=f"{vector.name or steering_vector_id} ({vector.method}, {vector.model})")
        return found
