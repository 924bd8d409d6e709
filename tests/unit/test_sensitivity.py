"""Comparisons between families of arms on small tables made by hand."""

import polars as pl
import pytest

from replaybench.analysis.compare import POOLED, RUN_SCHEMA
from replaybench.analysis.sensitivity import ARM_SCHEMA, best_against_best, cross_fitted_choice, matched_differences

ARMS = pl.DataFrame(
    [
        ("ppo (.1)", "ppo", 1e-4, "epsilon", 0.1, 0.0953),
        ("ppo (.2)", "ppo", 1e-4, "epsilon", 0.2, 0.1823),
        ("gipo (.08)", "gipo", 1e-4, "sigma", 0.081, 0.0953),
        ("gipo (.155)", "gipo", 1e-4, "sigma", 0.155, 0.18230001),
        ("gipo (1)", "gipo", 1e-4, "sigma", 1.0, 1.1774),
    ],
    schema=ARM_SCHEMA,
    orient="row",
)


def runs_of(values: dict[str, list[float | None]]) -> pl.DataFrame:
    """One data set and cell; the values of each arm by lineage."""
    rows = [
        ("d", "t", lineage, "fresh", 1.0, arm, 0, value)
        for arm, of_arm in values.items()
        for lineage, value in enumerate(of_arm)
    ]
    return pl.DataFrame(rows, schema=RUN_SCHEMA, orient="row")


def test_matched_differences_pair_arms_of_equal_width() -> None:
    """Each block holds the family's difference at that width: .1 at the narrow one, -.2 at the wide one, by hand."""
    runs = runs_of(
        {
            "ppo (.1)": [0.4, 0.5, 0.6],
            "ppo (.2)": [0.5, 0.6, 0.7],
            "gipo (.08)": [0.5, 0.6, 0.7],
            "gipo (.155)": [0.3, 0.4, 0.5],
            "gipo (1)": [0.9, 0.9, 0.9],
        }
    )
    table = matched_differences(runs, ARMS, "ppo").filter(pl.col("dataset") == POOLED)
    assert table["upper"].to_list() == [0.095, 0.182]
    assert table["baseline"].to_list() == ["gipo", "gipo"]
    assert table["estimate"].to_list() == pytest.approx([0.1, -0.2])


def test_the_best_arm_is_chosen_without_the_lineage_that_it_is_compared_on() -> None:
    """On noise alone the arm that looks best in sample is not the one that is taken: the left-out lineage decides.

    The arms' best lineages are 0 and 1; each lineage's choice is the arm that did better on the others, its worst.
    """
    runs = runs_of({"ppo (.1)": [0.9, 0.1], "ppo (.2)": [0.1, 0.9]})
    chosen = cross_fitted_choice(runs, ARMS)
    assert chosen["baseline"].to_list() == ["ppo (.2)", "ppo (.1)"]
    assert chosen["value"].to_list() == [0.9, 0.9]


def test_a_lineage_on_which_the_chosen_arm_failed_is_missing_not_zero() -> None:
    """The arm that is best elsewhere has no value on lineage 2; the pair is left out and counted."""
    runs = runs_of(
        {
            "ppo (.1)": [0.4, 0.5, 0.6],
            "gipo (.08)": [0.1, 0.1, 0.1],
            "gipo (.155)": [0.5, 0.6, None],
        }
    )
    (row,) = best_against_best(runs, ARMS, "ppo").filter(pl.col("dataset") == POOLED).to_dicts()
    assert (row["n"], row["num_missing"]) == (2, 1)
    assert row["estimate"] == pytest.approx(0.1)
