"""From token pieces to text a client may see: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence


class TextStream:
    """Feed bytes, get text. What could still become a stop string is held back until it cannot."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._partial = b""  # the first bytes of a character
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped_by = ""  # the stop string that was met; nothing more is emitted after it

    def feed(self, piece: bytes, *, final: bool = False) -> str:
        """The text that became certain. `final`: nothing follows that could complete a character."""
        data = self._partial + piece
        text, n = utf_8_decode(data, "replace", final)
        self._partial = data[n:]
        return self._hold(text) if self._stops else text

    def finish(self) -> str:
        """What was held back, when generation ends for another reason than a stop string."""
        if self.stopped_by:
            return ""
        text = self.feed(b"", final=True) + self._held
        self._held = ""
        return text

    def _hold(self, new: str) -> str:
        if self.stopped_by:
            return ""
        text = self._held + new
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
