"""Comparison tables: against scipy.stats and slow twins, and their error rates on simulated sweeps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from replaybench.analysis.compare import (
    CELL,
    DIFFERENCE_SCHEMA,
    SUMMARY_SCHEMA,
    cell_means,
    improvement_over_start,
    level_summary,
    paired_differences,
)
from replaybench.analysis.intervals import stratified_mean_t
from replaybench.errors import ConfigError, DataError

DATASETS = ("door", "drawer")
LEVELS = ("fresh", "stale")


def _run(**columns: Any) -> dict[str, Any]:
    defaults = {"dataset": "door", "task": "open", "lineage": 0, "level": "fresh", "replay_ratio": 4.0}
    return {**defaults, "baseline": "a", "seed": 0, "value": 0.5, **columns}


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


def _sweep(levels: tuple[str, ...] = LEVELS, seeds: int = 1, rng_seed: int = 0) -> pl.DataFrame:
    """Two data sets of 6 lineages; baselines a, b, c at each level, and the control `start`."""
    rng = np.random.default_rng(rng_seed)
    rows = []
    for dataset in DATASETS:
        for lineage in range(6):
            where = {"dataset": dataset, "task": f"{dataset}-open", "lineage": lineage}
            rows.append(_run(**where, level=None, replay_ratio=None, baseline="start", value=rng.uniform(0.4, 0.6)))
            rows += [
                _run(**where, level=level, baseline=baseline, seed=seed, value=rng.uniform(0.2, 0.9))
                for level in levels
                for baseline in ("a", "b", "c")
                for seed in range(seeds)
            ]
    return _frame(rows)


def _values(runs: pl.DataFrame, dataset: str, level: str | None, baseline: str) -> np.ndarray:
    """Slow twin of the cell means: the values of a table's row, by lineage."""
    by_lineage: dict[int, list[float]] = {}
    for row in runs.iter_rows(named=True):
        if (row["dataset"], row["level"], row["baseline"]) == (dataset, level, baseline):
            by_lineage.setdefault(row["lineage"], []).append(row["value"])
    return np.array([np.mean(by_lineage[lineage]) for lineage in sorted(by_lineage)])


def _row(table: pl.DataFrame, **where: Any) -> dict[str, Any]:
    return table.row(by_predicate=pl.all_horizontal(pl.col(k).eq_missing(v) for k, v in where.items()), named=True)


def test_seeds_are_averaged_within_a_lineage() -> None:
    """By hand: .2 and .6 average to .4; a failed run (null) is left out, a cell without any has no row."""
    runs = _frame(
        [
            _run(seed=0, value=0.2),
            _run(seed=1, value=0.6),
            _run(lineage=1, seed=0, value=0.3),
            _run(lineage=1, seed=1, value=None),
            _run(lineage=2, seed=0, value=None),
        ]
    )
    means = cell_means(runs)
    assert means.columns == [*CELL, "value", "num_seeds"]
    assert means["lineage"].to_list() == [0, 1]
    assert means["value"].to_list() == pytest.approx([0.4, 0.3])
    assert means["num_seeds"].to_list() == [2, 1]


def test_summary_intervals_are_over_lineages_not_runs() -> None:
    """n counts lineages; interval of one data set from scipy, pooled one from stratified_mean_t on the two."""
    runs = _sweep(seeds=3)
    table = level_summary(runs)
    door, drawer = (_values(runs, dataset, "stale", "b") for dataset in DATASETS)
    row = _row(table, dataset="door", level="stale", baseline="b")
    expected = stats.t.interval(0.95, 5, loc=door.mean(), scale=stats.sem(door))
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((door.mean(), *expected))
    assert (row["n"], row["num_missing"], row["num_partial"], row["interval_method"]) == (6, 0, 0, "t")
    pooled = _row(table, dataset="all", level="stale", baseline="b")
    interval = stratified_mean_t({"door": door, "drawer": drawer})
    assert (pooled["estimate"], pooled["low"], pooled["high"]) == pytest.approx(interval[:3])
    assert pooled["n"] == 12


def test_summary_has_the_documented_rows_and_columns() -> None:
    """Each data set, then "all"; each level and baseline once, and the control once under its null level."""
    table = level_summary(_sweep())
    assert dict(table.schema) == {name: dtype() for name, dtype in SUMMARY_SCHEMA.items()}
    settings = [(None, "start"), *((level, baseline) for level in LEVELS for baseline in "abc")]
    expected = [(dataset, *setting) for dataset in ("door", "drawer", "all") for setting in settings]
    assert table.select("dataset", "level", "baseline").rows() == expected
    start = _row(table, dataset="door", baseline="start")
    assert start["estimate"] == pytest.approx(_values(_sweep(), "door", None, "start").mean())
    assert start["replay_ratio"] is None


def test_differences_are_paired_within_the_lineage() -> None:
    """Interval and p value of one data set from scipy's ttest_rel, with seeds averaged first."""
    runs = _sweep(seeds=2)
    row = _row(paired_differences(runs, "a"), dataset="drawer", level="fresh", baseline="c")
    a, c = (_values(runs, "drawer", "fresh", baseline) for baseline in "ac")
    test = stats.ttest_rel(c, a)
    expected = test.confidence_interval(0.95)
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx(((c - a).mean(), *expected))
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert (row["n"], row["reference"], row["interval_method"]) == (6, "a", "t")


def test_pooled_differences_are_stratified_by_task() -> None:
    """The difference of two tasks is half of a Welch test between one's differences and minus the other's (scipy)."""
    runs = _sweep()
    row = _row(paired_differences(runs, "a"), dataset="all", level="stale", baseline="b")
    door, drawer = (_values(runs, d, "stale", "b") - _values(runs, d, "stale", "a") for d in DATASETS)
    welch = stats.ttest_ind(door, -drawer, equal_var=False)
    expected = welch.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low / 2, expected.high / 2))
    assert row["p_value"] == pytest.approx(welch.pvalue)
    assert row["n"] == 12


def test_tasks_of_one_data_set_are_strata() -> None:
    """By hand: differences of .1 in 4 lineages of one task and .5 in 2 of another average to .3, not to .233."""
    rows = [
        _run(task=task, lineage=lineage, baseline=baseline, value=value)
        for task, lineages, difference in [("open", 4, 0.1), ("close", 2, 0.5)]
        for lineage in range(lineages)
        for baseline, value in [("a", 0.1 * lineage), ("b", 0.1 * lineage + difference)]
    ]
    table = paired_differences(_frame(rows), "a")
    assert table["estimate"].to_list() == pytest.approx([0.3, 0.3])
    assert table["n"].to_list() == [6, 6]


def test_every_setting_and_baseline_but_the_reference_has_a_row() -> None:
    """The control is a row at every level; columns and order are as documented."""
    table = paired_differences(_sweep(), "a")
    assert dict(table.schema) == {name: dtype() for name, dtype in DIFFERENCE_SCHEMA.items()}
    expected = [
        (d, level, baseline) for d in ("door", "drawer", "all") for level in LEVELS for baseline in ["b", "c", "start"]
    ]
    assert table.select("dataset", "level", "baseline").rows() == expected


def test_improvement_pairs_the_control_with_every_level() -> None:
    """p value of each level against the one control run of the lineage, from scipy's ttest_rel."""
    runs = _sweep()
    table = improvement_over_start(runs, "start")
    start = _values(runs, "door", None, "start")
    for level in LEVELS:
        row = _row(table, dataset="door", level=level, baseline="b")
        b = _values(runs, "door", level, "b")
        assert row["estimate"] == pytest.approx((b - start).mean())
        assert row["p_value"] == pytest.approx(stats.ttest_rel(b, start).pvalue)
    assert table.equals(paired_differences(runs, "start"))
    assert table["baseline"].unique().sort().to_list() == ["a", "b", "c"]


def test_holm_adjusts_over_all_settings_of_a_data_set() -> None:
    """By hand: of the 2 x 3 comparisons of a data set the smallest p counts times 6, the next times 5, down to 1."""
    for _, table in paired_differences(_sweep(), "a").group_by("dataset"):
        ordered = table.sort("p_value")
        stepped = np.maximum.accumulate(ordered["p_value"].to_numpy() * np.arange(6, 0, -1))
        assert ordered["p_holm"].to_list() == pytest.approx(np.minimum(stepped, 1.0).tolist())


def test_minimum_detectable_is_that_of_the_holm_step() -> None:
    """Among 6 comparisons a true difference of that size passes .05/6 with power .8 (scipy.stats.nct)."""
    runs = _sweep()
    row = _row(paired_differences(runs, "a"), dataset="door", level="stale", baseline="b")
    difference = _values(runs, "door", "stale", "b") - _values(runs, "door", "stale", "a")
    noncentrality = row["minimum_detectable"] / stats.sem(difference)
    assert stats.nct.sf(stats.t.ppf(1 - 0.05 / 12, 5), 5, noncentrality) == pytest.approx(0.8, abs=1e-4)
    # Twice as many lineages: 11 degrees of freedom and a standard error smaller by sqrt 2.
    doubled = row["minimum_detectable_doubled"] / (stats.sem(difference) / 2**0.5)
    assert stats.nct.sf(stats.t.ppf(1 - 0.05 / 12, 11), 11, doubled) == pytest.approx(0.8, abs=1e-4)


def _constant_shift(shift: float) -> pl.DataFrame:
    """Baseline b differs from a by `shift` in every lineage, up to rounding; c by noise around 0."""
    runs = _sweep(levels=("fresh",))
    a = runs.filter(pl.col("baseline") == "a").select("dataset", "lineage", a="value")
    shifted = pl.when(pl.col("baseline") == "b").then(pl.col("a") + shift).otherwise("value")
    return runs.join(a, on=["dataset", "lineage"], maintain_order="left").with_columns(value=shifted).drop("a")


def test_a_planted_difference_is_found_in_both_directions() -> None:
    """A difference of .3 with noise of .05 is "better", and seen from the other side "worse"."""
    runs = _constant_shift(0.3)
    noise = pl.Series(np.random.default_rng(1).normal(0, 0.05, len(runs)))
    runs = runs.with_columns(value=pl.col("value") + noise)
    for dataset in (*DATASETS, "all"):
        row = _row(paired_differences(runs, "a"), dataset=dataset, baseline="b")
        assert row["verdict"] == "better"
        assert row["low"] < 0.3 < row["high"]
        assert row["minimum_detectable"] < 0.3
        assert _row(paired_differences(runs, "b"), dataset=dataset, baseline="a")["verdict"] == "worse"


def test_identical_baselines_are_not_resolved() -> None:
    """Differences of exactly 0 in every lineage, as on fresh data, give p 1, no bounds and no verdict."""
    row = _row(paired_differences(_constant_shift(0.0), "a"), dataset="all", baseline="b")
    assert (row["estimate"], row["low"], row["high"], row["p_value"]) == (0.0, None, None, 1.0)
    assert (row["verdict"], row["interval_method"]) == ("no difference resolved", "zero variance")
    assert row["minimum_detectable"] is None


def test_baselines_equal_up_to_rounding_are_not_resolved() -> None:
    """.1+.2 and .3 differ in the last digit; as differences of some lineages they are 0, with p 1."""
    rows = [
        _run(lineage=lineage, baseline=baseline, value=value)
        for lineage in range(6)
        for baseline, value in [("a", 0.3), ("b", 0.1 + 0.2 if lineage else 0.3)]
    ]
    assert cell_means(_frame(rows))["value"].n_unique() == 2
    row = _row(paired_differences(_frame(rows), "a"), dataset="door")
    assert (row["estimate"], row["p_value"], row["interval_method"]) == (0.0, 1.0, "zero variance")


def test_a_constant_difference_counts_lineages_and_not_its_rounding_error() -> None:
    """By hand: 6 equal differences have p = 2/2^6, times 3 tests .094: unresolved; 12 have 2/2^12: resolved."""
    table = paired_differences(_constant_shift(0.1), "a")
    single, pooled = (_row(table, dataset=dataset, baseline="b") for dataset in ("door", "all"))
    assert (single["p_value"], single["verdict"]) == (2 / 64, "no difference resolved")
    assert (pooled["p_value"], pooled["verdict"]) == (2 / 4096, "better")
    assert (pooled["estimate"], pooled["interval_method"]) == (pytest.approx(0.1), "zero variance")


_LOST = (pl.col("dataset") == "door") & (pl.col("lineage") == 2) & (pl.col("level") == "stale")


@pytest.mark.parametrize(
    "fail",
    [
        lambda runs, lost: runs.filter(~lost.fill_null(False)),
        lambda runs, lost: runs.with_columns(value=pl.when(lost.fill_null(False)).then(None).otherwise("value")),
    ],
    ids=["no row", "null value"],
)
@pytest.mark.parametrize("failed", ["a", "b"])
def test_a_failed_run_leaves_its_pair_out_and_is_counted(
    fail: Callable[[pl.DataFrame, pl.Expr], pl.DataFrame], failed: str
) -> None:
    """Without lineage 2 on either side the pair has n 5 and num_missing 1; expected p from scipy's ttest_rel."""
    runs = _sweep()
    table = paired_differences(fail(runs, _LOST & (pl.col("baseline") == failed)), "a")
    a, b = (np.delete(_values(runs, "door", "stale", baseline), 2) for baseline in "ab")
    row = _row(table, dataset="door", level="stale", baseline="b")
    assert (row["n"], row["num_missing"]) == (5, 1)
    assert row["p_value"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
    pooled = _row(table, dataset="all", level="stale", baseline="b")
    assert (pooled["n"], pooled["num_missing"]) == (11, 1)
    untouched = _row(table, dataset="door", level="fresh", baseline="b")
    assert (untouched["n"], untouched["num_missing"]) == (6, 0)


def test_a_cell_that_failed_entirely_keeps_its_row() -> None:
    """Without a value in any lineage of a task nothing is estimated, and "all" does not fall back to the other task."""
    runs = _sweep().filter(~((pl.col("dataset") == "door") & (pl.col("baseline") == "b")))
    table = paired_differences(runs, "a")
    row = _row(table, dataset="door", level="fresh", baseline="b")
    assert (row["n"], row["num_missing"], row["estimate"], row["p_value"], row["p_holm"]) == (0, 6, None, None, None)
    assert (row["verdict"], row["interval_method"]) == ("no difference resolved", "undefined")
    pooled = _row(table, dataset="all", level="fresh", baseline="b")
    assert (pooled["n"], pooled["num_missing"], pooled["estimate"]) == (6, 6, None)
    # The lost test still counts in the family: by hand, the smaller p of the other two takes factor 3.
    others = table.filter(pl.col("dataset") == "door", pl.col("level") == "fresh", pl.col("baseline") != "b")
    assert others["p_holm"].min() == pytest.approx(min(1.0, 3 * others["p_value"].min()))
    summary = _row(level_summary(runs), dataset="door", level="fresh", baseline="b")
    assert (summary["n"], summary["num_missing"], summary["estimate"]) == (0, 6, None)


def test_a_single_lineage_has_an_estimate_and_no_verdict() -> None:
    """One pair gives a difference, and neither bounds nor a p value."""
    runs = _frame([_run(baseline="a", value=0.2), _run(baseline="b", value=0.9)])
    row = _row(paired_differences(runs, "a"), dataset="door")
    assert (row["estimate"], row["low"], row["p_value"], row["n"]) == (0.7, None, None, 1)
    assert row["verdict"] == "no difference resolved"


def test_a_lineage_with_a_lost_seed_is_counted_as_partial() -> None:
    """A lineage averaged over 2 of 3 seeds stays in the pair and is counted; a control's single seed is complete."""
    runs = _sweep(seeds=3).filter(~(_LOST & (pl.col("baseline") == "b") & (pl.col("seed") == 1)).fill_null(False))
    table = paired_differences(runs, "a")
    row = _row(table, dataset="door", level="stale", baseline="b")
    assert (row["n"], row["num_missing"], row["num_partial"]) == (6, 0, 1)
    assert _row(table, dataset="all", level="stale", baseline="b")["num_partial"] == 1
    assert table["num_partial"].sum() == 2
    assert level_summary(runs)["num_partial"].sum() == 2
    # From the other side: the reference's lost seed makes its pair with each of a, c and start partial.
    other = paired_differences(runs, "b").filter(pl.col("dataset") == "door", pl.col("level") == "stale")
    assert other["num_partial"].to_list() == [1, 1, 1]


def test_a_pair_left_out_is_missing_and_not_partial_as_well() -> None:
    """A lineage with one side lost and the other short of a seed counts once, as missing."""
    lost = (_LOST & ((pl.col("baseline") == "b") | (pl.col("seed") == 1))).fill_null(False)
    row = _row(paired_differences(_sweep(seeds=3).filter(~lost), "a"), dataset="door", level="stale", baseline="b")
    assert (row["n"], row["num_missing"], row["num_partial"]) == (5, 1, 0)


def test_a_level_of_one_data_set_is_pooled_over_that_one() -> None:
    """A setting that a data set does not have is not missing there; "all" equals the one data set that has it."""
    runs = _sweep().filter((pl.col("dataset") == "door") | (pl.col("level") != "stale") | pl.col("level").is_null())
    table = paired_differences(runs, "a")
    assert table.filter(pl.col("dataset") == "drawer", pl.col("level") == "stale").is_empty()
    single, pooled = (_row(table, dataset=d, level="stale", baseline="b") for d in ("door", "all"))
    assert {**pooled, "dataset": "door"} == single


def test_permuted_rows_give_identical_tables() -> None:
    """Tables are the same to the bit whatever the order of the runs and of their columns."""
    runs = _sweep(seeds=3)
    for seed in range(3):
        permuted = runs.sample(fraction=1.0, shuffle=True, seed=seed).select(reversed(runs.columns))
        assert cell_means(permuted).equals(cell_means(runs))
        assert level_summary(permuted).equals(level_summary(runs))
        assert paired_differences(permuted, "b").equals(paired_differences(runs, "b"))


def _null_sweep(rng: np.random.Generator, num_levels: int) -> pl.DataFrame:
    """Eight baselines with the same success probability in a lineage, each seen through 50 evaluation episodes."""
    dataset, lineage, level, baseline = (
        axis.ravel() for axis in np.meshgrid(np.arange(2), np.arange(6), np.arange(num_levels), np.arange(8))
    )
    success = rng.beta(6, 4, size=(2, 6, num_levels))[dataset, lineage, level]
    return pl.DataFrame(
        {
            "dataset": np.array(DATASETS)[dataset],
            "task": np.array(DATASETS)[dataset],
            "lineage": lineage,
            "level": [f"level-{i}" for i in level],
            "replay_ratio": np.full(len(level), 4.0),
            "baseline": np.array(list("abcdefgh"))[baseline],
            "seed": np.zeros(len(level), dtype=np.int64),
            "value": rng.binomial(50, success) / 50,
        }
    )


def test_sweeps_of_equal_baselines_rarely_have_a_winner() -> None:
    """At most 5 % of whole sweeps, 4 levels of 8 equal baselines each, print any verdict; unadjusted, most would.

    Tolerance: three standard errors of a share of 5 % in 100 independent sweeps. Adjusted within each level alone, one
    sweep in ten has a winner, so that verdicts of many levels need the family to be the table that is printed.
    """
    rng = np.random.default_rng(11)
    tables = [paired_differences(_null_sweep(rng, num_levels=4), "a") for _ in range(100)]
    for dataset in (*DATASETS, "all"):
        printed = [table.filter(pl.col("dataset") == dataset) for table in tables]
        winners = [bool((table["verdict"] != "no difference resolved").any()) for table in printed]
        assert np.mean(winners) <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5
        assert np.mean([bool((table["p_value"] < 0.05).any()) for table in printed]) > 0.3


def test_a_planted_difference_is_found_among_equal_baselines() -> None:
    """One baseline that gains .15 at one of 4 levels is the one that is named, in most sweeps, and alone."""
    rng = np.random.default_rng(12)
    is_planted = (pl.col("level") == "level-2") & (pl.col("baseline") == "c")
    found = []
    for _ in range(20):
        runs = _null_sweep(rng, num_levels=4).with_columns(pl.col("value") + 0.15 * is_planted.cast(pl.Float64))
        resolved = paired_differences(runs, "a").filter(pl.col("dataset") == "all", pl.col("verdict") == "better")
        found.append(resolved.select("level", "baseline").rows())
    assert sum(("level-2", "c") in rows for rows in found) >= 16
    assert sum(len(rows) > 1 for rows in found) <= 2


@pytest.mark.parametrize(
    ("flawed", "message"),
    [
        ([_run(), _run()], "appears twice"),
        ([_run(value=float("nan"))], "not finite"),
        ([_run(value=float("inf"))], "not finite"),
        ([_run(level=None)], "must both be null"),
        ([_run(replay_ratio=None)], "must both be null"),
        ([_run(), _run(level=None, replay_ratio=None)], "only a control has none"),
        ([_run(task=None)], "must be given"),
        ([_run(dataset="all")], "rename"),
        ([_run(lineage="first")], "wrong type"),
    ],
)
def test_flawed_runs_are_refused(flawed: list[dict[str, Any]], message: str) -> None:
    """What is refused is said, and the same rows without the flaw are accepted."""
    assert len(cell_means(_frame([_run()]))) == 1
    with pytest.raises(DataError, match=message):
        cell_means(_frame(flawed))


def test_a_missing_column_is_named() -> None:
    """The message says which column is missing and lists the expected ones."""
    with pytest.raises(DataError, match="'lineage' is missing. Expected: dataset, task, lineage"):
        level_summary(_sweep().drop("lineage"))


def test_an_unknown_reference_is_refused_with_the_known_ones() -> None:
    """An unknown reference suggests the nearest name; a baseline that updates the policy is no control."""
    with pytest.raises(ConfigError, match="Did you mean 'start'"):
        paired_differences(_sweep(), "strat")
    with pytest.raises(ConfigError, match="Unknown control 'a'. Known: start"):
        improvement_over_start(_sweep(), "a")


def test_no_runs_give_empty_tables() -> None:
    """A sweep without any run has a table without rows, with the documented columns."""
    assert level_summary(_sweep().clear()).is_empty()
    assert list(level_summary(_sweep().clear()).columns) == list(SUMMARY_SCHEMA)
