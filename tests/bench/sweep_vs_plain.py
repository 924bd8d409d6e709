"""Times runs of the default sweep in the harness against a plain process for each run, one after another.

python tests/bench/run.py sweep_vs_plain

Both sides train the same runs on the same logs; the plain side starts Python, opens the log, trains, evaluates and
writes the rows, as a script does that is called in a loop.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ratio import Ratio

from replaybench.plan import check, load_sweep, runs, sources
from replaybench.record import SweepFolder
from replaybench.spec import RunSpec
from replaybench.sweep import make_data, run_sweep

ROUNDS = 3
RUNS = 16
PLAIN = """
import sys
from pathlib import Path
from replaybench.record import SweepFolder
from replaybench.spec import RunSpec
from replaybench.store import open_log
from replaybench.train import train

spec = RunSpec.model_validate_json(sys.stdin.read())
result = train(spec, open_log(Path(spec.data_folder)))
SweepFolder(Path(sys.argv[1])).write_result(spec, result.rows, {"run_id": spec.run_id()})
"""


def ratios() -> Iterator[Ratio]:
    """Yields the time of the plain loop over that of the sweep."""
    workers = len(os.sched_getaffinity(0))
    with TemporaryDirectory() as folder:
        chosen = default_runs(Path(os.environ.get("BENCH_DATA", folder)), workers)
        samples = []
        for number in range(ROUNDS):
            ours, plain = Path(folder) / f"ours{number}", Path(folder) / f"plain{number}"
            started = time.perf_counter()
            run_sweep(SweepFolder(ours), chosen, workers, lambda progress: None)
            between = time.perf_counter()
            for run in chosen:
                one_process(run, plain)
            samples.append((time.perf_counter() - between) / (between - started))
            assert_same(ours, plain, chosen)
    note = f"{RUNS} runs of the default sweep on {workers} workers, the same numbers; BENCH_DATA names a data folder"
    yield Ratio("sweep_vs_plain", samples, "times the runs an hour of one process a run", note)


def default_runs(data: Path, workers: int) -> list[RunSpec]:
    """Returns some trained runs of one lineage of the default sweep, making its logs if they are not in `data`."""
    spec = load_sweep("default").model_copy(update={"lineages": (0,), "datasets": ("button-press-topdown",)})
    found = sources(spec, data)
    make_data(found, spec.lineages, workers, "bench", lambda progress: None)
    return [run for run in runs(spec, found, check(spec, found)) if run.level is not None][:RUNS]


def one_process(run: RunSpec, out: Path) -> None:
    """Trains one run in a process of its own."""
    command = [sys.executable, "-c", PLAIN, str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, input=run.model_dump_json(), text=True, check=True, env=environment)


def assert_same(ours: Path, plain: Path, chosen: list[RunSpec]) -> None:
    """Both sides did the same work."""
    for run in chosen:
        name = f"runs/{run.run_id()}/rows.parquet"
        assert (ours / name).read_bytes() == (plain / name).read_bytes(), run.run_id()
