"""Times the vectorised stratified bootstrap against one resample at a time, as rliable draws them.

rliable itself needs other versions of arch and pandas than this package, so that its loop is restated: each resample
redraws the runs of every task and takes one trimmed mean. `docs/log.md` has the measurement against rliable 1.2.0.

python tests/bench/bootstrap_vs_rliable.py
"""

import statistics
import time
from collections.abc import Iterator

import numpy as np
from ratio import Ratio
from scipy import stats

from replaybench.analysis.aggregate import RESAMPLES, interquartile_means, stratified_bootstrap

ROUNDS = 3
NUM_TASKS, NUM_LINEAGES = 5, 6


def one_resample_at_a_time(
    scores: np.ndarray[tuple[int, int], np.dtype[np.float64]], rng: np.random.Generator
) -> object:
    """Returns the percentile interval of the interquartile mean of [tasks, lineages] by a loop over resamples."""
    values = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        drawn = [task[rng.integers(len(task), size=len(task))] for task in scores]
        values[resample] = stats.trim_mean(np.concatenate(drawn), proportiontocut=0.25, axis=None)
    return np.quantile(values, [0.025, 0.975])


def ratios() -> Iterator[Ratio]:
    """Yields the loop's time over that of the vectorised bootstrap, taken in turn."""
    rng = np.random.default_rng(0)
    scores = rng.random((NUM_TASKS, NUM_LINEAGES))
    by_task = {str(task): row for task, row in enumerate(scores)}
    samples = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        stratified_bootstrap(by_task, interquartile_means, rng)
        middle = time.perf_counter()
        one_resample_at_a_time(scores, rng)
        samples.append((time.perf_counter() - middle) / (middle - start))
    note = (
        f"interquartile mean of {NUM_TASKS} x {NUM_LINEAGES} scores, {RESAMPLES:,} resamples; rliable's loop restated"
    )
    yield Ratio("bootstrap_vs_rliable", samples, "times faster", note)


if __name__ == "__main__":
    for ratio in ratios():
        print(f"{ratio.name}: {statistics.median(ratio.samples):.0f} {ratio.unit} ({ratio.note})")
