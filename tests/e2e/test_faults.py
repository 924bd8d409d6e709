"""What `make soak` does at length, with a few kills."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SOAK = Path(__file__).parents[1] / "soak" / "faults.py"
KILLS = 9


def test_no_fault_loses_duplicates_or_changes_a_run() -> None:
    """NaN, clock, torn shard, full and read-only disk, two sweeps, and kills of driver, worker and both."""
    found = subprocess.run([sys.executable, str(SOAK), str(KILLS)], capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout + found.stderr
    faults = [line for line in found.stdout.splitlines() if line.endswith(("as if nothing had happened", "needs root"))]
    assert len(faults) == 6
    assert f"{KILLS} kills: 0 runs lost, 0 written twice, 0 with other results" in found.stdout
