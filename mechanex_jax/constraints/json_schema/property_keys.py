"""Keys of one object: which of the names and patterns that matter a key is, and in which order names may come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from mechanex_jax.constraints.json_schema import string_bytes
from mechanex_jax.constraints.json_schema.formula import Formula, holds
from mechanex_jax.constraints.json_schema.string_bytes import Graph
from mechanex_jax.constraints.json_schema.strings import Strings, Truth

_MOST_POSITIONS = 256


@dataclasses.dataclass(frozen=True)
class KeyClass:
    """Keys that the object can't tell apart.

    Attributes:
      true: numbers of the key formulas that hold.
      name: the name, where it is one that has a place in the order or is asked for; such a key can come once.
    """

    true: frozenset[int]
    name: str | None


class Keys:
    """The classes of keys of an object, and a graph that tells them.

    Attributes:
      classes: by label.
      graph: reads a key from behind its opening quote.
      label_of: the label of each name; names that can't come are left out.
      members: for each key formula the labels of which it is true, as bits.
    """

    def __init__(self, strings: Strings, formulas: Sequence[Formula], names: Iterable[str], leaf: Callable[[str], Formula]):
        named = {leaf(name): name for name in names}
        leaves = frozenset(named).union(*(formula.leaves for formula in formulas))

        def decide(truth: Truth) -> KeyClass:
            true = frozenset(i for i, formula in enumerate(formulas) if holds(formula, truth))
            return KeyClass(true, next((name for leaf, name in named.items() if truth(leaf)), None))

        found, outcomes, _ = strings.graph(leaves, decide)
        self.graph = found if isinstance(found, Graph) else string_bytes.of_chars(found)
        self.classes = classes = cast(list[KeyClass], outcomes)
        self.label_of = {key.name: label for label, key in enumerate(classes) if key.name is not None}
        self.members = [sum(1 << label for label, key in enumerate(classes) if i in key.true) for i in range(len(formulas))]


Positions = tuple[int, ...]


class Order:
    """In which order the names of an object may come.

    The names of one `properties` keyword come in its order. Different ones may be mixed in any way, as long as that takes few
    positions; the names of the first come before any other key. A name comes at most once.

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
                known = [earlier.index(name) for name in shared if name in earlier]
                if known != sorted(known):
                    for name in [name for name in shared if name in earlier]:
                        earlier.remove(name)
                        lists.append([name])
            taken.update(fresh)
            if fresh:
                lists.append(fresh)
        lists = [names for names in lists if names]
        lists += [[name] for name in free if name not in taken]
        first = lists[:1]
        while math.prod(len(names) + 1 for names in lists) > _MOST_POSITIONS and len(lists) > 1:
            # The two shortest become one, in the order in which they were found.
            short = sorted(sorted(range(len(lists)), key=lambda i: len(lists[i]))[:2])
            lists[short[0]] = lists[short[0]] + lists.pop(short[1])
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

    def passed(self, before: Positions, after: Positions) -> Iterable[str]:
        """The names that can't come any more since then; the key itself is one of them."""
        for names, low, high in zip(self.lists, before, after, strict=True):
            yield from names[low:high]
