"""The part of `mx.steering` that makes vectors from contrastive answers, and lets a model write such answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, Unpack

from mechanex_jax import edits
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.seeds import as_seed, fresh
from mechanex_jax.errors import expected
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.progress import is_shown
from mechanex_jax.signatures import suggests_arguments
from mechanex_jax.steering import methods
from mechanex_jax.steering import pairs as pair_writer
from mechanex_jax.steering.calibration import calibrated
from mechanex_jax.steering.examples import check_data, read_rows, tokenize_data
from mechanex_jax.steering.pairs import WrittenPairs
from mechanex_jax.steering.requests import complete
from mechanex_jax.steering.vector import SteeringVector
from mechanex_jax.steering.vectors import SavedVectors
from mechanex_jax.validation import flag, integer


class MakingOptions(TypedDict, total=False):
    """The keyword arguments of `generate_vectors`, which documents them."""

    model: str | None
    site: str
    chat: bool
    seed: int
    steps: int | None
    learning_rate: float | None
    max_norm: float | None
    hidden: int | None
    answer_tokens: int | None
    ended: bool
    progress: bool | None


class VectorMaker(SavedVectors):
    """Vectors made from contrastive answers, and kept. See `SavedVectors` for the arguments."""

    @suggests_arguments
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
        """Make a steering vector from contrastive answers and keep it.

        Adding the vector makes text more like the positive answers and less like the negative ones:
        `generate(..., steering_vector=id, steering_strength=1.0)`. Strength 1 is calibrated: the largest at which the loss on
        plain prose rises by at most 3% (and at strength 2 by at most 12%). `describe(id)["metrics"]` has the measured curve,
        and `scale`, by which the method's own vector was multiplied.

        Args:
          prompts: at least one.
          positive_answers, negative_answers: as many as prompts pair up with them; of another number, every answer goes with
            every prompt. A text is prompt and answer joined as they are: begin answers with a space where one belongs.
          layer_idxs: layers to steer; None is eight from two thirds of the model's depth on.
          method: "caa", the difference of mean activations (needs negatives); "few-shot", a vector optimised so that positive
            answers become likelier and negative ones, if there are any, less likely; "steering-perceptrons", the difference of
            means behind a trained gate (needs negatives).
          name, label: your own words, kept with the vector.
          model: which loaded model; None is the one loaded last.
          site: where activations are read and vectors added, one of `mx.edits.SITES`.
          chat: prompts are a user's messages and answers the model's, in its chat template.
          seed: 0 to 4294967295; the same vectors each time on one machine.
          steps: of training, the most; None is 16 (few-shot) or 300 (steering-perceptrons).
          learning_rate: None is 0.25 of the bound per step (few-shot), or 0.01 (steering-perceptrons).
          max_norm: for few-shot, the bound on the norms of all layers' vectors together, as a share of a typical activation's
            norm; None is 0.4.
          hidden: for steering-perceptrons, units of the gate; None is 16.
          answer_tokens: how many tokens of each answer count, from its first on; None is all (few-shot: 16).
          ended: the token that ends a turn (or a text) follows every answer: when to stop counts too.
          progress: show a progress bar; None does so on a terminal.

        Returns:
          The vector's id.

        Raises:
          ArgumentError: a bad argument, negatives missing where the method needs them, a setting that it doesn't use.
          NotLocalError, ModelNotFoundError: as `generate`.
        """
        steering_method = methods.find_method(method)
        settings = {"steps": steps, "learning_rate": learning_rate, "max_norm": max_norm, "hidden": hidden}
        methods.complete_settings(steering_method, settings)
        checked = check_data(prompts, positive_answers, negative_answers)
        if steering_method.negatives and not checked.negatives:
            raise expected("negative_answers", None, f"a list of answers, because {steering_method.name} compares two kinds")
        for argument, value in (("name", name), ("label", label)):
            if value is not None and not isinstance(value, str):
                raise expected(argument, value, "a string or None")
        if site not in edits.SITES:
            raise expected("site", site, f"one of {', '.join(edits.SITES)}")
        seed = fresh(as_seed(seed))
        if answer_tokens is not None:
            integer(1)("answer_tokens", answer_tokens)
        flag("ended", ended)
        loaded = self._loaded(model)
        layers = methods.choose_layers(layer_idxs, loaded.model.spec.layers)
        examples = tokenize_data(loaded, checked, chat=chat, ended=ended)
        with progress_bar(f"Making a vector ({steering_method.name})", enabled=is_shown(progress), unit="steps") as report:
            result = methods.make(
                steering_method.name,
                loaded,
                examples,
                layers,
                site,
                seed=seed or 0,
                tokens=answer_tokens,
                report=report,
                **settings,
            )
        vector = SteeringVector(
            result.vectors,
            layers,
            site,
            steering_method.name,
            loaded.name,
            loaded.fingerprint,
            checked.digest(chat=chat, ended=ended),
            result.perceptron,
            name=name,
            label=label,
            metrics=result.metrics,
        )
        with progress_bar("Calibrating", enabled=is_shown(progress), unit="rows") as report:
            return self.store.add(calibrated(loaded, vector, report=report))

    @suggests_arguments
    def generate_from_jsonl(
        self,
        dataset_path: str | os.PathLike[str] | Iterable[Mapping[str, object]],
        layer_idxs: Sequence[int] | None = None,
        method: str = "few-shot",
        name: str | None = None,
        label: str | None = None,
        **options: Unpack[MakingOptions],
    ) -> str:
        """Make a steering vector from a file of JSON lines, or from such rows, and keep it; see `generate_vectors`.

        Args:
          dataset_path: rows with `prompt`, `positive_answer` or `positive`, and `negative_answer` or `negative` (in all rows or
            in none). Every prompt goes with the answers of its own row.
          layer_idxs, method, name, label, options: as for `generate_vectors`.

        Returns:
          The vector's id.

        Raises:
          ArgumentError: rows of another form; the message has their line numbers.
        """
        rows = read_rows(dataset_path, negatives=methods.find_method(method).negatives or None)
        return self.generate_vectors(
            rows.prompts, rows.positives, rows.negatives or None, layer_idxs, method, name, label, **options
        )

    @suggests_arguments
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
    ) -> WrittenPairs:
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
          A dict of persona, persona_description, total_pairs, pairs (rows for `generate_from_jsonl`) and dropped (how many, by
          reason).

        Raises:
          ArgumentError: a bad argument. MechanexError: not one generation was usable.
        """
        seed = fresh(as_seed(seed))
        with progress_bar("Writing pairs", enabled=is_shown(progress), unit="pairs") as report:

            def write(prompts: Sequence[str], config: GenerationConfig, seeds: Sequence[int]) -> Sequence[str]:
                rows = [(value, 0) for value in seeds]  # each text is the first draw of its own seed
                return complete(self.requests(self._loaded(model)), prompts, [config] * len(prompts), rows)

            return pair_writer.generate_pairs(
                write, persona_name, persona_description, num_pairs, batch_size, seed=seed or 0, report=report
            )
