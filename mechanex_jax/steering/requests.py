"""From a row's arguments, which name things, to a request, which holds them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from mechanex_jax.edits import Edit, RowSteering
from mechanex_jax.edits.arguments import parse_vectors
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.request import Prompt, Request, prepare
from mechanex_jax.engine.run import MICRO_BATCH, run
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.warning import warn


class RequestBuilder:
    """Makes the requests of one call; each stored vector, preset and partner model is looked up once, however many rows ask.

    `Steering.requests` gives one that knows the session's vectors, presets and models.

    Args:
      loaded: the model that all requests are for.
      resolve: the id of a stored vector -> what steers, at strength 1.
      preset: (name, strength) of a preset -> what steers, strength applied.
      partners: names of models -> the models, none twice, `loaded` not among them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        resolve: Callable[[str], RowSteering],
        preset: Callable[[str, float], RowSteering],
        partners: Callable[[tuple[str, ...]], tuple[LoadedModel, ...]],
    ):
        self.loaded = loaded
        self._resolve, self._preset, self._partners = (
            functools.cache(resolve),
            functools.cache(preset),
            functools.cache(partners),
        )

    def build(
        self, prompt: Prompt, config: GenerationConfig, *, seed: int = 0, index: int = 0, name: str = "prompt"
    ) -> Request:
        """Check and tokenize one row.

        Args:
          prompt: a text; with `config.chat` also a list of messages.
          config: the row's arguments.
          seed, index: the row draws from fold_in(key(seed), index).
          name: what errors call the prompt.

        Raises:
          ArgumentError: an unknown vector or preset, or as `engine.request.prepare`.
          ModelNotFoundError, CheckpointError: a partner that cannot be loaded.
        """
        names = config.partner_names
        partners = self._partners(names) if names else ()
        steering = self._steering(config)
        return prepare(self.loaded, prompt, config, seed=seed, index=index, name=name, steering=steering, partners=partners)

    def build_all(
        self,
        prompts: Sequence[Prompt],
        configs: Sequence[GenerationConfig],
        seeds: Sequence[tuple[int, int]],
        names: Sequence[str],
    ) -> list[Request]:
        """Check and tokenize rows that are given as columns; see `build`."""
        return [
            self.build(prompt, config, seed=seed, index=index, name=name)
            for prompt, config, (seed, index), name in zip(prompts, configs, seeds, names, strict=True)
        ]

    def _steering(self, config: GenerationConfig) -> RowSteering | None:
        """A row's vector and preset added up, strengths applied; None where it names neither."""
        vector, strength = config.steering_vector, config.steering_strength
        steering = None
        if vector is not None:
            if strength == 0:
                warn("steering_vector has no effect: steering_strength is 0, its default.")
            if isinstance(vector, str):
                steering = self._resolve(vector)
            elif isinstance(vector, RowSteering):
                steering = vector
            else:
                spec = self.loaded.model.spec
                steering = RowSteering(parse_vectors(vector, spec.width, spec.layers))
            steering = steering.scaled(strength)
        if config.steering_preset is not None:
            preset = self._preset(config.steering_preset, strength)
            steering = preset if steering is None else steering + preset
        return steering


def complete(
    builder: RequestBuilder,
    prompts: Sequence[str],
    configs: Sequence[GenerationConfig],
    seeds: Sequence[tuple[int, int]],
    *,
    edits: tuple[Edit, ...] = (),
    batch_size: int = MICRO_BATCH,
) -> list[str]:
    """Decode rows once each, without a policy, and return their texts.

    Args:
      builder: for the model that runs them.
      prompts, configs: one per row.
      seeds: (seed, index) of each row, see `RequestBuilder.build`.
      edits: applied after the rows' own steering, with one value for all rows or one per row.
      batch_size: rows that decode together.

    Raises:
      ArgumentError: a row that would need a policy, or as `RequestBuilder.build`.
    """
    for config in configs:
        if config.needs_policy:
            raise expected("options", Verbatim("an argument that needs a policy"), "arguments of one decoding")
    requests = builder.build_all(prompts, configs, seeds, [f"prompts[{row}]" for row in range(len(prompts))])
    return [completion.text for completion in run(builder.loaded, requests, edits=edits, micro_batch=batch_size)]
