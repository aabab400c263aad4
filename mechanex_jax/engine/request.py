"""`Request`: one row of a call, checked and tokenized, its constraint compiled; `Completion`: what comes back for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from mechanex_jax.constraints import compiler
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.constraints.token_index.build import Tables
from mechanex_jax.edits import RowSteering, Scope, parse_hook_point, scope
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import ArgumentError, Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.representation import short_repr
from mechanex_jax.validation import check_utf8
from mechanex_jax.warning import warn

Prompt: TypeAlias = str | Sequence[object]  # a text; with `chat=True` also a list of messages


@dataclasses.dataclass(frozen=True)
class Request:
    """One row: what to continue and how. Nothing in it can fail on account of its arguments any more.

    Attributes:
      tokens: ids of the prompt, at least one.
      config: the row's arguments.
      seed, index: the row draws from fold_in(key(seed), index).
      steering: vectors and gates to add, strengths applied, or None.
      constraint: tables for this model's vocabulary, or None.
      forbidden: tables of the texts without the row's forbidden terms, or None.
      partners: other models that the row asks for: its draft, or the further members of its ensemble.
      members: where tokenizers of an ensemble differ, the same question to each of `partners`, in its own tokens.
    """

    __repr__ = short_repr

    tokens: tuple[int, ...]
    config: GenerationConfig
    seed: int = 0
    index: int = 0
    steering: RowSteering | None = None
    constraint: Tables | None = None
    forbidden: Tables | None = None
    partners: tuple[LoadedModel, ...] = ()
    members: tuple[Request, ...] = ()

    @property
    def loop(self) -> str:
        """Name of the loop in `mechanex_jax.engine.runners` that runs it; a draft model speculates with any method's law."""
        if self.members:
            return "text-vote"
        return "speculative" if self.config.draft_model is not None else self.config.method.loop

    def trace(self, loaded: LoadedModel, completion: Completion) -> dict[str, object]:
        """What `include_trace=True` keeps: what was asked, how it ended, and what the method has to tell."""
        return {
            "model": loaded.name,
            "sampling_method": self.config.method.name,
            "seed": self.seed,
            "row": self.index,
            "prompt_tokens": len(self.tokens),
            "tokens": len(completion.tokens),
            "finish_reason": completion.finish_reason,
            "text": completion.text,
            **completion.trace,
        }


@dataclasses.dataclass(frozen=True)
class Completion:
    """A text with its tokens, which `details=True` returns.

    Attributes:
      text: the continuation, ended before a stop string.
      tokens: ids generated, an end-of-sequence id and the tokens of a stop string included; of an ensemble with several
        tokenizers, in that of the member whose text was chosen.
      logprobs: of each token, under the model itself (temperature 1, before any transform).
      finish_reason: "eos", "stop", "length", or "dead_end" where every token was forbidden or a logit was NaN.
      trace: what the method has to tell besides; for beam search the other hypotheses.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    trace: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False)


def prepare(
    loaded: LoadedModel,
    prompt: Prompt,
    config: GenerationConfig,
    *,
    seed: int = 0,
    index: int = 0,
    name: str = "prompt",
    steering: RowSteering | None = None,
    partners: Sequence[LoadedModel] = (),
) -> Request:
    """Tokenize one prompt, check it against the model, and compile what its arguments need compiled on the host.

    Args:
      loaded: the model.
      prompt: a text; with `config.chat` also a list of messages.
      config: the row's arguments.
      seed, index: of the row's random key.
      name: what errors call the prompt.
      steering: what `config.steering_vector` and `config.steering_preset` stand for, strengths applied, at all their layers.
      partners: the models that `config.draft_model` or `config.ensemble_models` name.

    Raises:
      ArgumentError: not a string, empty without a BOS, longer than the context, or arguments that this model can't serve.
    """
    tokens = _tokens(loaded, prompt, config, name)
    room = min(config.max_tokens, loaded.model.spec.context - len(tokens))
    _check_partners(loaded, config, partners, len(tokens), room)
    return Request(
        tokens,
        config,
        seed,
        index,
        steering=None if steering is None else _placed(steering, loaded, config, len(tokens)),
        constraint=_constraint(loaded, config, room),
        forbidden=_forbidden(loaded, config),
        partners=tuple(partners),
        members=_members(loaded, prompt, config, name, partners),
    )


def _tokens(loaded: LoadedModel, prompt: Prompt, config: GenerationConfig, name: str) -> tuple[int, ...]:
    """The prompt as this model spells it, checked against what the model can read."""
    if not isinstance(prompt, str) and not (config.chat and isinstance(prompt, list)):
        raise expected(name, prompt, "a string (with chat=True also a list of messages)")
    tokenizer, spec = loaded.tokenizer, loaded.model.spec
    if config.chat:
        check_utf8(name, prompt)
        tokens = tokenizer.encode_chat(prompt)
    else:
        tokens = tokenizer.encode(str(prompt), name=name)
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


def _check_partners(
    loaded: LoadedModel, config: GenerationConfig, partners: Sequence[LoadedModel], prompt: int, room: int
) -> None:
    """A draft must spell its text as the loaded model does; an ensemble has a weight for each member, and room in all contexts.

    Members with several tokenizers write texts of their own, each as far as its own context goes.
    """
    if config.ensemble_models and not partners:
        warn(f"ensemble_models: {loaded.name} is the one member, and decodes as without.")
    weights = config.ensemble_weights
    if weights is not None and len(weights) != 1 + len(partners):
        members = ", ".join([loaded.name, *(partner.name for partner in partners)])
        raise expected("ensemble_weights", list(weights), f"one number for each of the distinct members {members}")
    for draft in partners if config.draft_model is not None else ():
        if not same_tokens(loaded, draft):
            raise expected("draft_model", draft.name, f"a model with the tokenizer of {loaded.name}", "Choose another model.")
        if draft.bytes > loaded.bytes:
            warn(f"draft_model: {draft.name} is larger than {loaded.name}.")
        if prompt + room > draft.model.spec.context:
            context = draft.model.spec.context
            warn(f"draft_model: {draft.name} has a context of {context} tokens, and drafts nothing of use beyond.")
    if not config.ensemble_models or not all(same_tokens(loaded, partner) for partner in partners):
        return
    for member in partners:
        if prompt + room > member.model.spec.context:
            raise expected(
                "max_tokens",
                Verbatim(f"{prompt} tokens of the prompt and up to {room} more"),
                f"at most {member.model.spec.context} in all, the context of the ensemble's member {member.name}",
                "Lower max_tokens, shorten the prompt, or leave the member out.",
            )


def _members(
    loaded: LoadedModel, prompt: Prompt, config: GenerationConfig, name: str, partners: Sequence[LoadedModel]
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


def _member(member: LoadedModel, prompt: Prompt, config: GenerationConfig, name: str) -> Request:
    """The same question to another model: with its own chat template, and its own tables of the constraint."""
    try:
        tokens = _tokens(member, prompt, config, name)
        room = min(config.max_tokens, member.model.spec.context - len(tokens))
        constraint, forbidden = _constraint(member, config, room), _forbidden(member, config)
    except ArgumentError as error:
        raise type(error)(f"ensemble_models: {member.name} can't take part. {error}") from error
    return Request(tokens, config, constraint=constraint, forbidden=forbidden)


def _placed(steering: RowSteering, loaded: LoadedModel, config: GenerationConfig, prompt: int) -> RowSteering:
    """A row's steering at the layers and positions asked for; `prompt` is the prompt's length in tokens."""
    if config.steering_layers is not None:
        steering = steering.only(_chosen_hook_points(steering, config.steering_layers, loaded.model.spec.layers))
    return dataclasses.replace(steering, scope=_positions(config.steering_scope, prompt))


def _chosen_hook_points(steering: RowSteering, names: Sequence[object], layers: int) -> set[tuple[str, int]]:
    """The hook points of a row's steering that are at the layers asked for."""
    allowed = {parse_hook_point(name, layers, "steering_layers", site="") for name in names}  # a bare number: every site
    chosen = {(site, layer) for site, layer in steering.hook_points if allowed & {(site, layer), ("", layer)}}
    if not chosen:
        there = ", ".join(f"{layer} ({site})" for site, layer in steering.hook_points)
        raise expected("steering_layers", list(names), f"some of the layers that are steered: {there}")
    return chosen


def _positions(positions: str | slice | Scope, prompt: int) -> Scope:
    """A scope; the positions of a slice count from the beginning of the text."""
    if not isinstance(positions, slice):
        return positions if isinstance(positions, Scope) else scope(positions)
    begin = {} if positions.start is None else {"since": positions.start - prompt}
    end = {} if positions.stop is None else {"below": positions.stop}
    return Scope(**begin, **end)


def _forbidden(loaded: LoadedModel, config: GenerationConfig) -> Tables | None:
    """The tables of the texts without a row's forbidden terms."""
    if not config.forbidden_terms:
        return None
    return compiler.compile_for("forbidden_terms", config.forbidden_terms, JsonOptions(), compiler.Target.of(loaded)).tables


def _constraint(loaded: LoadedModel, config: GenerationConfig, room: int) -> Tables | None:
    """The tables of a row's constraint, which can be met within `room` tokens."""
    if config.constraint_source is None:
        return None
    kind, source, options = config.constraint_source
    target = compiler.Target.of(loaded)
    tables = (source.compiled if kind == "compiled" else compiler.compile_for(kind, source, options, target)).tables
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
    if room > (most := tables.longest // target.vocabulary.longest):
        raise expected(
            "max_tokens",
            Verbatim(f"room for {room} tokens"),
            f"at most {most}: a longer text may exceed the constraint's bounds of more than {tables.longest:,} bytes",
            "Lower max_tokens, or the constraint's largest bounds.",
        )
    return tables
