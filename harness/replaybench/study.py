"""Feeds baselines into the exact GridWorld study, which itself knows numbers only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaybench.analysis.bias_variance import paper_study
from replaybench.baseline import Baseline, Items, baseline_paths, config_record, evaluate_surrogate, load_baseline

Floats = NDArray[np.float64]


def coefficient_of(baseline: Baseline, config: Any) -> Callable[[Floats, Floats], Floats]:
    """Returns c(l, A) of a baseline in float64, each item alone in its batch."""

    def coefficient(log_ratio: Floats, advantage: Floats) -> Floats:
        scores = []
        for value, weight in zip(log_ratio, advantage, strict=True):
            log_pi = torch.full((1, 1), float(value), dtype=torch.float64)
            items = Items(
                log_pi=log_pi,
                log_mu=torch.zeros_like(log_pi),
                advantage=torch.full_like(log_pi, float(weight)),
                mask=torch.ones_like(log_pi, dtype=torch.bool),
            )
            scores.append(float(evaluate_surrogate(baseline, config, items).score))
        return np.array(scores) / advantage

    return coefficient


def gridworld_rows(extra_baselines: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns the exact study of every baseline, at its defaults and along its knob."""
    estimators = []
    for name in [*baseline_paths(), *extra_baselines]:
        baseline = load_baseline(name)
        if baseline.declaration.why_no_curve is not None:
            continue
        for config in configs_along_knob(baseline):
            estimators.append((baseline.name, config_record(config), coefficient_of(baseline, config)))
    return [row._asdict() for row in paper_study(estimators)]


def configs_along_knob(baseline: Baseline) -> list[Any]:
    """Returns the default Config and one for each value of the knob's sweep, without repeats."""
    default = baseline.config()
    knob = baseline.declaration.knob
    if knob is None:
        return [default]
    swept = [baseline.config({knob.field: value}) for value in knob.sweep]
    return [default, *(config for config in swept if config != default)]
