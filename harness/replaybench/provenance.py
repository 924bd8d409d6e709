"""What produced a number: versions, the commit of the checkout, the machine."""

import importlib.metadata
import os
import platform
import subprocess
from functools import lru_cache
from typing import Any

from replaybench import __version__
from replaybench.paths import PACKAGE_DIR, ROOT


def versions(simulator: str) -> dict[str, str]:
    """Returns the versions that decide what a rerun computes."""
    packages = ("torch", "numpy")
    return {
        "replaybench": __version__,
        "simulator": simulator,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def host_facts() -> dict[str, Any]:
    """Returns what identifies the machine loosely enough to publish."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


@lru_cache
def checkout_commit() -> str | None:
    """Returns the commit of the checkout that runs, marked where files differ from it; None for an installed wheel."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit} with uncommitted changes" if _git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE_DIR), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
