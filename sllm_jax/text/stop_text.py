"""Ending at a text: finding it in pieces as they come."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text on until one of the stop texts appears; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """With no stop texts everything passes at once."""
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """The text that may be shown, with one more piece."""
        self._held += piece
        if self.found:
            return ""
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        self.found = bool(places)
        return self._show(min(places) if places else len(self._held) - self._beginning_of_a_stop())

    def rest(self) -> str:
        """What is still held back, if no stop text came."""
        return "" if self.found else self._show(len(self._held))

    @property
    def surplus(self) -> int:
        """Once found: how many characters there are from the stop text on."""
        return len(self._held)

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _beginning_of_a_stop(self) -> int:
        lengths = (n for stop in self._stops for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)
