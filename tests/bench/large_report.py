"""Builds the report of a made-up sweep of 10,000 runs with 20 checkpoints each, and prints its time and memory.

python tests/bench/large_report.py [FOLDER]    the folder keeps the sweep for another call
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np

from replaybench.baseline import config_record, load_baseline
from replaybench.diagnostics import Rows
from replaybench.plan import load_sweep
from replaybench.record import SweepFolder
from replaybench.report import build_report
from replaybench.seeding import numpy_generator
from replaybench.spec import RunSpec

NUM_RUNS, NUM_CHECKPOINTS, NUM_EPISODES, SEEDS = 10_000, 20, 50, 5
DIAGNOSTICS = (
    "ess_token_raw",
    "kl_k1_token_raw",
    "kl_k2_token_raw",
    "kl_k3_token_raw",
    "chi2_token_raw",
    "abs_log_ratio_p95_token",
    "ess_token_applied_positive",
    "ess_token_applied_negative",
    "near_zero_share_positive",
    "near_zero_share_negative",
    "suppressed_share_positive",
    "suppressed_share_negative",
    "max_abs_weight",
    "mean_abs_score",
    "score_share_back",
    "grad_norm",
    "policy_loss",
    "value_loss",
)


def planned_runs() -> Iterator[RunSpec]:
    """Yields the runs of the default sweep's design with as many lineages as 10,000 runs need."""
    spec = load_sweep("default")
    arms = [(name, load_baseline(name)) for name in spec.baselines]
    lineage = 0
    while True:
        for dataset in spec.datasets:
            for name, baseline in arms:
                trains = baseline.declaration.updates_policy
                cells = [(level, ratio) for level in spec.levels for ratio in spec.replay_ratios]
                for level, ratio in cells if trains else [(None, None)]:
                    for seed in range(SEEDS):
                        yield RunSpec(
                            dataset=dataset,
                            data_folder=f"data/{dataset}/lineage-{lineage:03d}",
                            card_sha256="0" * 64,
                            task=f"{dataset}-v3",
                            lineage=lineage,
                            data_format="arrow",
                            level=level,
                            replay_ratio=ratio,
                            baseline=name,
                            baseline_path=None,
                            baseline_sha256=baseline.digest,
                            config=config_record(baseline.config({})),
                            seed=seed,
                            train=spec.train,
                            evaluate=spec.evaluate,
                        )
        lineage += 1


def rows_of(run: RunSpec, rng: np.random.Generator) -> Rows:
    """Returns measurements of the shape that a run with 20 evaluations leaves."""
    rows = Rows()
    checkpoints = NUM_CHECKPOINTS if run.level else 1
    for update in range(8, 8 * checkpoints + 1, 8):
        episodes = rng.random(NUM_EPISODES) < 0.6
        for item, success in enumerate(episodes):
            rows.add(update, "episode_success", success, item)
        for metric, value in zip(("success", "episode_length", "return"), rng.random(3), strict=True):
            rows.add(update, metric, value)
        for metric, value in zip(DIAGNOSTICS, rng.random(len(DIAGNOSTICS)), strict=True):
            rows.add(update, metric, value)
    for metric in ("replay_steps", "replay_ratio_realised", "end_kl_k3_behaviour", "end_kl_start"):
        rows.add(8 * checkpoints, metric, rng.random())
    return rows


def write_large_sweep(path: Path, num_runs: int = NUM_RUNS) -> SweepFolder:
    """Writes the sweep through the public record, without waiting for the disk at every file."""
    folder, rng = SweepFolder(path), numpy_generator("bench", "large report")
    runs = list(islice(planned_runs(), num_runs))
    spec = load_sweep("default").model_copy(
        update={"lineages": tuple(range(max(run.lineage for run in runs) + 1)), "seeds": tuple(range(SEEDS))}
    )
    manifest = {"wall_s": 2.0, "host": {"cores": 2}, "versions": {"torch": "2.13.0"}, "attempts": 1}
    with mock.patch.object(os, "fsync"):
        folder.claim({"sweep": spec.model_dump(mode="json"), "runs": [run.model_dump(mode="json") for run in runs]})
        for run in runs:
            folder.write_result(run, rows_of(run, rng), {"run_id": run.run_id(), **manifest})
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        folder = SweepFolder(path) if (path / "sweep.json").exists() else write_large_sweep(path)
        started = time.perf_counter()
        build_report(folder)
        wall = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"report of {NUM_RUNS} runs: {wall:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
