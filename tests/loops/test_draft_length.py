"""What drafters propose, and how many tokens the host asks them for: against brute force and a simulated clock."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from positional_toy import positional

import mechanex_jax as mx
from mechanex_jax.loops import DraftLengthController, prompt_lookup, speculative_start


def continuation(tokens: list[int], steps: int, longest: int, shortest: int) -> list[int]:
    """The oracle: what followed the first occurrence of the longest suffix that occurs before."""
    for size in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == tokens[-size:]:
                text = list(tokens)
                for _ in range(steps):  # an occurrence that reaches into the suffix repeats itself
                    text.append(text[start + size + len(text) - len(tokens)])
                return text[len(tokens) :]
    return [-1] * steps


@pytest.mark.slow
@pytest.mark.parametrize(("longest", "shortest"), [(3, 1), (2, 2), (4, 2), (1, 1)])
def test_prompt_lookup_proposes_what_brute_force_finds(longest, shortest):
    rng = np.random.default_rng(longest)
    drafter, found = prompt_lookup(longest, shortest), 0
    for _ in range(60):
        length = int(rng.integers(1, 20))
        history = np.concatenate([rng.integers(0, 4, length), np.full(30 - length, rng.integers(0, 4))]).astype(np.int32)
        wanted = continuation(history[:length].tolist(), 5, longest, shortest)
        assert drafter._continuation(jnp.asarray(history), jnp.int32(length - 1), 5)[0].tolist() == wanted
        found += wanted[0] >= 0
    assert found > 10


@pytest.mark.slow
def test_matches_are_proposed_only_where_together_they_have_paid_for_their_verification():
    """Row 0 repeats its last four tokens, row 1 the last one, row 2 none."""
    prompts = np.array([[1, 2, 3, 4, 5, 1, 2, 3, 4], [6, 7, 8, 9, 10, 5, 4, 3, 6], [1, 2, 3, 4, 5, 6, 7, 8, 9]], np.int32)
    greedy = mx.transforms.chain(mx.transforms.temperature(0.0))
    drafter = prompt_lookup()
    arguments = {"drafter": drafter, "key": jax.random.key(0), "max_new_tokens": 20}
    program, carry = speculative_start(positional(), prompts, 9, greedy, **arguments)

    def proposed(state, price, rows=slice(None)):
        asked = dataclasses.replace(program.drafter, price=jnp.full(3, price, jnp.float32))
        finish = jnp.full(3, 1, jnp.int32).at[rows].set(0)
        base = dataclasses.replace(carry.base, finish=finish)
        state, proposal = asked.propose(state, program.target, base, 8)
        return state, (np.asarray(proposal.tokens) >= 0).any(axis=1).tolist(), base

    long, short = slice(0, 1), slice(1, 2)
    state, all_of_them, base = proposed(carry.draft, 0.0)
    assert all_of_them == [True, True, False]
    assert proposed(state, 1.0, long)[1] == [True, False, False] and not any(proposed(state, 1.0, short)[1])
    assert proposed(state, 2.0)[1] == [True, True, False]  # 6 and 0.4 tokens expected, against three rows that wait
    assert not any(proposed(state, 2.2)[1])
    refused, accepted = state, state
    for _ in range(20):
        refused = program.drafter.commit(refused, base, jnp.array([1, 1, 1]), {})
        accepted = program.drafter.commit(accepted, base, jnp.array([9, 9, 1]), {})
    assert not any(proposed(refused, 1.0, long)[1]) and proposed(accepted, 1.0, short)[1] == [False, True, False]


def test_what_verifying_costs_is_told_from_rounds_that_are_plain():
    """Five of nine rounds verify, at three plain steps each."""
    controller = DraftLengthController(4)
    for _ in range(3):
        controller.record(0, 8 * 0.03, 8, 0, 8, 0, 0, 0)
    assert controller.price(4) == 1.0  # as long as nothing is known
    for _ in range(4):
        controller.record(4, 5 * 0.09 + 4 * 0.03, 9, 5, 9, 5, 8, 6)
    assert controller.cost(4) == pytest.approx(0.09) and controller.price(4) == pytest.approx(2.0)
    for _ in range(5):  # one round of nine: what a hiccup in the others adds is not counted
        controller.record(4, 0.09 + 8 * 0.04, 9, 1, 9, 1, 3, 2)
    assert controller.cost(4) == pytest.approx(0.09)
    assert DraftLengthController(4, adaptive=False).price(4) == 0.0


def test_slow_beginnings_do_not_end_all_proposals():
    """As measured: chunks of a new process that take long, one with a single verified round, one with a hiccup."""
    controller = DraftLengthController(4)
    for seconds in (1.0, 0.35):
        controller.record(0, seconds, 8, 0, 64, 0, 0, 0)
    controller.record(4, 1.5, 2, 2, 16, 16, 64, 64)
    controller.record(4, 0.4, 4, 1, 32, 8, 24, 16)
    assert controller.price(4) == 1.0
    controller.record(4, 1.0, 4, 4, 32, 32, 128, 128)
    assert controller.price(4) == 1.0
    for _ in range(4):
        controller.record(4, 0.4, 4, 4, 32, 32, 128, 128)
    assert 1.2 < controller.price(4) < 1.4


def simulate(
    controller: DraftLengthController, costs, accept, rows: int = 1, tokens: int = 400, overhead: float = 0.0
) -> float:
    """Seconds until every row has its tokens, at an acceptance rate accept(tokens so far) and seconds costs[steps] a round.

    A chunk takes `overhead` seconds besides.
    """
    rng = np.random.default_rng(0)
    controller.begin()
    done, seconds = np.zeros(rows), 0.0
    while (done < tokens).any():
        steps, rounds = controller.choose(int((done < tokens).sum()))
        counts, spent, turns = np.zeros(4, int), overhead, 0
        for _ in range(rounds):
            live = done < tokens
            if not live.any():
                break
            turns, spent = turns + 1, spent + costs[steps] * rng.uniform(1.0, 1.05)
            rates = [accept(n) for n in done]
            for row in np.flatnonzero(live):
                run = 0
                while run < steps and rng.random() < rates[row]:
                    run += 1
                counts += [1, steps > 0, min(run + 1, steps), run]
                done[row] += run + 1
        seconds += spent
        controller.record(steps, spent, turns, turns if steps else 0, *counts.tolist())
    return seconds


@pytest.mark.parametrize("rows", [1, 8])
def test_what_a_chunk_costs_by_itself_is_not_taken_for_the_cost_of_its_rounds(rows):
    controller, costs = DraftLengthController(4), {0: 0.03, 1: 0.06, 2: 0.06, 4: 0.06}
    for _ in range(3):
        simulate(controller, costs, lambda n: 0.95, rows, 100, overhead=0.03)
    assert 0.75 < controller.price(4) < 1.05


SINGLE = {0: 1.0, 1: 1.3, 2: 1.4, 4: 1.5, 8: 1.9}  # seconds a round at batch 1 and 8, in plain steps
BATCH = {0: 1.0, 1: 1.5, 2: 1.8, 4: 2.35, 8: 3.8}


@pytest.mark.slow
@pytest.mark.parametrize(("costs", "rows"), [(SINGLE, 1), (BATCH, 8)])
@pytest.mark.parametrize("scale", [0.002, 0.03, 0.3])
def test_drafts_that_are_refused_cost_a_tenth_at_most(costs, rows, scale):
    costs = {steps: cost * scale for steps, cost in costs.items()}
    for accept in (0.0, 0.1):
        controller = DraftLengthController()
        simulate(controller, costs, lambda n: accept, rows)  # noqa: B023
        assert simulate(controller, costs, lambda n: accept, rows) < 400 * costs[0] / 0.9  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize("accept", [0.6, 0.8, 0.95])
@pytest.mark.parametrize(("costs", "rows"), [(SINGLE, 1), (BATCH, 8)])
@pytest.mark.parametrize("most", [4, 8])
def test_the_speed_is_within_a_tenth_of_the_best_fixed_number(accept, costs, rows, most):
    costs = {steps: cost * 0.03 for steps, cost in costs.items() if steps <= most}
    best = min(simulate(DraftLengthController(steps, adaptive=False), costs, lambda n: accept, rows, 600) for steps in costs)
    controller = DraftLengthController(most)
    simulate(controller, costs, lambda n: accept, rows, 600)
    assert simulate(controller, costs, lambda n: accept, rows, 600) < 1.1 * best


def test_drafting_is_tried_again_when_the_text_changes():
    costs = {steps: cost * 0.03 for steps, cost in SINGLE.items()}
    half = simulate(DraftLengthController(), costs, lambda n: 0.0 if n < 200 else 0.95)
    assert half < 0.85 * 400 * costs[0]


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 3, 4, 6, 8])
def test_few_numbers_of_drafted_tokens_are_ever_used_and_none_above_the_one_asked_for(most):
    used, costs = DraftLengthController(most), {s: 0.03 * (1 + 0.1 * s) for s in range(9)}
    for accept in (0.0, 0.5, 0.99):
        simulate(used, costs, lambda n: accept)  # noqa: B023
    assert most in used.costs and set(used.costs) <= {0, 1, 2, 4, 8, most} and max(used.costs) == most
    fixed = DraftLengthController(2, adaptive=False)
    simulate(fixed, SINGLE, lambda n: 0.5)
    assert set(fixed.costs) == {2}
