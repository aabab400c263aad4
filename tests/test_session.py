"""Which model a call without a name runs on, and keys of the hosted API."""

from __future__ import annotations

import dataclasses

import pytest

import mechanex_jax
from mechanex_jax.errors import ArgumentError, ModelNotFoundError


@pytest.fixture
def session(tmp_path, monkeypatch, loaded):
    """A session of its own with the models "first" and "last"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MECHANEX_API_KEY", raising=False)
    session = mechanex_jax.Mechanex()
    for name in ("first", "last"):
        session.session._models[name] = dataclasses.replace(loaded, name=name)
    return session


@pytest.mark.parametrize("name", [None, "last"])
def test_without_its_default_a_session_takes_no_other_model_for_it(session, name):
    session.unload(name)
    for call in (
        session.local_model,
        session.unload,
        lambda: session.generation.generate("x"),
        lambda: session.policy.run("x", {}),
    ):
        with pytest.raises(ModelNotFoundError, match=r"last, the default, was unloaded; loaded are first\. Name one"):
            call()
    assert session.local_model("first").name == "first"
    assert session.generation.generate("The capital of France is", 2, "greedy", model="first") == " Paris."


def test_another_than_the_default_goes_without_a_trace(session):
    session.unload("first")
    assert session.local_model().name == "last"
    session.unload("last")
    with pytest.raises(ModelNotFoundError, match="No model is loaded"):
        session.local_model()


def test_a_model_that_is_loaded_next_is_the_default_again(session, loaded, monkeypatch):
    session.unload()
    monkeypatch.setattr("mechanex_jax.loading.load", lambda *args, **kwargs: dataclasses.replace(loaded, name="next"))
    session.load("next")
    assert session.local_model().name == "next"
    session.unload("next")
    session.unload("first")
    session.load("next")
    assert session.local_model().name == "next"


@pytest.mark.parametrize("key", [None, "", "  ", 3, b"ax_secret", ["ax_secret"]])
def test_what_is_no_key_is_refused_and_never_shown(session, key):
    calls = [session.set_key] if key is None else [session.set_key, lambda key: mechanex_jax.Mechanex(api_key=key)]
    for call in calls:
        with pytest.raises(
            ArgumentError, match=r"api_key: got .*; expected a non-empty string\. .*set_execution_mode"
        ) as caught:
            call(key)
        assert "secret" not in str(caught.value)
    assert session.local_model().name == "last"  # as before
