"""The error relative to a reference's: by hand, against a jackknife written out, and its coverage."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from replaybench.analysis.relative_error import ratio_of_means, relative_errors


def test_the_ratio_is_the_jackknifes() -> None:
    """Pseudo-values written out for three pairs, and scipy's t interval of them."""
    top, bottom = [1.0, 2.0, 6.0], [2.0, 3.0, 4.0]
    pseudo = [3 * 9 / 9 - 2 * 8 / 7, 3 * 9 / 9 - 2 * 7 / 6, 3 * 9 / 9 - 2 * 3 / 5]
    found = ratio_of_means(top, bottom)
    low, high = stats.t.interval(0.95, 2, np.mean(pseudo), stats.sem(pseudo))
    assert found[:4] == pytest.approx((np.mean(pseudo), low, high, 3))


def test_one_lineage_has_no_interval() -> None:
    """The ratio itself, and bounds that are not numbers."""
    found = ratio_of_means([3.0], [4.0])
    assert found.estimate == 0.75 and np.isnan(found.low) and found.n == 1


def test_intervals_cover_the_true_ratio() -> None:
    """2,000 studies of six lineages with correlated log-normal errors: 93 to 97 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        scale = rng.lognormal(0, 0.3, 6)
        found = ratio_of_means(0.5 * scale * rng.lognormal(0, 0.2, 6), scale * rng.lognormal(0, 0.2, 6))
        covered += found.low <= 0.5 <= found.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_errors_are_paired_with_the_references_on_the_same_logs() -> None:
    """By cell: means over lineages, by hand; a lineage without the error of one of both is left out."""
    rows = [
        ("a", 0, "fresh", 4, "tis", '{"cap": 1.0}', 2.0),
        ("a", 1, "fresh", 4, "tis", '{"cap": 1.0}', 4.0),
        ("a", 0, "fresh", 4, "tis", '{"cap": 2.0}', 8.0),
        ("a", 1, "fresh", 4, "tis", '{"cap": 2.0}', 8.0),
        ("a", 0, "fresh", 4, "gipo", '{"sigma": 1.0}', 1.0),
        ("a", 1, "fresh", 4, "gipo", '{"sigma": 1.0}', 2.0),
        ("a", 2, "fresh", 4, "gipo", '{"sigma": 1.0}', 100.0),
        ("a", 0, "stale", 4, "tis", '{"cap": 1.0}', None),
        ("a", 0, "stale", 4, "gipo", '{"sigma": 1.0}', None),
    ]
    table = pl.DataFrame(rows, ["dataset", "lineage", "level", "n", "baseline", "config", "mse"], orient="row")
    found = {row["config"]: row for row in relative_errors(table, "tis", {"cap": 1.0}).to_dicts()}
    assert len(found) == 3
    assert found['{"sigma": 1.0}']["estimate"] == pytest.approx(0.5)
    assert found['{"cap": 1.0}']["estimate"] == pytest.approx(1.0)
    assert found['{"cap": 1.0}']["low"] is None, "its ratio is 1 in every lineage, which is no certainty"
    assert found['{"sigma": 1.0}']["n_lineages"] == 2
