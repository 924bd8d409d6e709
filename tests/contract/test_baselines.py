"""The laws that every file in baselines/ obeys, whatever its method.

Exemptions live with the baseline: fields of its Declaration, or one of two phrases in its docstring,
"Differs on fresh data" and "Squares the ratio" (which halves the range of log-ratios that must not overflow).
Numbers are checked against what the law itself says; no law knows a method's formula.
"""

import re
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from replaybench.baseline import Baseline, Items, evaluate_surrogate, gradient_coefficient, load_baseline
from replaybench.errors import ContractError, NumericalError
from replaybench.paths import BASELINES_DIR

NAMES = sorted(path.stem for path in BASELINES_DIR.glob("*.py") if not path.stem.startswith("_"))
SETTINGS = [
    (name, {knob.field: value} if knob else {})
    for name in NAMES
    for knob in [load_baseline(name).declaration.knob]
    for value in (knob.sweep if knob else (0.0,))
] + [(name, {}) for name in NAMES if load_baseline(name).declaration.knob]
LARGEST = {torch.float32: 80.0, torch.float64: 300.0}
EXTREMES = (-1e6, -1e3, 1e3, 1e6)

each_baseline = pytest.mark.parametrize("name", NAMES)
each_setting = pytest.mark.parametrize(
    ("name", "settings"), SETTINGS, ids=[f"{name}{settings or ''}" for name, settings in SETTINGS]
)


def docstring(baseline: Baseline) -> str:
    """The module docstring with its line breaks undone, so that a phrase may be broken across lines."""
    text = sys.modules[baseline.surrogate.__module__].__doc__ or ""
    return " ".join(text.split())


def random_items(*, seed: int, decisions: int = 16, tokens: int = 3, spread: float = 0.7) -> Items:
    """Stale items in float64 with both signs of the advantage and nothing masked."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_mu = -normal(decisions, tokens).abs() - 0.5
    return Items(
        log_pi=log_mu + spread * normal(decisions, tokens),
        log_mu=log_mu,
        advantage=normal(decisions, 1).expand(decisions, tokens).contiguous(),
        mask=torch.ones(decisions, tokens, dtype=torch.bool),
    )


def items_at(log_ratio: Tensor, advantage: float) -> Items:
    """One item for each log-ratio, all with the same advantage."""
    column = log_ratio.reshape(-1, 1)
    return Items(
        log_pi=column,
        log_mu=torch.zeros_like(column),
        advantage=torch.full_like(column, advantage),
        mask=torch.ones_like(column, dtype=torch.bool),
    )


def take(items: Items, rows: Tensor | slice) -> Items:
    """The decisions of a batch at `rows`."""
    return Items(
        log_pi=items.log_pi[rows], log_mu=items.log_mu[rows], advantage=items.advantage[rows], mask=items.mask[rows]
    )


def score_of(baseline: Baseline, config: Any, items: Items) -> Tensor:
    return evaluate_surrogate(baseline, config, items).score


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_baselines_are_found() -> None:
    """The parametrised laws below run over something."""
    assert NAMES


@each_baseline
def test_config_has_a_default_for_every_field_and_is_frozen(name: str) -> None:
    """A baseline runs with no settings, and its Config is a value that cannot change under a run."""
    baseline = load_baseline(name)
    assert baseline.config() == baseline.config_type()
    assert baseline.config_type.__dataclass_params__.frozen


@each_baseline
def test_docstring_names_its_source_its_deviations_and_every_setting(name: str) -> None:
    """The docstring gives an arXiv id (the declared one) or says why not, what differs, and each setting's origin."""
    baseline = load_baseline(name)
    text = docstring(baseline)
    if baseline.declaration.arxiv is None:
        assert "No arXiv id:" in text
    else:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", baseline.declaration.arxiv)
        assert f"arXiv {baseline.declaration.arxiv}" in text
    assert "Differs" in text
    for field in fields(baseline.config_type):
        assert re.search(rf"\b{field.name}\b", text), f"{field.name} is not explained"


@each_baseline
def test_knob_sweep_is_increasing_and_valid(name: str) -> None:
    """Every value of the knob's sweep is a valid setting; the default is among them where it is a number."""
    baseline = load_baseline(name)
    knob = baseline.declaration.knob
    if knob is None:
        pytest.skip("declares no knob")
    assert list(knob.sweep) == sorted(set(knob.sweep))
    assert len(knob.sweep) >= 2
    for value in knob.sweep:
        assert getattr(baseline.config({knob.field: value}), knob.field) == value
    default = getattr(baseline.config(), knob.field)
    assert default is None or default in knob.sweep


@each_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("advantage", [2.5, -2.5])
def test_score_is_finite_over_the_promised_range(
    name: str, settings: dict[str, float], dtype: torch.dtype, advantage: float
) -> None:
    """At |l| <= 80 in float32 and |l| <= 300 in float64 no item overflows or becomes NaN, and the dtype is kept."""
    baseline = load_baseline(name)
    largest = LARGEST[dtype] / (2 if "Squares the ratio" in docstring(baseline) else 1)
    log_ratio = torch.linspace(-largest, largest, 81, dtype=dtype)
    value = evaluate_surrogate(baseline, baseline.config(settings), items_at(log_ratio, advantage))
    assert torch.isfinite(value.score).all()
    assert torch.isfinite(value.surrogate).all()
    assert value.score.dtype == dtype


@each_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_boundedness_is_as_declared(name: str, settings: dict[str, float], dtype: torch.dtype) -> None:
    """Bounded is finite however stale the item; unbounded overflows with a NumericalError, or else keeps growing."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    grows = False
    for advantage in (1.0, -1.0):
        sizes: dict[float, float] = {}
        for extreme in EXTREMES:
            try:
                coefficient = gradient_coefficient(baseline, config, torch.tensor([extreme], dtype=dtype), advantage)
            except NumericalError:
                assert not baseline.is_bounded(config), f"overflows at l={extreme}, A={advantage}"
                grows = True
            else:
                assert torch.isfinite(coefficient).all()
                sizes[extreme] = abs(float(coefficient))
        for near, far in ((-1e3, -1e6), (1e3, 1e6)):
            grows |= near in sizes and far in sizes and sizes[far] > 2 * sizes[near]
    assert grows or baseline.is_bounded(config), "declared unbounded, but its coefficient stops growing"


@each_setting
def test_zero_advantage_gives_zero_score(name: str, settings: dict[str, float]) -> None:
    """An item without advantage moves nothing, except where `acts_at_zero_advantage` is declared, and then it does."""
    baseline = load_baseline(name)
    score = score_of(baseline, baseline.config(settings), items_at(torch.linspace(-5, 5, 41).double(), 0.0))
    assert bool((score != 0).any()) == baseline.declaration.acts_at_zero_advantage


@each_setting
def test_micro_batching_does_not_matter(name: str, settings: dict[str, float]) -> None:
    """A batch scored in three pieces is the batch scored at once, unless `batch_statistics` is declared."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    if baseline.declaration.batch_statistics:
        pytest.skip("declares batch statistics")
    items = random_items(seed=1)
    pieces = [score_of(baseline, config, take(items, slice(*ends))) for ends in ((0, 1), (1, 7), (7, 16))]
    assert_close(torch.cat(pieces), score_of(baseline, config, items))


@each_setting
def test_batch_order_does_not_matter(name: str, settings: dict[str, float]) -> None:
    """Shuffling the decisions of a batch shuffles their scores and changes none."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    items = random_items(seed=2)
    order = torch.randperm(len(items.log_pi), generator=torch.Generator().manual_seed(3))
    assert_close(score_of(baseline, config, take(items, order)), score_of(baseline, config, items)[order])


@each_setting
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_masked_items_are_inert(name: str, settings: dict[str, float], poison: float) -> None:
    """Whatever a masked item holds, it scores 0 and the valid items score the same."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    items = random_items(seed=4)
    mask = torch.rand(items.mask.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    clean = replace(items, mask=mask)
    poisoned = Items(
        log_pi=items.log_pi.masked_fill(~mask, poison),
        log_mu=items.log_mu.masked_fill(~mask, -poison),
        advantage=items.advantage.masked_fill(~mask, poison),
        mask=mask,
    )
    expected, actual = evaluate_surrogate(baseline, config, clean), evaluate_surrogate(baseline, config, poisoned)
    assert torch.equal(actual.score, expected.score)
    assert torch.equal(actual.surrogate, expected.surrogate)
    assert not actual.score[~mask].any()


@each_setting
def test_a_masked_decision_is_as_good_as_absent(name: str, settings: dict[str, float]) -> None:
    """Valid decisions score as in a batch that never held the masked ones, statistics of the batch included."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    items = random_items(seed=6)
    kept = torch.arange(len(items.log_pi)) % 3 != 0
    masked = replace(items, mask=items.mask & kept.unsqueeze(1))
    assert_close(score_of(baseline, config, masked)[kept], score_of(baseline, config, take(items, kept)))


@each_setting
def test_fresh_data_give_the_plain_policy_gradient(name: str, settings: dict[str, float]) -> None:
    """At l = 0 the score equals A, unless the docstring says "Differs on fresh data" (and then it does differ).

    The control that does not update the policy scores 0 instead.
    """
    baseline = load_baseline(name)
    stale = random_items(seed=7)
    fresh = replace(stale, log_pi=stale.log_mu.clone())
    score = score_of(baseline, baseline.config(settings), fresh)
    if not baseline.declaration.updates_policy:
        assert torch.equal(score, torch.zeros_like(score))
        return
    is_plain = torch.allclose(score, fresh.advantage, rtol=1e-12, atol=1e-14)
    assert is_plain != ("Differs on fresh data" in docstring(baseline))


@each_setting
def test_updates_policy_is_as_declared(name: str, settings: dict[str, float]) -> None:
    """On stale items some score is not zero, exactly where `updates_policy` is declared."""
    baseline = load_baseline(name)
    score = score_of(baseline, baseline.config(settings), random_items(seed=8))
    assert bool(score.any()) == baseline.declaration.updates_policy


@each_baseline
def test_undeclared_columns_are_not_read(name: str) -> None:
    """A baseline that does not need log_mu scores the same whatever log_mu is; one that does is changed by it."""
    baseline = load_baseline(name)
    config = baseline.config()
    items = random_items(seed=9)
    other = replace(items, log_mu=items.log_mu + torch.linspace(-2, 2, len(items.log_mu)).double().unsqueeze(1))
    is_read = not torch.equal(score_of(baseline, config, items), score_of(baseline, config, other))
    assert is_read == ("log_mu" in baseline.declaration.needs)


@each_setting
def test_surrogate_leaves_its_inputs_alone(name: str, settings: dict[str, float]) -> None:
    """No tensor of the batch is written to."""
    baseline = load_baseline(name)
    items = random_items(seed=10)
    tracked = replace(items, log_pi=items.log_pi.clone().requires_grad_())
    columns = [getattr(tracked, field.name) for field in fields(Items)]
    before = [(column.detach().clone(), column._version) for column in columns]
    torch.autograd.grad(baseline.surrogate(tracked, baseline.config(settings)).sum(), tracked.log_pi)
    for column, (values, version) in zip(columns, before, strict=True):
        assert torch.equal(column.detach(), values)
        assert column._version == version


@each_baseline
def test_a_batch_without_valid_items_is_refused(name: str) -> None:
    """An empty batch is an error and not a zero gradient."""
    baseline = load_baseline(name)
    items = random_items(seed=11)
    with pytest.raises(ContractError, match="masked"):
        evaluate_surrogate(baseline, baseline.config(), replace(items, mask=torch.zeros_like(items.mask)))
