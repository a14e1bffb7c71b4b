"""The progress of `create`: rich bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from modelctl.cli import term

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from modelctl.create import Report

WORTH_A_BAR = 4_000_000  # bytes; less is over before it is seen


@contextmanager
def report_to(stream: TextIO) -> Iterator[Report]:
    if not term.colours(stream):
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)


class Lines:
    """For logs and pipes."""

    def status(self, text: str) -> None:
        print(term.line(text), flush=True)

    def warn(self, text: str) -> None:
        term.note(f"warning: {text}")

    def progress(self, label: str, done: int, total: int) -> None:
        pass


class Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def status(self, text: str) -> None:
        self._progress.console.print(term.line(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        self._progress.console.print(f"warning: {term.line(text)}", style="yellow", soft_wrap=True)

    def progress(self, label: str, done: int, total: int) -> None:
        if total and total < WORTH_A_BAR:
            return
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(term.line(label), total=total or None)
        self._progress.update(self._tasks[label], completed=done)
