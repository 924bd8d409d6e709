"""Pins the gradient coefficients c(l, A) of the methods to printed numbers and to closed forms.

The printed table is a hand computation from the papers' objectives, checked by finite differences, three digits.
The closed forms are written out below in plain Python floats, without torch and without the baselines' log space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from replaybench.baseline import Items, evaluate_surrogate, gradient_coefficient, load_baseline

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
]
CELLS = [
    pytest.param(name, options, advantage, log_ratio, printed, id=f"{name}{options or ''} A={advantage} l={log_ratio}")
    for name, options, advantages, row in TABLE
    for advantage in advantages
    for log_ratio, printed in zip(LOG_RATIOS, row.split(), strict=True)
]


def coefficient(name: str, options: dict[str, object], log_ratio: float, advantage: float) -> float:
    """c(l, A) in float64."""
    baseline = load_baseline(name)
    points = torch.tensor([log_ratio], dtype=torch.float64)
    return float(gradient_coefficient(baseline, baseline.config(options), points, advantage))


def tolerance_of(printed: str) -> float:
    """Half a unit in the last printed digit, in the third for whole numbers; a zero stands for less than 1e-12."""
    if printed == "0":
        return 1e-12
    exponent = Decimal(printed).as_tuple().exponent
    assert isinstance(exponent, int)
    # A few ulps on top, for a value that lies on the rounding edge.
    return 0.5 * 10.0**exponent * (1 + 1e-9) if exponent < 0 else 5e-3


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


def ppo_by_hand(epsilon: float) -> Callable[[float, float], float]:
    def formula(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        is_clipped = ratio > 1 + epsilon if advantage > 0 else ratio < 1 - epsilon
        return 0.0 if is_clipped else ratio

    return formula


CLOSED_FORMS = [
    ClosedForm("importance_sampling", {}, lambda log_ratio, advantage: math.exp(log_ratio)),
    ClosedForm("no_correction", {}, lambda log_ratio, advantage: 1.0),
    ClosedForm("zero", {}, lambda log_ratio, advantage: 0.0),
    ClosedForm("ppo_clip", {}, ppo_by_hand(0.2)),
    ClosedForm("ppo_clip", {"epsilon": 0.4}, ppo_by_hand(0.4)),
    ClosedForm("tis", {}, lambda log_ratio, advantage: min(math.exp(log_ratio), 2.0)),
    ClosedForm("tis", {"cap": 10}, lambda log_ratio, advantage: min(math.exp(log_ratio), 10.0)),
    ClosedForm("cispo", {}, lambda log_ratio, advantage: min(math.exp(log_ratio), 5.0)),
    ClosedForm(
        "cispo",
        {"epsilon_min": 0.5, "epsilon_max": 1.5},
        lambda log_ratio, advantage: min(max(math.exp(log_ratio), 0.5), 1.5),
    ),
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


@pytest.mark.parametrize("name", ["importance_sampling", "sapo", "ppo_clip"])
@settings(max_examples=40, deadline=None)
@given(log_ratio=st.floats(-3, 3), advantage=st.sampled_from([2.0, -0.5]))
def test_score_is_the_slope_of_the_surrogate_where_nothing_is_detached(
    name: str, log_ratio: float, advantage: float
) -> None:
    """Central differences of the surrogate's value reproduce its score, away from the clip edges."""
    assume(min(abs(math.exp(log_ratio) - 0.8), abs(math.exp(log_ratio) - 1.2)) > 1e-3)
    baseline = load_baseline(name)
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
    ],
)
def test_surrogate_value_equals_the_objective(name: str, expected: float) -> None:
    """At pi = 0.5, mu = 0.25, A = 3 the surrogate's value is the paper's objective, computed by hand."""
    baseline = load_baseline(name)
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
    baseline = load_baseline("gipo")
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
    baseline = load_baseline("gipo")
    assert baseline.is_bounded(baseline.config(options)) is expected


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
    ("name", "is_wider"), [("gipo", True), ("ppo_clip", True), ("tis", True), ("cispo", True), ("sapo", False)]
)
@pytest.mark.parametrize("advantage", BOTH)
def test_knob_widens_in_the_declared_direction(name: str, is_wider: bool, advantage: float) -> None:
    """Turning the knob up lets more weight through on both signs of A where `wider`, and less where not."""
    baseline = load_baseline(name)
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
