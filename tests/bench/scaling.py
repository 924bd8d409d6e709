"""Measures how cost grows with episodes, updates, runs and workers, and fits exponents for docs/performance.md.

python tests/bench/scaling.py
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from large_log import new_policy, write_random_log
from large_report import write_large_sweep

from replaybench.analysis.compare import paired_differences
from replaybench.baseline import load_baseline
from replaybench.learner import Learner
from replaybench.plan import check, load_sweep, runs, sources
from replaybench.record import SweepFolder
from replaybench.replay import pack
from replaybench.results import final_success, read_measured
from replaybench.seeding import numpy_generator
from replaybench.spec import TrainSettings
from replaybench.store import Log
from replaybench.sweep import make_data, run_sweep

ROUNDS = 5
EPISODES = (25, 50, 100, 200, 400)
UPDATES = (8, 16, 32, 64)
RUNS = (250, 500, 1000, 2000)
CPU = torch.device("cpu")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fit(name: str, sizes: tuple[int, ...], samples: list[list[float]], unit: str) -> None:
    """Prints the exponent of a power law through the medians, and its range over rounds."""
    log_sizes = np.log(sizes)
    exponents = [np.polyfit(log_sizes, np.log(times), 1)[0] for times in samples]
    middle = np.polyfit(log_sizes, np.log(np.median(samples, axis=0)), 1)[0]
    each = np.median(samples, axis=0)[-1] / sizes[-1]
    print(
        f"{name}: exponent {middle:.2f} [{min(exponents):.2f}, {max(exponents):.2f}], "
        f"{1e3 * each:.3g} ms {unit} at {sizes[-1]}",
        flush=True,
    )


def grow(name: str, sizes: tuple[int, ...], works: list[Callable[[], object]], unit: str) -> None:
    """Times each size in turn, round by round; the first round warms up."""
    fit(name, sizes, [[seconds(work) for work in works] for _ in range(ROUNDS + 1)][1:], unit)


def with_episodes(folder: Path) -> None:
    logs = []
    for number in EPISODES:
        write_random_log(folder / str(number), number, logits=False)
        logs.append(Log(folder / str(number)))
    for format in ("arrow", "hdf5"):
        opened = [lambda log=log, format=format: log.episodes("fresh", format) for log in logs]
        grow(f"opening and checking {format}", EPISODES, opened, "an episode")
    learners = [learner_of(log) for log in logs]
    grow("advantages", EPISODES, [learner.refresh_advantages for learner in learners], "an episode")
    trained = [lambda updates=updates: train(learners[-1], updates) for updates in UPDATES]
    grow("updates", UPDATES, trained, "an update of 256")
    size = sum(path.stat().st_size for path in (folder / str(EPISODES[-1])).rglob("*.arrow"))
    source = np.ones(size, np.uint8)
    copied = np.median([seconds(source.copy) for _ in range(ROUNDS)])
    print(f"limit: the {size / 1e6:.0f} MB of {EPISODES[-1]} episodes are copied in memory in {1e3 * copied:.0f} ms")


def learner_of(log: Log) -> Learner:
    baseline = load_baseline("ppo_clip")
    replay = pack(log.episodes("fresh"), CPU)
    learner = Learner(new_policy(), baseline, baseline.config({}), replay, TrainSettings(updates=max(UPDATES)))
    learner.refresh_advantages()
    return learner


def train(learner: Learner, updates: int) -> None:
    for index in learner.batches(updates, numpy_generator("bench")):
        learner.policy_step(index)


def with_runs(folder: Path) -> None:
    sweeps = [write_large_sweep(folder / str(number), number) for number in RUNS]
    grow("reading records", RUNS, [lambda sweep=sweep: read_measured(sweep) for sweep in sweeps], "a run")
    measured = [read_measured(sweep) for sweep in sweeps]
    compared = [lambda one=one: paired_differences(final_success(one), "ppo_clip") for one in measured]
    grow("comparing", RUNS, compared, "a run")


def with_workers(folder: Path) -> None:
    spec = load_sweep("smoke").model_copy(update={"lineages": (0,)})
    found = sources(spec, folder / "data")
    make_data(found, spec.lineages, 1, "bench", lambda progress: None)
    due = runs(spec, found, check(spec, found))
    counts = tuple(range(1, len(os.sched_getaffinity(0)) + 1))
    # Processes start anew for every sweep, so that the fixed cost of starting is part of it.
    rates = [
        [
            len(due) / seconds(lambda n=n, r=r: run_sweep(SweepFolder(folder / f"{n}-{r}"), due, n, lambda p: None))
            for n in counts
        ]
        for r in range(ROUNDS)
    ]
    middle = np.median(rates, axis=0)
    speed_ups = ", ".join(f"{n}: {rate / middle[0]:.2f}x" for n, rate in zip(counts, middle, strict=True))
    print(f"workers, {len(due)} runs of the preset smoke: {speed_ups}; {60 * middle[-1]:.0f} runs a minute on the last")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in (with_episodes, with_runs, with_workers):
        with TemporaryDirectory() as name:
            part(Path(name))
