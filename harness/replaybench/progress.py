"""Shows the progress of jobs: a live bar on a terminal, plain lines elsewhere; always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaybench.sweep import Listener, Progress

LINES_A_STAGE = 20


@contextmanager
def listening() -> "Iterator[Listener]":
    """Yields the listener that fits stderr."""
    if sys.stderr.isatty():
        with _live_bar() as listen:
            yield listen
    else:
        yield _PlainLines()


@contextmanager
def _live_bar() -> "Iterator[Listener]":
    from rich import progress
    from rich.console import Console

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    ) as bar:
        tasks: dict[str, progress.TaskID] = {}
        mean = _RunningMean()

        def listen(update: "Progress") -> None:
            if update.stage not in tasks:
                tasks[update.stage] = bar.add_task(update.stage, total=update.total, note="")
            if update.error:
                bar.console.print(f"failed: {update.latest}: {update.error}", style="red")
            bar.update(tasks[update.stage], completed=update.done, note=mean.note(update.success))

        yield listen


class _PlainLines:
    """Prints about twenty lines a stage, and every failure."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.mean = _RunningMean()

    def __call__(self, update: "Progress") -> None:
        now = time.monotonic()
        # The first job has ended by now; its own time is unknown, so the estimate starts with the second.
        started = self.started.setdefault(update.stage, now)
        note = self.mean.note(update.success)
        if update.error:
            print(f"failed: {update.latest}: {update.error}", file=sys.stderr, flush=True)
        every = max(1, update.total // LINES_A_STAGE)
        if update.done % every == 0 or update.done == update.total:
            eta = (now - started) / max(1, update.done - 1) * (update.total - update.done)
            line = f"{update.stage}: {update.done}/{update.total} done, ETA {eta / 60:.1f} min"
            print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)


class _RunningMean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def note(self, success: float | None) -> str:
        if success is not None:
            self.total += success
            self.count += 1
        return f"mean success {self.total / self.count:.2f}" if self.count else ""
