"""The reference reader of a pushdown automaton: one text, byte by byte, on the host."""

from __future__ import annotations

from mechanex_jax.constraints.automata.pushdown import DEAD, PushdownAutomaton

QUOTE, _BACKSLASH = 0x22, 0x5C


class Matcher:
    """Reads a text through an automaton, byte by byte, on the host: the definition that everything else is tested against."""

    def __init__(self, pushdown: PushdownAutomaton):
        self.pushdown, self.state, self.stack = pushdown, int(pushdown.boundary[pushdown.start]), ()
        # For distinct strings: those closed in each frame, the root's first, and what has been read since the last quote.
        self.ends = pushdown.distinct_ends
        self.closed: tuple[frozenset[bytes], ...] = (frozenset(),)
        self.string, self.escaped = b"", False

    def copy(self) -> Matcher:
        other = Matcher(self.pushdown)
        other.state, other.stack, other.closed = self.state, self.stack, self.closed
        other.string, other.escaped = self.string, self.escaped
        return other

    def feed(self, data: bytes) -> bool:
        """Read `data`. False, for good, once no continuation can be accepted."""
        net = self.pushdown
        for byte in data:
            column, consumed = net.classes[byte], False
            quote = byte == QUOTE and not self.escaped
            if quote and self.ends[self.state]:
                if self.repeats():
                    self.state = DEAD
                self.closed = (*self.closed[:-1], self.closed[-1] | {self.string})
            self.string = b"" if quote else self.string + bytes([byte])
            self.escaped = byte == _BACKSLASH and not self.escaped
            while self.state != DEAD and not consumed:
                target = int(net.target[self.state, column])
                if target != DEAD:
                    if net.push[self.state, column] >= 0:
                        self.stack = (*self.stack, int(net.push[self.state, column]))
                        self.closed = (*self.closed, frozenset())
                    consumed = not net.stay[self.state, column]
                    self.state = target
                else:
                    self._pop()
            if self.state == DEAD:
                return False
            self.state = int(net.boundary[self.state])  # as if every byte were a token
        return self.state != DEAD

    def repeats(self) -> bool:
        """Whether the distinct string that could be closed here is equal to one that was."""
        return bool(self.ends[self.state]) and self.string in self.closed[-1]

    def _pop(self) -> None:
        label = int(self.pushdown.label[self.state])
        if label < 0 or not self.stack:
            self.state = DEAD
        else:
            self.state = int(self.pushdown.returns[self.stack[-1], label])
            self.stack = self.stack[:-1]
            self.closed = self.closed[:-1]

    def accepts(self) -> bool:
        """Whether the text may end here."""
        end = self.copy()
        while end.stack and end.state != DEAD:
            end._pop()
        return end.state != DEAD and self.pushdown.label[end.state] >= 0
