"""Services over models of a test's own, where `mx` would use those that it loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import pytest

from mechanex_jax.architectures.model import Model
from mechanex_jax.errors import ModelNotFoundError
from mechanex_jax.generation import Generation
from mechanex_jax.loading import LoadedModel
from mechanex_jax.policy import Policies
from mechanex_jax.session import Session
from mechanex_jax.steering import Steering


class FixedSession(Session):
    """A session of models that are loaded already, the last one being the default."""

    def __init__(self, *models: LoadedModel):
        super().__init__()
        self._fixed = {model.name: model for model in models}

    def local_model(self, name: str | None = None) -> LoadedModel:
        if name is None:
            return list(self._fixed.values())[-1]
        return self.partner(name)

    def partner(self, name: str) -> LoadedModel:
        if name not in self._fixed:
            raise ModelNotFoundError(f"model: got {name!r}; loaded are {', '.join(self._fixed)}.")
        return self._fixed[name]


class Services(NamedTuple):
    """What `mx.generation`, `mx.policy` and `mx.steering` are for the default session."""

    generation: Generation
    policy: Policies
    steering: Steering


def services(*models: LoadedModel, steering: type[Steering] = Steering) -> Services:
    """Services of a session that has these models; `steering` may be a class that observes what is asked of it."""
    return services_of(FixedSession(*models), steering)


def services_of(session: Session, steering: type[Steering] = Steering) -> Services:
    """Services of a session."""
    vectors = steering(session)
    policies = Policies(session, vectors)
    return Services(Generation(session, vectors, policies), policies, vectors)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObservedModel(Model):
    """A model that says with which shape [B, S] of tokens it is called, when a program is traced."""

    on_extend: Callable[[tuple[int, ...]], object] = dataclasses.field(metadata={"static": True})

    def extend(self, cache, tokens, *arguments, **keywords):
        self.on_extend(tokens.shape)
        return super().extend(cache, tokens, *arguments, **keywords)


def observed(loaded: LoadedModel, on_extend: Callable[[tuple[int, ...]], object]) -> LoadedModel:
    """The same model, observed; its programs are compiled anew for each `on_extend`."""
    model = ObservedModel(loaded.model.params, loaded.model.static, on_extend)
    return dataclasses.replace(loaded, model=model)


def undecodable(loaded: LoadedModel) -> LoadedModel:
    """A model that fails the test when it decodes anything."""

    def fail(shape: tuple[int, ...]) -> None:
        pytest.fail(f"decoded tokens of shape {shape}")

    return observed(loaded, fail)
