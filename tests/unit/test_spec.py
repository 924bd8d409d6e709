"""Specs at the border: what is refused, with which words, and what decides a run's name."""

from typing import Any

import pytest
from pydantic import ValidationError

from replaybench.errors import ConfigError
from replaybench.recipe import Recipe
from replaybench.spec import AdvantageSettings, BufferedSettings, EvaluateSettings, RunSpec, TrainSettings, validate


def make_run(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "dataset": "toy",
        "data_folder": "data/toy/lineage-003",
        "card_sha256": "a" * 64,
        "task": "push",
        "lineage": 3,
        "data_format": "arrow",
        "level": "stale",
        "replay_ratio": 8.0,
        "baseline": "gipo",
        "baseline_path": None,
        "baseline_sha256": "b" * 64,
        "config": {"sigma": 1.0},
        "seed": 2,
        "train": TrainSettings(),
        "evaluate": EvaluateSettings(),
    }
    return RunSpec(**values | changes)


def test_a_run_id_names_the_cell_lineage_and_seed() -> None:
    """A person can read dataset, lineage, level, ratio, baseline and seed; a control has neither level nor ratio."""
    assert make_run().run_id().startswith("toy-L3-stale-R8-gipo-s2-")
    assert make_run(replay_ratio=0.5).run_id().startswith("toy-L3-stale-R0.5-gipo-s2-")
    assert make_run(level=None, replay_ratio=None).run_id().startswith("toy-L3-gipo-s2-")


def test_a_logged_run_is_recorded_as_before_there_were_buffered_ones() -> None:
    """What came later is left out where it has its default, so the ids of older records stay."""
    assert make_run().run_id() == "toy-L3-stale-R8-gipo-s2-4fe4c5b25a"
    assert "buffered" not in make_run().model_dump()
    assert "alpha" not in make_run().model_dump()["train"]["advantage"]
    assert make_run(buffered=BufferedSettings(iterations=1)).run_id() != make_run().run_id()


DECISIVE: list[dict[str, Any]] = [
    {"dataset": "toy2"},
    {"card_sha256": "c" * 64},
    {"task": "pull"},
    {"lineage": 4},
    {"level": "fresh"},
    {"replay_ratio": 8.0000001},
    {"baseline": "ppo"},
    {"baseline_sha256": "c" * 64},
    {"config": {"sigma": 1.0000001}},
    {"config": {}},
    {"seed": 3},
    {"train": TrainSettings(learning_rate=2e-4)},
    {"train": TrainSettings(updates=65)},
    {"train": TrainSettings(advantage=AdvantageSettings(lam=0.9))},
    {"train": TrainSettings(granularity="step")},
    {"evaluate": EvaluateSettings(episodes=51)},
    {"evaluate": EvaluateSettings(goal_seed=778)},
]


def test_everything_that_decides_the_numbers_changes_the_run_id() -> None:
    """No two of these runs share an id, so none can be taken for another when a sweep resumes."""
    ids = [make_run(**changes).run_id() for changes in [{}, *DECISIVE]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "changes", [{"data_folder": "/elsewhere"}, {"baseline_path": "mine/gipo.py"}, {"data_format": "hdf5"}]
)
def test_where_the_same_bytes_lie_does_not_change_the_run_id(changes: dict[str, Any]) -> None:
    """Moving the log or the baseline's file, or reading the other format, leaves a run the same."""
    assert make_run(**changes).run_id() == make_run().run_id()


def test_a_run_is_rebuilt_from_its_record() -> None:
    """JSON and back is the same spec with the same id, floats and nested settings included."""
    run = make_run(train=TrainSettings(learning_rate=1 / 3, advantage=AdvantageSettings(estimator="vtrace")))
    again = RunSpec.model_validate_json(run.model_dump_json())
    assert again == run
    assert again.run_id() == run.run_id()


def test_specs_do_not_change_after_they_were_checked() -> None:
    """A spec is frozen."""
    with pytest.raises(ValidationError):
        TrainSettings().updates = 3  # type: ignore[misc]


def test_an_unknown_key_gets_the_nearest_one_and_its_file() -> None:
    """A misspelt key is never ignored, also inside a table."""
    with pytest.raises(ConfigError, match=r"my\.toml.*'learning_rat'.*Did you mean 'learning_rate'"):
        validate(TrainSettings, {"learning_rat": 1e-3}, "my.toml")
    with pytest.raises(ConfigError, match=r"'advantage\.gama'.*Did you mean 'advantage\.gamma'"):
        validate(TrainSettings, {"advantage": {"gama": 0.9}}, "my.toml")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"updates": -1}, "updates"),
        ({"updates": 1.5}, "updates"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"kl_coefficient": -0.1}, "kl_coefficient"),
        ({"granularity": "episode"}, "granularity"),
        ({"device": "tpu"}, "device"),
        ({"advantage": {"gamma": 1.01}}, r"advantage\.gamma"),
        ({"advantage": {"estimator": "td"}}, r"advantage\.estimator"),
        ({"advantage": {"recompute_every": 0}}, r"advantage\.recompute_every"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(values: dict[str, Any], key: str) -> None:
    """The message names the file and the key."""
    with pytest.raises(ConfigError, match=rf"^my\.toml: '{key}'"):
        validate(TrainSettings, values, "my.toml")


def test_a_missing_key_is_named() -> None:
    """A recipe without a task says so."""
    with pytest.raises(ConfigError, match="'name': Field required"):
        validate(Recipe, {}, "my.toml")


def test_infinite_settings_are_refused() -> None:
    """TOML can write inf; a record of it, in JSON, would read as no ratio at all."""
    with pytest.raises(ConfigError, match="learning_rate"):
        validate(TrainSettings, {"learning_rate": float("inf")}, "my.toml")
    with pytest.raises(ValidationError):
        make_run(replay_ratio=float("inf"))


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_a_learning_rate_that_is_no_number_is_refused(value: float) -> None:
    """TOML can write inf and nan; neither trains anything."""
    with pytest.raises(ConfigError, match="learning_rate"):
        validate(TrainSettings, {"learning_rate": value}, "my.toml")
