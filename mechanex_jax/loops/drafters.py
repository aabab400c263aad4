"""Drafters propose tokens that a target model then verifies, many positions in one call.

A drafter is a row tree (see `mechanex_jax.rows`), so its values are traced, and what belongs to one row travels with it. Its
state covers B rows, B in front of every leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, PyTree

from mechanex_jax import rows
from mechanex_jax.edits import Edit, Edits, compose
from mechanex_jax.errors import expected
from mechanex_jax.loops.carry import Carry, FinishReason, Program
from mechanex_jax.loops.language_model import ExtendOutput, LanguageModel, LogitsOf, ModelCache, logits_of
from mechanex_jax.loops.step import current_step
from mechanex_jax.transforms.base import Step, advance_rows, apply_rows
from mechanex_jax.transforms.draw import draw_rows

_DRAFT = 0x0D4AF7  # sets a draft's random numbers apart from the target's; `draw` itself folds in small numbers
_WINDOW = 64  # tokens that a draft model reads at a time when it catches up
# How many of 8 tokens proposed behind a match of 1, 2, 3, and 4 or more tokens were accepted, in summaries, code edits, JSON
# and prose by the default model; what a row's own proposals bring outweighs it soon.
PRIOR_ACCEPTED = (0.4, 1.5, 2.5, 6.0)
PRIOR_WEIGHT = 2.0  # proposals that this weighs like
DECAY = 0.9  # of what an earlier proposal has brought, at each that follows


Captured: TypeAlias = Mapping[str, Float[jax.Array, "B L S D"]]
StateT = TypeVar("StateT")


class Proposal(NamedTuple):
    """The tokens that a drafter proposes for every row, at most G.

    Attributes:
      tokens: -1 is no proposal, and nothing behind it in its row counts.
      logits: of the distributions from which the tokens were drawn; None if nothing was drawn, which is to say that all the
        mass was on the token proposed.
    """

    tokens: Int32[jax.Array, "B G"]
    logits: Float32[jax.Array, "B G V"] | None


@runtime_checkable
class Drafter(Protocol[StateT]):
    """A source of proposals for B rows. Whatever it proposes, the target's law holds; only the speed depends on it.

    Attributes:
      always: static; whether a running row always gets a proposal. If not, a round in which no row has one costs a plain step.
      capture: static; the sites of the target whose activations `commit` is handed, for heads that read them.
      price: optional; a row field, float32, that is set from measured costs before each chunk: the tokens that proposals must
        bring per row, on the average, for verifying them to pay. 0 where drafting is not adaptive.
    """

    @property
    def always(self) -> bool: ...

    @property
    def capture(self) -> tuple[str, ...]: ...

    def init(self, carry: Carry) -> StateT:
        """The state before anything is read; B in front of every leaf."""
        ...

    def follow(self, state: StateT, carry: Carry) -> StateT:
        """Read what the rows have got without this drafter: their prompts, and the tokens of plain steps."""
        ...

    def propose(self, state: StateT, program: Program, carry: Carry, steps: int) -> tuple[StateT, Proposal]:
        """`steps` tokens for every running row, to stand behind `carry.tokens[:, :carry.cache.lengths + 1]`.

        A drafter that draws does so from its own logits after `program.transform`, with hypothetical states of it.
        """
        ...

    def commit(self, state: StateT, carry: Carry, kept: Int32[jax.Array, " B"], captured: Captured) -> StateT:
        """The state after verification.

        Args:
          carry: with the tokens accepted, and the target's one.
          kept: positions that the target read in this round and that are real.
          captured: site -> [B, L, 1 + G, D] of the positions that the target read, the first `kept[b]` of which are real.
        """
        ...


@rows.row_tree
class ModelDrafter:
    """A smaller model that drafts; its state is a cache of its own. Made by `model_drafter`.

    Attributes:
      model: the draft model.
      edits: edits of the draft, none of which come from the target.
      shared_noise: see `model_drafter`.
    """

    model: LanguageModel = rows.shared()
    edits: tuple[Edit, ...] = rows.nested()
    shared_noise: bool = rows.static()

    always = True
    capture = ()

    def init(self, carry: Carry) -> ModelCache:
        # Catching up writes whole windows.
        return self.model.init_cache(len(carry.tokens), carry.tokens.shape[1] + _WINDOW)

    def follow(self, state: ModelCache, carry: Carry) -> ModelCache:
        def lag(cache: ModelCache) -> Int32[jax.Array, " B"]:
            return jnp.where(carry.finish == FinishReason.RUNNING, carry.cache.lengths - cache.lengths, 0)

        def read(cache: ModelCache) -> ModelCache:
            spots = cache.lengths[:, None] + jnp.arange(_WINDOW)
            tokens = jnp.take_along_axis(carry.tokens, spots, axis=1, mode="clip")
            valid = jnp.clip(lag(cache), 0, _WINDOW)
            return self._extend(cache, tokens, valid, carry, "none").cache

        # A lag of one is left to `propose`.
        return jax.lax.while_loop(lambda cache: jnp.any(lag(cache) > 1), read, state)

    def propose(self, state: ModelCache, program: Program, carry: Carry, steps: int) -> tuple[ModelCache, Proposal]:
        # After a round in which all was accepted, the draft has yet to read its own last token too: hence two at a time.
        unread = carry.cache.lengths + 1 - state.lengths
        spots = state.lengths[:, None] + jnp.arange(2)
        tokens = jnp.take_along_axis(carry.tokens, spots, axis=1, mode="clip")
        here = current_step(carry)

        def next_token(loop: _DraftLoop, ahead: Int32[jax.Array, ""]) -> tuple[_DraftLoop, tuple[jax.Array, jax.Array | None]]:
            cache, tokens, valid, transform_state, on = loop
            out = self._extend(cache, tokens, jnp.where(on, valid, 0), carry, "last")
            index = here.index + ahead
            step = Step(index, here.remaining - ahead, jax.vmap(jax.random.fold_in)(carry.key, index))
            logits = apply_rows(program.transform, transform_state, logits_of(out), step)
            on &= (jnp.max(logits, axis=-1) > -jnp.inf) & (step.remaining > 0)
            keys = step.key if self.shared_noise else jax.vmap(jax.random.fold_in, (0, None))(step.key, _DRAFT)
            token = draw_rows(keys, logits)
            transform_state = advance_rows(program.transform, transform_state, token, step)
            read = jnp.stack([token, jnp.zeros_like(token)], axis=1)
            loop = _DraftLoop(out.cache, read, jnp.ones_like(valid), transform_state, on)
            return loop, (jnp.where(on, token, -1), None if self.shared_noise else logits)

        running = carry.finish == FinishReason.RUNNING
        loop = _DraftLoop(state, tokens, unread, carry.transform_state, running)
        loop, (drawn, logits) = jax.lax.scan(next_token, loop, jnp.arange(steps, dtype=jnp.int32))
        return loop.cache, Proposal(drawn.T, None if logits is None else jnp.moveaxis(logits, 0, 1))

    def commit(self, state: ModelCache, carry: Carry, kept: Int32[jax.Array, " B"], captured: Captured) -> ModelCache:
        lengths = jnp.minimum(state.lengths, carry.cache.lengths)
        return dataclasses.replace(state, lengths=lengths)  # pyright: ignore[reportArgumentType]

    def _extend(
        self,
        cache: ModelCache,
        tokens: Int32[jax.Array, "B S"],
        valid: Int32[jax.Array, " B"],
        carry: Carry,
        logits: LogitsOf,
    ) -> ExtendOutput:
        return self.model.extend(cache, tokens, valid, self.edits, prompt_lengths=carry.prompt_lengths, logits=logits)


class _DraftLoop(NamedTuple):
    """One draft under way: `tokens` have yet to be read, `valid` of them are real, `on` are the rows that go on."""

    cache: ModelCache
    tokens: Int32[jax.Array, "B 2"]
    valid: Int32[jax.Array, " B"]
    transform_state: PyTree
    on: Bool[jax.Array, " B"]


def model_drafter(model: LanguageModel, edits: Edits = None, *, shared_noise: bool = False) -> ModelDrafter:
    """Draft with a smaller model that has the target's vocabulary, drawing from its distribution q after the transform.

    Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.

    >>> shared = {"drafter": model_drafter(toy()), "adaptive": False, "key": jax.random.key(0), "max_new_tokens": 12}
    >>> out, stats = mx.loops.speculative_decode(toy(), [[1, 2, 3]], 3, None, **shared)
    >>> stats.acceptance_rate.tolist()  # a model accepts all that it has drafted itself
    [1.0]

    Args:
      model: a `LanguageModel`, as `decode` takes it. It must number its tokens as the target does.
      edits: edits of the draft model itself. The target's are not applied to it.
      shared_noise: draw proposals with the random numbers that the target will use at the same place, and accept a proposal
        if the target draws it too (Daliri et al. 2024, arXiv:2408.07978). The tokens then are those of `decode` with the same
        key, whatever is drafted; in exchange fewer are accepted: with a total variation t between p and q, at least
        (1 - t) / (1 + t), against 1 - t. At temperature 0 there is no difference.
    """
    return ModelDrafter(model, compose(edits), bool(shared_noise))


class Yield(NamedTuple):
    """The tokens that a row's proposals have brought, by how long the match was that they followed: K kinds.

    Attributes:
      brought: tokens accepted, earlier ones fading.
      tries: proposals, likewise.
      now: the kind of match of the proposal under way, -1 for none.
    """

    brought: Float32[jax.Array, "B K"]
    tries: Float32[jax.Array, "B K"]
    now: Int32[jax.Array, " B"]


@rows.row_tree
class PromptLookup:
    """A search in the row's own text. Made by `prompt_lookup`.

    Attributes:
      price: see `Drafter`.
      longest, shortest: tokens of the n-grams that are looked for.
    """

    price: Float32[jax.Array, " B"] | float = rows.row(0, jnp.float32)
    longest: int = rows.static()
    shortest: int = rows.static()

    always = False
    capture = ()

    def init(self, carry: Carry) -> Yield:
        prior = jnp.broadcast_to(jnp.array(PRIOR_ACCEPTED, jnp.float32), (len(carry.finish), len(PRIOR_ACCEPTED)))
        return Yield(PRIOR_WEIGHT * prior, jnp.full_like(prior, PRIOR_WEIGHT), jnp.full_like(carry.finish, -1))

    def follow(self, state: Yield, carry: Carry) -> Yield:
        return state

    def propose(self, state: Yield, program: Program, carry: Carry, steps: int) -> tuple[Yield, Proposal]:
        tokens, size = jax.vmap(self._continuation, (0, 0, None))(carry.tokens, carry.cache.lengths, steps)
        running = carry.finish == FinishReason.RUNNING
        room = jnp.arange(steps) < (carry.max_new - carry.generated)[:, None]
        matched = running & (size > 0)
        kind = jnp.where(matched, jnp.minimum(size, len(PRIOR_ACCEPTED)) - 1, -1)
        # All rows wait for the verification of one: it is worth it if, together, they can expect to gain from it.
        by_kind = jnp.minimum(state.brought / state.tries, 0.8 * steps)
        accepted = jnp.take_along_axis(by_kind, jnp.maximum(kind, 0)[:, None], axis=1)[:, 0]
        gain = jnp.where(matched, accepted - self.price, -self.price)
        worth = jnp.sum(jnp.where(running, gain, 0.0)) > 0
        tokens = jnp.where((worth & running)[:, None] & room, tokens, -1)
        return state._replace(now=jnp.where(worth, kind, -1)), Proposal(tokens, None)

    def commit(self, state: Yield, carry: Carry, kept: Int32[jax.Array, " B"], captured: Captured) -> Yield:
        of_kind = jnp.arange(len(PRIOR_ACCEPTED)) == state.now[:, None]
        accepted = jnp.maximum(kept - 1, 0).astype(jnp.float32)[:, None]
        brought = jnp.where(of_kind, DECAY * state.brought + accepted, state.brought)
        return Yield(brought, jnp.where(of_kind, DECAY * state.tries + 1.0, state.tries), state.now)

    def _continuation(
        self, tokens: Int32[jax.Array, " T"], last: Int32[jax.Array, ""], steps: int
    ) -> tuple[Int32[jax.Array, " G"], Int32[jax.Array, ""]]:
        """The tokens after the longest, then first, earlier occurrence of the n-gram that ends at `last`, and its length."""
        ends = jnp.arange(len(tokens), dtype=jnp.int32)
        padded = jnp.pad(tokens, (self.longest, 0), constant_values=-1)
        suffix = jax.lax.dynamic_slice(padded, (last + 1,), (self.longest,))[::-1, None]
        shifted = jnp.stack([padded[self.longest - back :][: len(tokens)] for back in range(self.longest)])
        same = (shifted == suffix) & (suffix >= 0) & (ends < last)
        matching = jnp.sum(jnp.cumprod(same.astype(jnp.int32), axis=0), axis=0)
        score = jnp.where(matching >= self.shortest, (matching + 1) * len(tokens) - ends, -1)
        best = jnp.argmax(score).astype(jnp.int32)
        # An occurrence that ends P tokens ago has P known successors; from there on, the text is taken to repeat itself.
        ahead = jnp.arange(steps, dtype=jnp.int32) % jnp.maximum(last - best, 1)
        occurs = score[best] >= 0
        return jnp.where(occurs, tokens[best + 1 + ahead], -1), jnp.where(occurs, matching[best], 0)


def prompt_lookup(longest: int = 8, shortest: int = 1) -> PromptLookup:
    """Draft what followed the last `longest` tokens where they stood before in the row's own text, prompt included.

    If they did not stand there before, fewer are looked for, down to `shortest`; of several places the first wins, because
    what a text repeats is oftener its prompt than what it has made of it (edits: 5 to 10% more speed). Nothing is drawn, so
    the tokens generated are those of `decode` with the same key. Short matches seldom foretell anything: where drafting is
    adaptive, what is found is proposed only if matches of its length have paid for the verification in this text so far.
    Saxena 2023, "Prompt lookup decoding".

    >>> prompt_lookup(longest=4)
    PromptLookup(price=0.0, longest=4, shortest=1)

    Args:
      longest, shortest: whole numbers, 1 <= shortest <= longest; another value compiles again.

    Raises:
      ArgumentError: other values.
    """
    sizes = (longest, shortest)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes) or not 1 <= shortest <= longest:
        raise expected("prompt_lookup", sizes, "whole numbers with 1 <= shortest <= longest")
    return PromptLookup(0.0, longest, shortest)
