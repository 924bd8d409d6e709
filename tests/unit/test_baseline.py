"""Tests of how baseline files are found, loaded, configured and evaluated."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from replaybench.baseline import (
    Baseline,
    Items,
    _installed_paths,
    baseline_paths,
    config_record,
    evaluate_surrogate,
    gradient_coefficient,
    load_baseline,
    with_gradient,
)
from replaybench.errors import ConfigError, ContractError, NumericalError

SOURCE = '''"""Half: half the plain policy gradient."""

from dataclasses import dataclass

from replaybench.baseline import Declaration, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    scale: float = 0.5
    steps: int = 3


DECLARATION = Declaration(paper="none", bounded=True, knob=Knob(field="scale", sweep=(0.1, 0.5)))


def surrogate(items, config):
    return config.scale * items.advantage * items.log_pi
'''


def write_baseline(folder: Path, *replacements: tuple[str, str], name: str = "half") -> str:
    """Writes the sample baseline, with parts of its source replaced, and returns its path."""
    source = SOURCE
    for old, new in replacements:
        assert old in source
        source = source.replace(old, new)
    path = folder / f"{name}.py"
    path.write_text(source)
    return str(path)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def items_of(log_pi: Tensor, *, log_mu: Tensor, advantage: Tensor, mask: Tensor | None = None) -> Items:
    mask = torch.ones_like(log_pi, dtype=torch.bool) if mask is None else mask
    return Items(log_pi=log_pi, log_mu=log_mu, advantage=advantage, mask=mask)


def test_a_users_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    """A path ending in .py loads that file: name, summary, digest of its bytes, and a working surrogate."""
    path = write_baseline(tmp_path)
    baseline = load_baseline(path)
    assert baseline.name == "half"
    assert baseline.summary == "Half: half the plain policy gradient."
    assert baseline.digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    points = torch.tensor([-1.0, 2.0])
    assert gradient_coefficient(baseline, baseline.config(), points, -3.0).tolist() == [0.5, 0.5]


def test_an_edited_file_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that runs is the code of the digest, even if an edit keeps the file's size and time."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    path = write_baseline(tmp_path)
    os.utime(path, (1e9, 1e9))
    first = load_baseline(path)
    write_baseline(tmp_path, ("scale: float = 0.5", "scale: float = 0.7"))
    os.utime(path, (1e9, 1e9))
    second = load_baseline(path)
    assert (first.config().scale, second.config().scale) == (0.5, 0.7)
    assert first.digest != second.digest


def test_an_unchanged_file_is_loaded_once(tmp_path: Path) -> None:
    """Loading twice returns the same object, so that its Config type stays the same type."""
    path = write_baseline(tmp_path)
    assert load_baseline(path) is load_baseline(path)


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    """A user's copy of a file under the same name runs its own code, and so does the original."""
    (tmp_path / "copy").mkdir()
    original = load_baseline(write_baseline(tmp_path))
    copy = load_baseline(write_baseline(tmp_path / "copy", ("float = 0.5", "float = 0.9")))
    assert (original.config().scale, copy.config().scale) == (0.5, 0.9)


def test_an_unknown_name_gets_a_suggestion_and_the_list() -> None:
    """A misspelt name is a ConfigError that names the nearest baseline and all of them."""
    with pytest.raises(ConfigError, match=r"Did you mean 'gipo'\? Known: .*zero"):
        load_baseline("gippo")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that does not exist is a ConfigError that repeats the path."""
    with pytest.raises(ConfigError, match=r"absent\.py"):
        load_baseline(str(tmp_path / "absent.py"))


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("def surrogate", "def objective"), "'surrogate' is missing"),
        (("class Config", "class Settings"), "'Config' is missing"),
        (("DECLARATION =", "DECLARED ="), "'DECLARATION' is missing"),
        (("Declaration(paper", "dict(paper"), "must be a replaybench.baseline.Declaration"),
        (("@dataclass(frozen=True, kw_only=True)\n", ""), "must be a frozen dataclass"),
        (('field="scale"', 'field="width"'), "knob 'width' is no field of Config"),
        (("from dataclasses import dataclass", "import no_such_module"), "ModuleNotFoundError"),
        (("def surrogate(items, config):", "def surrogate(items, config)"), "SyntaxError"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused(tmp_path: Path, replacement: tuple[str, str], message: str) -> None:
    """Each missing or wrong part is a ContractError that names the file and the part."""
    path = write_baseline(tmp_path, replacement, name="broken")
    with pytest.raises(ContractError, match=message) as caught:
        load_baseline(path)
    assert "broken.py" in str(caught.value)


def install(monkeypatch: pytest.MonkeyPatch, point: EntryPoint) -> None:
    """Lets Python see an installed entry point, and nothing remember those of before."""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: [point] if group == point.group else [])
    monkeypatch.setattr("replaybench.baseline._installed_paths", _installed_paths.__wrapped__)


def test_entry_points_add_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module named by an entry point is listed beside the shipped files and loads by the point's name."""
    write_baseline(tmp_path, name="half_from_a_plugin")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint(name="half", value="half_from_a_plugin", group="replaybench.baselines")
    install(monkeypatch, point)
    assert {"half", "gipo"} <= set(baseline_paths())
    assert load_baseline("half").config().scale == 0.5


@pytest.mark.parametrize("value", ["no_such_module_anywhere", "no_such_package_anywhere.baseline"])
def test_an_entry_point_without_a_module_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A stale entry point is a ConfigError that names it, not a crash of every listing."""
    point = EntryPoint(name="gone", value=value, group="replaybench.baselines")
    install(monkeypatch, point)
    with pytest.raises(ConfigError, match="gone"):
        baseline_paths()


def test_settings_override_the_defaults(tmp_path: Path) -> None:
    """Given settings replace defaults, text from a command line is converted, and the rest stays."""
    baseline = load_baseline(write_baseline(tmp_path))
    assert config_record(baseline.config({"scale": "0.25"})) == {"scale": 0.25, "steps": 3}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gipo", {"sigmma": 1.0}, r"Unknown setting of baseline 'gipo' 'sigmma'. Did you mean 'sigma'\?"),
        ("gipo", {"sigma": 0.0}, "setting 'sigma'.*greater than 0"),
        ("gipo", {"sigma": "wide"}, "setting 'sigma'.*number"),
        ("gipo", {"sigma": float("nan")}, "setting 'sigma'"),
        ("gipo", {"sigma": float("inf")}, "setting 'sigma'.*not finite"),
        ("gipo", {"sigma_negative": -1.0}, "setting 'sigma_negative'"),
        ("gipo", {"kernel": "box"}, "setting 'kernel'.*gaussian"),
        ("cispo", {"epsilon_min": 6.0}, "setting 'epsilon_min'.*above epsilon_max=5.0"),
        ("zero", {"anything": 1}, "Unknown setting.*Known: none"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    """An unknown key, a wrong type, a value out of range or an empty band is a ConfigError that names the setting."""
    with pytest.raises(ConfigError, match=message):
        load_baseline(name).config(settings)


def test_the_score_of_a_small_batch_equals_the_hand_computation() -> None:
    """IS on ratios 2 and 1/2 with advantages 3 and -4: values and scores 6 and -2; the masked item has 0."""
    baseline = load_baseline("importance_sampling")
    value = evaluate_surrogate(
        baseline,
        baseline.config(),
        items_of(
            column(0.5, 0.25, 0.9).log(),
            log_mu=column(0.25, 0.5, 0.9).log(),
            advantage=column(3.0, -4.0, 100.0),
            mask=column(1, 1, 0).bool(),
        ),
    )
    torch.testing.assert_close(value.surrogate, column(6.0, -2.0, 0.0))
    torch.testing.assert_close(value.score, column(6.0, -2.0, 0.0))
    assert not value.score.requires_grad
    assert not value.surrogate.requires_grad


def with_surrogate(surrogate: Any) -> Baseline:
    """A baseline made from a function, for surrogates that no file should have."""
    return replace(load_baseline("no_correction"), name="made_up", surrogate=surrogate)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_masked_items_reach_the_baseline_as_on_policy_items(poison: float) -> None:
    """A surrogate that averages over the batch sees l = 0 and A = 0 in the place of whatever was masked."""
    seen: list[Items] = []

    def centred(items: Items, config: object) -> Tensor:
        seen.append(items)
        return (items.advantage - items.log_ratio.detach().mean()) * items.log_pi

    items = items_of(
        column(-1.0, poison),
        log_mu=column(-3.0, poison),
        advantage=column(5.0, poison),
        mask=column(1, 0).bool(),
    )
    value = evaluate_surrogate(with_surrogate(centred), None, items)
    assert seen[0].log_ratio.tolist() == [[2.0], [0.0]]
    assert seen[0].advantage.tolist() == [[5.0], [0.0]]
    # By hand: the mean log-ratio is (2 + 0) / 2 = 1.
    assert value.score.tolist() == [[4.0], [0.0]]


def test_overflow_says_how_many_items_and_how_stale() -> None:
    """One of two valid items at l = 1000 overflows; the message counts it, gives l and says what to do."""
    baseline = load_baseline("importance_sampling")
    items = items_of(column(0.0, 1000.0, 2000.0), log_mu=column(0, 0, 0), advantage=column(1, 1, 1))
    masked = Items(log_pi=items.log_pi, log_mu=items.log_mu, advantage=items.advantage, mask=column(1, 1, 0).bool())
    with pytest.raises(NumericalError, match=r"1 of 2 items overflow .*\|log-ratio\| among them 1e\+03.*bounded"):
        evaluate_surrogate(baseline, baseline.config(), masked)


@pytest.mark.parametrize("log_pi", [float("nan"), float("-inf")])
def test_a_valid_item_that_is_not_finite_is_refused(log_pi: float) -> None:
    """NaN or minus infinity in a log-probability that counts is an error, not a zero or a NaN gradient."""
    baseline = load_baseline("no_correction")
    items = items_of(column(log_pi, 0.0), log_mu=column(0, 0), advantage=column(1, 1))
    with pytest.raises(NumericalError):
        evaluate_surrogate(baseline, baseline.config(), items)


def test_a_reduced_surrogate_is_refused() -> None:
    """A surrogate that sums inside would be scaled by the harness again; its shape gives it away."""
    items = items_of(column(-1.0, -2.0), log_mu=column(-1.0, -2.0), advantage=column(1, 1))
    with pytest.raises(ContractError, match="Do not reduce"):
        evaluate_surrogate(with_surrogate(lambda items, config: items.log_pi.sum()), None, items)


def test_a_surrogate_without_log_pi_is_refused() -> None:
    """A surrogate that lost its gradient is a ContractError that names the way out, not autograd's message."""
    items = items_of(column(-1.0), log_mu=column(-1.0), advantage=column(1))
    with pytest.raises(ContractError, match="with_gradient"):
        evaluate_surrogate(with_surrogate(lambda items, config: items.advantage), None, items)


def test_columns_of_different_shapes_are_refused() -> None:
    """An advantage that was not spread over the items is a ContractError that names the column."""
    items = items_of(torch.zeros(2, 3), log_mu=torch.zeros(2, 3), advantage=torch.zeros(2, 1))
    with pytest.raises(ContractError, match="advantage has A=1"):
        evaluate_surrogate(load_baseline("no_correction"), None, items)


def test_the_coefficient_at_zero_advantage_is_refused() -> None:
    """c = h / A has no value at A = 0."""
    baseline = load_baseline("gipo")
    with pytest.raises(ConfigError, match="other than 0"):
        gradient_coefficient(baseline, baseline.config(), torch.zeros(1), 0.0)


@pytest.mark.parametrize(
    ("name", "column"),
    [("gspo", "episodes"), ("tr_ppo", "mu_logits"), ("decoupled_ppo", "log_prox"), ("a3po", "lag_updates")],
)
def test_the_coefficient_of_more_than_an_item_is_refused(name: str, column: str) -> None:
    """A method that reads further columns has no c(l, A); the error names the method and the column."""
    baseline = load_baseline(name)
    with pytest.raises(ConfigError, match=rf"'{name}' reads {column};"):
        gradient_coefficient(baseline, baseline.config(), torch.zeros(1), 1.0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gipo", None),
        ("zero", None),
        ("staleness_sampling", None),
        ("m2po", "whole batch"),
        ("p3o", "whole batch"),
        ("dppo_tv", "probabilities"),
        ("gspo", "episodes"),
        ("truly_ppo", "mu_logits"),
    ],
)
def test_why_a_method_has_no_curve(name: str, reason: str | None) -> None:
    """A curve is drawn for what depends on one item's log-ratio and advantage alone; else the reason is given."""
    found = load_baseline(name).declaration.why_no_curve
    assert found is None if reason is None else found is not None and reason in found


def test_the_coefficient_scores_each_point_alone() -> None:
    """A declared statistic of the batch, here its size, is that of one item: every point is its own batch."""
    baseline = with_surrogate(lambda items, config: items.advantage * items.log_pi / len(items.log_pi))
    baseline = replace(baseline, declaration=replace(baseline.declaration, batch_statistics=True))
    assert gradient_coefficient(baseline, None, torch.linspace(-1, 1, 5), 2.0).tolist() == [1.0] * 5


def test_with_gradient_has_the_given_value_and_the_given_slope() -> None:
    """Value 7 and score 3 come back as stated, through a chain: d(7)/dx = 3 * d(2x)/dx = 6."""
    x = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    result = with_gradient(torch.tensor([7.0]).double(), torch.tensor([3.0]).double(), 2 * x)
    (slope,) = torch.autograd.grad(result.sum(), x)
    assert result.item() == 7.0
    assert slope.item() == 6.0


def batch_of_three_episodes() -> Items:
    """Six decisions of two items; episode 9 lies apart, and an item of episode 4 and all of episode 7 are masked."""
    generator = torch.Generator().manual_seed(0)
    log_mu = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return Items(
        log_pi=log_mu.clone(),
        log_mu=log_mu,
        advantage=torch.ones_like(log_mu),
        mask=torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [1, 1]]).bool(),
        episode=torch.tensor([9, 4, 7, 4, 9, 9]),
    )


def test_sums_over_an_episode_equal_a_slow_version() -> None:
    """Sum, mean and one value an episode, by walking over the valid items; gradient 1 for each valid item's share."""
    items = batch_of_three_episodes()
    assert items.episode is not None
    values = torch.arange(12, dtype=torch.float64).reshape(6, 2).requires_grad_()
    members: dict[int, list[float]] = {9: [], 4: [], 7: []}
    for row, number in enumerate(items.episode.tolist()):
        members[number] += [values.tolist()[row][a] for a in range(2) if items.mask[row, a]]
    total = items.over_episode(values)
    assert total.shape == (6, 1)
    assert total.flatten().tolist() == [sum(members[number]) for number in items.episode.tolist()]
    means = [sum(members[n]) / max(len(members[n]), 1) for n in items.episode.tolist()]
    assert items.mean_over_episode(values).flatten().tolist() == pytest.approx(means)
    assert items.each_episode(values).tolist() == [sum(members[4]), sum(members[9])]
    (gradient,) = torch.autograd.grad(total[0].sum(), values)
    # Row 0 is of episode 9, so exactly its valid items count.
    expected = items.mask & (items.episode == 9).unsqueeze(1)
    assert torch.equal(gradient, expected.double())


@pytest.mark.parametrize(
    ("read", "need"),
    [
        (lambda items: items.proximal(), "log_prox"),
        (lambda items: items.lag(), "lag_updates"),
        (lambda items: items.over_episode(items.log_pi), "episodes"),
        (lambda items: items.each_episode(items.log_pi), "episodes"),
        (lambda items: items.kl_behaviour, "mu_logits"),
        (lambda items: items.kl_current, "mu_logits"),
    ],
)
def test_reading_an_undeclared_column_says_what_to_declare(read: Callable[[Items], Tensor], need: str) -> None:
    """A surrogate that reads a column its file does not ask for is a ContractError that names the need."""
    items = items_of(column(0.0), log_mu=column(0.0), advantage=column(1.0))
    with pytest.raises(ContractError, match=f"'{need}'.*DECLARATION.needs"):
        read(items)


def items_with_logits(logits: Tensor, mu_logits: Tensor, *, is_joint: bool) -> Items:
    """Items whose logged action is bin 1 of each token, one a token or one a step."""
    log_pi, log_mu = (torch.log_softmax(x, -1)[..., 1] for x in (logits, mu_logits))
    if is_joint:
        log_pi, log_mu = log_pi.sum(-1, keepdim=True), log_mu.sum(-1, keepdim=True)
    return Items(
        log_pi=log_pi,
        log_mu=log_mu,
        advantage=torch.linspace(-1, 2, log_pi.numel(), dtype=torch.float64).reshape(log_pi.shape),
        mask=torch.ones_like(log_pi, dtype=torch.bool),
        logits=logits,
        mu_logits=mu_logits,
    )


@pytest.mark.parametrize("is_joint", [False, True])
def test_both_divergences_equal_those_of_torch_distributions(is_joint: bool) -> None:
    """KL(mu||pi) and KL(pi||mu) of each token, or summed over a step's tokens; mu may be of lower precision."""
    generator = torch.Generator().manual_seed(1)
    logits, mu_logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64).unbind()
    items = items_with_logits(logits, mu_logits.float(), is_joint=is_joint)
    pi, mu = (torch.distributions.Categorical(logits=x) for x in (logits, mu_logits.float().double()))
    for actual, expected in (
        (items.kl_behaviour, torch.distributions.kl_divergence(mu, pi)),
        (items.kl_current, torch.distributions.kl_divergence(pi, mu)),
    ):
        expected = expected.sum(-1, keepdim=True) if is_joint else expected
        assert actual.shape == items.log_pi.shape
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("is_joint", [False, True])
def test_score_and_logits_score_together_are_the_whole_gradient(is_joint: bool) -> None:
    """Through a network, score * log pi + logits_score * logits has the gradient of the written-out objective.

    The objective is rho A - 0.3 KL(pi||mu) - 0.2 KL(mu||pi), differentiated by plain autograd.
    """

    def with_divergences(items: Items, config: object) -> Tensor:
        return items.log_ratio.exp() * items.advantage - 0.3 * items.kl_current - 0.2 * items.kl_behaviour

    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    mu_logits = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)

    def network() -> Tensor:
        return torch.tanh(inputs @ weight).reshape(6, 2, 3)

    logits = network()
    items = items_with_logits(logits, mu_logits, is_joint=is_joint)
    value = evaluate_surrogate(with_surrogate(with_divergences), None, items)
    assert value.logits_score is not None
    together = (value.score * items.log_pi).sum() + (value.logits_score * logits).sum()
    (actual,) = torch.autograd.grad(together, weight)

    log_p, log_q = torch.log_softmax(network(), -1), torch.log_softmax(mu_logits, -1)
    ratio = (log_p - log_q)[..., 1]
    ratio = ratio.sum(-1, keepdim=True).exp() if is_joint else ratio.exp()
    penalty = 0.3 * (log_p.exp() * (log_p - log_q)).sum() + 0.2 * (log_q.exp() * (log_q - log_p)).sum()
    (expected,) = torch.autograd.grad((ratio * items.advantage).sum() - penalty, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    objective = ((ratio * items.advantage).sum() - penalty).detach()
    torch.testing.assert_close(value.surrogate.sum(), objective, rtol=1e-10, atol=0)
