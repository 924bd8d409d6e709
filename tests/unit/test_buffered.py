"""The buffered protocol on the slippery grid: schedule, lags, pairing, what is kept, and mistakes in the settings."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from replaybench.buffered import crosses, train_buffered
from replaybench.collect import write_collected
from replaybench.errors import ConfigError
from replaybench.learner import Learner
from replaybench.plan import SweepSpec, load_sweep, sources
from replaybench.record import SweepFolder
from replaybench.report import build_report
from replaybench.spec import BufferedSettings, RunSpec
from replaybench.store import open_log, verify
from replaybench.sweep import Progress, claim, due_runs, run_sweep
from replaybench.train import RunResult

ToySweep = Callable[..., SweepSpec]
SETTINGS = {"iterations": 6, "collect_steps": 40, "capacity": 120, "sample_rounds": 3, "start": "start_policy"}


def silent(progress: Progress) -> None:
    """Listens to nothing."""


@pytest.fixture
def buffered_sweep(toy_sweep: ToySweep) -> ToySweep:
    """Returns a function that makes a quick buffered sweep; keyword arguments replace settings of the protocol."""

    def make(baselines: tuple[str, ...] = ("zero", "ppo_clip", "gipo"), **changes: Any) -> SweepSpec:
        return toy_sweep(
            levels=(),
            replay_ratios=(),
            lineages=(0, 1),
            baselines=baselines,
            buffered=SETTINGS | changes,
            regimes={"fresh": {"capacity": 40}, "stale": {}},
        )

    return make


def run(spec: SweepSpec, toy_data: Path, out: Path, baseline: str, level: str | None) -> tuple[RunSpec, RunResult]:
    """Trains lineage 0 of one cell."""
    folder = SweepFolder(out)
    out.mkdir(exist_ok=True)
    planned = claim(folder, spec, sources(spec, toy_data))
    chosen = next(run for run in planned if (run.baseline, run.level, run.lineage) == (baseline, level, 0))
    return chosen, train_buffered(chosen, open_log(Path(chosen.data_folder)))


def values(result: RunResult, metric: str) -> list[float]:
    rows = result.rows
    return [value for name, value in zip(rows.metric, rows.value, strict=True) if name == metric]


def test_an_iteration_makes_the_updates_that_its_schedule_says(
    buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four uses of a minibatch the first and the third move the policy, scaled by 1 and 1/sqrt(3)."""
    calls: Counter[str] = Counter()
    scales: list[float] = []
    policy_step, value_step = Learner.policy_step, Learner.value_step

    def counted_policy(self: Learner, index: torch.Tensor, policy_scale: float = 1.0) -> object:
        calls["policy"] += 1
        scales.append(policy_scale)
        return policy_step(self, index, policy_scale)

    def counted_value(self: Learner, index: torch.Tensor, features: torch.Tensor | None = None) -> float:
        calls["value"] += 1
        return value_step(self, index, features)

    monkeypatch.setattr(Learner, "policy_step", counted_policy)
    monkeypatch.setattr(Learner, "value_step", counted_value)
    spec = buffered_sweep(reuse=4, actor_every=2)
    chosen, result = run(spec, toy_data, tmp_path, "ppo_clip", "stale")
    assert calls == {"policy": 6 * 3 * 2, "value": 6 * 3 * 2 + 4}  # four of them warm the value head up
    assert scales == pytest.approx([1, 3**-0.5] * 18)
    assert chosen.train.updates == 36
    assert chosen.replay_ratio == pytest.approx(3 * 2 * 32 / 40)
    assert values(result, "replay_ratio_realised") == [pytest.approx(chosen.replay_ratio)]
    assert values(result, "replay_ratio_value") == [pytest.approx(3 * 4 * 32 / 40)]


def test_the_regimes_differ_in_the_lag_of_what_they_learn_from(
    buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """A buffer of one iteration holds lags below its 3 updates; one of three holds lags up to 8."""
    for level, oldest in (("fresh", 2), ("stale", 8)):
        spec = buffered_sweep().model_copy(update={"train": buffered_sweep().train.model_copy(update={"log_every": 1})})
        _, result = run(spec, toy_data, tmp_path / level, "gipo", level)
        assert max(values(result, "lag_updates_max")) == oldest
        assert min(values(result, "lag_updates_max")) == 0
        assert set(values(result, "old_data_share")) == {0.0}


def test_a_run_is_reproducible_and_its_first_iteration_is_shared(
    buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """Twice the same run: the same rows. Another baseline: the same first iteration, then its own policy's data."""
    spec = buffered_sweep(keep_log=True)
    first, again = (run(spec, toy_data, tmp_path, "gipo", "stale")[1] for _ in range(2))
    other = run(spec, toy_data, tmp_path, "ppo_clip", "stale")[1]
    assert first.rows == again.rows

    def tokens(result: RunResult, version: int) -> list[int]:
        chosen = [piece.action_tokens[:, 0] for piece in result.collected if piece.behaviour_version == version]
        return np.concatenate(chosen).tolist()

    assert [len(tokens(first, version)) for version in (0, 3, 15)] == [40, 40, 40]
    assert tokens(first, 0) == tokens(other, 0)
    assert tokens(first, 15) != tokens(other, 15)


def test_several_environments_share_the_steps(buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """Four environments collect the same number of steps, and the lags are those of one."""
    _, result = run(buffered_sweep(environments=4, keep_log=True), toy_data, tmp_path, "gipo", "stale")
    steps = Counter[int]()
    for piece in result.collected:
        steps[piece.behaviour_version] += piece.num_steps
    assert steps == dict.fromkeys(range(0, 18, 3), 40)


def test_the_cosine_ends_near_zero(buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """With the decay the last updates are small: the policy ends nearer to its start than without."""
    plain = run(buffered_sweep(), toy_data, tmp_path / "a", "gipo", "stale")[1]
    decayed = run(buffered_sweep(rate_decay="cosine"), toy_data, tmp_path / "b", "gipo", "stale")[1]
    assert values(decayed, "end_kl_start")[0] < values(plain, "end_kl_start")[0]


def test_from_scratch_means_new_weights(buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """The control of a run from scratch is a policy that knows nothing: uniform on the grid."""
    _, result = run(buffered_sweep(start="scratch"), toy_data, tmp_path, "zero", None)
    assert all(not p.any() for p in result.policy.policy_parameters())


def test_evaluations_come_with_the_steps_so_far(buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """With an evaluation each 6 updates, every second iteration of 40 steps has one, and so has the end."""
    spec = buffered_sweep()
    spec = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"every": 6})})
    _, result = run(spec, toy_data, tmp_path, "gipo", "stale")
    assert values(result, "env_steps") == [80, 160, 240]
    assert len(values(result, "success")) == 3
    assert [crosses(done, 4, 6) for done in (4, 8, 12, 16, 20)] == [False, True, True, False, True]


@pytest.mark.slow
def test_a_sweep_of_two_regimes_ends_in_a_report_and_its_log_can_be_replayed(
    buffered_sweep: ToySweep, toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """The usual report is built from regimes; what a run collected passes `verify` and is a data set for a sweep."""
    spec, folder = buffered_sweep(keep_log=True), SweepFolder(tmp_path / "out")
    spec = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"every": 6})})
    folder.path.mkdir()
    planned = claim(folder, spec, sources(spec, toy_data))
    assert len(planned) == 2 * (1 + 2 * 2)
    assert run_sweep(folder, due_runs(folder, planned, None, None), 2, silent).failed == 0
    build_report(folder, collect_cost=3.0)
    table = pl.read_csv(folder.path / "report" / "figures" / "13-cost.csv")
    assert (table["cost"] - table["learner_samples"]).to_list() == pytest.approx((3.0 * table["steps"]).to_list())
    chosen = next(run for run in planned if run.baseline == "gipo" and run.level == "stale" and run.lineage == 0)
    collected = folder.collected(chosen)
    verify(collected)
    card = open_log(collected).card
    assert card.levels["collected"].lag_updates == (3, 18)
    again = toy_sweep(
        datasets=(str(collected.parent),),
        lineages=(0,),
        levels=("collected",),
        replay_ratios=(2.0,),
        baselines=("zero", "ppo_clip", "staleness_sampling"),
    )
    replayed = SweepFolder(tmp_path / "replayed")
    replayed.path.mkdir()
    runs = claim(replayed, again, sources(again, toy_data))
    assert run_sweep(replayed, due_runs(replayed, runs, None, None), 1, silent).failed == 0
    # The control of the replay is the policy that the buffered run ended with.
    zero = next(run for run in runs if run.baseline == "zero")
    rows = pl.read_parquet(replayed.path / "runs" / zero.run_id() / "rows.parquet")
    ended = pl.read_parquet(folder.path / "runs" / chosen.run_id() / "rows.parquet")
    final = pl.col("metric") == "success"
    assert rows.filter(final)["value"].to_list() == ended.filter(final)["value"].to_list()[-1:]


def test_what_was_collected_is_written_again_after_an_interrupted_attempt(
    buffered_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """Remains of a killed attempt do not stand in the way."""
    chosen, result = run(buffered_sweep(keep_log=True), toy_data, tmp_path, "gipo", "stale")
    folder = tmp_path / "log"
    (folder / "arrow").mkdir(parents=True)
    (folder / "arrow" / "half.arrow").write_bytes(b"half")
    write_collected(folder, chosen, open_log(Path(chosen.data_folder)), result)
    verify(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('levels = ["fresh"]\n[buffered]\niterations = 2\n[regimes.a]', "levels and replay_ratios follow from them"),
        ("[buffered]\niterations = 2", "needs regimes"),
        ("[regimes.a]\ncapacity = 5", "the logged protocol needs levels and either"),
        ("[buffered]\niterations = 2\ncapacty = 5\n[regimes.a]", "capacity"),
        ("[buffered]\niterations = 2\n[regimes.a]\ncapacty = 5", "capacity"),
        ("[buffered]\niterations = 2\nenvironments = 3\n[regimes.a]", "no multiple of environments 3"),
    ],
)
def test_a_mistake_in_the_protocol_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Each wrong or misspelt setting is refused with what is right."""
    path = tmp_path / "mine.toml"
    head = 'name = "mine"\ndatasets = ["gridworld-5x5"]\nlineages = [0]\nbaselines = ["zero"]\nreference = "zero"\n'
    path.write_text(head + text)
    with pytest.raises(ConfigError, match=message):
        load_sweep(str(path))


def test_the_published_schedule_has_the_published_replay_ratios() -> None:
    """10 minibatches of 512, each used ten times, once of these for the policy, on 500 new steps: 10.24 and 102.4."""
    settings = BufferedSettings(iterations=1, sample_rounds=10, reuse=10, actor_every=10)
    assert settings.replay_ratio(512) == pytest.approx(10.24)
    assert settings.value_updates * 512 / settings.collect_steps == pytest.approx(102.4)
