"""Keys of one object: classes of keys that its formula tells apart, and the order in which names may come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from mechanex_jax.constraints.automata.byte_dfa import ByteDfa
from mechanex_jax.constraints.json_schema import string_bytes
from mechanex_jax.constraints.json_schema.classifiers import Valuation
from mechanex_jax.constraints.json_schema.formula import Formula, holds_of, sorted_leaves
from mechanex_jax.constraints.json_schema.strings import Strings

_MAX_COPIES = 512  # of names, one for each position at which they may come


@dataclasses.dataclass(frozen=True)
class KeyClass:
    """Keys that the object can't tell apart.

    Attributes:
      true: numbers of the key formulas that hold.
      name: the name, where it is one that has a place in the order or is asked for; such a key can come once.
    """

    true: frozenset[int]
    name: str | None


class KeyClasses:
    """The classes of keys of an object, and the automaton that tells them apart.

    Attributes:
      classes: by label.
      dfa: reads a key from behind its opening quote.
      label_of: the label of each name; names that can't come are left out.
      members: for each key formula the labels of which it is true, as bits.
    """

    def __init__(self, strings: Strings, formulas: Sequence[Formula], names: Iterable[str], leaf: Callable[[str], Formula]):
        named = {leaf(name): name for name in names}

        def decide(true_leaves: Valuation) -> KeyClass:
            true = frozenset(i for i, formula in enumerate(formulas) if holds_of(formula, true_leaves))
            return KeyClass(true, next((name for leaf, name in named.items() if leaf in true_leaves), None))

        classifier = strings.classify(sorted_leaves((*named, *formulas)), decide)
        automaton = classifier.automaton
        self.classes = classifier.outcomes
        dfa = automaton if isinstance(automaton, ByteDfa) else string_bytes.of_chars(automaton)
        unnamed = [label for label, key in enumerate(self.classes) if key.name is None]
        self.dfa = string_bytes.with_one_spelling(dfa, unnamed) if unnamed else dfa
        self.label_of = {key.name: label for label, key in enumerate(self.classes) if key.name is not None}
        self.members = [
            sum(1 << label for label, key in enumerate(self.classes) if i in key.true) for i in range(len(formulas))
        ]


Positions = tuple[int, ...]


class Order:
    """The order in which the names of an object may come.

    The names of one `properties` keyword come in its order. Different ones may be mixed in any way, as long as that takes few
    positions and names; the names of the first come before any other key. A name comes at most once.

    Attributes:
      start: the positions at the beginning.
    """

    def __init__(self, chains: Sequence[Sequence[str]], free: Iterable[str]):
        taken: set[str] = set()
        lists: list[list[str]] = []
        for chain in chains:
            fresh = [name for name in dict.fromkeys(chain) if name not in taken]
            # What an earlier chain puts the other way round may come at any time.
            shared = [name for name in chain if name in taken]
            for earlier in lists:
                both = [name for name in shared if name in earlier]
                if both != sorted(both, key=earlier.index):
                    for name in both:
                        earlier.remove(name)
                        lists.append([name])
            taken.update(fresh)
            if fresh:
                lists.append(fresh)
        lists = [names for names in lists if names]
        lists += [[name] for name in free if name not in taken]
        first = lists[:1]
        most = _MAX_COPIES / max(sum(map(len, lists)), 1)
        while math.prod(len(names) + 1 for names in lists) > most and len(lists) > 1:
            # The two shortest become one, in the order in which they stand.
            first_short, second_short = sorted(sorted(range(len(lists)), key=lambda i: len(lists[i]))[:2])
            lists[first_short] = lists[first_short] + lists.pop(second_short)
        self.lists = lists
        self.closing = bool(chains) and bool(lists) and lists[0][: len(first[0])] == first[0]
        self.place = {name: (c, i) for c, names in enumerate(lists) for i, name in enumerate(names)}
        self.start: Positions = (0,) * len(lists)

    def after(self, at: Positions, name: str | None) -> Positions | None:
        """The positions behind a key; None if it can't come."""
        if name is None:
            return (len(self.lists[0]), *at[1:]) if self.closing else at
        chain, index = self.place[name]
        return (*at[:chain], index + 1, *at[chain + 1 :]) if at[chain] <= index else None

    def passed(self, before: Positions, after: Positions) -> Iterator[str]:
        """The names that can't come any more since then; the key itself is one of them."""
        for names, low, high in zip(self.lists, before, after, strict=True):
            yield from names[low:high]
