"""Tables of what logs exist, over a hand-made data folder."""

from pathlib import Path

import pytest

from replaybench.errors import ConfigError, DataError
from replaybench.inventory import describe_data, find_episode, list_data, log_folders
from replaybench.recipe import recipe_paths
from replaybench.store import open_log


def test_the_complete_lineages_of_a_data_set_are_found_by_name_and_by_folder(toy_data: Path) -> None:
    """In order; a folder without card does not count."""
    expected = [toy_data / "toy" / "lineage-000", toy_data / "toy" / "lineage-001"]
    assert log_folders(toy_data, "toy") == expected
    assert log_folders(Path("nowhere"), f"{toy_data}/toy") == expected


def test_a_data_set_without_complete_lineage_says_how_to_make_one(tmp_path: Path) -> None:
    """A known recipe that is not made is a DataError with the command; an unknown name gets the nearest recipe."""
    (tmp_path / "gridworld-5x5" / "lineage-000").mkdir(parents=True)
    with pytest.raises(DataError, match="replaybench data make gridworld-5x5"):
        log_folders(tmp_path, "gridworld-5x5")
    with pytest.raises(ConfigError, match="Did you mean 'gridworld-5x5'"):
        log_folders(tmp_path, "gridworld5x5")
    with pytest.raises(DataError, match="no complete lineage"):
        log_folders(tmp_path, "./nowhere")


def test_every_recipe_and_every_folder_is_listed_once(toy_data: Path, tmp_path: Path) -> None:
    """Recipes come with what is made of them, folders made elsewhere after them; no data folder is no error."""
    rows = {row["dataset"]: row for row in list_data(toy_data)}
    assert list(rows) == [*recipe_paths(), "toy"]
    assert rows["toy"]["lineages_made"] == ["000", "001"]
    assert rows["toy"]["description"] == "made elsewhere"
    assert rows["gridworld-5x5"]["lineages_made"] == []
    assert [row["dataset"] for row in list_data(tmp_path / "none")] == list(recipe_paths())


def test_each_level_of_each_lineage_is_described(toy_data: Path) -> None:
    """A lag range of one value is that value; what was not measured is empty."""
    rows = describe_data(toy_data, "toy")
    places = [(row["lineage"], row["level"], row["lag_updates"], row["branch_updates"]) for row in rows]
    assert places == [(n, level, lag, None) for n in (0, 1) for level, lag in (("fresh", 0), ("stale", 40))]
    assert all(row["success"] is None for row in rows)


def test_an_episode_is_found_by_lineage_level_and_number(toy_data: Path) -> None:
    """The same that the log returns; what there is not is refused with what there is."""
    expected = open_log(toy_data / "toy" / "lineage-001").episodes("stale")
    found = find_episode(toy_data, "toy", 1, "stale", 2)
    assert found.episode_id == expected[2].episode_id
    with pytest.raises(ConfigError, match=r"lineage-002.*Known: lineage-000, lineage-001"):
        find_episode(toy_data, "toy", 2, "stale", 0)
    with pytest.raises(ConfigError, match="Did you mean 'stale'"):
        find_episode(toy_data, "toy", 1, "stele", 0)
    with pytest.raises(ConfigError, match=f"has episodes 0 to {len(expected) - 1}, not 999"):
        find_episode(toy_data, "toy", 1, "stale", 999)
