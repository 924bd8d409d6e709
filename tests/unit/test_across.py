"""Two sweeps compared: pairing, Welch's interval against scipy, refusals."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from scipy import stats
from test_results import write_sweep

from replaybench.analysis.across import across_differences
from replaybench.analysis.compare import RUN_SCHEMA
from replaybench.errors import ConfigError
from replaybench.report.across import compare_sweeps

FIRST, SECOND = [0.4, 0.5, 0.6, 0.55], [0.5, 0.62, 0.69, 0.66]


def runs_of(values: list[float], baseline: str = "gipo") -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = [
        ("d", "t", lineage, "fresh", 1.0, baseline, 0, value) for lineage, value in enumerate(values)
    ]
    return pl.DataFrame(rows, schema=RUN_SCHEMA, orient="row")


def test_lineages_on_the_same_logs_are_paired() -> None:
    """The paired t interval of scipy."""
    (row,) = across_differences(runs_of(FIRST), runs_of(SECOND), is_paired=True).to_dicts()
    test = stats.ttest_rel(SECOND, FIRST)
    low, high = test.confidence_interval()
    assert (row["low"], row["high"], row["p_value"]) == pytest.approx((low, high, test.pvalue), rel=1e-9)
    assert (row["n"], row["pairing"], row["verdict"]) == (4, "paired", "better")


def test_lineages_on_other_logs_are_independent() -> None:
    """Welch's t interval of scipy, on one task."""
    (row,) = across_differences(runs_of(FIRST), runs_of(SECOND), is_paired=False).to_dicts()
    test = stats.ttest_ind(SECOND, FIRST, equal_var=False)
    low, high = test.confidence_interval()
    assert (row["low"], row["high"], row["p_value"]) == pytest.approx((low, high, test.pvalue), rel=1e-9)
    assert (row["n"], row["pairing"]) == (8, "unpaired")


def test_only_shared_cells_are_compared() -> None:
    """A baseline that one sweep lacks has no row."""
    second = pl.concat([runs_of(SECOND), runs_of(SECOND, "sapo")])
    table = across_differences(runs_of(FIRST), second, is_paired=True)
    assert table["baseline"].to_list() == ["gipo"]


def test_a_sweep_equals_itself(tmp_path: Path) -> None:
    """No difference, no verdict, paired: the records are of the same logs."""
    folder = write_sweep(tmp_path)
    compared = compare_sweeps(folder, folder)
    assert set(compared.table["estimate"]) == {0.0}
    assert set(compared.table["verdict"]) == {"no difference resolved"}
    assert "on the same logs; paired" in compared.note
    assert "0 of 8 differences are resolved" in compared.note


def test_sweeps_without_a_common_cell_are_refused(tmp_path: Path) -> None:
    """The message names both folders."""
    arms: list[tuple[str, dict[str, Any], float]] = [("zero", {}, 1e-4), ("ppo_clip", {}, 1e-4)]
    first = write_sweep(tmp_path / "a", arms=arms)
    second = write_sweep(tmp_path / "b", arms=[("zero", {}, 1e-4), ("sapo", {}, 1e-4)])
    with pytest.raises(ConfigError, match="share no level, replay ratio and baseline"):
        compare_sweeps(first, second)
