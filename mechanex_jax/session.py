"""`Session`: loaded models, credentials and where calls run. `mx.load`, `mx.generation` and the rest share a default one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mechanex_jax import loading
from mechanex_jax.errors import ModelNotFoundError, NotLocalError, Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.signatures import suggests_arguments
from mechanex_jax.storage.json_values import parse_json

MODES = ("auto", "local", "remote")
_CREDENTIALS = ("api_key", "access_token")


class Session:
    """What the services of one `Mechanex` share; it is given to them when they are built.

    Args:
      api_key: of the hosted API; None looks into `MECHANEX_API_KEY` and `~/.mechanex/config.json`.
    """

    def __init__(self, api_key: str | None = None):
        self._models: dict[str, LoadedModel] = {}
        self._api_key = None if api_key is None else _checked_key(api_key)
        self._mode = "auto"
        self._unloaded: str | None = None  # name of the default model that was unloaded, until another is loaded

    def __repr__(self) -> str:
        return f"Session(models={list(self._models)}, mode={self._mode!r})"

    @suggests_arguments
    def load(
        self,
        name: str | os.PathLike[str] | None = None,
        *,
        alias: str | None = None,
        dtype: str | None = None,
        device: object = None,
        progress: bool | None = None,
    ) -> LoadedModel:
        """Load a model and make it the one that `generate` uses.

        Args:
          name: a catalogue name, a hub id such as "org/model", a folder of safetensors, or a GGUF file; None is the default
            model, smollm2-135m-instruct. A catalogue model is fetched once and kept in the user's cache folder.
          alias: another name to keep it under; loading under a name again replaces that model.
          dtype: "float32", "bfloat16" or "float16"; None is bfloat16 on accelerators and float32 on CPUs.
          device: "cpu", "gpu:1" or a jax.Device; None is JAX's default.
          progress: show progress bars; None does so on a terminal.

        Returns:
          A LoadedModel with `.name, .model, .tokenizer, .config`.

        Raises:
          ModelNotFoundError: no such model.
          CheckpointError: its files are missing, corrupt or of an unknown kind. Models loaded before stay as they are.
        """
        loaded = loading.load(name, dtype=dtype, device=device, progress=progress)
        key = alias or loaded.name
        self._models.pop(key, None)  # to the end: the model loaded last is the default
        self._models[key] = loaded
        self._unloaded = None
        return loaded

    def unload(self, name: str | None = None) -> None:
        """Forget a loaded model, or the one loaded last. Its memory is freed once nobody else holds it.

        Where that is the default model and others stay, calls have to name one of them until a model is loaded again.

        Raises:
          ModelNotFoundError: no model of that name is loaded.
        """
        model = self._loaded(name)
        if self._unloaded is None and model is self._loaded(None):
            self._unloaded = model.name if name is None else name
        self._models = {key: value for key, value in self._models.items() if value is not model}

    @property
    def models(self) -> dict[str, LoadedModel]:
        """Loaded models by name, the one loaded last at the end."""
        return dict(self._models)

    def set_key(self, api_key: str) -> None:
        """Use the hosted API with this key (`ax_...`); in mode "auto" calls then go there.

        Raises:
          ArgumentError: not a string, or empty.
        """
        self._api_key = _checked_key(api_key)

    def set_execution_mode(self, mode: str) -> None:
        """Where calls run: "auto" (remote when credentials are configured, else local), "local" or "remote".

        Raises:
          ArgumentError: another word.
        """
        if mode not in MODES:
            raise expected("mode", mode, f"one of {', '.join(MODES)}")
        self._mode = mode

    def local_model(self, name: str | None = None) -> LoadedModel:
        """The model that a call runs on, if it runs here.

        Raises:
          NotLocalError: the call resolves to the hosted API, which this version cannot reach.
          ModelNotFoundError: it runs here, but no model (of that name) is loaded.
        """
        if self._mode == "remote" or (self._mode == "auto" and self._has_credentials()):
            why = 'the execution mode is "remote"' if self._mode == "remote" else "credentials are configured"
            raise NotLocalError(
                f"This call goes to the hosted API because {why}, and this version has no client for it. "
                'Call mx.set_execution_mode("local") to run on a loaded model.'
            )
        return self._loaded(name)

    def partner(self, name: str) -> LoadedModel:
        """A model that works beside another, as its draft or in an ensemble: loaded under this name, or loaded now.

        Raises:
          ModelNotFoundError, CheckpointError: as `load`.
        """
        if name in self._models:
            return self._models[name]
        loaded = loading.load(name)
        # The same model under a further name is one model. In front: the model loaded last stays the default.
        model = next((known for known in self._models.values() if known.fingerprint == loaded.fingerprint), loaded)
        self._models = {name: model, **self._models}
        return model

    def partners(self, names: Iterable[str], beside: LoadedModel) -> tuple[LoadedModel, ...]:
        """The models of these names, none of them twice, `beside` not among them. Raises as `partner`."""
        models = {id(model): model for model in map(self.partner, names)}
        models.pop(id(beside), None)
        return tuple(models.values())

    def _loaded(self, name: str | None) -> LoadedModel:
        if not isinstance(name, str | None):
            raise expected("model", name, "the name of a loaded model, or None")
        if name is not None and name in self._models:
            return self._models[name]
        if not self._models:
            raise ModelNotFoundError(
                "No model is loaded. Call mx.load() for the default one, or mx.set_key(...) to use the hosted API."
            )
        if name is None and self._unloaded is not None:
            raise ModelNotFoundError(
                f"model: got None, and {self._unloaded}, the default, was unloaded; loaded are {', '.join(self._models)}. "
                "Name one of them as model=, or load one with mx.load()."
            )
        if name is None:
            return next(reversed(self._models.values()))
        raise ModelNotFoundError(f"model: got {name!r}; loaded are {', '.join(self._models)}. Load it with mx.load({name!r}).")

    def _has_credentials(self) -> bool:
        if self._api_key or os.environ.get("MECHANEX_API_KEY"):
            return True
        try:
            stored = parse_json((Path.home() / ".mechanex" / "config.json").read_text())
        except (OSError, ValueError, RuntimeError):
            return False
        return isinstance(stored, dict) and any(stored.get(name) for name in _CREDENTIALS)


def _checked_key(api_key: object) -> str:
    """The key without spaces around it. No error shows a key.

    Raises:
      ArgumentError: not a string, or empty.
    """
    if not isinstance(api_key, str) or not api_key.strip():
        shown = "None" if api_key is None else "an empty string" if isinstance(api_key, str) else type(api_key).__name__
        action = 'To run on a loaded model instead, call mx.set_execution_mode("local").'
        raise expected("api_key", Verbatim(shown), "a non-empty string", action)
    return api_key.strip()


default = Session()
