"""Comparisons at equal distance to the start policy, by hand."""

import polars as pl
import pytest

from replaybench.analysis.compare import POOLED
from replaybench.analysis.distance import TARGETS, at_distance, distance_differences

SCHEMA = {
    "dataset": pl.String,
    "task": pl.String,
    "lineage": pl.Int64,
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "family": pl.String,
    "distance": pl.Float64,
    "value": pl.Float64,
    "start": pl.Float64,
}


def points(settings: dict[str, list[tuple[float, float]]], lineages: int = 3) -> pl.DataFrame:
    """Each family's (distance, gain over the start) in every lineage; the start's success grows with the lineage."""
    rows = [
        ("d", "t", lineage, "fresh", 1.0, family, distance, 0.4 + 0.1 * lineage + gain, 0.4 + 0.1 * lineage)
        for family, found in settings.items()
        for distance, gain in found
        for lineage in range(lineages)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def test_values_are_interpolated_in_the_root_of_the_kl() -> None:
    """Between KL .01 (gain .1) and .04 (gain .3) the root is halfway at .0225: gain .2."""
    found = at_distance(points({"ppo": [(0.04, 0.3), (0.01, 0.1)]}, lineages=1), 0.0225)
    assert found["value"].to_list() == pytest.approx([0.6])


def test_the_start_policy_is_the_point_at_no_distance() -> None:
    """Halfway in the root to the only setting, at KL .04, half of its gain."""
    found = at_distance(points({"ppo": [(0.04, 0.3)]}, lineages=1), 0.01)
    assert found["value"].to_list() == pytest.approx([0.55])


def test_nothing_is_extrapolated() -> None:
    """A family that never moved as far has no row, and the comparison counts its lineages as missing."""
    near = points({"ppo": [(0.06, 0.1)], "gipo": [(0.03, 0.2)]})
    assert at_distance(near, 0.05)["baseline"].unique().to_list() == ["ppo"]
    assert max(distance_differences(near, "ppo")["distance"]) == 0.02


def test_families_on_one_curve_do_not_differ_at_equal_distance() -> None:
    """Gains that depend on the length alone: compared as run they differ by .2, at equal distance by nothing."""
    gain = {distance: distance**0.5 for distance in (0.01, 0.04, 0.09)}
    both = points({"ppo": [(0.09, gain[0.09]), (0.04, gain[0.04])], "gipo": [(0.01, gain[0.01]), (0.04, gain[0.04])]})
    table = distance_differences(both, "ppo").filter(pl.col("dataset") == POOLED)
    assert table["distance"].to_list() == [target for target in TARGETS if target <= 0.04]
    assert table["estimate"].to_list() == pytest.approx([0.0] * len(table), abs=1e-9)


def test_a_better_direction_shows_at_equal_distance() -> None:
    """GIPO gains .1 more at every distance that both reach, on every lineage."""
    both = points({"ppo": [(0.02, 0.1)], "gipo": [(0.02, 0.2)]})
    (row,) = (
        distance_differences(both, "ppo")
        .filter((pl.col("dataset") == POOLED) & (pl.col("distance") == 0.02))
        .to_dicts()
    )
    assert (row["estimate"], row["n"]) == (pytest.approx(0.1), 3)
