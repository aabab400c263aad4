"""Determinization of context-free grammars: from rules that call each other to a deterministic `PushdownAutomaton`.

Every rule is determinized by a subset construction over characters and calls. A member of a subset is an NFA state in some
rule with a stack of NFA states to return to, so that a rule can be *inlined* where it is called: its text is then read as part
of the caller's. Rules that aren't recursive are always inlined. A recursive rule is inlined where the next byte doesn't decide
between it and an alternative.

Where the next byte doesn't decide either whether a rule ends or continues, the rule returns early: it hands its possible
continuations to the caller as a label, and the caller reads them side by side with what follows the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mechanex_jax.constraints.automata.dfa import DEAD, DEFAULT_LIMITS, CompileLimits
from mechanex_jax.constraints.automata.expression import Node
from mechanex_jax.constraints.automata.nfa import Alphabet, Nfa
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.constraints.grammar.left_recursion import called, factored, loops, nullable, productive, references
from mechanex_jax.constraints.grammar.rule_automaton import DONE, END, Member, RuleAutomaton, Subset, lead_bytes
from mechanex_jax.errors import ConstraintError

_DEEPEST = 8  # recursive rules inlined inside each other in one member
_MOST_FRAMES = 400
_MOST_LABELS = 60
_MOST_ROUNDS = 40
_MOST_MEMBERS = 500


def compile_rules(rules: Mapping[str, Node], start: str, limits: CompileLimits = DEFAULT_LIMITS) -> PushdownAutomaton:
    """Build the automaton that accepts the language of `start`.

    Args:
      rules: the body of every rule that `start` reaches, by name; others are ignored.
      start: the rule that a whole text matches.
      limits: states and work.

    Raises:
      ConstraintError: the language is empty, a limit is exceeded, or no deterministic pushdown automaton was found; the message
        names the rule.
    """
    rules = _needed(rules, start)
    ending = productive(rules)
    if start not in ending:
        raise ConstraintError(f"No text matches rule {start!r}: every way through it goes on for ever. Add a way to end.")
    rules = {name: factored(body) for name, body in loops(rules).items()}
    returned: set[Subset] = set()
    for _ in range(_MOST_ROUNDS):
        compiler = _Compiler(rules, start, frozenset(returned), limits)
        unclear = compiler.run() - returned
        if not unclear:
            return compiler.pushdown()
        returned |= unclear
    raise ConstraintError(f"Rule {start!r} and what it uses are ambiguous: where they end is not decided by what follows them.")


def _needed(rules: Mapping[str, Node], start: str) -> dict[str, Node]:
    """Return the rules that `start` reaches, itself included."""
    needed, queue = {start: rules[start]}, [start]
    while queue:
        for name in references(rules[queue.pop()]):
            if name not in needed:
                needed[name] = rules[name]
                queue.append(name)
    return needed


class _Compiler:
    """One attempt at determinizing all rules.

    Attributes:
      returned: the subsets that start automata which return early; an attempt may find that more have to.
      places: the first and the last NFA state of each rule.
      owner: the rule of each NFA state.
      frames: NFA states that are returned to from a recursive rule which was inlined, or which returned early.
      automata: the automaton of each subset that is called.
      queue: states that are not expanded yet.
    """

    def __init__(self, rules: dict[str, Node], start: str, returned: frozenset[Subset], limits: CompileLimits):
        self.rules, self.start, self.returned = rules, start, returned
        self.check = limits.meter("The grammar")
        self.called, self.empty = called(rules), nullable(rules)
        self.nfa = Nfa(limits)
        self.places: dict[str, tuple[int, int]] = {}
        self.owner: list[str] = []
        for name, body in rules.items():
            self.places[name] = first, last = self.nfa.state(), self.nfa.state()
            self.nfa.add(body, first, last)
            self.owner += [name] * (len(self.nfa.epsilon) - len(self.owner))
        self.ends = {last for _, last in self.places.values()}
        self.alphabet = Alphabet(self.nfa.sets)
        self.leads = lead_bytes(self.alphabet)
        self.first = self._first()
        self.frames: set[int] = set()
        self.automata: dict[Subset, RuleAutomaton] = {}
        self.queue: list[tuple[RuleAutomaton, int]] = []
        self.count = self.work = 0
        first = self.close([(self.places[start][0], ())])
        self.root = RuleAutomaton(start, frozenset())
        self._number(self.root, first)

    # -- First bytes of the rules ---------------------------------------------------------------------------------------------

    def _first(self) -> dict[str, int]:
        """Compute the set of bytes, as a mask, with which each rule's texts begin: FIRST of LL parsers."""
        first, classes = dict.fromkeys(self.rules, 0), dict.fromkeys(self.rules, 0)
        changed = True
        while changed:
            changed = False
            for name, (start, _) in self.places.items():
                mask, seen, stack = 0, {start}, [start]
                while stack:
                    place = stack.pop()
                    for chars, _ in self.nfa.transitions[place]:
                        mask |= self.alphabet.masks[chars]
                    moves = list(self.nfa.epsilon[place])
                    for rule, target in self.nfa.rule_calls[place]:
                        mask |= classes[rule]
                        if rule in self.empty:
                            moves.append(target)
                    for move in moves:
                        if move not in seen:
                            seen.add(move)
                            stack.append(move)
                if mask != classes[name]:
                    classes[name], changed = mask, True
        for name, mask in classes.items():
            first[name] = self.lead(mask)
        return first

    def lead(self, mask: int) -> int:
        """Return the set of first bytes of the characters in the given classes, both as masks."""
        first_bytes = 0
        for column in self.alphabet.indices(mask):
            first_bytes |= self.leads[column]
        return first_bytes

    # -- Subsets -------------------------------------------------------------------------------------------------------------

    def push(self, target: int, stack: tuple[int, ...]) -> tuple[int, ...]:
        """Push a state to return to, unless only epsilon moves lead from it to the end of its rule (a tail call)."""
        seen = set()
        while target not in self.ends and target not in seen:
            seen.add(target)
            nfa = self.nfa
            if nfa.transitions[target] or nfa.rule_calls[target] or len(nfa.epsilon[target]) != 1:
                return (target, *stack)
            target = nfa.epsilon[target][0]
        return stack

    def close(self, members: Iterable[Member], opened: frozenset[str] = frozenset()) -> Subset:
        """Return the epsilon closure, reduced to members that read a character, call a rule, or end.

        Args:
          members: where to start.
          opened: recursive rules that are inlined; the others stay calls.

        Raises:
          ConstraintError: the closure is too large, as that of a left-recursive rule.
        """
        nfa, out = self.nfa, set()
        stack = list(members)
        seen = set(stack)
        while stack:
            member = stack.pop()
            place, returns = member
            if place == END or place in self.ends:
                moves = [(returns[0], returns[1:])] if returns else []
                if not returns:
                    out.add(DONE)
            else:
                moves = [(target, returns) for target in nfa.epsilon[place]]
                for rule, target in nfa.rule_calls[place]:
                    if rule in self.called and rule not in opened:
                        out.add(member)
                        if rule in self.empty:
                            moves.append((target, returns))
                    else:
                        pushed = self.push(target, returns)
                        moves.append((self.places[rule][0], pushed))
                        if rule in opened:
                            self.frames.update(pushed[:1])
                if nfa.transitions[place]:
                    out.add(member)
            for move in moves:
                if (len(move[1]) > len(returns) and self._too_deep(move[1])) or len(seen) > _MOST_MEMBERS:
                    raise ConstraintError(
                        f"Rule {self.owner[place]!r} is left-recursive, or ambiguous in a way that can't be held: no "
                        "bounded text decides how to read it. Rewrite it with * or +, or make its beginnings differ."
                    )
                if move not in seen:
                    seen.add(move)
                    stack.append(move)
        return frozenset(out)

    def _too_deep(self, stack: tuple[int, ...]) -> bool:
        """Tell whether a stack is longer, or holds more inlined recursive calls, than is plausible for a usable grammar."""
        return len(stack) > _MOST_FRAMES or sum(place in self.frames for place in stack) > _DEEPEST

    def read(self, subset: Subset) -> tuple[list[tuple[int, Member]], dict[str, list[Member]]]:
        """Find the transitions of a subset, inlining recursive rules until the next byte tells them apart.

        Returns:
          (mask of character classes, member to go to) of each transition, and the members that each called rule returns to.
        """
        opened: frozenset[str] = frozenset()
        while True:
            reads: list[tuple[int, Member]] = []
            calls: dict[str, list[Member]] = {}
            for place, returns in subset - {DONE}:
                reads += [(self.alphabet.masks[chars], (target, returns)) for chars, target in self.nfa.transitions[place]]
                for rule, target in self.nfa.rule_calls[place]:
                    if rule in self.called and rule not in opened:
                        calls.setdefault(rule, []).append((target, returns))
            unclear = self._unclear(reads, calls)
            if not unclear:
                return reads, calls
            opened |= unclear
            subset = self.close(subset, opened)

    def _unclear(self, reads: list[tuple[int, Member]], calls: Mapping[str, object]) -> set[str]:
        """Find the called rules whose first bytes overlap with characters that are read, or else with one another's."""
        mask = 0
        for m, _ in reads:
            mask |= m
        plain = self.lead(mask)
        unclear = {rule for rule in calls if self.first[rule] & plain}
        if not unclear:
            for rule in calls:
                for other in calls:
                    if rule < other and self.first[rule] & self.first[other]:
                        unclear |= {rule, other}
        return unclear

    # -- Automata --------------------------------------------------------------------------------------------------------------

    def run(self) -> set[Subset]:
        """Build the automata, and return the subsets that start those in which the next byte doesn't tell whether they end."""
        while self.queue:
            automaton, number = self.queue.pop()
            self.count += 1
            self.work += len(automaton.subsets[number])
            self.check(self.count, self.work)
            self._expand(automaton, number)
        return self._unclear_ends()

    def _called(self, rule: str, subset: Subset) -> RuleAutomaton:
        """Return the automaton that starts at a subset of `rule`. It is only called for texts that aren't empty."""
        subset -= {DONE}
        if subset not in self.automata:
            self.automata[subset] = RuleAutomaton(rule, subset)
            self._number(self.automata[subset], subset)
        return self.automata[subset]

    def _number(self, automaton: RuleAutomaton, subset: Subset) -> int:
        """Return the number of a subset in an automaton; a new one is queued for expansion."""
        if not subset:
            return DEAD
        before = len(automaton.subsets)
        number = automaton.number(subset)
        if number == before:
            self.queue.append((automaton, number))
        return number

    def _expand(self, automaton: RuleAutomaton, number: int) -> None:
        """Add the transitions and calls of one state."""
        subset = automaton.subsets[number]
        if DONE in subset:
            automaton.label[number] = 0
            if automaton.key in self.returned and len(subset) > 1:
                automaton.label[number] = self._label(automaton, subset)
                return
        if number > 1 and (frame := self._shared(subset)):
            inner = frozenset((place, stack[: len(stack) - len(frame)]) for place, stack in subset)
            rule = min(self.owner[place] for place, _ in inner)
            self._call(automaton, number, self._called(rule, inner), [(frame[0], frame[1:])])
            return
        reads, calls = self.read(subset)
        targets = [member for _, member in reads]
        for mask, which in self.alphabet.split([(mask, i) for i, (mask, _) in enumerate(reads)]):
            target = self._number(automaton, self.close(targets[i] for i in which))
            automaton.rows[number].append((mask, target))
        for name, returns in calls.items():
            self._call(automaton, number, self._called(name, self.close([(self.places[name][0], ())])), returns)

    def _shared(self, subset: Subset) -> tuple[int, ...]:
        """Return the bottom that all stacks share, below and including a recursive call's frame; the rest can be a call."""
        stacks = [stack for _, stack in subset]
        depth = 0
        while all(len(stack) > depth and stack[-1 - depth] == stacks[0][-1 - depth] for stack in stacks):
            depth += 1
        common = stacks[0][len(stacks[0]) - depth :]
        for at, place in enumerate(common):
            if place in self.frames:
                return common[at:]
        return ()

    def _call(self, automaton: RuleAutomaton, number: int, inner: RuleAutomaton, returns: list[Member]) -> None:
        """Add a call, and a return from it for each of the called automaton's labels."""
        inner.sites.append((automaton, number, returns))
        for label in range(len(inner.labels)):
            self._return(automaton, number, inner, returns, label)

    def _label(self, automaton: RuleAutomaton, subset: Subset) -> int:
        """Return the label of an early return that continues with a subset; a new one is added to all places of call."""
        if subset not in automaton.labels:
            if len(automaton.labels) >= _MOST_LABELS:
                raise ConstraintError(
                    f"Rule {automaton.rule!r} is ambiguous: where it ends is not decided by what follows it. Make what follows "
                    "begin differently from what may continue it."
                )
            automaton.labels.append(subset)
            for outer, number, returns in tuple(automaton.sites):
                self._return(outer, number, automaton, returns, len(automaton.labels) - 1)
        return automaton.labels.index(subset)

    def _return(self, automaton: RuleAutomaton, number: int, inner: RuleAutomaton, returns: list[Member], label: int) -> None:
        """Set the state that a call returns to by one label: the continuations behind it, on top of the caller's stack."""
        members: list[Member] = []
        for target, stack in returns:
            outer = self.push(target, stack)
            members += [(place, frames + outer) for place, frames in inner.labels[label]]
            if label:
                self.frames.update(outer[:1])
        automaton.calls[number][inner.key, label] = self._number(automaton, self.close(members))

    def _unclear_ends(self) -> set[Subset]:
        """Find the automata that may end or continue at the same byte: a conflict of FIRST and FOLLOW, as in LL parsers."""
        everyone = [self.root, *self.automata.values()]
        begins: dict[tuple[int, int], int] = {}
        changed = True
        while changed:
            changed = False
            for automaton in everyone:
                for number, row in enumerate(automaton.rows):
                    mask = 0
                    for m, _ in row:
                        mask |= self.lead(m)
                    for key, _ in automaton.calls[number]:
                        mask |= begins.get((id(self.automata[key]), 1), 0)
                    if begins.get((id(automaton), number), 0) != mask:
                        begins[id(automaton), number], changed = mask, True
        follow = dict.fromkeys(map(id, everyone), 0)
        changed = True
        while changed:
            changed = False
            for automaton in everyone:
                for row in automaton.calls:
                    for (key, _), target in row.items():
                        inner = id(self.automata[key])
                        following = follow[inner] | begins.get((id(automaton), target), 0)
                        if automaton.label[target] >= 0:
                            following |= follow[id(automaton)]
                        if following != follow[inner]:
                            follow[inner], changed = following, True
        return {
            automaton.key
            for automaton in self.automata.values()
            if any(
                automaton.label[n] >= 0 and begins.get((id(automaton), n), 0) & follow[id(automaton)]
                for n in range(len(automaton.subsets))
            )
        }

    # -- The automaton --------------------------------------------------------------------------------------------------------

    def pushdown(self) -> PushdownAutomaton:
        """Put the automata of all rules together."""
        builder = Builder()
        root = builder.rule(self.start)
        ids = {key: builder.rule(automaton.rule) for key, automaton in self.automata.items()}
        self.root.emit(builder, ids, root, self.alphabet)
        for key, automaton in self.automata.items():
            automaton.emit(builder, ids, ids[key], self.alphabet)
        pushdown = builder.finish(root)
        if not pushdown.start:
            raise ConstraintError(f"No text matches rule {self.start!r}.")
        return pushdown
