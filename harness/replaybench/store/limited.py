"""Checks a log that a stranger made in a process of its own, whose memory and time are limited and whose death is told.

`python -P -m replaybench.store.limited FOLDER` is that process; see docs/decisions/0019-hostile-files.md.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from replaybench.errors import DataError
from replaybench.store.card import verify

# A shard is read whole, twice where there are two formats; images are checked in copies of their size.
MEMORY_BYTES = 8 << 30
CPU_S = 3600
WALL_S = 4 * CPU_S


def verify_limited(folder: Path, memory_bytes: int = MEMORY_BYTES, cpu_s: int = CPU_S) -> list[str]:
    """Returns what `verify` returns, from a child process within these limits.

    Raises:
        DataError: The log does not match its card, or reading it needed more than the limits or killed the child.
    """
    command = [sys.executable, "-P", "-m", "replaybench.store.limited", str(folder), str(memory_bytes), str(cpu_s)]
    # A damaged file may name filters; none of this machine's plug-ins is loaded for it.
    environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WALL_S, check=False)
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
    paths: list[str] = json.loads(child.stdout)
    return paths


def main(folder: str, memory_bytes: str, cpu_s: str) -> None:
    """Limits this process, verifies the folder and prints the paths as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s),) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        print(json.dumps(verify(folder)))
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(DataError.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
