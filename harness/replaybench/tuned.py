"""Tuned presets: each baseline's setting, chosen by a sweep, committed with its evidence."""

import json
from pathlib import Path

from replaybench.analysis.tuning import Choice, choose
from replaybench.errors import ConfigError
from replaybench.plan import LEARNING_RATE
from replaybench.record import SweepFolder
from replaybench.store.files import atomic_write
from replaybench.store.toml import to_toml


def choices(folder: SweepFolder) -> list[Choice]:
    """Returns the best trial of each baseline of a sweep, from the runs that have a manifest.

    Raises:
        ConfigError: No run is complete.
    """
    import polars as pl

    complete = [run.run_id() for run in folder.runs() if folder.is_complete(run.run_id())]
    if not complete:
        raise ConfigError(f"{folder.path}: no run is complete yet. Run the sweep first.")
    rows = pl.scan_parquet([folder.path / "runs" / run_id / "rows.parquet" for run_id in sorted(set(complete))])
    last = pl.col("update") == pl.col("update").max().over("run_id")
    return choose(rows.filter(pl.col("metric") == "success").filter(last).collect())


def write_tuned(path: Path, folder: SweepFolder, chosen: list[Choice]) -> None:
    """Writes the chosen settings and what speaks for them."""
    sweep = folder.plan()["sweep"]
    settings: dict[str, dict[str, object]] = {}
    evidence: dict[str, dict[str, object]] = {}
    for choice in chosen:
        config = {key: value for key, value in json.loads(choice.config).items() if value is not None}
        settings[choice.baseline] = {LEARNING_RATE: choice.learning_rate, **config}
        evidence[choice.baseline] = {
            "gain_over_start": round(choice.gain, 4),
            "standard_error_over_lineages": round(choice.standard_error, 4),
            "second_best_gain": round(choice.second_best, 4),
            "trials": choice.num_trials,
            "lineages": choice.num_lineages,
        }
    chosen_on = {key: sweep[key] for key in ("name", "datasets", "lineages", "levels", "replay_ratios", "seeds")}
    chosen_on["goal_seed"] = sweep["evaluate"]["goal_seed"]
    text = "# Written by `replaybench sweep choose`; success after training minus the start policy's.\n"
    text += to_toml({"chosen_on": chosen_on, "settings": settings, "evidence": evidence})
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
