"""Lines that somebody types: history, completion with Tab, texts of several lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from modelctl.cli import term

PROMPT, MORE = ">>> ", "... "
QUOTE = '"""'
HISTORY = 1000  # lines kept


class Lines:
    """`completions(line)` are the words that Tab may put at the end of a line. Without readline, plain input."""

    def __init__(self, history: Path, completions: Callable[[str], list[str]]) -> None:
        self._history = history
        self._completions = completions
        self._matches: list[str] = []
        try:
            import readline
        except ImportError:  # a Python built without it
            self._readline = None
        else:
            self._readline = readline

    def __enter__(self) -> Lines:
        if self._readline:
            with contextlib.suppress(OSError):
                self._readline.read_history_file(self._history)
            self._readline.set_completer_delims(" ")
            self._readline.set_completer(self._complete)
            is_libedit = "libedit" in (self._readline.__doc__ or "")
            self._readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._readline:
            with contextlib.suppress(OSError):
                self._history.touch(mode=0o600)
                self._readline.set_history_length(HISTORY)
                self._readline.write_history_file(self._history)

    def read(self) -> str:
        """The next text. Ctrl-C empties the line; `EOFError` at the end."""
        while True:
            try:
                return self._text()
            except KeyboardInterrupt:
                term.note("\n(/bye or Ctrl-D leaves)", faint=True)
            except EOFError:
                print()
                raise

    def _text(self) -> str:
        text = input(PROMPT)
        if not text.startswith(QUOTE):
            return text
        text = text.removeprefix(QUOTE)
        while not text.endswith(QUOTE):
            text += "\n" + input(MORE)
        return text.removesuffix(QUOTE).strip("\n")

    def _complete(self, word: str, state: int) -> str | None:
        assert self._readline is not None
        if state == 0:
            line = self._readline.get_line_buffer()
            self._matches = [match for match in self._completions(line) if match.startswith(word)]
        return self._matches[state] if state < len(self._matches) else None
