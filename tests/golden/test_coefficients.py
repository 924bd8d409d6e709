"""Pins the gradient coefficients c(l, A) of the methods to printed numbers and to closed forms.

The printed table is a hand computation from the papers' objectives, checked by finite differences, three digits.
The closed forms are written out below in plain Python floats, without torch and without the baselines' log space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from replaybench.baseline import (
    Baseline,
    Items,
    baseline_paths,
    describe,
    evaluate_surrogate,
    gradient_coefficient,
    load_baseline,
)
from replaybench.errors import ConfigError

LOG_RATIOS = (-3, -2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2, 3)
BOTH = (1.0, -1.0)
UP, DOWN = (1.0,), (-1.0,)
TABLE = [
    ("importance_sampling", {}, BOTH, ".0498 .135 .368 .607 .905 1 1.11 1.65 2.72 7.39 20.1"),
    ("no_correction", {}, BOTH, "1 1 1 1 1 1 1 1 1 1 1"),
    ("ppo_clip", {}, UP, ".0498 .135 .368 .607 .905 1 1.11 0 0 0 0"),
    ("ppo_clip", {}, DOWN, "0 0 0 0 .905 1 1.11 1.65 2.72 7.39 20.1"),
    ("cispo", {}, BOTH, ".0498 .135 .368 .607 .905 1 1.11 1.65 2.72 5 5"),
    ("tis", {}, BOTH, ".0498 .135 .368 .607 .905 1 1.11 1.65 2 2 2"),
    ("sapo", {}, UP, ".040 .113 .333 .584 .903 1 1.10 1.49 1.40 .0495 ~0"),
    ("sapo", {}, DOWN, ".0392 .111 .330 .581 .903 1 1.10 1.47 1.32 .036 ~0"),
    ("gipo", {"sigma": 0.2}, BOTH, "0 0 1e-6 .0266 .799 1 .975 .0724 1e-5 0 0"),
    ("gipo", {"sigma": 0.5}, BOTH, "~0 4.5e-5 .0498 .368 .887 1 1.08 1.00 .368 .00248 ~0"),
    ("gipo", {"sigma": 1.0}, BOTH, "5.5e-4 .0183 .223 .535 .900 1 1.10 1.45 1.65 1.00 .223"),
    ("gipo", {"sigma": 2.0}, BOTH, ".0162 .0821 .325 .588 .904 1 1.10 1.60 2.40 4.48 6.52"),
    ("zero", {}, BOTH, "0 0 0 0 0 0 0 0 0 0 0"),
    ("ppo_dual", {}, UP, ".0498 .135 .368 .607 .905 1 1.11 0 0 0 0"),
    ("ppo_dual", {}, DOWN, "0 0 0 0 .905 1 1.11 1.65 2.72 0 0"),
    ("spo", {}, UP, ".286 .72 1.53 1.8 1.34 1 .524 -3.7 -20.6 -229 -1.9e3"),
    ("spo", {}, DOWN, "-.187 -.45 -.795 -.587 .474 1 1.69 7.0 26.1 243 1.9e3"),
    ("ce_gppo", {}, UP, ".0498 .135 .368 .607 .905 1 1.11 1.28 1.28 1.28 1.28"),
    ("ce_gppo", {}, DOWN, ".200 .200 .200 .200 .905 1 1.11 1.65 2.72 7.39 20.1"),
    ("icepop", {}, BOTH, "0 0 0 .607 .905 1 1.11 1.65 2.72 0 0"),
    ("topr", {}, UP, "1 1 1 1 1 1 1 1 1 1 1"),
    ("topr", {}, DOWN, ".0498 .135 .368 .607 .905 1 1 1 1 1 1"),
    ("vtrace_pg", {}, BOTH, ".0498 .135 .368 .607 .905 1 1 1 1 1 1"),
    ("staleness_sampling", {}, BOTH, ".0498 .135 .368 .607 .905 1 1.11 1.65 2.72 7.39 20.1"),
    ("aspo", {}, UP, "3 3 2.72 1.65 1.11 1 .905 0 0 0 0"),
    ("aspo", {}, DOWN, "0 0 0 0 .905 1 1.11 1.65 2.72 3 3"),
    ("kimi_opmd", {"tau": 0.1}, UP, "1.30 1.20 1.10 1.05 1.01 1 .99 .95 .90 .80 .70"),
    ("kimi_opmd", {"tau": 0.1}, DOWN, ".70 .80 .90 .95 .99 1 1.01 1.05 1.10 1.20 1.30"),
]
CELLS = [
    pytest.param(name, options, advantage, log_ratio, printed, id=f"{name}{options or ''} A={advantage} l={log_ratio}")
    for name, options, advantages, row in TABLE
    for advantage in advantages
    for log_ratio, printed in zip(LOG_RATIOS, row.split(), strict=True)
]


@lru_cache
def loaded(name: str) -> Baseline:
    """The baseline, looked up once: a look-up walks the installed packages, and the properties below ask often."""
    return load_baseline(name)


def coefficient(
    name: str, options: dict[str, object], log_ratio: float, advantage: float, log_mu: float = 0.0
) -> float:
    """c(l, A) in float64."""
    baseline = loaded(name)
    points = torch.tensor([log_ratio], dtype=torch.float64)
    return float(gradient_coefficient(baseline, baseline.config(options), points, advantage, log_mu=log_mu))


def tolerance_of(printed: str) -> float:
    """Half a unit in the last printed digit; a lone digit is meant to the third, a zero as less than 1e-12."""
    if printed == "0":
        return 1e-12
    _, digits, exponent = Decimal(printed).as_tuple()
    assert isinstance(exponent, int)
    # A few ulps on top, for a value that lies on the rounding edge.
    return 0.5 * 10.0**exponent * (1 + 1e-9) if exponent < 0 or len(digits) > 1 else 5e-3


@pytest.mark.parametrize(("name", "options", "advantage", "log_ratio", "printed"), CELLS)
def test_coefficient_equals_the_printed_table(
    name: str, options: dict[str, object], advantage: float, log_ratio: float, printed: str
) -> None:
    """Every cell of the hand-computed table holds to its last printed digit."""
    actual = coefficient(name, options, log_ratio, advantage)
    if printed == "~0":
        assert 0 < actual < 1e-5
    else:
        assert actual == pytest.approx(float(printed), rel=0, abs=tolerance_of(printed))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@dataclass(frozen=True)
class ClosedForm:
    """c(l, A) of a baseline under some settings, by hand."""

    name: str
    options: dict[str, object]
    formula: Callable[[float, float], float]


def sapo_by_hand(tau: float, tau_negative: float) -> Callable[[float, float], float]:
    def formula(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        gate = logistic((tau if advantage > 0 else tau_negative) * (ratio - 1))
        return 4 * gate * (1 - gate) * ratio

    return formula


def ppo_by_hand(
    epsilon_low: float, epsilon_high: float, ceiling: float = math.inf, slope: float = 0.0
) -> Callable[[float, float], float]:
    def formula(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        is_clipped = ratio > 1 + epsilon_high if advantage > 0 else not 1 - epsilon_low <= ratio <= ceiling
        return slope * ratio if is_clipped else ratio

    return formula


def ce_gppo_by_hand(ceiling: float) -> Callable[[float, float], float]:
    def formula(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        if advantage > 0:
            return min(ratio, 1.28)
        if ratio > ceiling:
            return 0.0
        return ratio if ratio >= 0.8 else 0.25 * 0.8

    return formula


def aspo_by_hand(log_ratio: float, advantage: float) -> float:
    ratio = math.exp(log_ratio)
    if advantage > 0:
        return min(1 / ratio, 3.0) if ratio <= 1.2 else 0.0
    return min(ratio, 3.0) if ratio >= 0.8 else 0.0


def spo_by_hand(epsilon: float) -> Callable[[float, float], float]:
    def formula(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        return ratio * (1 - math.copysign(1.0, advantage) * (ratio - 1) / epsilon)

    return formula


def rec_by_hand(clip_mode: str, weight: str) -> Callable[[float, float], float]:
    def formula(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        is_kept = {
            "one_side": ratio <= 1.2 if advantage > 0 else ratio >= 0.8,
            "two_side": 0.8 <= ratio <= 1.2,
            "ring": 0.8 <= ratio <= 1.2 or (ratio <= 0.4 if advantage > 0 else ratio >= 3.0),
        }[clip_mode]
        return (ratio if weight == "ratio" else 1.0) * is_kept

    return formula


def m2po_by_hand(log_ratio: float, advantage: float) -> float:
    # Alone in its batch, an item is its own mean.
    is_harmful = log_ratio * advantage > 0
    return 0.0 if is_harmful and log_ratio**2 > 0.04 else math.exp(log_ratio)


CLOSED_FORMS = [
    ClosedForm("importance_sampling", {}, lambda log_ratio, advantage: math.exp(log_ratio)),
    ClosedForm("no_correction", {}, lambda log_ratio, advantage: 1.0),
    ClosedForm("zero", {}, lambda log_ratio, advantage: 0.0),
    ClosedForm("ppo_clip", {}, ppo_by_hand(0.2, 0.2)),
    ClosedForm("ppo_clip", {"epsilon": 0.4}, ppo_by_hand(0.4, 0.4)),
    ClosedForm("dapo", {}, ppo_by_hand(0.2, 0.28)),
    ClosedForm("dapo", {"epsilon_low": 0.1, "epsilon_high": 0.6}, ppo_by_hand(0.1, 0.6)),
    ClosedForm("ppo_dual", {}, ppo_by_hand(0.2, 0.2, ceiling=3.0)),
    ClosedForm("ppo_dual", {"epsilon": 0.3, "ceiling": 1.5}, ppo_by_hand(0.3, 0.3, ceiling=1.5)),
    ClosedForm("ppo_delta", {}, ppo_by_hand(0.2, 0.2, ceiling=4.0)),
    ClosedForm("ppo_delta", {"epsilon": 0.1, "delta": 8.0}, ppo_by_hand(0.1, 0.1, ceiling=8.0)),
    ClosedForm("ppo_rb", {}, ppo_by_hand(0.2, 0.2, slope=-0.3)),
    ClosedForm("ppo_rb", {"epsilon": 0.1, "slope": -0.02}, ppo_by_hand(0.1, 0.1, slope=-0.02)),
    ClosedForm("leaky_ppo", {}, ppo_by_hand(0.2, 0.2, slope=0.01)),
    ClosedForm("ce_gppo", {}, ce_gppo_by_hand(math.inf)),
    ClosedForm("ce_gppo", {"ceiling": 3.0}, ce_gppo_by_hand(3.0)),
    ClosedForm("aspo", {}, aspo_by_hand),
    ClosedForm("spo", {}, spo_by_hand(0.2)),
    ClosedForm("spo", {"epsilon": 0.4}, spo_by_hand(0.4)),
    ClosedForm("topr", {}, lambda log_ratio, advantage: 1.0 if advantage > 0 else min(math.exp(log_ratio), 1.0)),
    ClosedForm(
        "icepop", {}, lambda log_ratio, advantage: math.exp(log_ratio) if 0.5 <= math.exp(log_ratio) <= 5 else 0.0
    ),
    ClosedForm(
        "rollout_is", {}, lambda log_ratio, advantage: math.exp(log_ratio) if 0.8 < math.exp(log_ratio) < 1.28 else 0.0
    ),
    *(
        ClosedForm("rec", {"clip_mode": clip_mode, "weight": weight}, rec_by_hand(clip_mode, weight))
        for clip_mode in ("one_side", "two_side", "ring")
        for weight in ("none", "ratio")
    ),
    ClosedForm("m2po", {}, m2po_by_hand),
    ClosedForm(
        "ppo_klpen",
        {"beta": 3.0},
        lambda log_ratio, advantage: math.exp(log_ratio) - 3 * (math.exp(log_ratio) - 1) / advantage,
    ),
    ClosedForm("kimi_opmd", {}, lambda log_ratio, advantage: 1 - 0.1 * log_ratio / advantage),
    ClosedForm("dro", {"beta": 0.3}, lambda log_ratio, advantage: 1 - 0.3 * log_ratio / advantage),
    ClosedForm("opmd_simple", {}, lambda log_ratio, advantage: 0.5),
    ClosedForm("awr", {}, lambda log_ratio, advantage: min(math.exp(advantage), 20.0) / advantage),
    ClosedForm(
        "awr",
        {"temperature": 3.0, "cap": 100.0},
        lambda log_ratio, advantage: min(math.exp(advantage / 3), 100.0) / advantage,
    ),
    ClosedForm("behaviour_cloning", {}, lambda log_ratio, advantage: 1 / advantage),
    ClosedForm("asymre", {}, lambda log_ratio, advantage: (advantage + 0.1) / advantage),
    ClosedForm("tis", {}, lambda log_ratio, advantage: min(math.exp(log_ratio), 2.0)),
    ClosedForm("tis", {"cap": 10}, lambda log_ratio, advantage: min(math.exp(log_ratio), 10.0)),
    ClosedForm("cispo", {}, lambda log_ratio, advantage: min(math.exp(log_ratio), 5.0)),
    ClosedForm(
        "cispo",
        {"epsilon_min": 0.5, "epsilon_max": 1.5},
        lambda log_ratio, advantage: min(max(math.exp(log_ratio), 0.5), 1.5),
    ),
    ClosedForm("vtrace_pg", {}, lambda log_ratio, advantage: min(math.exp(log_ratio), 1.0)),
    ClosedForm("vtrace_pg", {"rho_bar": 3.0}, lambda log_ratio, advantage: min(math.exp(log_ratio), 3.0)),
    # Alone in its batch, an item is an effective sample of 1.
    ClosedForm("p3o", {}, lambda log_ratio, advantage: min(math.exp(log_ratio), 1.0)),
    ClosedForm("sapo", {}, sapo_by_hand(1.0, 1.05)),
    ClosedForm("sapo", {"tau": 2.0}, sapo_by_hand(2.0, 2.1)),
    ClosedForm("sapo", {"tau": 1.0, "tau_negative": 2.0}, sapo_by_hand(1.0, 2.0)),
    ClosedForm("gipo", {}, lambda log_ratio, advantage: math.exp(log_ratio) * math.exp(-(log_ratio**2) / 2)),
    ClosedForm(
        "gipo",
        {"sigma": 1.0, "sigma_negative": 0.5},
        lambda log_ratio, advantage: (
            math.exp(log_ratio) * math.exp(-((log_ratio / (1.0 if advantage > 0 else 0.5)) ** 2) / 2)
        ),
    ),
    ClosedForm(
        "gipo",
        {"sigma": 0.7, "kernel": "laplacian"},
        lambda log_ratio, advantage: math.exp(log_ratio) * math.exp(-abs(log_ratio) / 0.7),
    ),
    ClosedForm(
        "gipo",
        {"sigma": 0.7, "kernel": "cauchy"},
        lambda log_ratio, advantage: math.exp(log_ratio) / (1 + (log_ratio / 0.7) ** 2),
    ),
]


@pytest.mark.parametrize("form", CLOSED_FORMS, ids=lambda form: f"{form.name}{form.options or ''}")
@settings(max_examples=40, deadline=None)
@given(
    log_ratio=st.floats(-6, 6),
    advantage=st.floats(0.01, 50).flatmap(lambda size: st.sampled_from([size, -size])),
)
@example(log_ratio=0.0, advantage=1.0)
@example(log_ratio=0.3, advantage=-7.0)
def test_coefficient_equals_its_closed_form(form: ClosedForm, log_ratio: float, advantage: float) -> None:
    """At any log-ratio and advantage the coefficient is the formula written out in plain floats."""
    expected = form.formula(log_ratio, advantage)
    # Where SAPO's gate saturates, 1 - s loses all digits in the plain formula; the absolute term covers that.
    assert coefficient(form.name, form.options, log_ratio, advantage) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(
    "name",
    [
        "importance_sampling",
        "sapo",
        "ppo_clip",
        "dapo",
        "ppo_dual",
        "ppo_delta",
        "ppo_klpen",
        "spo",
        "ppo_rb",
        "leaky_ppo",
        "kimi_opmd",
        "dro",
        "opmd_simple",
        "awr",
        "behaviour_cloning",
        "asymre",
    ],
)
@settings(max_examples=40, deadline=None)
@given(log_ratio=st.floats(-3, 3), advantage=st.sampled_from([2.0, -0.5]))
def test_score_is_the_slope_of_the_surrogate_where_nothing_is_detached(
    name: str, log_ratio: float, advantage: float
) -> None:
    """Central differences of the surrogate's value reproduce its score, away from the clip edges."""
    assume(min(abs(math.exp(log_ratio) - edge) for edge in (0.8, 1.2, 1.28, 3.0, 4.0)) > 1e-3)
    baseline = loaded(name)
    step = 1e-5
    points = torch.tensor([[log_ratio - step], [log_ratio], [log_ratio + step]], dtype=torch.float64)
    items = Items(
        log_pi=points,
        log_mu=torch.zeros_like(points),
        advantage=torch.full_like(points, advantage),
        mask=torch.ones_like(points, dtype=torch.bool),
    )
    value = evaluate_surrogate(baseline, baseline.config(), items)
    slope = float(value.surrogate[2] - value.surrogate[0]) / (2 * step)
    assert float(value.score[1]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # rho = 2, A = 3 by hand: rho A; A log pi; min(2, 1.2) A; min(2, 2) A log pi; min(2, 5) A log pi; 0.
        ("importance_sampling", 6.0),
        ("no_correction", 3.0 * math.log(0.5)),
        ("ppo_clip", 3.6),
        ("tis", 6.0 * math.log(0.5)),
        ("cispo", 6.0 * math.log(0.5)),
        # 4 s(1) A with s(1) = 0.7310585786300049.
        ("sapo", 4 * 0.7310585786300049 * 3.0),
        ("gipo", 6.0 * math.exp(-(math.log(2.0) ** 2) / 2)),
        ("zero", 0.0),
        # Outside the band: 1.28 A; 1.2 A; (-0.3 * 2 + 1.3 * 1.2) A; (0.01 * 2 + 0.99 * 1.2) A.
        ("dapo", 3.84),
        ("ppo_dual", 3.6),
        ("ppo_delta", 3.6),
        ("ppo_rb", 2.88),
        ("leaky_ppo", 3.624),
        ("ce_gppo", 3.84),
        # 6 - 3 (2 - 1)^2 / 0.4; 6 - (2 - 1 - log 2).
        ("spo", -1.5),
        ("ppo_klpen", 5.0 + math.log(2.0)),
        ("topr", 3.0 * math.log(0.5)),
        ("vtrace_pg", 3.0 * math.log(0.5)),
        ("p3o", 3.0 * math.log(0.5)),
        ("staleness_sampling", 6.0),
        ("icepop", 6.0 * math.log(0.5)),
        # Dropped: rho is beyond 1.2 or 1.28, pi - mu = 0.25 beyond 0.2, l^2 = 0.48 beyond 0.04.
        ("aspo", 0.0),
        ("rollout_is", 0.0),
        ("rec", 0.0),
        ("dppo_tv", 0.0),
        ("m2po", 0.0),
        # KL(mu||pi) = 0.25 log 0.5 + 0.75 log 1.5 = 0.131: inside DPPO's 0.2, outside KPop's 0.1.
        ("dppo_kl", 6.0 * math.log(0.5)),
        ("kpop", 0.0),
        ("kimi_opmd", 3.0 * math.log(0.5) - 0.05 * math.log(2.0) ** 2),
        ("dro", 3.0 * math.log(0.5) - 0.05 * math.log(2.0) ** 2),
        ("opmd_simple", 1.5 * math.log(0.5)),
        # e^3 = 20.09 is above the cap of 20.
        ("awr", 20.0 * math.log(0.5)),
        ("behaviour_cloning", math.log(0.5)),
        ("asymre", 3.1 * math.log(0.5)),
    ],
)
def test_surrogate_value_equals_the_objective(name: str, expected: float) -> None:
    """At pi = 0.5, mu = 0.25, A = 3 the surrogate's value is the paper's objective, computed by hand."""
    baseline = loaded(name)
    one = torch.ones(1, 1, dtype=torch.float64)
    items = Items(log_pi=(0.5 * one).log(), log_mu=(0.25 * one).log(), advantage=3 * one, mask=one.bool())
    assert float(evaluate_surrogate(baseline, baseline.config(), items).surrogate) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 2.0])
def test_gaussian_weight_peaks_at_sigma_squared(sigma: float) -> None:
    """c is largest at l = sigma^2 and e^(sigma^2 / 2) there, by differentiating l - l^2 / (2 sigma^2) by hand."""
    options: dict[str, object] = {"sigma": sigma}
    peak = coefficient("gipo", options, sigma**2, 1.0)
    assert peak == pytest.approx(math.exp(sigma**2 / 2), rel=1e-12)
    assert coefficient("gipo", options, sigma**2 - 0.01, 1.0) < peak
    assert coefficient("gipo", options, sigma**2 + 0.01, 1.0) < peak


def test_gaussian_weight_stays_exact_where_the_ratio_overflows() -> None:
    """At l = 100 in float32 e^l is infinite, but c = e^(100 - 50) at sigma = 10 is not."""
    baseline = loaded("gipo")
    points = torch.tensor([100.0], dtype=torch.float32)
    actual = float(gradient_coefficient(baseline, baseline.config({"sigma": 10.0}), points, 1.0))
    # 100 - 50 is exact in float32 here; the exponential is good to a few units in the last place.
    assert actual == pytest.approx(math.exp(50.0), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"sigma": 5.0}, True),
        ({"kernel": "laplacian"}, True),
        ({"kernel": "laplacian", "sigma": 1.1}, False),
        ({"kernel": "laplacian", "sigma": 0.5, "sigma_negative": 1.1}, False),
        ({"kernel": "laplacian", "sigma": 1.1, "sigma_negative": 0.5}, False),
        ({"kernel": "cauchy", "sigma": 0.1}, False),
    ],
)
def test_boundedness_follows_the_kernel(options: dict[str, object], expected: bool) -> None:
    """e^(l - |l| / sigma) is bounded for sigma <= 1 only, a Cauchy tail never beats e^l, a Gaussian always does."""
    baseline = loaded("gipo")
    assert baseline.is_bounded(baseline.config(options)) is expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ce_gppo", {}, False),
        ("ce_gppo", {"ceiling": 3.0}, True),
        ("rec", {}, True),
        ("rec", {"clip_mode": "ring"}, True),
        ("rec", {"clip_mode": "one_side", "weight": "ratio"}, False),
        ("rec", {"clip_mode": "two_side", "weight": "ratio"}, True),
        ("rec", {"clip_mode": "ring", "weight": "ratio"}, False),
    ],
)
def test_boundedness_follows_the_settings(name: str, options: dict[str, object], expected: bool) -> None:
    """By hand at A = -1: a bounded setting has the same c at l = 100 and 200, an unbounded one has c = e^l at both."""
    baseline = loaded(name)
    assert baseline.is_bounded(baseline.config(options)) is expected
    near, far = (coefficient(name, options, log_ratio, -1.0) for log_ratio in (100.0, 200.0))
    assert (near == far) is expected
    assert expected or far == pytest.approx(math.exp(200.0), rel=1e-12)


@pytest.mark.parametrize(("pi", "mu", "advantage"), [(0.3, 0.25, 1.0), (0.2, 0.25, -1.0)])
@pytest.mark.parametrize("nudge", [-1e-10, 0.0, 1e-10])
def test_a_ratio_on_the_clip_edge_keeps_its_whole_gradient(
    pi: float, mu: float, advantage: float, nudge: float
) -> None:
    """At rho = 0.3/0.25 = 1.2 and 0.2/0.25 = 0.8, whatever the rounding, c is rho: neither 0 nor half."""
    log_ratio = math.log(pi) - math.log(mu) + nudge
    assert coefficient("ppo_clip", {}, log_ratio, advantage) == pytest.approx(pi / mu, rel=1e-9)


@pytest.mark.parametrize(("log_ratio", "advantage"), [(1e3, 1.0), (-1e3, -1.0), (-1e3, 1.0)])
def test_clipping_gives_zero_also_where_the_ratio_overflows(log_ratio: float, advantage: float) -> None:
    """Where e^l is infinite but clipped, or underflows, the coefficient is 0 and not 0 * inf."""
    assert coefficient("ppo_clip", {}, log_ratio, advantage) == 0.0


@pytest.mark.parametrize(
    ("name", "is_wider"),
    [
        ("gipo", True),
        ("ppo_clip", True),
        ("tis", True),
        ("cispo", True),
        ("sapo", False),
        ("ppo_dual", True),
        ("ppo_rb", True),
        ("leaky_ppo", True),
        ("icepop", True),
        ("rollout_is", True),
        ("m2po", True),
    ],
)
@pytest.mark.parametrize("advantage", BOTH)
def test_knob_widens_in_the_declared_direction(name: str, is_wider: bool, advantage: float) -> None:
    """Turning the knob up lets more weight through on both signs of A where `wider`, and less where not."""
    baseline = loaded(name)
    knob = baseline.declaration.knob
    assert knob is not None
    assert knob.wider is is_wider
    # Fine where the narrowest clipping bands end, coarse beyond.
    points = torch.cat([torch.linspace(-0.6, 0.4, 101), torch.linspace(0.5, 3, 26)]).double()
    totals = [
        float(gradient_coefficient(baseline, baseline.config({knob.field: value}), points, advantage).sum())
        for value in (knob.sweep if is_wider else knob.sweep[::-1])
    ]
    assert all(narrow < wide for narrow, wide in pairwise(totals))


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def dppo_tv_by_hand(pi: float, mu: float, advantage: float) -> float:
    is_kept = pi - mu <= 0.2 if advantage > 0 else pi - mu >= -0.2
    return min(pi / mu, 20.0) * is_kept


def dppo_kl_by_hand(pi: float, mu: float, advantage: float) -> float:
    moved_against = pi <= mu if advantage > 0 else pi >= mu
    return min(pi / mu, 20.0) * (moved_against or binary_kl(mu, pi) <= 0.2)


def kpop_by_hand(pi: float, mu: float, advantage: float) -> float:
    return pi / mu * (binary_kl(mu, pi) <= 0.1 and binary_kl(pi, mu) <= 0.1)


@pytest.mark.parametrize(
    ("name", "formula"), [("dppo_tv", dppo_tv_by_hand), ("dppo_kl", dppo_kl_by_hand), ("kpop", kpop_by_hand)]
)
@settings(max_examples=60, deadline=None)
@given(pi=st.floats(1e-3, 0.999), mu=st.floats(1e-3, 0.999), advantage=st.sampled_from([2.0, -0.5]))
@example(pi=0.4, mu=0.01, advantage=2.0)
@example(pi=0.9, mu=0.5, advantage=2.0)
@example(pi=0.5, mu=0.9, advantage=-0.5)
@example(pi=0.5, mu=0.5, advantage=2.0)
@example(pi=0.15, mu=0.004, advantage=2.0)
def test_probability_based_coefficient_equals_its_closed_form(
    name: str, formula: Callable[[float, float, float], float], pi: float, mu: float, advantage: float
) -> None:
    """For any two probabilities of the action, c is the formula written out in plain floats."""
    distances = (abs(pi - mu) - 0.2, binary_kl(mu, pi) - 0.2, binary_kl(mu, pi) - 0.1, binary_kl(pi, mu) - 0.1)
    # The 1e-8 in DPPO-KL's complements moves its divergence by up to 1e-5 here.
    assume(min(map(abs, distances)) > 1e-4)
    actual = coefficient(name, {}, math.log(pi) - math.log(mu), advantage, log_mu=math.log(mu))
    assert actual == pytest.approx(formula(pi, mu, advantage), rel=1e-9)


@pytest.mark.parametrize("name", sorted(baseline_paths()))
def test_discrete_only_is_declared_where_more_than_the_ratio_is_read(name: str) -> None:
    """Halving pi and mu twenty times over leaves every ratio, and so every score, unless probabilities are read."""
    baseline = loaded(name)
    log_pi = torch.tensor([[0.5, 0.9], [0.5, 0.9]], dtype=torch.float64).log()
    log_mu = torch.tensor([[0.9, 0.5], [0.6, 0.8]], dtype=torch.float64).log()
    advantage = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    scores = [
        evaluate_surrogate(
            baseline,
            baseline.config(),
            Items(
                log_pi=log_pi - shift,
                log_mu=log_mu - shift,
                advantage=advantage,
                mask=torch.ones_like(advantage, dtype=torch.bool),
                logits=torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64).expand(2, 2, 3).clone(),
                mu_logits=torch.tensor([0.1, 0.8, -0.2], dtype=torch.float64).expand(2, 2, 3),
                log_prox=(log_pi + log_mu) / 2 - shift,
                lag_updates=torch.tensor([2, 5]),
                episode=torch.tensor([0, 1]),
            ),
        ).score
        for shift in (0.0, 20 * math.log(2.0))
    ]
    is_unmoved = torch.allclose(scores[0], scores[1], rtol=1e-12, atol=1e-14)
    assert is_unmoved != baseline.declaration.discrete_only
    assert describe(baseline)["discrete_only"] is baseline.declaration.discrete_only


def m2po_scores(log_ratios: list[float], advantages: list[float], threshold: float = 0.04) -> list[float]:
    baseline = loaded("m2po")
    log_pi = torch.tensor(log_ratios, dtype=torch.float64).unsqueeze(1)
    items = Items(
        log_pi=log_pi,
        log_mu=torch.zeros_like(log_pi),
        advantage=torch.tensor(advantages, dtype=torch.float64).unsqueeze(1),
        mask=torch.ones_like(log_pi, dtype=torch.bool),
    )
    return [float(x) for x in evaluate_surrogate(baseline, baseline.config({"threshold": threshold}), items).score]


def test_second_moment_drops_the_largest_harmful_items_and_keeps_the_denominator() -> None:
    """By hand: harmful l^2 are .01 .04 .09, their means .01 .025 .047, so .09 goes; what stays is not scaled up.

    The harmless l = -0.5 has the largest l^2 of all, and neither counts nor goes.
    """
    actual = m2po_scores([0.1, 0.3, -0.2, -0.5], [1.0, 1.0, -1.0, 1.0])
    assert actual == pytest.approx([math.exp(0.1), 0.0, -math.exp(-0.2), math.exp(-0.5)], rel=1e-12)


def test_second_moment_drops_ties_together() -> None:
    """By hand: of l^2 = .01 .09 .09 the first two have mean .05; one of the equal pair cannot stay alone."""
    assert m2po_scores([0.1, 0.3, 0.3], [1.0, 1.0, 1.0], 0.055) == pytest.approx([math.exp(0.1), 0.0, 0.0], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(
        st.tuples(st.integers(-90, 90).filter(bool), st.sampled_from([2.0, -1.0])),
        min_size=1,
        max_size=12,
        unique_by=lambda item: abs(item[0]),
    )
)
def test_second_moment_equals_a_slow_version(items: list[tuple[int, float]]) -> None:
    """Removing the worst harmful item again and again until the mean fits leaves the same items."""
    log_ratios = [hundredths / 100 for hundredths, _ in items]
    advantages = [advantage for _, advantage in items]
    harmful = {
        i
        for i, (log_ratio, advantage) in enumerate(zip(log_ratios, advantages, strict=True))
        if log_ratio * advantage > 0
    }
    kept = set(harmful)
    # A threshold that no mean of these hundredths can equal.
    while kept and sum(log_ratios[i] ** 2 for i in kept) / len(kept) > 0.040001:
        kept.remove(max(kept, key=lambda i: abs(log_ratios[i])))
    expected = [
        0.0 if i in harmful - kept else math.exp(log_ratio) * advantage
        for i, (log_ratio, advantage) in enumerate(zip(log_ratios, advantages, strict=True))
    ]
    assert m2po_scores(log_ratios, advantages, 0.040001) == pytest.approx(expected, rel=1e-12)


def test_dual_clip_ceiling_is_an_absolute_ratio() -> None:
    """At rho = 2 and A < 0 the item is kept; a ceiling tied to the band, 1 + 2 epsilon = 1.4, would drop it."""
    assert coefficient("ppo_dual", {}, math.log(2.0), -1.0) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spo", math.exp(25.0) * (1 + (math.exp(25.0) - 1) / 0.2)),
        ("m2po", math.exp(25.0)),
        ("dapo", math.exp(25.0)),
        ("ce_gppo", math.exp(25.0)),
        ("kimi_opmd", 1 + 0.1 * 25.0),
    ],
)
def test_no_hidden_clamp_zeroes_the_gradient_of_stale_items(name: str, expected: float) -> None:
    """At l = 25 and A = -1, beyond the +-20 at which trainers clamp l, c is still the closed form."""
    assert coefficient(name, {}, 25.0, -1.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ppo_dual", {"ceiling": 1.1}),
        ("ppo_delta", {"delta": 1.2}),
        ("ce_gppo", {"ceiling": 1.0}),
        ("icepop", {"low": 1.5}),
        ("icepop", {"high": 0.9}),
        ("topr", {"cap": 0.5}),
        ("aspo", {"cap": 0.5}),
        ("dppo_tv", {"cap": 0.5}),
        ("dppo_kl", {"cap": 0.5}),
        ("ppo_rb", {"slope": 0.1}),
        ("leaky_ppo", {"slope": -0.1}),
        ("leaky_ppo", {"slope": 1.0}),
        ("asymre", {"delta_v": 0.1}),
        ("dro", {"beta": 0.0}),
        ("rec", {"epsilon_low": 1.5}),
    ],
)
def test_settings_that_would_make_another_method_are_refused(name: str, options: dict[str, object]) -> None:
    """A bound inside its own band, a band without fresh data and a slope of the wrong sign are errors."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        loaded(name).config(options)
