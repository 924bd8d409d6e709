"""A tiny sweep on the real simulator, from the recipe to the report."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

pytestmark = pytest.mark.slow

Cli = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = """name = "tiny"
description = "Small enough for a test."
suite = "metaworld"
task = "button-press-topdown-v3"
licence = "CC0-1.0"
suite_settings = { num_bins = 16 }
policy = { kind = "mlp", settings = { hidden = 64, value_hidden = 32 } }
warm_start = { demonstrations = 6, success = [0.02, 0.98], check_episodes = 20 }

[reinforcement]
baseline = "no_correction"
learning_rates = [5e-4]
min_updates = 40
max_updates = 200
success = [0.02, 0.98]
check_episodes = 20
episodes_per_iteration = 10

[levels]
fresh = { lag_updates = [0, 0], episodes = 50 }
stale = { lag_updates = [15, 60], episodes = 50 }
matched = { branch_updates = 20, tolerance = 0.9, episodes = 50 }
"""
SWEEP = """name = "tiny"
datasets = ["tiny.toml"]
lineages = [0]
levels = ["fresh", "stale", "matched"]
replay_ratios = [2]
baselines = ["zero", "ppo_clip", "gipo"]
reference = "ppo_clip"
train = { updates = 8, batch_size = 128, value_warmup_updates = 8, log_every = 4 }
evaluate = { episodes = 10, max_steps = 150 }
"""


def test_logs_runs_and_report_are_made_on_the_real_simulator(cli: Cli, tmp_path: Path) -> None:
    """Three levels, two baselines and the control: every run has a result, and the report opens on them."""
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "tiny-sweep.toml").write_text(SWEEP, encoding="utf-8")
    done = cli("sweep", "run", "tiny-sweep.toml", "--out", "out", "--data", "data")
    assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(tmp_path / "out" / "runs" / "*" / "rows.parquet")
    assert rows["run_id"].n_unique() == 7
    success = rows.filter((pl.col("metric") == "success") & (pl.col("item") == -1))
    episodes = rows.filter(pl.col("metric") == "episode_success")
    means = episodes.group_by("run_id").agg(pl.col("value").mean().alias("mean"))
    assert success.join(means, on="run_id").select((pl.col("value") - pl.col("mean")).abs().max()).item() < 1e-12
    assert (tmp_path / "out" / "report" / "index.html").stat().st_size > 10_000
    assert "ppo_clip against the start policy" in done.stdout

    levels = json.loads(cli("data", "info", "tiny", "--data", "data", "--json").stdout)
    distance = {row["level"]: row["kl"] for row in levels}
    assert distance["fresh"] < 1e-4 < min(distance["stale"], distance["matched"])
    assert cli("data", "verify", "tiny", "--data", "data").returncode == 0
