"""Token ids to text, in pieces that are final: no broken character, and nothing that may yet turn into a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence


class Detokenizer:
    """Turns tokens into text as they come. The pieces, joined, do not depend on how the tokens were cut into calls.

    Bytes that are no valid UTF-8 become U+FFFD. The text ends before the earliest stop string.

    Args:
      join: the bytes of a sequence of tokens, such as `Vocabulary.join`.
      stops: stop strings.
    """

    def __init__(self, join: Callable[[Iterable[int]], bytes], stops: Sequence[str] = ()):
        self._join, self._stops = join, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, tokens: Iterable[int], last: bool = False) -> str:
        """Return the text that became final with these tokens; with `last`, everything that is left."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._join(tokens), last)
        hits = [at for at in map(self._held.find, self._stops) if at >= 0]
        if hits:
            self.stopped = True
            ready, self._held = self._held[: min(hits)], ""
            return ready
        keep = 0 if last else self._possible_stop()
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready

    def _possible_stop(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
