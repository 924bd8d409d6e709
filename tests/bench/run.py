"""Runs the benchmarks and writes reports/bench.json, with the last release's numbers printed beside them.

python tests/bench/run.py [name ...]

Each module of this folder that has `ratios()` is a benchmark; a name chooses modules. Ratios are taken in turn within
one process, so that other work touches both sides; low and high are the 10 % and 90 % quantiles over rounds.
"""

import importlib
import json
import os
import platform
import sys
from pathlib import Path

# As in the workers of a sweep: a pool of threads of numpy's would take the processors from torch's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
OUT = ROOT / "reports" / "bench.json"
LAST = FOLDER / "last_release.json"


def modules() -> list[str]:
    """Returns the benchmarks by name."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef ratios(" in path.read_text(encoding="utf-8"))


def machine() -> dict[str, str | int]:
    """Returns what the numbers depend on besides the code."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def main(chosen: list[str]) -> None:
    known = modules()
    unknown = set(chosen) - set(known)
    if unknown:
        sys.exit(f"No benchmark {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    last = json.loads(LAST.read_text(encoding="utf-8")) if LAST.exists() else {}
    found = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    for name in chosen or known:
        torch.set_num_threads(1)
        for ratio in importlib.import_module(name).ratios():
            low, middle, high = np.quantile(ratio.samples, (0.1, 0.5, 0.9)).tolist()
            found[ratio.name] = {"ratio": middle, "low": low, "high": high, "unit": ratio.unit}
            before = last.get(ratio.name, {}).get("ratio")
            beside = f", last release {before:.3g}" if before is not None else ""
            print(f"{ratio.name}: {middle:.3g} [{low:.3g}, {high:.3g}] {ratio.unit}{beside}")
            print(f"    {ratio.note}; {len(ratio.samples)} rounds")
        # After each, so that one that fails loses no other.
        found["machine"] = machine()
        OUT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"Written to {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
