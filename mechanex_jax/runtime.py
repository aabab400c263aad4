"""`Mechanex`: an explicit instance of everything that the module `mechanex_jax` offers; `mx.*` is a default one."""

from __future__ import annotations

from mechanex_jax import generation, policy, session, steering


class Mechanex:
    """A session of its own with the services that work on it; the functions are those of the module `mechanex_jax`.

    Args:
      api_key: of the hosted API; None looks into `MECHANEX_API_KEY` and `~/.mechanex/config.json`.

    Attributes:
      session: loaded models, credentials, execution mode.
      generation, steering, policy: what `mx.generation`, `mx.steering` and `mx.policy` are for the default session.
    """

    def __init__(self, *, api_key: str | None = None):
        own = session.Session(api_key)
        vectors = steering.Steering(own)
        policies = policy.Policies(own, vectors)
        self._assemble(generation.Generation(own, vectors, policies))

    def _assemble(self, face: generation.Generation) -> None:
        self.generation, self.policy, self.steering, self.session = face, face.policy, face.steering, face.session
        self.load, self.unload = self.session.load, self.session.unload
        self.set_key, self.set_execution_mode = self.session.set_key, self.session.set_execution_mode
        self.local_model, self.partner = self.session.local_model, self.session.partner

    def __repr__(self) -> str:
        return f"Mechanex({self.session!r})"

    @property
    def models(self) -> dict[str, session.LoadedModel]:
        """Loaded models by name, the one loaded last at the end."""
        return self.session.models


def _default() -> Mechanex:
    """The instance whose services the modules' own functions are."""
    instance = Mechanex.__new__(Mechanex)
    instance._assemble(generation.default)
    return instance


default = _default()
