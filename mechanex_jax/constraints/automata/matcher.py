"""The reference reader of a pushdown automaton: one text, byte by byte, on the host."""

from __future__ import annotations

from mechanex_jax.constraints.automata.pushdown import DEAD, PushdownAutomaton


class Matcher:
    """Reads a text through an automaton, byte by byte, on the host: the definition that everything else is tested against."""

    def __init__(self, pushdown: PushdownAutomaton):
        self.pushdown, self.state, self.stack = pushdown, pushdown.start, ()

    def copy(self) -> Matcher:
        other = Matcher(self.pushdown)
        other.state, other.stack = self.state, self.stack
        return other

    def feed(self, data: bytes) -> bool:
        """Read `data`. False, for good, once no continuation can be accepted."""
        net = self.pushdown
        for byte in data:
            column, consumed = net.classes[byte], False
            while self.state != DEAD and not consumed:
                target = int(net.target[self.state, column])
                if target != DEAD:
                    if net.push[self.state, column] >= 0:
                        self.stack = (*self.stack, int(net.push[self.state, column]))
                    consumed = not net.stay[self.state, column]
                    self.state = target
                else:
                    self._pop()
            if self.state == DEAD:
                return False
        return self.state != DEAD

    def _pop(self) -> None:
        label = int(self.pushdown.label[self.state])
        if label < 0 or not self.stack:
            self.state = DEAD
        else:
            self.state = int(self.pushdown.returns[self.stack[-1], label])
            self.stack = self.stack[:-1]

    def accepts(self) -> bool:
        """Whether the text may end here."""
        end = self.copy()
        while end.stack and end.state != DEAD:
            end._pop()
        return end.state != DEAD and self.pushdown.label[end.state] >= 0
