"""Stop texts: finding them in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text through until a stop text appears; holds back text that may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Without stop texts, everything passes immediately."""
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """Add a piece; return the text that can be shown."""
        self._held += piece
        if self.found:
            return ""
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        self.found = bool(places)
        return self._show(min(places) if places else len(self._held) - self._beginning_of_a_stop())

    def rest(self) -> str:
        """The text still held back, if no stop text was found."""
        return "" if self.found else self._show(len(self._held))

    @property
    def surplus(self) -> int:
        """The number of characters from the stop text on, once it is found."""
        return len(self._held)

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _beginning_of_a_stop(self) -> int:
        lengths = (n for stop in self._stops for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)
