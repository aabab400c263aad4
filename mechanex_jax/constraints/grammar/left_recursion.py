"""Elimination of left and right recursion from grammars, left factoring, and which rules have to stay recursive.

`e: e "+" e | e "!" | "-" e | NUMBER` has the language of `e: operand ("!" | "+" operand)*` with `operand: "-"* NUMBER`, which
is not ambiguous and not recursive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mechanex_jax.constraints.automata.expression import (
    EMPTY,
    Alternation,
    CharClass,
    Concat,
    Node,
    Repeat,
    RuleRef,
    alternatives,
    sequence,
    walk,
)

_MOST_ALTERNATIVES = 400


def references(node: Node) -> Iterable[str]:
    """Yield the names of the rules that an expression refers to; a name may occur more than once."""
    return (part.name for part in walk(node) if isinstance(part, RuleRef))


def nullable(rules: Mapping[str, Node]) -> set[str]:
    """Return the rules that match the empty text."""
    empty: set[str] = set()
    while True:
        more = {name for name, body in rules.items() if name not in empty and may_be_empty(body, empty)}
        if not more:
            return empty
        empty |= more


def may_be_empty(node: Node, empty: set[str]) -> bool:
    """Tell whether an expression matches the empty text, where `empty` are the rules that do."""
    match node:
        case RuleRef(name):
            return name in empty
        case Concat(parts):
            return all(may_be_empty(part, empty) for part in parts)
        case Alternation(parts):
            return any(may_be_empty(part, empty) for part in parts)
        case Repeat(body, minimum):
            return minimum == 0 or may_be_empty(body, empty)
        case _:
            return False


def productive(rules: Mapping[str, Node]) -> set[str]:
    """Return the rules that match at least one text."""
    ending: set[str] = set()

    def ends(node: Node) -> bool:
        match node:
            case RuleRef(name):
                return name in ending
            case Concat(parts):
                return all(ends(part) for part in parts)
            case Alternation(parts):
                return any(ends(part) for part in parts)
            case Repeat(body, minimum):
                return minimum == 0 or ends(body)
            case CharClass(chars):
                return bool(chars)
            case _:
                return True

    while more := {name for name, body in rules.items() if name not in ending and ends(body)}:
        ending |= more
    return ending


def components(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components that contain a cycle, by Tarjan's algorithm without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    held: set[str] = set()
    out = []
    for root in graph:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        held.add(root)
        calls = [(root, iter(sorted(graph[root])))]
        while calls:
            at, following = calls[-1]
            for other in following:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    held.add(other)
                    calls.append((other, iter(sorted(graph[other]))))
                    break
                if other in held:
                    low[at] = min(low[at], index[other])
            else:
                calls.pop()
                if calls:
                    low[calls[-1][0]] = min(low[calls[-1][0]], low[at])
                if low[at] == index[at]:
                    part = set()
                    while at not in part:
                        part.add(stack.pop())
                    held -= part
                    if len(part) > 1 or at in graph[at]:
                        out.append(part)
    return out


def called(rules: Mapping[str, Node]) -> set[str]:
    """Choose a small set of rules without which no cycle is left (a feedback vertex set, greedily).

    These remain calls; all others can be inlined where they are used.
    """
    graph = {name: set(references(body)) for name, body in rules.items()}
    kept: set[str] = set()
    while cycles := components(graph):
        for part in cycles:
            inside = {name: graph[name] & part for name in part}
            uses = {name: sum(name in targets for targets in inside.values()) for name in part}
            best = max(sorted(part), key=lambda name: (name in inside[name], uses[name] * len(inside[name])))
            kept.add(best)
        graph = {name: targets - kept for name, targets in graph.items() if name not in kept}
    return kept


def loops(rules: Mapping[str, Node]) -> dict[str, Node]:
    """Rewrite left and right recursion as repetition where that is possible. The languages stay the same."""
    rules = dict(rules)
    for _ in range(len(rules)):
        changed = False
        for name in sorted(called(rules)):
            body = _Ends(rules, name).rewritten()
            if body is not None and body != rules[name]:
                rules[name], changed = body, True
        if not changed:
            break
    return rules


def factored(node: Node) -> Node:
    """Left-factor alternatives: write a common first part once, so that the choice is made as late as possible."""
    match node:
        case Concat(parts):
            return sequence(factored(part) for part in parts)
        case Repeat(body, minimum, maximum):
            return Repeat(factored(body), minimum, maximum)
        case Alternation(parts):
            groups: dict[Node, list[Node]] = {}
            for part in map(factored, parts):
                first, *rest = part.parts if isinstance(part, Concat) and part.parts else (part,)
                groups.setdefault(first, []).append(sequence(rest))
            factors = [
                sequence([first, rests[0] if len(rests) == 1 else factored(alternatives(rests))])
                for first, rests in groups.items()
            ]
            return alternatives(factors)
        case _:
            return node


class _Ends:
    """Alternatives of one rule, expanded as far as needed to see whether they begin or end with the rule itself."""

    def __init__(self, rules: Mapping[str, Node], name: str):
        self.rules, self.name = rules, name
        self.empty = nullable(rules)
        self.kept = called(rules)

    def rewritten(self) -> Node | None:
        """Return the rule's body with repetition in place of recursion; None: there is none, or too many alternatives."""
        bodies = self.spread((self.rules[self.name],))
        rule = RuleRef(self.name)
        before: list[Node] = []
        after: list[Node] = []
        between: list[Node] = []
        base: list[Node] = []
        for parts in bodies or ():
            if self.is_list(parts):
                # `x (op self | post)*` is the alternatives `x`, `self op self` and `self post`.
                items, rest = self.spread((parts[-1].body,)), self.spread(parts[:-1])  # type: ignore[union-attr]
                if items is None or rest is None or bodies is None or len(bodies) > _MOST_ALTERNATIVES:
                    return None
                for item in items:
                    (between if item[-1:] == (rule,) else after).append(sequence(item[:-1] if item[-1:] == (rule,) else item))
                bodies += rest  # handled by later iterations of this loop
                continue
            if parts == (rule,):
                continue
            first, last = parts[:1] == (rule,), parts[-1:] == (rule,)
            if first and last:
                between.append(sequence(parts[1:-1]))
            elif first:
                after.append(sequence(parts[1:]))
            elif last:
                before.append(sequence(parts[:-1]))
            else:
                base.append(sequence(parts))
        if not (before or after or between):
            return None
        operand = sequence([Repeat(alternatives(before), 0, None), alternatives(base)] if before else [alternatives(base)])
        more = after + [sequence([op, operand]) for op in between]
        return sequence([operand, Repeat(alternatives(more), 0, None)]) if more else operand

    def is_list(self, parts: tuple[Node, ...]) -> bool:
        """Tell whether the last part is an unbounded repetition that can end with the rule itself."""
        return (
            len(parts) > 0
            and isinstance(parts[-1], Repeat)
            and (parts[-1].minimum, parts[-1].maximum) == (0, None)
            and self.name in self.reach(parts[-1].body, -1)
        )

    def reach(self, node: Node, side: int) -> set[str]:
        """Return the rules that an expression can begin (side 0) or end (side -1) with."""
        names: set[str] = set()

        def visit(node: Node) -> None:
            match node:
                case RuleRef(name):
                    if name not in names:
                        names.add(name)
                        if name not in self.kept:
                            visit(self.rules[name])
                case Concat(parts):
                    for part in parts if side == 0 else reversed(parts):
                        visit(part)
                        if not may_be_empty(part, self.empty):
                            break
                case Alternation(parts):
                    for part in parts:
                        visit(part)
                case Repeat(body=body):
                    visit(body)
                case _:
                    pass

        visit(node)
        return names

    def spread(self, parts: tuple[Node, ...]) -> list[tuple[Node, ...]] | None:
        """Expand a sequence into alternatives until the rule, where one begins or ends with it, is the first or last part.

        Returns None if there are too many.
        """
        done: list[tuple[Node, ...]] = []
        waiting = [parts]
        while waiting:
            if len(waiting) + len(done) > _MOST_ALTERNATIVES:
                return None
            parts = waiting.pop()
            opened = self.open(parts, 0)
            if opened is None:
                opened = self.open(parts, -1)
            if opened is None:
                done.append(parts)
            else:
                waiting += reversed(opened)
        return done

    def open(self, parts: tuple[Node, ...], side: int) -> list[tuple[Node, ...]] | None:
        """Expand the first (side 0) or last (side -1) part by one step; None: nothing to expand."""
        if not parts:
            return None
        end = parts[side]
        if end == RuleRef(self.name) or self.name not in self.reach(end, side):
            return None

        def put(*inner: Node) -> tuple[Node, ...]:
            flat = sequence([*inner, *parts[1:]] if side == 0 else [*parts[:-1], *inner])
            return flat.parts if isinstance(flat, Concat) else (flat,)

        match end:
            case RuleRef(name) if name not in self.kept:
                return [put(self.rules[name])]
            case Concat():
                return [put(end)]
            case Alternation(inner):
                return [put(part) for part in inner]
            case Repeat(body, minimum, maximum):
                if side == -1 and maximum is None:  # see `is_list`
                    return [put(*[body] * minimum, Repeat(body, 0, None))] if minimum else None
                if maximum == 0:
                    return [put(EMPTY)]
                less = Repeat(body, max(minimum - 1, 0), None if maximum is None else maximum - 1)
                longer = put(body, less) if side == 0 else put(less, body)
                return [longer] if minimum else [put(EMPTY), longer]
            case _:
                return None
