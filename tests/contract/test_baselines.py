"""The laws that every file in baselines/ obeys, whatever its method.

Exemptions live with the baseline: fields of its Declaration, or one of two phrases in its docstring,
"Differs on fresh data" and "Squares the ratio" (which halves the range of log-ratios that must not overflow).
Numbers are checked against what the law itself says; no law knows a method's formula.
"""

import math
import re
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from replaybench.baseline import Baseline, Items, SurrogateValue, evaluate_surrogate, load_baseline
from replaybench.errors import ContractError, NumericalError
from replaybench.paths import BASELINES_DIR

NAMES = sorted(path.stem for path in BASELINES_DIR.glob("*.py") if not path.stem.startswith("_"))
SETTINGS = [
    (name, {knob.field: value} if knob else {})
    for name in NAMES
    for knob in [load_baseline(name).declaration.knob]
    for value in (knob.sweep if knob else (0.0,))
] + [(name, {}) for name in NAMES if load_baseline(name).declaration.knob]
# The columns that a need stands for.
COLUMNS = {
    "mu_logits": ("logits", "mu_logits"),
    "log_prox": ("log_prox",),
    "lag_updates": ("lag_updates",),
    "episodes": ("episode",),
}
EPISODE_LENGTHS = (1, 2, 4, 6, 3)
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


def declared(baseline: Baseline, items: Items) -> Items:
    """The items without the columns that the baseline does not ask for, which a run does not give it either."""
    lacking = {need for need in COLUMNS if need not in baseline.declaration.needs}
    return replace(items, **dict.fromkeys((column for need in lacking for column in COLUMNS[need]), None))


def random_items(baseline: Baseline, *, seed: int, spread: float = 0.7) -> Items:
    """Stale items in float64 with both signs of the advantage and nothing masked, of episodes of different lengths.

    log_pi and log_mu are those of the logits, so that they are probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    decisions, tokens, bins = sum(EPISODE_LENGTHS), 3, 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mu_logits = normal(decisions, tokens, bins)
    logits = mu_logits + spread * normal(decisions, tokens, bins)
    chosen = torch.randint(bins, (decisions, tokens, 1), generator=generator)
    log_pi, log_mu = (torch.log_softmax(x, -1).gather(-1, chosen).squeeze(-1) for x in (logits, mu_logits))
    items = Items(
        log_pi=log_pi,
        log_mu=log_mu,
        advantage=normal(decisions, 1).expand(decisions, tokens).contiguous(),
        mask=torch.ones(decisions, tokens, dtype=torch.bool),
        logits=logits,
        mu_logits=mu_logits,
        log_prox=log_mu + 0.3 * normal(decisions, tokens),
        lag_updates=torch.randint(6, (decisions,), generator=generator),
        episode=torch.arange(len(EPISODE_LENGTHS)).repeat_interleave(torch.tensor(EPISODE_LENGTHS)),
    )
    return declared(baseline, items)


def items_at(baseline: Baseline, log_ratio: Tensor, advantage: float) -> Items:
    """One decision of one item for each log-ratio, an episode of its own, all with the same advantage.

    The likelier side has probability 1/2, so that there are logits of two bins. The proximal policy is halfway.
    A baseline that reads probabilities sees log_mu = 0 instead, as the coefficient's default has it.
    """
    column = log_ratio.reshape(-1, 1)
    has_logits = "mu_logits" in baseline.declaration.needs
    log_mu = -math.log(2.0) - column.clamp(min=0) if has_logits else torch.zeros_like(column)
    items = Items(
        log_pi=log_mu + column,
        log_mu=log_mu,
        advantage=torch.full_like(column, advantage),
        mask=torch.ones_like(column, dtype=torch.bool),
        logits=two_bins(log_mu + column),
        mu_logits=two_bins(log_mu),
        log_prox=log_mu + column / 2,
        lag_updates=torch.full((len(column),), 4),
        episode=torch.arange(len(column)),
    )
    return declared(baseline, items)


def two_bins(log_p: Tensor) -> Tensor:
    """Logits, [B, 1, 2], of an action of log-probability log_p, [B, 1], and of all others together."""
    return torch.stack([log_p, torch.log(-torch.expm1(log_p))], -1)


def take(items: Items, rows: Tensor | slice) -> Items:
    """The decisions of a batch at `rows`."""
    columns = {field.name: getattr(items, field.name) for field in fields(Items)}
    return Items(**{name: None if column is None else column[rows] for name, column in columns.items()})


def score_of(baseline: Baseline, config: Any, items: Items) -> Tensor:
    return evaluate_surrogate(baseline, config, items).score


def assert_same_logits_score(actual: SurrogateValue, expected: SurrogateValue) -> None:
    if expected.logits_score is None:
        assert actual.logits_score is None
    else:
        assert actual.logits_score is not None
        assert torch.equal(actual.logits_score, expected.logits_score)


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
    value = evaluate_surrogate(baseline, baseline.config(settings), items_at(baseline, log_ratio, advantage))
    assert torch.isfinite(value.score).all()
    assert torch.isfinite(value.surrogate).all()
    assert value.score.dtype == dtype


@each_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_boundedness_is_as_declared(name: str, settings: dict[str, float], dtype: torch.dtype) -> None:
    """Bounded is finite however stale the item; unbounded overflows with a NumericalError, or else keeps growing.

    With statistics of the batch, an on-policy item lies beside: alone, an item may well be all that is typical.
    """
    baseline = load_baseline(name)
    config = baseline.config(settings)
    grows = False
    for advantage in (1.0, -1.0):
        sizes: dict[float, float] = {}
        for extreme in EXTREMES:
            try:
                points = [extreme, 0.0] if baseline.declaration.batch_statistics else [extreme]
                items = items_at(baseline, torch.tensor(points, dtype=dtype), advantage)
                score = score_of(baseline, config, items)[0]
            except NumericalError:
                assert not baseline.is_bounded(config), f"overflows at l={extreme}, A={advantage}"
                grows = True
            else:
                assert torch.isfinite(score).all()
                sizes[extreme] = abs(float(score))
        for near, far in ((-1e3, -1e6), (1e3, 1e6)):
            grows |= near in sizes and far in sizes and sizes[far] > 2 * sizes[near]
    assert grows or baseline.is_bounded(config), "declared unbounded, but its coefficient stops growing"


@each_setting
def test_zero_advantage_gives_zero_score(name: str, settings: dict[str, float]) -> None:
    """An item without advantage moves nothing, except where `acts_at_zero_advantage` is declared, and then it does."""
    baseline = load_baseline(name)
    score = score_of(baseline, baseline.config(settings), items_at(baseline, torch.linspace(-5, 5, 41).double(), 0.0))
    assert bool((score != 0).any()) == baseline.declaration.acts_at_zero_advantage


@each_setting
def test_micro_batching_does_not_matter(name: str, settings: dict[str, float]) -> None:
    """A batch scored in three pieces is the batch scored at once, unless `batch_statistics` is declared.

    The pieces are whole episodes, because a baseline that reads "episodes" is given no less.
    """
    baseline = load_baseline(name)
    config = baseline.config(settings)
    if baseline.declaration.batch_statistics:
        pytest.skip("declares batch statistics")
    items = random_items(baseline, seed=1)
    pieces = [score_of(baseline, config, take(items, slice(*ends))) for ends in ((0, 1), (1, 7), (7, 16))]
    assert_close(torch.cat(pieces), score_of(baseline, config, items))


@each_setting
def test_batch_order_does_not_matter(name: str, settings: dict[str, float]) -> None:
    """Shuffling the decisions of a batch shuffles their scores and changes none."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    items = random_items(baseline, seed=2)
    order = torch.randperm(len(items.log_pi), generator=torch.Generator().manual_seed(3))
    assert_close(score_of(baseline, config, take(items, order)), score_of(baseline, config, items)[order])


@each_setting
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_masked_items_are_inert(name: str, settings: dict[str, float], poison: float) -> None:
    """Whatever a masked item holds, it scores 0 and the valid items score the same."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    items = random_items(baseline, seed=4)
    mask = torch.rand(items.mask.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    clean = replace(items, mask=mask)
    signs = {"log_pi": 1, "log_mu": -1, "advantage": 1, "log_prox": -1, "logits": 1, "mu_logits": -1}
    hidden = {
        column: values.masked_fill(~(mask if values.dim() == 2 else mask.unsqueeze(-1)), sign * poison)
        for column, sign in signs.items()
        if (values := getattr(items, column)) is not None
    }
    poisoned = replace(clean, **hidden)
    expected, actual = evaluate_surrogate(baseline, config, clean), evaluate_surrogate(baseline, config, poisoned)
    assert torch.equal(actual.score, expected.score)
    assert torch.equal(actual.surrogate, expected.surrogate)
    assert_same_logits_score(actual, expected)
    assert not actual.score[~mask].any()


@each_setting
def test_a_masked_decision_is_as_good_as_absent(name: str, settings: dict[str, float]) -> None:
    """Valid decisions score as in a batch that never held the masked ones, statistics of the batch included."""
    baseline = load_baseline(name)
    config = baseline.config(settings)
    items = random_items(baseline, seed=6)
    kept = torch.arange(len(items.log_pi)) % 3 != 0
    masked = replace(items, mask=items.mask & kept.unsqueeze(1))
    assert_close(score_of(baseline, config, masked)[kept], score_of(baseline, config, take(items, kept)))


def made_fresh(items: Items) -> Items:
    """The same decisions, had the current policy acted."""
    return replace(
        items,
        log_pi=items.log_mu.clone(),
        logits=items.mu_logits,
        log_prox=None if items.log_prox is None else items.log_mu.clone(),
        lag_updates=None if items.lag_updates is None else torch.zeros_like(items.lag_updates),
    )


def partly_fresh(baseline: Baseline, *, seed: int) -> Items:
    """Random items whose first and last episode are fresh, for baselines that drop whole episodes."""
    stale = random_items(baseline, seed=seed)
    fresh = made_fresh(stale)
    row = torch.arange(len(stale.log_pi)).unsqueeze(1)
    is_fresh = (row < EPISODE_LENGTHS[0]) | (row >= len(row) - EPISODE_LENGTHS[-1])
    return replace(stale, log_pi=torch.where(is_fresh, fresh.log_pi, stale.log_pi))


@each_setting
def test_fresh_data_give_the_plain_policy_gradient(name: str, settings: dict[str, float]) -> None:
    """At l = 0 the score equals A, unless the docstring says "Differs on fresh data" (and then it does differ).

    The control that does not update the policy scores 0 instead.
    """
    baseline = load_baseline(name)
    fresh = made_fresh(random_items(baseline, seed=7))
    value = evaluate_surrogate(baseline, baseline.config(settings), fresh)
    score = value.score
    assert value.logits_score is None or not value.logits_score.any()
    if not baseline.declaration.updates_policy:
        assert torch.equal(score, torch.zeros_like(score))
        return
    is_plain = torch.allclose(score, fresh.advantage, rtol=1e-12, atol=1e-14)
    assert is_plain != ("Differs on fresh data" in docstring(baseline))


@each_setting
def test_updates_policy_is_as_declared(name: str, settings: dict[str, float]) -> None:
    """Some score is not zero, exactly where `updates_policy` is declared: on stale items, or on episodes of both."""
    baseline = load_baseline(name)
    draw = partly_fresh if "episodes" in baseline.declaration.needs else random_items
    score = score_of(baseline, baseline.config(settings), draw(baseline, seed=8))
    assert bool(score.any()) == baseline.declaration.updates_policy


@each_baseline
def test_undeclared_columns_are_not_read(name: str) -> None:
    """A baseline that does not need log_mu scores the same whatever log_mu is; each declared need changes something.

    Columns that are not declared are absent here, as in a run, so reading one raises.
    """
    baseline = load_baseline(name)
    config = baseline.config()
    items = partly_fresh(baseline, seed=9)
    ramp = torch.linspace(-2, 2, len(items.log_mu)).double().unsqueeze(1)
    is_read = changes_something(baseline, config, items, log_mu=items.log_mu + ramp)
    assert is_read == ("log_mu" in baseline.declaration.needs)
    if items.log_prox is not None:
        assert changes_something(baseline, config, items, log_prox=items.log_prox + ramp)
    if items.lag_updates is not None:
        assert changes_something(baseline, config, items, lag_updates=items.lag_updates + 3)
    if items.mu_logits is not None:
        assert changes_something(baseline, config, items, mu_logits=2 * items.mu_logits)
    if items.episode is not None:
        assert changes_something(baseline, config, items, episode=torch.zeros_like(items.episode))


def changes_something(baseline: Baseline, config: Any, items: Items, **columns: Tensor) -> bool:
    """Whether other columns make another score or another gradient by the logits."""
    before = evaluate_surrogate(baseline, config, items)
    after = evaluate_surrogate(baseline, config, replace(items, **columns))
    logits = [value.logits_score for value in (before, after) if value.logits_score is not None]
    return not torch.equal(before.score, after.score) or (len(logits) == 2 and not torch.equal(*logits))


@pytest.mark.parametrize("name", [name for name in NAMES if "episodes" in load_baseline(name).declaration.needs])
def test_an_episodes_number_is_a_name_only(name: str) -> None:
    """Episodes numbered otherwise, in another order and with gaps, score the same."""
    baseline = load_baseline(name)
    config = baseline.config()
    items = partly_fresh(baseline, seed=12)
    assert items.episode is not None
    other = replace(items, episode=torch.tensor([70, 3, 41, 5, 12])[items.episode])
    assert score_of(baseline, config, items).any()
    assert_close(score_of(baseline, config, other), score_of(baseline, config, items))


@pytest.mark.parametrize("name", [name for name in NAMES if "episodes" in load_baseline(name).declaration.needs])
def test_padding_does_not_change_an_episode(name: str) -> None:
    """Masked decisions put in the middle of each episode leave the scores of the others as they were."""
    baseline = load_baseline(name)
    config = baseline.config()
    items = partly_fresh(baseline, seed=13)
    rows = torch.arange(len(items.log_pi)).repeat_interleave(2)
    is_padding = (torch.arange(len(rows)) % 2 == 1).unsqueeze(1)
    padded = take(items, rows)
    padded = replace(padded, mask=~is_padding.expand_as(padded.mask), log_pi=padded.log_pi + 5.0 * is_padding)
    assert_close(score_of(baseline, config, padded)[::2], score_of(baseline, config, items))


@each_baseline
def test_outer_controls_are_sane(name: str) -> None:
    """A learning-rate scale is in (0, 1] and 1 on fresh data; sampling weights are positive and never grow with lag."""
    baseline = load_baseline(name)
    config = baseline.config()
    if baseline.learning_rate_scale is not None:
        stale = random_items(baseline, seed=14)
        assert 0 < baseline.learning_rate_scale(stale, config) < 1
        assert baseline.learning_rate_scale(made_fresh(stale), config) == pytest.approx(1.0, rel=1e-12)
    if baseline.sampling_weight is not None:
        weight = baseline.sampling_weight(torch.tensor([0, 1, 5, 1000]), config)
        assert (weight > 0).all()
        assert (weight.diff() < 0).all()


@each_setting
def test_surrogate_leaves_its_inputs_alone(name: str, settings: dict[str, float]) -> None:
    """No tensor of the batch is written to."""
    baseline = load_baseline(name)
    items = random_items(baseline, seed=10)
    tracked = replace(items, log_pi=items.log_pi.clone().requires_grad_())
    columns = [column for field in fields(Items) if (column := getattr(tracked, field.name)) is not None]
    before = [(column.detach().clone(), column._version) for column in columns]
    torch.autograd.grad(baseline.surrogate(tracked, baseline.config(settings)).sum(), tracked.log_pi)
    for column, (values, version) in zip(columns, before, strict=True):
        assert torch.equal(column.detach(), values)
        assert column._version == version


@each_baseline
def test_a_batch_without_valid_items_is_refused(name: str) -> None:
    """An empty batch is an error and not a zero gradient."""
    baseline = load_baseline(name)
    items = random_items(baseline, seed=11)
    with pytest.raises(ContractError, match="masked"):
        evaluate_surrogate(baseline, baseline.config(), replace(items, mask=torch.zeros_like(items.mask)))
