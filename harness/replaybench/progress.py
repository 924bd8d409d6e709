"""Shows the progress of jobs: a live bar on a terminal, plain lines elsewhere; always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaybench.sweep import Listener, Progress

LINES_A_STAGE = 20
# After so long without a line, one says what is being done.
SILENCE_S = 30.0


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
        progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    ) as bar:
        tasks: dict[str, progress.TaskID] = {}
        notes = _Notes()

        def listen(update: "Progress") -> None:
            if update.stage not in tasks:
                tasks[update.stage] = bar.add_task(update.stage, total=update.total, note="")
            if update.error:
                bar.console.print(f"failed: {update.latest}: {update.error}", style="red")
            bar.update(tasks[update.stage], completed=update.done, note=notes.after(update))

        yield listen


class _PlainLines:
    """Prints about twenty lines a stage, every failure, and what is being done where a stage is silent for long."""

    def __init__(self) -> None:
        self.notes = _Notes()
        self.last_line = time.monotonic()

    def __call__(self, update: "Progress") -> None:
        note = self.notes.after(update)
        if update.doing:
            if time.monotonic() - self.last_line >= SILENCE_S:
                self._print(f"{update.stage}: {update.doing}")
            return
        if update.error:
            self._print(f"failed: {update.latest}: {update.error}")
        every = max(1, update.total // LINES_A_STAGE)
        if update.done % every == 0 or update.done == update.total:
            line = f"{update.stage}: {update.done}/{update.total} done"
            self._print(f"{line}, {note}" if note else line)

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.last_line = time.monotonic()


class _Notes:
    """What is said beside the counts: the time that is left, by the mean pace of the stage, and the mean success."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.successes: dict[str, list[float]] = {}

    def after(self, update: "Progress") -> str:
        """Returns the note; a stage announces itself with nothing done, from when on its time counts."""
        now = time.monotonic()
        started = self.started.setdefault(update.stage, now)
        successes = self.successes.setdefault(update.stage, [])
        if update.success is not None:
            successes.append(update.success)
        parts = [update.doing] if update.doing else []
        if 0 < update.done < update.total:
            left = (now - started) / update.done * (update.total - update.done)
            parts.append(f"ETA {left / 60:.1f} min")
        if successes:
            parts.append(f"mean success {sum(successes) / len(successes):.2f}")
        return ", ".join(parts)
