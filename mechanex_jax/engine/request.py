"""From one prompt and its arguments to a request: routed, checked, tokenised, its vectors and constraint found."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from mechanex_jax.constraints import compiler
from mechanex_jax.edits import RowSteering, Scope, parse_hook_point, parse_steering, scope
from mechanex_jax.engine.batch import Request
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import ArgumentError, Verbatim, expected
from mechanex_jax.loading import LoadedModel


class Stored(Protocol):
    """Where vectors and presets come from by name."""

    def resolve(self, spec: str, model: LoadedModel) -> RowSteering:
        """A stored vector, at strength 1."""
        ...

    def preset(self, name: str, strength: float, model: LoadedModel) -> RowSteering:
        """A preset, at its own strength where 0 is asked for."""
        ...


class Once:
    """`Stored` for one call: each vector and preset is read once, however many rows ask for it."""

    def __init__(self, stored: Stored):
        self.resolve, self.preset = functools.cache(stored.resolve), functools.cache(stored.preset)


def prepare(
    loaded: LoadedModel,
    prompt: Any,
    config: GenerationConfig,
    name: str = "prompt",
    stored: Stored | None = None,
    partners: Sequence[LoadedModel] = (),
) -> Request:
    """Tokenise one prompt, check it against the model, and compile what its arguments need compiled on the host.

    Args:
      loaded: the model.
      prompt: a text; with `config.chat` also a list of messages.
      config: the row's arguments.
      name: what errors call the prompt.
      stored: where vectors and presets come from.
      partners: the models that `config.draft_model` or `config.ensemble_models` name.

    Raises:
      ArgumentError: not a string, empty without a BOS, longer than the context, or arguments that this model can't serve.
    """
    tokens = _tokens(loaded, prompt, config, name)
    room = min(config.max_tokens, loaded.model.spec.context - len(tokens))
    _check_partners(loaded, config, partners)
    return Request(
        tokens,
        config,
        steering=_steering(loaded, config, stored, len(tokens)),
        constraint=_constraint(loaded, config, room),
        forbidden=_forbidden(loaded, config),
        partners=tuple(partners),
        members=_members(loaded, prompt, config, name, partners),
    )


def _tokens(loaded: LoadedModel, prompt: Any, config: GenerationConfig, name: str) -> tuple[int, ...]:
    """The prompt as this model spells it, checked against what the model can read."""
    if not isinstance(prompt, str) and not (config.chat and isinstance(prompt, list)):
        raise expected(name, prompt, "a string (with chat=True also a list of messages)")
    if isinstance(prompt, str) and not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise expected(name, prompt, "text that UTF-8 can hold", "It has half of a surrogate pair: decode the input properly.")
    tokenizer, spec = loaded.tokenizer, loaded.model.spec
    tokens = tokenizer.encode_chat(prompt) if config.chat else tokenizer.encode(str(prompt))
    if not tokens and tokenizer.bos_id is not None:
        tokens = [tokenizer.bos_id]
    if not tokens:
        raise expected(name, prompt, "at least one token", f"{loaded.name} has no beginning-of-sequence token to start from.")
    if len(tokens) >= spec.context:
        raise expected(
            name,
            Verbatim(f"{len(tokens)} tokens"),
            f"at most {spec.context - 1}, the context of {loaded.name} less one",
            "Shorten it.",
        )
    for token in config.logit_bias or ():
        if int(token) >= spec.vocabulary:
            raise expected("logit_bias", token, f"token ids below {spec.vocabulary}")
    return tuple(tokens)


def same_tokens(a: LoadedModel, b: LoadedModel) -> bool:
    """Whether the same ids mean the same text to both."""
    alike = a.tokenizer.vocabulary.fingerprint == b.tokenizer.vocabulary.fingerprint
    return alike and a.model.spec.vocabulary == b.model.spec.vocabulary


def _check_partners(loaded: LoadedModel, config: GenerationConfig, partners: Sequence[LoadedModel]) -> None:
    """A draft must spell its text as the loaded model does; an ensemble has a weight for each member."""
    if config.ensemble_models and not partners:
        warnings.warn(f"ensemble_models: {loaded.name} is the one member, and decodes as without.", UserWarning, stacklevel=3)
    weights = config.ensemble_weights
    if weights is not None and len(weights) != 1 + len(partners):
        members = ", ".join([loaded.name, *(partner.name for partner in partners)])
        raise expected("ensemble_weights", list(weights), f"one number for each of the distinct members {members}")
    for draft in partners if config.draft_model is not None else ():
        if not same_tokens(loaded, draft):
            raise expected("draft_model", draft.name, f"a model with the tokenizer of {loaded.name}", "Choose another model.")
        if draft.bytes > loaded.bytes:
            warnings.warn(f"draft_model: {draft.name} is larger than {loaded.name}.", UserWarning, stacklevel=3)


def _members(
    loaded: LoadedModel, prompt: Any, config: GenerationConfig, name: str, partners: Sequence[LoadedModel]
) -> tuple[Request, ...]:
    """What the other members of an ensemble are asked, if not all of them have the loaded model's tokenizer; else nothing."""
    others = [partner for partner in partners if not same_tokens(loaded, partner)]
    if not others:
        return ()
    for argument in ("logit_bias", "constraint"):
        if getattr(config, argument) is not None:
            wanted = f"None beside {others[0].name}, which has another tokenizer than {loaded.name}"
            raise expected(argument, Verbatim("what is made for one tokenizer"), wanted, "Give constraints as text.")
    return tuple(_member(partner, prompt, config, name) for partner in partners)


def _member(member: LoadedModel, prompt: Any, config: GenerationConfig, name: str) -> Request:
    """The same question to another model: with its own chat template, and its own tables of the constraint."""
    try:
        tokens = _tokens(member, prompt, config, name)
        room = min(config.max_tokens, member.model.spec.context - len(tokens))
        constraint, forbidden = _constraint(member, config, room), _forbidden(member, config)
    except ArgumentError as error:
        raise type(error)(f"ensemble_models: {member.name} can't take part. {error}") from error
    return Request(tokens, config, constraint=constraint, forbidden=forbidden)


def _steering(loaded: LoadedModel, config: GenerationConfig, stored: Stored | None, prompt: int) -> RowSteering | None:
    """What a row's vector and preset amount to, at the layers and positions asked for; `prompt` is the prompt's length."""
    spec, strength = loaded.model.spec, config.steering_strength
    found = None
    if config.steering_vector is not None:
        if strength == 0:
            warnings.warn("steering_vector has no effect: steering_strength is 0, its default.", UserWarning, stacklevel=2)
        if isinstance(config.steering_vector, str):
            assert stored is not None, "whoever takes ids of vectors knows the store"
            found = stored.resolve(config.steering_vector, loaded)
        elif isinstance(config.steering_vector, RowSteering):
            found = config.steering_vector
        else:
            found = parse_steering(config.steering_vector, spec.width, spec.layers)
        found = found.scaled(strength)
    if config.steering_preset is not None:
        assert stored is not None, "whoever takes presets knows the store"
        preset = stored.preset(config.steering_preset, strength, loaded)
        found = preset if found is None else found + preset
    if found is None:
        return None
    if config.steering_layers is not None:
        found = found.only(_chosen_hook_points(found, config.steering_layers, spec.layers))
    return dataclasses.replace(found, scope=_positions(config.steering_scope, prompt))


def _chosen_hook_points(found: RowSteering, wanted: Sequence[Any], layers: int) -> set[tuple[str, int]]:
    """Which of a steering's vectors are at the layers asked for."""
    allowed = {parse_hook_point(name, layers, "steering_layers", site="") for name in wanted}  # a bare number means every site
    places = {(site, layer) for site, layer in found.hook_points if allowed & {(site, layer), ("", layer)}}
    if not places:
        there = ", ".join(f"{layer} ({site})" for site, layer in found.hook_points)
        raise expected("steering_layers", list(wanted), f"some of the layers that are steered: {there}")
    return places


def _positions(given: Any, prompt: int) -> Scope:
    """A scope; the positions of a slice count from the beginning of the text."""
    if not isinstance(given, slice):
        return given if isinstance(given, Scope) else scope(given)
    begin = {} if given.start is None else {"since": given.start - prompt}
    end = {} if given.stop is None else {"below": given.stop}
    return Scope(**begin, **end)


def _forbidden(loaded: LoadedModel, config: GenerationConfig) -> Any:
    """The tables of the texts without a row's forbidden terms."""
    if not config.forbidden_terms:
        return None
    return compiler.compile_for("forbidden_terms", config.forbidden_terms, False, compiler.Target.of(loaded)).tables


def _constraint(loaded: LoadedModel, config: GenerationConfig, room: int) -> Any:
    """The tables of a row's constraint, which can be met within `room` tokens."""
    if config.constraint_source is None:
        return None
    kind, source, whitespace = config.constraint_source
    target = compiler.Target.of(loaded)
    tables = (source.compiled if kind == "compiled" else compiler.compile_for(kind, source, whitespace, target)).tables
    if (tables.vocabulary, tables.size) != (target.vocabulary.fingerprint, target.logits):
        wanted = f"one for that of {loaded.name}"
        raise expected("constraint", Verbatim("one for another tokenizer"), wanted, "Compile it for this model.")
    if tables.minimum > room:
        raise expected(
            "max_tokens",
            Verbatim(f"room for {room} tokens"),
            f"at least {tables.minimum}, which the shortest text that the constraint allows may take",
            "Raise max_tokens, or shorten the prompt.",
        )
    return tables
