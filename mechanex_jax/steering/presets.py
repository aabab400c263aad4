"""The presets: vectors computed from contrastive pairs that ship with the package, once for each model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

from mechanex_jax.errors import StorageError, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering import methods
from mechanex_jax.steering.calibration import calibrated
from mechanex_jax.steering.examples import ContrastiveData, read_rows, tokenize_data
from mechanex_jax.steering.methods import SteeringMethod
from mechanex_jax.steering.store import Store
from mechanex_jax.steering.vector import SteeringVector, VectorError
from mechanex_jax.storage.atomic import write_whole
from mechanex_jax.validation import hint
from mechanex_jax.warning import warn

_RECIPE = 3  # counted up when the same data is to give other vectors
FOLDER = Path(__file__).resolve().parent / "presets"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A trait with the recipe of its vector.

    Attributes:
      name: as `steering_preset` takes it.
      strength: where the caller gives none, in the calibrated unit: on the default model, at most 5% more loss on unrelated
        text, by strengths that were chosen on training prompts.
      span: steered layers, as shares of the model's depth, the end not included.
      tokens: of an answer, the first so many count: how it begins decides what it becomes.
      method: of making it, where the caller names none.
      ended: whether answers count with their end.
    """

    name: str
    strength: float = 1.0
    span: tuple[float, float] = (1 / 2, 2 / 3)
    tokens: int = 8
    method: str = "caa"
    ended: bool = False

    def layers(self, depth: int) -> tuple[int, ...]:
        """The layers that it steers in a model of `depth` layers; at least one."""
        first = min(math.floor(self.span[0] * depth), depth - 1)
        return tuple(range(first, min(depth, max(first + 1, math.floor(self.span[1] * depth)))))

    def data(self) -> ContrastiveData:
        """The pairs that it is computed from."""
        return read_rows(FOLDER / f"{self.name}.jsonl", negatives=True)

    def find_method(self, name: str | None) -> SteeringMethod:
        """The method that makes its vector: of this name, or the preset's own where the caller names none.

        Raises:
          ArgumentError: there is none of this name; the message lists all.
        """
        return methods.find_method(self.method if name is None else name)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("brevity", 1.506),
        # Of its pairs, so many have a true yes that the vector does not lean to yes or no as such.
        Preset("truthfulness", 1.281, (0.6, 0.77), method="few-shot"),
        # A JSON answer is the braces and the stop after them: trained on, it comes; the difference of means did not move it.
        Preset("json_compliance", 0.892, (0.6, 0.77), 48, "few-shot", ended=True),
        Preset("format_rigidity", 1.467),
        Preset("refusal_strength", 1.298),
        Preset("safety_style", 1.326, tokens=48),  # care is named late in an answer
        Preset("domain_specific", 1.352, (0.6, 0.77), 16),
        Preset("tone_control", 1.143),
    )
}


def find(name: object) -> Preset:
    """Look a preset up by its name.

    Raises:
      ArgumentError: there is none of this name; the message lists all.
    """
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        raise expected("steering_preset", name, f"one of {', '.join(PRESETS)}", hint(name, PRESETS))
    return preset


def _answers_on_own_lines(data: ContrastiveData) -> ContrastiveData:
    """The data for models without a chat template: every answer begins on a line of its own."""
    return dataclasses.replace(data, prompts=tuple(f"{prompt}\n" for prompt in data.prompts))


def load_or_make(
    loaded: LoadedModel, preset: Preset, store: Store, method: SteeringMethod, *, report: Report = silent
) -> SteeringVector:
    """The preset's vector for a model, made once and kept in the store's folder, apart from the user's vectors.

    Its strength is calibrated, as that of every vector.

    Args:
      loaded: the model.
      preset: see `find`.
      store: its folder holds the vectors of presets in a folder of their own.
      method: see `Preset.find_method`.
      report: called with steps or answers done and their total.
    """
    chat = loaded.tokenizer.chat_template is not None
    data = preset.data() if chat else _answers_on_own_lines(preset.data())
    layers, digest = preset.layers(loaded.model.spec.layers), data.digest(chat=chat, ended=preset.ended)
    recipe = [_RECIPE, loaded.fingerprint, digest, layers, preset.tokens, method.name]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    path = store.folder / "presets" / f"{preset.name}-{key}.safetensors"
    try:
        return SteeringVector.from_bytes(path.read_bytes(), str(path))
    except (OSError, VectorError):  # not made yet, or spoiled: it can be made again
        pass
    answers = tokenize_data(loaded, data, chat=chat, ended=preset.ended and bool(loaded.tokenizer.eos_ids))
    result = methods.make(method.name, loaded, answers, layers, tokens=preset.tokens, report=report)
    vector = SteeringVector(
        result.vectors,
        layers,
        "resid_pre",
        method.name,
        loaded.name,
        loaded.fingerprint,
        digest,
        result.perceptron,
        name=preset.name,
        metrics=result.metrics,
    )
    vector = calibrated(loaded, vector, report=report)
    try:
        write_whole(path, vector.to_bytes(), replace=True)
    except StorageError as error:
        warn(f"The vector of preset {preset.name!r} is made again each time: {error}")
    return vector
