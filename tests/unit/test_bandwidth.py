"""Half-weight log-ratios against their closed forms, and knobs solved for a width."""

import math
import tomllib

import pytest

from replaybench.bandwidth import half_weight, matched_knob
from replaybench.baseline import load_baseline
from replaybench.errors import ConfigError
from replaybench.paths import PRESETS_DIR

# s (1 - s) = 1/8 for the logistic s at this argument: log((2 + sqrt 2) / (2 - sqrt 2)).
SAPO_HALF = math.log((2 + math.sqrt(2)) / (2 - math.sqrt(2)))
UPPER = {
    "ppo_clip": lambda epsilon: math.log1p(epsilon),
    "tis": lambda cap: math.log(2 * cap),
    "sapo": lambda tau: math.log1p(SAPO_HALF / tau),
    "gipo": lambda sigma: sigma * math.sqrt(2 * math.log(2)),
}


@pytest.mark.parametrize("knob", [0.55, 0.9, 1.0, 2.5])
@pytest.mark.parametrize("name", UPPER)
def test_the_upper_half_weight_equals_its_closed_form(name: str, knob: float) -> None:
    """Hand-derived from c / rho = 1/2 for each family."""
    baseline = load_baseline(name)
    declared = baseline.declaration.knob
    assert declared is not None
    found = half_weight(baseline, baseline.config({declared.field: knob}))
    assert found == pytest.approx(UPPER[name](knob), abs=1e-8)


def test_the_lower_half_weight_belongs_to_negative_advantages() -> None:
    """PPO-clip cuts at ln(1 - epsilon), GIPO is symmetric, and truncation never halves a small ratio."""
    ppo, gipo, tis = (load_baseline(name) for name in ("ppo_clip", "gipo", "tis"))
    assert half_weight(ppo, ppo.config({"epsilon": 0.2}), "lower") == pytest.approx(math.log(0.8), abs=1e-8)
    assert half_weight(gipo, gipo.config({"sigma": 0.5}), "lower") == pytest.approx(-0.5887050113, abs=1e-8)
    assert half_weight(tis, tis.config(), "lower") is None


def test_plain_importance_sampling_never_halves() -> None:
    """Its weight relative to itself is 1 everywhere."""
    baseline = load_baseline("importance_sampling")
    assert half_weight(baseline, baseline.config()) is None


@pytest.mark.parametrize("upper", [0.1, math.log(1.5), 1.1774])
@pytest.mark.parametrize("name", UPPER)
def test_a_solved_knob_has_the_width_that_was_asked_for(name: str, upper: float) -> None:
    """Checked with the closed form, not with the function that solved it."""
    field, value = matched_knob(load_baseline(name), upper)
    assert field in {"epsilon", "cap", "tau", "sigma"}
    assert UPPER[name](value) == pytest.approx(upper, rel=1e-6)


def test_a_baseline_without_a_curve_is_refused_with_the_reason() -> None:
    """Nothing is matched by guess."""
    with pytest.raises(ConfigError, match="depends on the whole batch"):
        matched_knob(load_baseline("m2po"), 0.5)
    with pytest.raises(ConfigError, match="has no knob"):
        matched_knob(load_baseline("importance_sampling"), 0.5)


def test_a_width_out_of_reach_is_refused() -> None:
    """IcePop's band does not depend on its knob's other end: 40 nats is beyond the walk."""
    with pytest.raises(ConfigError, match="Choose another width"):
        matched_knob(load_baseline("ppo_clip"), 40.0)


def test_the_matched_preset_stands_at_equal_widths() -> None:
    """Each family's knobs in the preset have the half-weights ln 1.2, ln 1.5, ln 2 and 1.1774."""
    grid = tomllib.loads((PRESETS_DIR / "matched.toml").read_text(encoding="utf-8"))["grid"]
    for name, width in UPPER.items():
        knob = load_baseline(name).declaration.knob
        assert knob is not None
        (table,) = grid[name]
        found = [width(value) for value in table[knob.field]]
        assert found == pytest.approx([math.log(1.2), math.log(1.5), math.log(2), 1.17741], abs=2e-5)
