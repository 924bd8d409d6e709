"""Recipes: the shipped ones, and every way in which one can be wrong."""

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaybench.errors import ConfigError, DataError
from replaybench.recipe import Recipe, load_recipe, read_toml, recipe_paths
from replaybench.spec import validate

VALUES = tomllib.loads(recipe_paths()["gridworld-5x5"].read_text(encoding="utf-8"))


def make_recipe(change: Callable[[dict[str, Any]], None] = lambda values: None) -> Recipe:
    values = copy.deepcopy(VALUES)
    change(values)
    return validate(Recipe, values, "mine.toml")


@pytest.mark.parametrize("name", recipe_paths())
def test_a_shipped_recipe_is_valid_and_named_like_its_file(name: str) -> None:
    """Every file in datasets/ loads under its own name and logs exactly one fresh level."""
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.fresh_levels() == 1


def test_a_recipe_loads_by_name_and_by_path() -> None:
    """Both are the same recipe."""
    assert load_recipe(str(recipe_paths()["gridworld-5x5"])) == load_recipe("gridworld-5x5")


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    """A misspelt data set is answered with a suggestion; a path that does not exist with the path."""
    with pytest.raises(ConfigError, match="Did you mean 'gridworld-5x5'"):
        load_recipe("gridwrld-5x5")
    with pytest.raises(ConfigError, match=r"No recipe at 'nowhere/x\.toml'"):
        load_recipe("nowhere/x.toml")


@pytest.mark.parametrize("content", [b"name = ", b"a = 1\na = 2\n", b"\xff\xfe", b"a = " + 10_000 * b"["])
def test_a_file_that_is_no_toml_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    """Syntax errors, repeated keys and other encodings name the file."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml: is not valid TOML"):
        read_toml(path)


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A specification of 65 MB is none; that much is said before it is parsed."""
    path = tmp_path / "endless.toml"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(DataError, match="more than any real one"):
        read_toml(path)


def _two_fresh(values: dict[str, Any]) -> None:
    values["levels"]["also"] = {"lag_updates": [0, 0]}


def _no_fresh(values: dict[str, Any]) -> None:
    del values["levels"]["fresh"]


def _two_kinds(values: dict[str, Any]) -> None:
    values["levels"]["stale"]["branch_updates"] = 10


def _no_kind(values: dict[str, Any]) -> None:
    values["levels"]["odd"] = {"episodes": 10}


def _unknown_part(values: dict[str, Any]) -> None:
    values["levels"]["mixed"] = {"mixture_of": ["fresh", "old"]}


def _mixture_of_mixture(values: dict[str, Any]) -> None:
    values["levels"]["mixed"] = {"mixture_of": ["fresh", "stale"]}
    values["levels"]["again"] = {"mixture_of": ["mixed"]}


def _no_learning_rate(values: dict[str, Any]) -> None:
    values["reinforcement"]["learning_rates"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_two_fresh, r"exactly one level must have lag_updates = \[0, 0\]"),
        (_no_fresh, r"exactly one level must have lag_updates = \[0, 0\]"),
        (_two_kinds, "exactly one of lag_updates, branch_updates, mixture_of"),
        (_no_kind, "exactly one of lag_updates, branch_updates, mixture_of"),
        (_unknown_part, "level 'mixed' mixes 'old'"),
        (_mixture_of_mixture, "level 'again' mixes 'mixed'"),
        (_no_learning_rate, "learning_rates"),
    ],
)
def test_levels_that_make_no_sense_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    """The message names the file and says what is wrong."""
    with pytest.raises(ConfigError, match=message) as caught:
        make_recipe(change)
    assert str(caught.value).startswith("mine.toml")


def test_a_misspelt_key_of_a_recipe_gets_the_nearest_one() -> None:
    """Also one inside a table."""
    with pytest.raises(ConfigError, match=r"Did you mean 'warm_start\.demonstrations'"):
        make_recipe(lambda values: values["warm_start"].update(demonstration=3))


def test_the_digest_stands_for_what_is_made() -> None:
    """Description and formats change no episode; seeds, sizes, rates and levels do, each in its own way."""
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda values: values.update(max_steps=41),
        lambda values: values.update(first_train_goal_seed=1),
        lambda values: values["suite_settings"].update(expert_width=0.6),
        lambda values: values["levels"]["stale"].update(steps=5000),
        lambda values: values["reinforcement"].update(learning_rates=[2e-2]),
        lambda values: values["warm_start"].update(learning_rate=0.06),
    ]
    digests = [make_recipe(change).digest() for change in changes]
    assert len({*digests, make_recipe().digest()}) == len(changes) + 1
    same = make_recipe(lambda values: values.update(description="other words", formats=["arrow"]))
    assert same.digest() == make_recipe().digest()


def test_a_misspelt_key_of_a_level_is_told_the_keys_of_a_level(tmp_path: Path) -> None:
    """Tables inside tables are searched too, also where their names are the user's own."""
    path = tmp_path / "mine.toml"
    path.write_text('extends = "gridworld-5x5"\n[levels.stale]\nlag_update = [30, 60]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"levels\.stale\.lag_update'.*Did you mean 'levels\.stale\.lag_updates'"):
        load_recipe(str(path))
