"""Sample efficiency: areas and crossings by hand, and intervals that cover under censoring on simulated curves."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from replaybench.analysis.sample_efficiency import (
    CURVE_SCHEMA,
    against_literature,
    area_differences,
    areas,
    median_steps,
    speed_up,
    speed_ups,
    steps_to,
)

SIZES = (100.0, 200.0, 400.0)


def curve(baseline: str, lineage: int, scores: Sequence[float], dataset: str = "a") -> pl.DataFrame:
    """One lineage's curve over SIZES."""
    rows = [
        ("held", "stale", baseline, dataset, lineage, steps, 10 * steps, 0.2 + 0.8 * score, score)
        for steps, score in zip(SIZES, scores, strict=True)
    ]
    return pl.DataFrame(rows, schema=CURVE_SCHEMA, orient="row")


def times(pairs: dict[str, Sequence[float]], end: float) -> pl.DataFrame:
    """The table of `steps_to` for curves that reach a threshold at these steps, watched until `end`."""
    rows = [
        ("held", "stale", name, "ab"[lineage % 2], lineage, min(time, end), time <= end)
        for name, found in pairs.items()
        for lineage, time in enumerate(found)
    ]
    columns = ["design", "level", "baseline", "dataset", "lineage", "steps", "reached"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_the_area_is_that_of_the_trapezoids_from_the_start() -> None:
    """(0, 0), (100, .2), (200, .4), (400, 0): 10 + 30 + 40 over 400."""
    assert areas(curve("m", 0, [0.2, 0.4, 0.0]))["area"].to_list() == [pytest.approx(80 / 400)]


def test_the_order_of_the_points_does_not_matter() -> None:
    """A shuffled table has the same area and crossing."""
    table = curve("m", 0, [0.2, 0.4, 0.6])
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    assert areas(shuffled).equals(areas(table))
    assert steps_to(shuffled, 0.5).equals(steps_to(table, 0.5))


@pytest.mark.parametrize(
    ("scores", "threshold", "steps", "reached"),
    [
        ([0.2, 0.4, 0.6], 0.3, 150.0, True),
        ([0.2, 0.4, 0.6], 0.1, 50.0, True),
        ([0.2, 0.4, 0.6], 0.6, 400.0, True),
        ([0.1, 0.2, 0.2], 0.3, 400.0, False),
        ([-0.3, -0.1, -0.2], 0.1, 400.0, False),
        # The dip pools with what is before it: .3 and .1 count as .2 and .2, and .3 is half way up to .4.
        ([0.3, 0.1, 0.4], 0.3, 300.0, True),
    ],
)
def test_a_threshold_is_reached_where_the_rising_fit_crosses_it(
    scores: list[float], threshold: float, steps: float, reached: bool
) -> None:
    """Crossings worked out by hand; a curve that never gets there is censored at its end."""
    row = steps_to(curve("m", 0, scores), threshold).row(0, named=True)
    assert (row["steps"], row["reached"]) == (pytest.approx(steps), reached)


def test_the_median_counts_censored_lineages_as_longer() -> None:
    """Of 100, 200, 400 and 500+ the survival falls to .75, .5 and .25: the median is 200; of none, there is none."""
    found = median_steps(times({"m": [100, 200, 400, 999], "n": [999, 999, 999, 999]}, 500)).to_dicts()
    assert (found[0]["median"], found[0]["num_reached"], found[0]["n"]) == (200, 3, 4)
    assert (found[1]["median"], found[1]["low"], found[1]["num_reached"]) == (None, None, 0)


def test_a_speed_up_runs_between_order_statistics() -> None:
    """Of twelve ratios the sign test keeps the third lowest to the third highest; P(Binomial(12, 1/2) < 3) is 1.9 %."""
    found = speed_up([(float(r), float(r)) for r in range(1, 13)])
    assert (found.low, found.high, found.n) == (3, 10, 12)
    assert found.estimate_low == found.estimate_high == pytest.approx(math.sqrt(42))


def test_five_pairs_bound_nothing() -> None:
    """Even five ratios alike leave P = 1/16 for the two-sided sign test, so there is no 95 % interval."""
    found = speed_up([(3.0, 3.0)] * 5)
    assert (found.estimate_low, found.low, found.high) == (3, 0, math.inf)
    assert speed_up([(3.0, 3.0)] * 6).low == 3


def test_pairs_that_never_get_there_say_what_they_can() -> None:
    """The reference at 100 against 200: 1/2. Theirs censored at 500: at least 5. Ours: at most 1/5. Both: nothing."""
    found = speed_ups(times({"ref": [100, 999, 100, 999], "m": [200, 100, 999, 999]}, 500), "ref").row(0, named=True)
    assert (found["n"], found["num_open"], found["resolved"]) == (4, 3, False)
    assert (found["estimate_low"], found["estimate_high"]) == (0, math.inf)


def simulated(rng: np.random.Generator, ratio: float, n: int, end: float) -> pl.DataFrame:
    """Pairs that share a lineage's luck, with a true median ratio, watched until `end`."""
    shared = 1000 * np.exp(rng.normal(0, 0.5, n))
    ours, theirs = (shared * np.exp(rng.normal(0, 0.4, n)) for _ in range(2))
    return times({"m": ours, "ref": ratio * theirs}, end)


@pytest.mark.parametrize(("ratio", "end"), [(1.0, 1e9), (2.0, 1e9), (2.0, 2500.0), (4.0, 1500.0), (1.0, 1000.0)])
def test_the_interval_of_a_speed_up_covers_under_censoring(ratio: float, end: float) -> None:
    """12 pairs, up to most of them censored: the true median is inside at least 95 % of the time in 500 studies."""
    rng = np.random.default_rng(5)
    found = [speed_ups(simulated(rng, ratio, 12, end), "ref").row(0, named=True) for _ in range(500)]
    covered = np.mean([row["low"] <= ratio <= row["high"] for row in found])
    assert covered > 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / 500)
    if ratio == 1.0:
        assert np.mean([row["resolved"] for row in found]) < 0.05 + 2.6 * math.sqrt(0.95 * 0.05 / 500)


def test_a_planted_speed_up_is_found() -> None:
    """A method that needs a quarter of the steps is resolved in most studies of 12 pairs, though many are censored."""
    rng = np.random.default_rng(6)
    found = [speed_ups(simulated(rng, 4.0, 12, 3000.0), "ref").row(0, named=True) for _ in range(200)]
    assert np.mean([row["resolved"] for row in found]) > 0.9


def test_areas_of_equal_methods_are_not_told_apart_and_others_are() -> None:
    """Over 200 studies of three methods alike at most 5 % call one better or worse; a shift of .3 is always found."""
    rng = np.random.default_rng(7)
    calls, found = 0, 0
    for _ in range(200):
        tables = []
        for lineage in range(12):
            luck = rng.normal(0.3, 0.1)
            for name, shift in (("ref", 0.0), ("m", 0.0), ("n", 0.0), ("good", 0.3)):
                scores = luck + shift + rng.normal(0, 0.1, 3)
                tables.append(curve(name, lineage, scores.tolist(), "ab"[lineage % 2]))
        whole = areas(pl.concat(tables))
        alike = area_differences(whole.filter(pl.col("baseline") != "good"), "ref")
        calls += alike["verdict"].is_in(["better", "worse"]).any()
        found += area_differences(whole, "ref").filter(pl.col("baseline") == "good")["verdict"][0] == "better"
    assert calls <= 200 * 0.05 + 2.6 * math.sqrt(200 * 0.05 * 0.95)
    assert found == 200


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        ((2.0, 2.0, 1.5, 3.1, 12), "the 7.5x of the literature is 2x here, [1.5, 3.1], n=12"),
        ((2.0, math.inf, 1.5, math.inf, 12), "the 7.5x of the literature is at least 2x here, [1.5, unbounded], n=12"),
        ((0.0, math.inf, 0.0, math.inf, 5), "the 7.5x of the literature is not to be told here, [0, unbounded], n=5"),
        ((0.5, 2.0, 0.1, 9.0, 8), "the 7.5x of the literature is between 0.5x and 2x here, [0.1, 9], n=8"),
    ],
)
def test_the_sentence_says_no_more_than_is_known(bounds: tuple[float, ...], sentence: str) -> None:
    """Estimates, one-sided estimates and the absence of one read differently."""
    row = dict(zip(("estimate_low", "estimate_high", "low", "high", "n"), bounds, strict=True))
    assert against_literature(row) == sentence
