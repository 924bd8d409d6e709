"""Choosing settings from a sweep that is not finished."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_results import write_sweep

from replaybench.errors import ConfigError
from replaybench.record import MANIFEST
from replaybench.spec import RunSpec
from replaybench.tuned import choices

ARMS: list[tuple[str, dict[str, Any], float]] = [
    ("zero", {}, 1e-4),
    ("ppo_clip", {}, 1e-4),
    ("gipo", {"sigma": 0.2}, 1e-4),
    ("gipo", {"sigma": 1.0}, 1e-4),
]


def success_by_sigma(run: RunSpec) -> float:
    return {"gipo": 0.9 if run.config.get("sigma") == 1.0 else 0.6}.get(run.baseline, 0.5)


def test_a_run_without_a_manifest_is_no_trial(tmp_path: Path) -> None:
    """The better setting's rows are there but unfinished: the other one is chosen."""
    folder = write_sweep(tmp_path, success_by_sigma, arms=ARMS)
    (best,) = [choice for choice in choices(folder) if choice.baseline == "gipo"]
    assert json.loads(best.config)["sigma"] == 1.0
    for run in folder.runs():
        if run.config.get("sigma") == 1.0:
            (folder.path / "runs" / run.run_id() / MANIFEST).unlink()
    (best,) = [choice for choice in choices(folder) if choice.baseline == "gipo"]
    assert json.loads(best.config)["sigma"] == 0.2


def test_a_sweep_without_any_result_has_nothing_to_choose(tmp_path: Path) -> None:
    """It says what to do first."""
    folder = write_sweep(tmp_path, success_by_sigma, arms=ARMS)
    for manifest in folder.path.rglob(MANIFEST):
        manifest.unlink()
    with pytest.raises(ConfigError, match="no run is complete yet"):
        choices(folder)
