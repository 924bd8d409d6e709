"""Feeds baselines into the exact GridWorld study, which itself knows numbers only."""

import tomllib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from replaybench.analysis.bias_variance import NUM_SAMPLES, ZERO, Estimator, StudyRow, paper_study
from replaybench.baseline import (
    Baseline,
    Items,
    baseline_paths,
    config_record,
    evaluate_surrogate,
    gradient_coefficient,
    load_baseline,
)
from replaybench.paths import PRESETS_DIR

Floats = NDArray[np.float64]

STUDY = PRESETS_DIR / "studies" / "gridworld.toml"


class PublishedStudy(NamedTuple):
    """What the published study compares, and whose claims it makes.

    unbiased: the estimator that bias is measured against. settings: (baseline, config) of each estimator.
    """

    family: str
    unbiased: str
    settings: tuple[tuple[str, dict[str, float]], ...]

    @property
    def families(self) -> list[str]:
        """The baselines compared, each once."""
        return list(dict.fromkeys(name for name, _ in self.settings))


def published_study() -> PublishedStudy:
    """Reads the published study's settings, which travel with the package."""
    record = tomllib.loads(STUDY.read_text(encoding="utf-8"))
    settings = tuple((entry["baseline"], entry.get("config", {})) for entry in record["estimators"])
    return PublishedStudy(record["family"], record["unbiased"], settings)


def coefficient_of(baseline: Baseline, config: Any) -> Callable[[Floats, Floats], Floats]:
    """Returns c(l, A) of a baseline in float64, each item alone in its batch."""

    def coefficient(log_ratio: Floats, advantage: Floats) -> Floats:
        pairs = torch.from_numpy(np.stack([log_ratio, advantage]))[..., None]
        # Statistics of the batch are those of an item alone; any other baseline takes all items at once.
        size = 1 if baseline.declaration.batch_statistics else len(log_ratio)
        scores = []
        for log_pi, weight in pairs.split(size, dim=1):
            items = Items(
                log_pi=log_pi,
                log_mu=torch.zeros_like(log_pi),
                advantage=weight,
                mask=torch.ones_like(log_pi, dtype=torch.bool),
            )
            scores.append(evaluate_surrogate(baseline, config, items).score.flatten())
        return np.asarray(torch.cat(scores).numpy()) / advantage

    return coefficient


def curve_of(baseline: Baseline, config: Any, dtype: torch.dtype) -> Callable[[Floats, float], Floats]:
    """Returns c(l) of a baseline at an advantage, for many log-ratios at once, computed in `dtype`."""

    def curve(log_ratio: Floats, advantage: float) -> Floats:
        values = torch.from_numpy(log_ratio).to(dtype)
        return np.asarray(gradient_coefficient(baseline, config, values, advantage).double().numpy())

    return curve


def gridworld_rows(extra_baselines: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns the exact study of every baseline at its defaults, along its knob and at the published settings."""
    rows = corrections_study(extra_baselines)
    known = [(row.baseline, row.config) for row in rows[:: len(NUM_SAMPLES)]]
    others = [estimator for estimator in published_estimators() if estimator[:2] not in known]
    return [row._asdict() for row in [*rows, *(row for row in paper_study(others) if row.baseline != ZERO)]]


@lru_cache(maxsize=2)
def corrections_study(extra_baselines: tuple[str, ...] = ()) -> list[StudyRow]:
    """Returns the exact study of `knob_estimators`, once a process."""
    return paper_study(knob_estimators(extra_baselines))


def knob_estimators(extra_baselines: tuple[str, ...] = ()) -> list[Estimator]:
    """Returns every baseline whose coefficient is a function of (l, A), at its defaults and along its knob."""
    estimators: list[Estimator] = []
    for name in [*baseline_paths(), *extra_baselines]:
        baseline = load_baseline(name)
        if baseline.declaration.why_no_curve is not None:
            continue
        for config in configs_along_knob(baseline):
            estimators.append((baseline.name, config_record(config), coefficient_of(baseline, config)))
    return estimators


def published_estimators() -> list[Estimator]:
    """Returns the estimators of the published study, as the baseline files compute them."""
    estimators: list[Estimator] = []
    for name, settings in published_study().settings:
        baseline = load_baseline(name)
        config = baseline.config(settings)
        estimators.append((name, config_record(config), coefficient_of(baseline, config)))
    return estimators


def knob_curve(name: str, low: float = 0.05, high: float = 20.0, num_values: int = 60) -> list[Estimator]:
    """Returns a baseline at many values of its knob, by which its frontier is a curve."""
    baseline = load_baseline(name)
    knob = baseline.declaration.knob
    assert knob is not None
    configs = [baseline.config({knob.field: value}) for value in np.geomspace(low, high, num_values).tolist()]
    return [(name, config_record(config), coefficient_of(baseline, config)) for config in configs]


def configs_along_knob(baseline: Baseline) -> list[Any]:
    """Returns the default Config and one for each value of the knob's sweep, without repeats."""
    default = baseline.config()
    knob = baseline.declaration.knob
    if knob is None:
        return [default]
    swept = [baseline.config({knob.field: value}) for value in knob.sweep]
    return [default, *(config for config in swept if config != default)]
