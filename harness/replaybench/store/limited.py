"""Checks files that a stranger made in a process of its own, whose memory and time are limited and whose death is told.

`python -P -m replaybench.store.limited FOLDER` is that process; see docs/decisions/0019-hostile-files.md.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from replaybench.errors import DataError
from replaybench.store.card import FileEntry, read_card, verify
from replaybench.store.remote import cache_folder

# Beyond four times the largest file: a shard is read whole, twice where there are two formats, and checked in copies.
MEMORY_BYTES = 4 << 30
CPU_S = 3600
WALL_S = 4 * CPU_S


def vouch(folder: Path, entries: Sequence[FileEntry]) -> None:
    """Checks those of a log's files that were neither written nor checked on this machine before.

    Raises:
        DataError: They do not match their card, or reading them needed more than the limits or killed the child.
    """
    if new := [entry for entry in entries if not _mark(entry).exists()]:
        verify_limited(folder, [entry.path for entry in new])


def remember(entries: Sequence[FileEntry]) -> None:
    """Notes that this machine wrote or checked these files; where that cannot be noted they are checked again."""
    for entry in entries:
        with suppress(OSError):
            _mark(entry).parent.mkdir(parents=True, exist_ok=True)
            _mark(entry).touch()


def _mark(entry: FileEntry) -> Path:
    return cache_folder() / "vouched" / entry.sha256[:2] / entry.sha256


def verify_limited(folder: Path, paths: Sequence[str] | None = None, memory_bytes: int | None = None) -> list[str]:
    """Returns what `verify` returns, from a child process within limits, and remembers the files.

    Args:
        paths: Files of the card, relative to the folder; all of them by default.
        memory_bytes: What the child may take beyond four times the largest file; MEMORY_BYTES by default.

    Raises:
        DataError: The log does not match its card, or reading it needed more than the limits or killed the child.
    """
    chosen = [entry for entry in read_card(folder).files() if paths is None or entry.path in paths]
    files = [folder / entry.path for entry in chosen]
    largest = max((path.stat().st_size for path in files if path.is_file()), default=0)
    base = MEMORY_BYTES if memory_bytes is None else memory_bytes
    command = [sys.executable, "-P", "-m", "replaybench.store.limited", str(folder), str(base + 4 * largest)]
    # A damaged file may name filters; none of this machine's plug-ins is loaded for it.
    environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}
    try:
        child = subprocess.run(
            command,
            input=json.dumps([entry.path for entry in chosen]),
            env=environment,
            capture_output=True,
            text=True,
            timeout=WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{folder}: reading it took over {WALL_S} s. Do not use this log.") from error
    if child.returncode == DataError.exit_code:
        raise DataError(child.stderr.strip())
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:]
        raise DataError(
            f"{folder}: reading it killed the process that checked it (exit {child.returncode}; {' '.join(last)}). "
            "Do not use this log."
        )
    remember(chosen)
    return [entry.path for entry in chosen]


def main(folder: str, memory_bytes: str) -> None:
    """Limits this process and verifies the files of the folder that standard input names as JSON."""
    paths = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        verify(folder, paths)
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(DataError.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
