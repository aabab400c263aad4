"""`mx.steering`: make, keep, measure and exchange steering vectors."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mechanex_jax import edits
from mechanex_jax.errors import NotLocalError, expected
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.steering import evaluation, methods, presets
from mechanex_jax.steering import examples as data
from mechanex_jax.steering import pairs as pair_writer
from mechanex_jax.steering.reference_texts import TEXTS
from mechanex_jax.steering.vector import SteeringVector
from mechanex_jax.steering.vectors import SavedVectors
from mechanex_jax.validation import check_seed, flag, integer

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


class Steering(SavedVectors):
    """Steering vectors in one session: made, kept, measured.

    Args:
      session: whose models and generation are used.
      store: where vectors are kept; None is the user's data folder.
    """

    def generate_vectors(
        self,
        prompts: Sequence[str],
        positive_answers: Sequence[str],
        negative_answers: Sequence[str] | None = None,
        layer_idxs: Sequence[int] | None = None,
        method: str = "few-shot",
        name: str | None = None,
        label: str | None = None,
        *,
        model: str | None = None,
        site: str = "resid_pre",
        chat: bool = False,
        seed: int = 0,
        steps: int | None = None,
        learning_rate: float | None = None,
        max_norm: float | None = None,
        hidden: int | None = None,
        answer_tokens: int | None = None,
        ended: bool = False,
        progress: bool | None = None,
    ) -> str:
        """Make a steering vector from contrastive answers and keep it; returns its id.

        Adding the vector makes text more like the positive answers and less like the negative ones:
        `generate(..., steering_vector=id, steering_strength=1.0)`.

        Args:
          prompts: at least one.
          positive_answers, negative_answers: as many as prompts pair up with them; of another number, every answer goes with
            every prompt. A text is prompt and answer joined as they are: begin answers with a space where one belongs.
          layer_idxs: layers to steer; None is eight from two thirds of the model's depth on.
          method: "caa", the difference of mean activations (needs negatives), for N layers at a strength of about
            1 / N; "few-shot", a vector optimised so that positive answers become likelier and negative ones, if there are any,
            less likely; "steering-perceptrons", half that difference behind a trained gate (needs negatives).
          name, label: words of yours, kept with the vector.
          model: which loaded model; None is the one loaded last.
          site: where activations are read and vectors added, one of `mx.edits.SITES`.
          chat: prompts are a user's messages and answers the model's, in its chat template.
          seed: 0 to 4294967295; the same vectors each time on one machine.
          steps: of training, the most; None is 16 (few-shot) or 300 (steering-perceptrons).
          learning_rate: None is 0.25 of the bound per step (few-shot), or 0.01 (steering-perceptrons).
          max_norm: for few-shot, the bound on the norms of all layers' vectors together, as a share of a typical activation's
            norm; None is 0.4.
          hidden: for steering-perceptrons, units of the gate; None is 16.
          answer_tokens: of each answer the first so many count; None is all (few-shot: 16).
          ended: the token that ends a turn (or a text) follows every answer: when to stop counts too.
          progress: show a progress bar; None does so on a terminal.

        Raises:
          ArgumentError: a bad argument, negatives missing where the method needs them, a setting that it doesn't use.
          NotLocalError, ModelNotFoundError: as `generate`.
        """
        chosen = methods.method(method)
        settings = {"steps": steps, "learning_rate": learning_rate, "max_norm": max_norm, "hidden": hidden}
        methods.settings(chosen, settings)
        checked = data.check(prompts, positive_answers, negative_answers)
        if chosen.negatives and not checked.negatives:
            raise expected("negative_answers", None, f"a list of answers, because {chosen.name} compares two kinds")
        for argument, value in (("name", name), ("label", label)):
            if value is not None and not isinstance(value, str):
                raise expected(argument, value, "a string or None")
        if site not in edits.SITES:
            raise expected("site", site, f"one of {', '.join(edits.SITES)}")
        check_seed(seed)
        if answer_tokens is not None:
            integer(1)("answer_tokens", answer_tokens)
        flag("ended", ended)
        loaded = self._loaded(model)
        layers = data.layers_of(layer_idxs, loaded.model.spec.layers)
        found = data.examples(loaded, checked, chat=chat, ended=ended)
        with progress_bar(f"Making a vector ({chosen.name})", enabled=_shown(progress), unit="steps") as report:
            made = methods.make(
                chosen.name, loaded, found, layers, site, seed=seed or 0, tokens=answer_tokens, report=report, **settings
            )
        vector = SteeringVector(
            made.vectors,
            layers,
            site,
            chosen.name,
            loaded.name,
            loaded.fingerprint,
            checked.digest(chat=chat, ended=ended),
            made.perceptron,
            name=name,
            label=label,
            metrics=made.metrics,
        )
        return self.store.add(vector)

    def generate_from_jsonl(
        self,
        dataset_path: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
        layer_idxs: Sequence[int] | None = None,
        method: str = "few-shot",
        name: str | None = None,
        label: str | None = None,
        **more: Any,
    ) -> str:
        """`generate_vectors` from a file of JSON lines, or from such rows.

        Args:
          dataset_path: rows with `prompt`, `positive_answer` or `positive`, and `negative_answer` or `negative` (in all rows or
            in none). Every prompt goes with the answers of its own row.
          layer_idxs, method, name, label, more: as for `generate_vectors`.

        Raises:
          ArgumentError: rows of another form; the message has their line numbers.
        """
        rows = data.read_rows(dataset_path, negatives=methods.method(method).negatives or None)
        return self.generate_vectors(
            rows.prompts, rows.positives, rows.negatives or None, layer_idxs, method, name, label, **more
        )

    def preset(self, name: str, strength: float = 0.0, model: Any = None, method: str | None = None) -> edits.RowSteering:
        """What generation adds for a preset, strength included.

        Args:
          name: one of the eight.
          strength: 0, the default of `steering_strength`, is the preset's own.
          model: as for `resolve`.
          method: what makes its vector from its pairs; None is the preset's own.

        Raises:
          ArgumentError: an unknown preset or method; the message lists all.
        """
        chosen = presets.find(name)
        method = chosen.method if method is None else methods.method(method).name
        with progress_bar(f"Making the preset {chosen.name}", enabled=_shown(None), unit="answers") as report:
            vector = presets.vector(self._loaded(model), chosen, self.store, method=method, report=report)
        return vector.steering(strength or chosen.strength)

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
        assert self.session is not None, "the runtime gives every Steering its session"
        options = {"model": model, "seed": seed or 0}
        with progress_bar("Writing pairs", enabled=_shown(progress), unit="pairs") as report:
            return pair_writer.generate_pairs(
                self.session, persona_name, persona_description, num_pairs, batch_size, report=report, **options
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
        steering = evaluation.only(self.resolve(steering_vector_id, loaded), layer_idxs).scaled(factor)
        if (positive_texts is None) != (negative_texts is None):
            raise expected("negative_texts", negative_texts, "texts of both kinds, or none of either")
        answers = (
            [] if positive_texts is None else evaluation.answer_examples(loaded, prompts, positive_texts, negative_texts, chat)
        )
        other = evaluation.plain_examples(loaded, TEXTS if unrelated is None else data.texts("unrelated", unrelated))
        asked = () if test_prompts is None else data.texts("test_prompts", test_prompts)
        with progress_bar("Measuring", enabled=_shown(progress), unit="texts") as report:
            measured = evaluation.measure(loaded, steering, found, answers, other, report=report)
        if not asked:
            return measured
        continued = self._continue(asked, steering, found, model, chat=chat, max_tokens=max_tokens)
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
          model, options: as for `generate_batch`.

        Raises:
          As `resolve` and `generate_batch`.
        """
        steering = self.resolve(steering_vector_id, self._loaded(model))
        return self._continue(data.texts("prompts", prompts), steering, evaluation.check_strengths(strengths), model, **options)

    def _continue(
        self, prompts: Sequence[str], steering: edits.RowSteering, strengths: Sequence[float], model: Any, **options: Any
    ) -> tuple[tuple[str, ...], ...]:
        assert self.session is not None, "the runtime gives every Steering its session"
        width = self._loaded(model).model.spec.width
        rows = [steering.scaled(strength) for _ in prompts for strength in strengths]
        texts = self.session.generation.generate_batch(
            [prompt for prompt in prompts for _ in strengths],
            sampling_method="greedy",
            edits=edits.steering(rows, width),
            model=model,
            **options,
        )
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
        evaluation.matplotlib()
        texts = (positive_texts, negative_texts)
        found = {"all layers": self.evaluate(steering_vector_id, *texts, **more)}
        if len(vector.layers) > 1:
            for layer in vector.layers:
                found[f"layer {layer}"] = self.evaluate(steering_vector_id, *texts, layer_idxs=[layer], **more)
        evaluation.plot(found, path, title=f"{vector.name or steering_vector_id} ({vector.method}, {vector.model})")
        return found
