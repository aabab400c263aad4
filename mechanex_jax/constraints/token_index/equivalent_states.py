"""Which states short texts cannot tell apart: they share one walk over the vocabulary."""

from __future__ import annotations

import numpy as np

from mechanex_jax.constraints.automata.minimize import Predecessors, refine
from mechanex_jax.constraints.token_index.trie_walk import Moves


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014): well-spread uint64 from any integers."""
    x = np.asarray(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix_rows(values: np.ndarray) -> np.ndarray:
    """One uint64 for each row of an integer matrix [N, K]."""
    salt = mix(np.arange(1, values.shape[-1] + 1))
    return mix(values.astype(np.uint64) * salt + salt).sum(axis=-1, dtype=np.uint64)


class Refinement:
    """Partitions of an automaton's states by what texts of bounded length do.

    Two states share a block after n rounds if every text of at most n bytes leads from them the same way: it dies, or leaves
    the frame at the same byte with the same label, or ends in states and under return sites that began in equal blocks.
    Signatures are 64-bit hashes, so that one round is a few array operations.
    """

    def __init__(self, moves: Moves):
        pushdown = moves.pushdown
        self.moves = moves
        size, width = moves.target.shape
        self.salt = mix(np.arange(1000, 1000 + width))
        self.label_salt = mix(np.arange(5000, 5000 + pushdown.returns.shape[1]))
        # States whose signature changes with a state's block: they lead to it, or may return to it.
        after, before = [moves.target.reshape(-1).astype(np.int64)], [np.repeat(np.arange(size), width)]
        calls, columns = np.nonzero(moves.pushed)
        for position in range(moves.lists.shape[1]):
            sites = moves.lists[moves.pushed[calls, columns], position]
            for label in range(pushdown.returns.shape[1]):
                after.append(pushdown.returns[sites[sites >= 0], label].astype(np.int64))
                before.append(calls[sites >= 0])
        source, target = np.concatenate(before), np.concatenate(after)
        depends = target > 0  # none depends on the dead state
        self._before = Predecessors(size, source[depends], target[depends])

    def _signature(self, block: np.ndarray, states: np.ndarray) -> np.ndarray:
        """The signature of each of `states` under the current blocks."""
        moves = self.moves
        hashed = mix(block)
        steps = hashed[moves.target[states]]
        pushed = moves.pushed[states]
        if pushed.any():
            lists = np.unique(pushed)
            sites = moves.lists[lists]
            back = mix(hashed[moves.pushdown.returns[sites]] * self.label_salt).sum(axis=-1, dtype=np.uint64)
            order = mix(np.arange(9000, 9000 + sites.shape[1]))
            of_list = np.where(sites >= 0, mix(back * order), np.uint64(0)).sum(axis=-1, dtype=np.uint64)
            steps = steps + mix(of_list)[np.searchsorted(lists, pushed)]
        return (mix(steps * self.salt)).sum(axis=1, dtype=np.uint64) + hashed[states]

    def run(self, signature: np.ndarray, rounds: int) -> np.ndarray:
        """Blocks [S] after so many rounds, starting from equal values of `signature` [S]."""
        _, block = np.unique(signature, return_inverse=True)

        def numbered(block: np.ndarray, states: np.ndarray) -> np.ndarray:
            return np.unique(self._signature(block, states), return_inverse=True)[1].reshape(-1, 1)

        _, block = refine(block, self._before, numbered, rounds)
        return np.unique(block, return_inverse=True)[1].reshape(-1)
