"""Two sweeps side by side."""

from typing import NamedTuple

import polars as pl

from replaybench.analysis.across import across_differences
from replaybench.analysis.compare import UNRESOLVED
from replaybench.errors import ConfigError
from replaybench.record import SweepFolder
from replaybench.results import Sweep, final_success, read_measured, read_sweep


class Compared(NamedTuple):
    """The differences, and a sentence on what they rest on."""

    table: pl.DataFrame
    note: str


def compare_sweeps(first: SweepFolder, second: SweepFolder) -> Compared:
    """Compares the cells that two sweeps share.

    Raises:
        ConfigError: A folder holds no sweep, the sweeps share no cell, or they were evaluated differently.
    """
    sweeps = [read_sweep(folder) for folder in (first, second)]
    if sweeps[0].spec.evaluate != sweeps[1].spec.evaluate:
        raise ConfigError(
            f"{first.path} and {second.path}: the sweeps were evaluated differently ({sweeps[0].spec.evaluate} and "
            f"{sweeps[1].spec.evaluate}); their success means different things. Run one of them again."
        )
    logs = [_logs(sweep) for sweep in sweeps]
    is_paired = logs[0] == logs[1]
    table = across_differences(
        final_success(read_measured(first)), final_success(read_measured(second)), is_paired=is_paired
    )
    if table.is_empty():
        raise ConfigError(f"{first.path} and {second.path}: the sweeps share no level, replay ratio and baseline.")
    reason = "on the same logs" if is_paired else "on different logs, so lineages of the two are independent"
    num_resolved = (table["verdict"] != UNRESOLVED).sum()
    note = f"Both ran {reason}; {'paired' if is_paired else 'unpaired'} over lineages."
    return Compared(table, f"{note} {num_resolved} of {table.height} differences are resolved.")


def _logs(sweep: Sweep) -> set[tuple[str, int, str]]:
    return {(run.dataset, run.lineage, run.card_sha256) for run in sweep.runs}
