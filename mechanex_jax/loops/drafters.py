"""Drafters: what proposes tokens that a target model then verifies, many positions in one call.

A drafter is a row tree (see `mechanex_jax.rows`), so its values are traced, and what belongs to one row travels with it. Its
state covers B rows, B in front of every leaf.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Int32

from mechanex_jax import rows
from mechanex_jax.edits import compose
from mechanex_jax.errors import expected
from mechanex_jax.loops.autoregressive import Carry, FinishReason, Program, standing
from mechanex_jax.transforms.base import Step, advance_rows, apply_rows
from mechanex_jax.transforms.draw import draw_rows

_DRAFT = 0x0D4AF7  # sets a draft's random numbers apart from the target's; `draw` itself folds in small numbers
_WINDOW = 64  # tokens that a draft model reads at a time when it catches up


class Proposal(NamedTuple):
    """What a drafter proposes for every row.

    Attributes:
      tokens: int32 [B, G]; -1 is no proposal, and nothing behind it in its row counts.
      logits: float32 [B, G, V], of the distributions from which the tokens were drawn; None if nothing was drawn, which is to
        say that all the mass was on the token proposed.
    """

    tokens: jax.Array
    logits: jax.Array | None


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens for B rows. Whatever it proposes, the target's law holds; only the speed depends on it.

    Attributes:
      always: static; whether a running row always gets a proposal. If not, a round in which no row has one costs a plain step.
      capture: static; the sites of the target whose activations `commit` is handed, for heads that read them.
    """

    @property
    def always(self) -> bool: ...

    @property
    def capture(self) -> tuple[str, ...]: ...

    def init(self, carry: Carry) -> Any:
        """The state before anything is read; B in front of every leaf."""
        ...

    def follow(self, state: Any, carry: Carry) -> Any:
        """Read what the rows have got without this drafter: their prompts, and the tokens of plain steps."""
        ...

    def propose(self, state: Any, program: Program, carry: Carry, steps: int) -> tuple[Any, Proposal]:
        """`steps` tokens for every running row, to stand behind `carry.tokens[:, :carry.cache.lengths + 1]`.

        A drafter that draws does so from its own logits after `program.transform`, with hypothetical states of it.
        """
        ...

    def commit(self, state: Any, carry: Carry, kept: Int32[jax.Array, " B"], captured: dict[str, jax.Array]) -> Any:
        """The state after verification.

        Args:
          carry: with the tokens accepted, and the target's one.
          kept: positions that the target read in this round and that are real.
          captured: site -> [B, L, 1 + G, D] of the positions that the target read, the first `kept[b]` of which are real.
        """
        ...


@rows.row_tree
class ModelDrafter:
    """Attributes:
    model: the draft model, with a cache of its own in the state.
    edits: edits of the draft, none of which come from the target.
    shared_noise: see `model_drafter`.
    """

    model: Any = rows.shared()
    edits: tuple[Any, ...] = rows.nested()
    shared_noise: bool = rows.static()

    always = True
    capture = ()

    def init(self, carry: Carry) -> Any:
        # Catching up writes whole windows.
        return self.model.init_cache(*carry.tokens.shape[:1], carry.tokens.shape[1] + _WINDOW)

    def follow(self, state: Any, carry: Carry) -> Any:
        def lag(cache: Any) -> jax.Array:
            return jnp.where(carry.finish == FinishReason.RUNNING, carry.cache.lengths - cache.lengths, 0)

        def read(cache: Any) -> Any:
            spots = cache.lengths[:, None] + jnp.arange(_WINDOW)
            tokens = jnp.take_along_axis(carry.tokens, spots, axis=1, mode="clip")
            valid = jnp.clip(lag(cache), 0, _WINDOW)
            return self._extend(cache, tokens, valid, carry, "none").cache

        # A lag of one is left to `propose`.
        return jax.lax.while_loop(lambda cache: jnp.any(lag(cache) > 1), read, state)

    def propose(self, state: Any, program: Program, carry: Carry, steps: int) -> tuple[Any, Proposal]:
        # After a round in which all was accepted, the draft has yet to read its own last token too: hence two at a time.
        unread = carry.cache.lengths + 1 - state.lengths
        spots = state.lengths[:, None] + jnp.arange(2)
        tokens = jnp.take_along_axis(carry.tokens, spots, axis=1, mode="clip")
        here = standing(carry)

        def next_token(loop: Any, ahead: jax.Array) -> Any:
            cache, tokens, valid, transform_state, on = loop
            out = self._extend(cache, tokens, jnp.where(on, valid, 0), carry, "last")
            index = here.index + ahead
            step = Step(index, here.remaining - ahead, jax.vmap(jax.random.fold_in)(carry.key, index))
            logits = apply_rows(program.transform, transform_state, out.logits, step)
            on &= (jnp.max(logits, axis=-1) > -jnp.inf) & (step.remaining > 0)
            keys = step.key if self.shared_noise else jax.vmap(jax.random.fold_in, (0, None))(step.key, _DRAFT)
            token = draw_rows(keys, logits)
            transform_state = advance_rows(program.transform, transform_state, token, step)
            read = jnp.stack([token, jnp.zeros_like(token)], axis=1)
            loop = (out.cache, read, jnp.ones_like(valid), transform_state, on)
            return loop, (jnp.where(on, token, -1), None if self.shared_noise else logits)

        running = carry.finish == FinishReason.RUNNING
        loop = (state, tokens, unread, carry.transform_state, running)
        (cache, *_), (drawn, logits) = jax.lax.scan(next_token, loop, jnp.arange(steps, dtype=jnp.int32))
        return cache, Proposal(drawn.T, None if logits is None else jnp.moveaxis(logits, 0, 1))

    def commit(self, state: Any, carry: Carry, kept: jax.Array, captured: dict[str, jax.Array]) -> Any:
        return dataclasses.replace(state, lengths=jnp.minimum(state.lengths, carry.cache.lengths))

    def _extend(self, cache: Any, tokens: jax.Array, valid: jax.Array, carry: Carry, logits: str) -> Any:
        return self.model.extend(cache, tokens, valid, self.edits, prompt_lengths=carry.prompt_lengths, logits=logits)


def model_drafter(model: Any, edits: Any = None, *, shared_noise: bool = False) -> ModelDrafter:
    """Draft with a smaller model that has the target's vocabulary, drawing from its distribution q after the transform.

    Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.

    Args:
      model: anything that decodes, as in `decode`. It must number its tokens as the target does.
      edits: edits of the draft model itself. The target's are not applied to it.
      shared_noise: draw proposals with the random numbers that the target will use at the same place, and accept a proposal
        if the target draws it too (Daliri et al. 2024, arXiv:2408.07978). The tokens then are those of `decode` with the same
        key, whatever is drafted; in exchange fewer are accepted: with a total variation t between p and q, at least
        (1 - t) / (1 + t), against 1 - t. At temperature 0 there is no difference.
    """
    return ModelDrafter(model, compose(edits), bool(shared_noise))


@rows.row_tree
class PromptLookup:
    """Attributes:
    longest, shortest: tokens of the n-grams that are looked for.
    """

    longest: int = rows.static()
    shortest: int = rows.static()

    always = False
    capture = ()

    def init(self, carry: Carry) -> tuple[()]:
        return ()

    def follow(self, state: tuple[()], carry: Carry) -> tuple[()]:
        return ()

    def propose(self, state: tuple[()], program: Program, carry: Carry, steps: int) -> tuple[tuple[()], Proposal]:
        found = jax.vmap(self._continuation, (0, 0, None))(carry.tokens, carry.cache.lengths, steps)
        running = carry.finish == FinishReason.RUNNING
        room = jnp.arange(steps) < (carry.max_new - carry.generated)[:, None]
        return (), Proposal(jnp.where(running[:, None] & room, found, -1), None)

    def commit(self, state: tuple[()], carry: Carry, kept: jax.Array, captured: dict[str, jax.Array]) -> tuple[()]:
        return ()

    def _continuation(self, tokens: jax.Array, last: jax.Array, steps: int) -> jax.Array:
        """What follows the longest, then the latest, earlier occurrence of the n-gram that ends at `last`."""
        ends = jnp.arange(len(tokens), dtype=jnp.int32)
        matching, same = jnp.zeros_like(ends), ends < last
        for back in range(self.longest):
            same &= (ends >= back) & (last >= back)
            same &= jnp.roll(tokens, back) == tokens[jnp.maximum(last - back, 0)]
            matching += same.astype(jnp.int32)
        score = jnp.where(matching >= self.shortest, matching * len(tokens) + ends, -1)
        best = jnp.argmax(score).astype(jnp.int32)
        # An occurrence that ends P tokens ago has P known successors; from there on, the text is taken to repeat itself.
        ahead = jnp.arange(steps, dtype=jnp.int32) % jnp.maximum(last - best, 1)
        return jnp.where(score[best] >= 0, tokens[best + 1 + ahead], -1)


def prompt_lookup(longest: int = 3, shortest: int = 1) -> PromptLookup:
    """Draft what followed the last `longest` tokens where they stood before in the row's own text, prompt included.

    If they did not stand there before, fewer are looked for, down to `shortest`; the latest place wins. Nothing is drawn, so
    the tokens generated are those of `decode` with the same key. Saxena 2023, "Prompt lookup decoding".

    Args:
      longest, shortest: whole numbers, 1 <= shortest <= longest; another value compiles again.

    Raises:
      ArgumentError: other values.
    """
    sizes = (longest, shortest)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes) or not 1 <= shortest <= longest:
        raise expected("prompt_lookup", sizes, "whole numbers with 1 <= shortest <= longest")
    return PromptLookup(longest, shortest)
