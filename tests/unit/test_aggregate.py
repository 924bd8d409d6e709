"""Aggregates against rliable's numbers, hand computations, and coverage on simulated scores."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from replaybench.analysis.aggregate import (
    aggregates,
    improvement,
    interquartile_means,
    iqm,
    normalised_scores,
    optimality_gap,
    performance_profile,
    stratified_bootstrap,
)
from replaybench.analysis.compare import RUN_SCHEMA
from replaybench.analysis.intervals import interquartile_mean
from replaybench.errors import DataError

# Six lineages (rows) of five tasks (columns); the numbers below are rliable 1.2.0's on these.
X = np.array(
    [
        [0.004, 0.148, 0.699, 0.398, -0.292],
        [0.198, 0.013, 0.245, -0.282, 0.273],
        [0.271, 0.673, 0.295, 0.353, -0.248],
        [0.876, -0.375, 0.531, 0.101, -0.064],
        [0.003, -0.002, 0.314, 0.167, 0.645],
        [-0.349, 0.199, -0.068, 0.433, -0.435],
    ]
)
Y = np.array(
    [
        [-0.003, 0.163, -0.345, 0.396, 0.154],
        [0.402, 0.388, -0.194, -0.139, 0.039],
        [0.324, 0.355, -0.113, -0.082, -0.139],
        [-0.075, 0.029, 0.06, 0.717, -0.052],
        [0.013, 0.238, -0.186, -0.011, 0.104],
        [0.332, -0.295, 0.511, -0.006, 0.151],
    ]
)
RLIABLE = {"iqm": 0.157375, "optimality_gap": 0.8425333333333334, "improvement": 0.5277777777777778}
RLIABLE_PROFILE = {-0.2: 0.8, 0.0: 0.7, 0.2: 0.43333333, 0.5: 0.16666667}


def by_task(matrix: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {f"task {column}": matrix[:, column] for column in range(matrix.shape[1])}


def long(matrix: NDArray[np.float64]) -> pl.DataFrame:
    rows = [
        ("fresh", 1.0, "m", f"task {task}", lineage, value)
        for lineage, row in enumerate(matrix.tolist())
        for task, value in enumerate(row)
    ]
    columns = ["level", "replay_ratio", "baseline", "dataset", "lineage", "score"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_point_values_equal_those_of_rliable() -> None:
    """Interquartile mean, optimality gap, probability of improvement and performance profile."""
    assert iqm(by_task(X)).estimate == pytest.approx(RLIABLE["iqm"], rel=1e-12)
    assert optimality_gap(by_task(X)).estimate == pytest.approx(RLIABLE["optimality_gap"], rel=1e-12)
    assert improvement(by_task(X), by_task(Y)).estimate == pytest.approx(RLIABLE["improvement"], rel=1e-12)
    profile = performance_profile(long(X), list(RLIABLE_PROFILE))
    assert profile["share_above"].to_list() == pytest.approx(list(RLIABLE_PROFILE.values()), abs=1e-8)


def test_the_bootstrap_redraws_lineages_within_their_task() -> None:
    """Tasks of constant scores have no spread whatever is redrawn, though scores differ between tasks."""
    scores = {"a": [0.1] * 10, "b": [0.9] * 10}
    interval = stratified_bootstrap(scores, lambda draws: draws.mean(axis=1), np.random.default_rng(0), 500)
    assert interval[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_the_bootstrap_equals_a_slow_twin() -> None:
    """Row by row with the same draws, by the scalar interquartile mean."""
    scores = by_task(X)
    interval = stratified_bootstrap(scores, interquartile_means, np.random.default_rng(3), 400)
    rng = np.random.default_rng(3)
    draws = [scores[task][rng.integers(6, size=(400, 6))] for task in sorted(scores)]
    values = [interquartile_mean(np.concatenate([draw[i] for draw in draws])) for i in range(400)]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), rel=1e-12)


def test_the_bootstrap_refuses_few_lineages_and_takes_its_generator() -> None:
    """Below 20 its percentile interval covers too little; the same generator gives the same interval."""
    with pytest.raises(DataError, match="needs 20 lineages, there are 18"):
        stratified_bootstrap(by_task(X[:, :3]), interquartile_means, np.random.default_rng(0))
    first, again, other = (
        stratified_bootstrap(by_task(X), interquartile_means, np.random.default_rng(seed), 200) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.low != other.low


def test_few_lineages_get_students_intervals() -> None:
    """Twelve scores: a trimmed-mean interval by hand, with 3 cut at each end and 5 degrees of freedom."""
    scores = {"a": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], "b": [0.6, 0.7, 0.8, 0.9, 1.0, 5.0]}
    winsorised = np.array([0.3] * 4 + [0.4, 0.5, 0.6, 0.7] + [0.8] * 4)
    half_width = 2.570582 * winsorised.std(ddof=1) / (0.5 * 12**0.5)
    interval = iqm(scores)
    assert interval.estimate == pytest.approx(0.55)
    assert interval.high - interval.estimate == pytest.approx(half_width, rel=1e-6)
    assert interval.method == "trimmed t"
    assert iqm({"a": [0.2] * 6}).method == "zero variance"


def coverage(make: Any, truth: float, draw: Any, repetitions: int) -> float:
    """The share of simulated sweeps whose interval holds the truth."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(repetitions):
        interval = make(draw(rng))
        hits += interval.low <= truth <= interval.high
    return hits / repetitions


@pytest.mark.parametrize("lineages", [6, 12])
def test_the_trimmed_interval_covers(lineages: int) -> None:
    """Two tasks of normal scores with mean .3: 95 % of 1,500 intervals hold it, within 2.5 points."""

    def draw(rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        return {task: rng.normal(0.3, 0.2, lineages // 2) for task in "ab"}

    assert coverage(iqm, 0.3, draw, 1500) == pytest.approx(0.95, abs=0.025)


def test_the_interval_of_the_probability_of_improvement_covers() -> None:
    """Two tasks of six paired lineages whose methods are exchangeable: the truth is 1/2.

    The jackknife of a ratio of counts is coarse at six lineages: between 90 and 99 % of 1,500 intervals.
    """

    def draw(rng: np.random.Generator) -> Any:
        shared = {task: rng.normal(0.0, 0.1, 6) for task in "ab"}
        return [{task: shared[task] + rng.normal(0.0, 0.2, 6) for task in "ab"} for _ in range(2)]

    assert 0.90 <= coverage(lambda pair: improvement(*pair), 0.5, draw, 1500) <= 0.99


@pytest.mark.slow
def test_the_bootstrap_covers_from_twenty_lineages_on() -> None:
    """Two tasks of twelve lineages: the percentile interval of the interquartile mean holds the truth in 92 to 97 %."""

    def draw(rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        return {task: rng.normal(0.3, 0.2, 12) for task in "ab"}

    def make(scores: dict[str, NDArray[np.float64]]) -> Any:
        return stratified_bootstrap(scores, interquartile_means, np.random.default_rng(0), 2000)

    assert 0.92 <= coverage(make, 0.3, draw, 1000) <= 0.97


def runs_of(success: dict[str, list[float]], start: list[float]) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = [
        ("d", "t", lineage, None, None, "zero", 0, value) for lineage, value in enumerate(start)
    ]
    rows += [
        ("d", "t", lineage, "fresh", 1.0, name, 0, value)
        for name, values in success.items()
        for lineage, value in enumerate(values)
    ]
    return pl.DataFrame(rows, schema=RUN_SCHEMA, orient="row")


def test_scores_are_0_at_the_start_and_1_at_the_expert_whatever_else_is_present() -> None:
    """A start of .5 on average: .75 scores .5, .25 scores -.5, and a further method changes nothing."""
    alone = runs_of({"gipo": [0.75, 0.25]}, [0.4, 0.6])
    beside = runs_of({"gipo": [0.75, 0.25], "sapo": [1.0, 0.0]}, [0.4, 0.6])
    for runs in (alone, beside):
        scores = normalised_scores(runs, "zero").filter(pl.col("baseline") == "gipo")
        assert scores["score"].to_list() == pytest.approx([0.5, -0.5])


def test_a_sweep_without_its_control_has_no_scores() -> None:
    """There is nothing that 0 could mean."""
    runs = runs_of({"gipo": [0.75, 0.25]}, [0.4, 0.6]).filter(pl.col("baseline") != "zero")
    with pytest.raises(DataError, match="Run the control 'zero'"):
        normalised_scores(runs, "zero")


def test_the_table_has_a_row_for_each_aggregate_and_none_against_itself() -> None:
    """The reference has no probability of improvement over itself."""
    scores = normalised_scores(runs_of({"gipo": [0.7, 0.8, 0.9], "ppo": [0.5, 0.6, 0.4]}, [0.4, 0.6, 0.5]), "zero")
    table = aggregates(scores, "ppo")
    found = {(row["baseline"], row["aggregate"]): row["estimate"] for row in table.to_dicts()}
    assert set(found) == {
        ("gipo", "iqm"),
        ("gipo", "optimality_gap"),
        ("gipo", "probability_of_improvement"),
        ("ppo", "iqm"),
        ("ppo", "optimality_gap"),
    }
    assert found["gipo", "probability_of_improvement"] == 1.0
    assert found["gipo", "optimality_gap"] == pytest.approx(0.4)
