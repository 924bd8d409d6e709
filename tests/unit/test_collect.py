"""Making logs: what is refused, and that the same recipe makes the same bytes."""

from pathlib import Path
from typing import Any

import pytest

from replaybench.collect import make_lineage
from replaybench.errors import DataError
from replaybench.recipe import Recipe, load_recipe
from replaybench.store import Card, read_card


def recipe(**changes: Any) -> Recipe:
    """The slippery grid's recipe, shortened; `changes` replace keys of its tables."""
    values = load_recipe("gridworld-5x5").model_dump()
    values["warm_start"] |= {"check_episodes": 50, "success": (0.05, 0.6)}
    values["reinforcement"] |= {"check_episodes": 50, "min_updates": 40, "success": (0.1, 0.95)}
    values["levels"] = {
        "fresh": {"lag_updates": (0, 0), "episodes": 50},
        "stale": {"lag_updates": (20, 45), "episodes": 50},
    }
    for table, over in changes.items():
        values[table] = values[table] | over
    return Recipe.model_validate(values)


def make(tmp_path: Path, name: str = "log", **changes: Any) -> Card:
    return make_lineage(recipe(**changes), 0, tmp_path / name, "test", lambda line: None)


def test_the_same_recipe_makes_the_same_bytes(tmp_path: Path) -> None:
    """Shards and checkpoints of two makings have the same digests; so have the cards."""
    make(tmp_path, "a")
    make(tmp_path, "b")
    assert (tmp_path / "a" / "card.toml").read_bytes() == (tmp_path / "b" / "card.toml").read_bytes()


def test_the_card_measures_what_the_levels_are(tmp_path: Path) -> None:
    """The start policy's own log is at distance 0 from it, the older one is not, and lags are exact."""
    card = make(tmp_path)
    fresh, stale = card.levels["fresh"], card.levels["stale"]
    assert fresh.lag_updates == (0, 0)
    assert stale.lag_updates is not None
    assert 20 <= stale.lag_updates[0] == stale.lag_updates[1] <= 45
    assert fresh.measured["kl"] < 1e-6 < 1e-4 < stale.measured["kl"]
    assert fresh.measured["ess_joint"] == pytest.approx(1.0)
    assert stale.measured["ess_joint"] < 0.999


def test_a_lineage_that_does_not_rise_is_refused(tmp_path: Path) -> None:
    """With a band that no policy reaches, making ends by saying so, and leaves no log."""
    rules = {"success": (0.99, 1.0), "max_updates": 60}
    with pytest.raises(DataError, match=r"did not rise.*Raise reinforcement\.max_updates"):
        make(tmp_path, reinforcement=rules)
    assert not (tmp_path / "log").exists()


def test_a_lineage_that_overshoots_at_every_rate_is_refused(tmp_path: Path) -> None:
    """A band below the warm start is passed at once, at each of the learning rates."""
    with pytest.raises(DataError, match="is above 0.001 after 40 updates at every rate"):
        make(tmp_path, reinforcement={"success": (0.0005, 0.001)})


def test_a_warm_start_that_stays_too_weak_is_refused(tmp_path: Path) -> None:
    """Cloning that never reaches its band says what to change."""
    with pytest.raises(DataError, match=r"behaviour cloning missed the band \[0.99, 1.0\]"):
        make(tmp_path, warm_start={"success": (0.99, 1.0), "max_updates": 6})


def test_levels_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    """Two levels that come from one checkpoint have the same distance to the start policy."""
    twin = {"twin": {"lag_updates": (20, 45), "episodes": 50}}
    with pytest.raises(DataError, match="'stale' and 'twin' cannot be told apart"):
        make(tmp_path, levels=twin)


def test_a_lag_that_no_checkpoint_has_is_refused(tmp_path: Path) -> None:
    """A range between two checkpoints, or before the warm start, holds none."""
    with pytest.raises(DataError, match="level 'ancient': no checkpoint lies 5000 to 6000 updates before the newest"):
        make(tmp_path, levels={"ancient": {"lag_updates": (5000, 6000), "episodes": 50}})


def test_a_sibling_that_matches_nowhere_is_refused(tmp_path: Path) -> None:
    """With a tolerance below what 50 episodes can show, no sibling is accepted."""
    matched = {"matched": {"branch_updates": 20, "tolerance": 1e-9, "episodes": 51}}
    with pytest.raises(DataError, match=r"level 'matched': no sibling out of 4"):
        make(tmp_path, levels=matched)


def test_without_reinforcement_the_warm_start_is_the_start_policy(tmp_path: Path) -> None:
    """A recipe may stop after cloning: one checkpoint, its own episodes; other levels are refused."""
    values = recipe().model_dump()
    values["reinforcement"], values["levels"] = None, {"fresh": values["levels"]["fresh"]}
    make_lineage(Recipe.model_validate(values), 0, tmp_path / "log", "test", lambda line: None)
    card = read_card(tmp_path / "log")
    assert [checkpoint.version for checkpoint in card.checkpoints] == [0]
    assert card.levels["fresh"].measured["ess_joint"] == pytest.approx(1.0)
    values["levels"] = recipe().model_dump()["levels"]
    with pytest.raises(ValueError, match=r"without \[reinforcement\] the fresh level is the only one"):
        Recipe.model_validate(values)


def test_where_clones_count_a_level_may_lie_before_the_warm_start(tmp_path: Path) -> None:
    """Versions are optimiser steps of cloning, then of RL: a clone is older by both and farther from the start."""
    rules = {"counted": True, "check_every": 2, "min_updates": 8, "learning_rate": 0.05}
    levels = {"stale": {"lag_updates": (1, 40), "episodes": 50}, "clone": {"lag_updates": (42, 60), "episodes": 50}}
    make(tmp_path, warm_start=rules, levels=levels)
    card = read_card(tmp_path / "log")
    versions = [checkpoint.version for checkpoint in card.checkpoints]
    clone = card.levels["clone"]
    assert clone.lag_updates is not None
    assert max(versions) - clone.lag_updates[0] in versions
    assert clone.measured["kl"] > card.levels["stale"].measured["kl"] > 1e-4
    # A run under the buffered protocol may ask for the warm start, which is not the oldest policy here.
    assert card.warm_start_checkpoint is not None
    assert min(versions) < card.version_of(card.warm_start_checkpoint) < card.version_of(card.start_checkpoint)


def test_where_clones_do_not_count_the_warm_start_is_the_oldest_checkpoint(tmp_path: Path) -> None:
    """Then the card says nothing of it, and such cards stay as they were."""
    make(tmp_path)
    assert read_card(tmp_path / "log").warm_start_checkpoint is None


def test_without_a_warm_start_a_lineage_begins_with_the_policy_as_it_is(tmp_path: Path) -> None:
    """A checkpoint from elsewhere, here the initial weights, is version 0 and the start of RL."""
    values = recipe(reinforcement={"success": (0.0, 1.0), "min_updates": 1}).model_dump()
    values["warm_start"], values["levels"] = None, {"fresh": values["levels"]["fresh"]}
    card = make_lineage(Recipe.model_validate(values), 0, tmp_path / "log", "test", lambda line: None)
    written = read_card(tmp_path / "log")
    assert min(checkpoint.version for checkpoint in written.checkpoints) == 0
    assert card.start_checkpoint != "u00000"
