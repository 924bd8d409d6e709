"""The confidence set of the best setting: by hand, and its coverage on simulated sweeps."""

import numpy as np
import polars as pl
import pytest

from replaybench.analysis.compare import RUN_SCHEMA
from replaybench.analysis.optimum import may_be_best, optimum_sets
from replaybench.analysis.sensitivity import ARM_SCHEMA
from replaybench.errors import ConfigError

KNOBS = (0.1, 0.2, 0.5, 1.0, 2.0)
ARMS = pl.DataFrame(
    [(f"m ({knob})", "m", 1e-4, "sigma", knob, None) for knob in KNOBS] + [("alone", "n", 1e-4, None, None, None)],
    schema=ARM_SCHEMA,
    orient="row",
)


def sweep(means: dict[str, float], rng: np.random.Generator, spread: float) -> pl.DataFrame:
    """Two tasks of six lineages; arms differ by their means and by noise, and share a lineage's luck."""
    rows = []
    for task in ("door", "drawer"):
        for lineage in range(6):
            luck = rng.normal(0, 0.2)
            rows += [
                (task, task, lineage, "lag100", 8.0, arm, 0, mean + luck + rng.normal(0, spread))
                for arm, mean in means.items()
            ]
    return pl.DataFrame(rows, schema=RUN_SCHEMA, orient="row")


def in_set(runs: pl.DataFrame) -> set[str]:
    return set(optimum_sets(runs, ARMS).filter("may_be_best")["baseline"])


def test_the_truly_best_setting_is_in_the_set() -> None:
    """In 120 simulated sweeps with a peak in log sigma the best arm is missing in 5 % at most, and others leave."""
    rng = np.random.default_rng(0)
    means = {f"m ({knob})": 0.6 - 0.05 * np.log(knob / 0.5) ** 2 for knob in KNOBS}
    sets = [in_set(sweep(means, rng, spread=0.06)) for _ in range(120)]
    assert np.mean(["m (0.5)" in found for found in sets]) >= 0.95 - 3 * (0.95 * 0.05 / 120) ** 0.5
    assert 1 < np.mean([len(found) for found in sets]) < 4


def test_among_equal_settings_each_is_nearly_always_in_the_set() -> None:
    """The least favourable case: any of five equal arms may be called the best, and each is covered."""
    rng = np.random.default_rng(1)
    means = {f"m ({knob})": 0.5 for knob in KNOBS}
    sets = [in_set(sweep(means, rng, spread=0.06)) for _ in range(120)]
    for name in means:
        assert np.mean([name in found for found in sets]) >= 0.95 - 3 * (0.95 * 0.05 / 120) ** 0.5


def test_a_setting_that_is_always_worse_leaves_the_set() -> None:
    """A loss of .3 with noise of .05 on twelve lineages is resolved; the winner stays, and is the best."""
    means = {f"m ({knob})": 0.6 for knob in KNOBS} | {"m (2.0)": 0.3}
    table = optimum_sets(sweep(means, np.random.default_rng(2), spread=0.05), ARMS)
    (worst,) = table.filter(pl.col("knob_value") == 2.0).to_dicts()
    (best,) = table.filter("is_best").to_dicts()
    assert not worst["may_be_best"]
    assert best["may_be_best"]
    assert best["estimate"] == table["estimate"].max()
    assert best["n"] == 12


def test_a_correction_with_one_setting_has_no_optimum() -> None:
    """Only families with several arms are listed."""
    runs = sweep({"alone": 0.5, "m (0.1)": 0.5, "m (0.2)": 0.5}, np.random.default_rng(3), spread=0.05)
    assert optimum_sets(runs, ARMS)["family"].unique().to_list() == ["m"]


def test_one_lineage_resolves_nothing() -> None:
    """Without a spread over lineages there is no test, and every setting may be the best."""
    runs = sweep({"m (0.1)": 0.9, "m (0.2)": 0.1}, np.random.default_rng(4), 0.0).filter(
        (pl.col("lineage") == 0) & (pl.col("task") == "door")
    )
    assert in_set(runs) == {"m (0.1)", "m (0.2)"}


def test_an_arm_without_any_run_is_refused() -> None:
    """It cannot be said whether it may be the best."""
    with pytest.raises(ConfigError, match="Unknown arm"):
        may_be_best(sweep({"m (0.1)": 0.5}, np.random.default_rng(5), 0.1), ["m (0.1)", "m (0.7)"])
