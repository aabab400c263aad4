"""How many tokens to draft in a round: chosen on the host from what rounds have cost and brought so far.

A round of g drafted tokens brings 1 + c * (a + a^2 + ... + a^g) tokens a row: c is the share of rounds in which a row has a
proposal, a the rate at which proposals are accepted (Leviathan et al. 2022, arXiv:2211.17192, equation 1). It costs v verified
rounds and 1 - v plain ones, v being the share of rounds in which anybody has a proposal; both costs are measured. The best
quotient wins, and 0, plain decoding, is one of the choices.
"""

from __future__ import annotations

import math
import statistics

from mechanex_jax.errors import expected

MAX_DRAFTED = 8  # drafted tokens: verifying costs more with each, and few texts repeat themselves for longer
_DEPTHS = (0, 1, 2, 4, 8)
DECAY_ROUNDS = 24.0  # rounds after which what they brought counts 1 / e
MIN_GAIN = 1.03  # a change has to promise that much
MIN_GAIN_UNTRIED = 1.15  # one to a number that was never used has to pay for compiling a loop, too
_PROBE_ROWS = 8  # rows x rounds to look at before a decision
_TIMED_ROUNDS = 8  # of the first chunk that a cost is measured by: to start and end a chunk takes time, too
TRUSTED_MEASUREMENTS = 3  # measurements of a cost, whose median one hiccup does not move
_CHUNK_SECONDS = 0.25
_LONGEST_CHUNK = 32
_FIRST_PATIENCE, _LAST_PATIENCE = 32, 256  # plain rounds between two tries of drafting
_UNMEASURED_PRICE = 1.0  # what verifying costs above a plain step, in plain steps, where nothing is known yet


class DraftLengthController:
    """Measurements of one model and drafter at one batch size, and the choices that follow from them.

    One object may serve many calls, one after another: costs are kept, acceptance starts anew with each.

    Args:
      steps: 0 to 8 (0: never draft): the most that are drafted, and what to start with. Of 1, 2 and 4 those below are tried
        besides, one after the other, so that few loops are ever compiled.
      adaptive: False drafts `steps` in every round.

    Raises:
      ArgumentError: other values.
    """

    def __init__(self, steps: int = 4, adaptive: bool = True):
        if isinstance(steps, bool) or steps not in range(MAX_DRAFTED + 1):
            raise expected("steps", steps, f"0 to {MAX_DRAFTED} drafted tokens a round")
        self.steps, self.adaptive = steps, bool(adaptive)
        self._choices = (*(depth for depth in _DEPTHS if depth < steps), steps)
        # Drafted tokens -> the latest seconds per verified round (0: per plain one); the first is not to be trusted.
        self.costs: dict[int, list[float]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget how well drafts were accepted: another text follows."""
        self._current = self.steps
        self._rounds = self._with_proposal = self._tested = self._accepted = 0.0
        self._turns = self._verified = 0.0
        self._looked = 0
        self._plain = 0
        self._patience = _FIRST_PATIENCE

    def record(
        self,
        steps: int,
        seconds: float,
        rounds: int,
        verified: int,
        row_rounds: int,
        with_proposal: int,
        tested: int,
        accepted: int,
    ) -> None:
        """Take in one chunk.

        Args:
          steps: drafted tokens a round.
          rounds: of the batch; of these, `verified` were no plain steps.
          row_rounds: of running rows, summed up; of these, `with_proposal` had a proposal.
          tested, accepted: proposals that the target looked at, and those that it took.
        """
        if not rounds:
            return
        if not steps:
            self._measure(0, seconds / rounds)
            self._plain += rounds
            return
        # What few verified rounds cost beside many plain ones would mostly be the noise of these.
        if verified and (2 * verified >= rounds or steps not in self.costs):
            plain = self.cost(0) if self._known() else 0.0
            self._measure(steps, max(seconds - (rounds - verified) * plain, 0.5 * seconds * verified / rounds) / verified)
        self._looked += row_rounds
        decay = math.exp(-rounds / DECAY_ROUNDS)
        new = (row_rounds, with_proposal, tested, accepted, rounds, verified)
        old = (self._rounds, self._with_proposal, self._tested, self._accepted, self._turns, self._verified)
        now = [decay * o + n for o, n in zip(old, new, strict=True)]
        self._rounds, self._with_proposal, self._tested, self._accepted, self._turns, self._verified = now

    def _measure(self, steps: int, seconds: float) -> None:
        # The first chunk may have compiled the loop: it counts as an upper bound only, until there is another.
        kept = self.costs.setdefault(steps, [])
        kept.append(seconds)
        del kept[1:-5]

    def _known(self) -> dict[int, float]:
        return {s: statistics.median(c[1:]) for s, c in self.costs.items() if len(c) > 1}

    def price(self, steps: int) -> float:
        """Tokens that a row's proposal must bring, on the average, for verifying it to pay; 0 where that is not asked."""
        if not self.adaptive:
            return 0.0
        known = self._known()
        if not {0, steps} <= known.keys():
            return _UNMEASURED_PRICE
        # One slow chunk must not end all proposals, for without any nothing is measured again.
        most = math.inf if len(self.costs[steps]) > TRUSTED_MEASUREMENTS else _UNMEASURED_PRICE
        return min(max(known[steps] / known[0] - 1.0, 0.0), most)

    def choose(self, rows: int) -> tuple[int, int]:
        """(drafted tokens a round, rounds) of the next chunk; `rows` still run."""
        look = max(2, -(-_PROBE_ROWS // (2 * max(rows, 1))))
        if not self.adaptive or not self.steps:
            return self.steps, self._length(self.steps)
        for steps in (0, self.steps):
            seen = len(self.costs.get(steps, ()))
            if seen < 2 and (not steps or self._looked < 2 * _PROBE_ROWS):
                return steps, max(look, _TIMED_ROUNDS) if seen else look
        if self._looked < _PROBE_ROWS:
            return self._current, look
        if not self._current and self._plain >= self._patience:
            self._plain, self._looked, self._patience = 0, 0, min(2 * self._patience, _LAST_PATIENCE)
            self._current = self.steps
            return self._current, look
        before = self._current
        self._current = self._best()
        if self._current:
            self._plain, self._patience = 0, _FIRST_PATIENCE
        elif before:
            self._plain = 0
        length = self._length(self._current)
        return self._current, length if self._current else min(length, self._patience)

    def _length(self, steps: int) -> int:
        if len(self.costs.get(steps, ())) < 2:
            return 4
        return max(1, min(_LONGEST_CHUNK, round(_CHUNK_SECONDS / self.cost(steps))))

    def cost(self, steps: int) -> float:
        """Seconds per verified round: the median of the latest, or on a straight line through the neighbours measured."""
        known = self._known()
        if steps in known:
            return known[steps]
        if len(known) < 2:
            return (1.0 + _UNMEASURED_PRICE) * min(known.values(), default=1.0)
        low, high = sorted(known, key=lambda s: abs(s - steps))[:2]
        return max(known[low] + (known[high] - known[low]) * (steps - low) / (high - low), 0.5 * known[low])

    def tokens_per_round(self, steps: int) -> float:
        """What a row can expect of a round with so many drafted tokens."""
        rate = (self._accepted + 0.5) / (self._tested + 1.0)
        return 1.0 + self._with_proposal / max(self._rounds, 1.0) * sum(rate**i for i in range(1, steps + 1))

    def _best(self) -> int:
        plain, share = self.cost(0), self._verified / max(self._turns, 1.0)
        speed = {0: 1.0 / plain}
        speed |= {s: self.tokens_per_round(s) / (share * self.cost(s) + (1 - share) * plain) for s in self._candidates() if s}
        now = self._current

        def worth(steps: int) -> float:
            if steps == now:
                return speed[steps]
            return speed[steps] / (MIN_GAIN if steps in self.costs else MIN_GAIN_UNTRIED)

        return max(speed, key=worth)

    def _candidates(self) -> list[int]:
        """Nothing, what has been used, and the neighbours of what is used now."""
        place = self._choices.index(self._current or self.steps)
        near = self._choices[max(place - 1, 0) : place + 2]
        return sorted({0, self._current, *self.costs, *near})
