"""One optimiser step against objectives written out here and differentiated by plain autograd."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaybench.baseline import baseline_paths, load_baseline
from replaybench.episode import Episode
from replaybench.errors import ConfigError, NumericalError
from replaybench.learner import Learner, estimate_advantages, log_pi_of_log, predict_values
from replaybench.policy.mlp import MLPPolicy
from replaybench.replay import Replay, pack
from replaybench.seeding import torch_generator
from replaybench.spec import AdvantageSettings, TrainSettings

CPU = torch.device("cpu")
SIZE, TOKENS, BINS = 3, 2, 4
LENGTHS = (5, 1, 7, 3)
INDEX = torch.tensor([0, 3, 5, 6, 9, 15, 15, 2])
Floats = NDArray[np.float64]


def make_policy(name: str) -> MLPPolicy:
    sizes = {"observation_size": SIZE, "num_action_tokens": TOKENS, "num_bins": BINS, "hidden": 8, "value_hidden": 8}
    return MLPPolicy(**sizes, generator=torch_generator(name)).double()


def make_episodes() -> list[Episode]:
    """Returns episodes that another policy acted in, on random observations; odd ones are truncated."""
    behaviour = make_policy("behaviour")
    episodes = []
    for index, length in enumerate(LENGTHS):
        rng = np.random.default_rng(index)
        observations = rng.normal(size=(length + 1, SIZE)).astype(np.float32)
        with torch.no_grad():
            output = behaviour(torch.from_numpy(observations).double())
        # Sharper than a fresh network, so that some ratios leave a clipping band.
        logits = 3 * output.logits_BAK[:-1]
        tokens = rng.integers(0, BINS, (length, TOKENS)).astype(np.int16)
        log_mu = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(tokens).long()[..., None])[..., 0]
        truncated = index % 2 == 1
        episodes.append(
            Episode(
                observations=observations,
                action_tokens=tokens,
                log_mu=log_mu.numpy().astype(np.float32),
                mu_logits=logits.numpy().astype(np.float16),
                reward=rng.normal(size=length).astype(np.float32),
                value=output.value_B[:-1].numpy().astype(np.float32),
                terminated=not truncated,
                truncated=truncated,
                bootstrap_value=float(output.value_B[-1]) if truncated else 0.0,
                behaviour_version=0,
                task="toy",
                instruction="walk",
                seed=index,
                success=False,
                simulator="toy 1",
                episode_id=f"e{index}",
            )
        )
    return episodes


def make_replay() -> Replay:
    """Returns the packed episodes in float64, so that only the algebra is compared."""
    replay = pack(make_episodes(), CPU)
    assert replay.mu_logits is not None
    return replace(
        replay,
        observations=replay.observations.double(),
        log_mu=replay.log_mu.double(),
        mu_logits=replay.mu_logits.double(),
    )


def make_learner(baseline: str = "ppo_clip", config: dict[str, Any] | None = None, **changes: Any) -> Learner:
    """Returns a learner whose gradients are not clipped, unless `changes` to its settings say so."""
    loaded = load_baseline(baseline)
    settings = TrainSettings.model_validate({"max_grad_norm": 1e9} | changes)
    learner = Learner(make_policy("start"), loaded, loaded.config(config), make_replay(), settings)
    learner.refresh_advantages()
    return learner


def log_pi_by_hand(policy: MLPPolicy, replay: Replay) -> Tensor:
    """The log-probability of each logged token of INDEX, [B, A], with gradient, one token at a time."""
    rows = []
    for n in INDEX.tolist():
        logits = policy(replay.observations[replay.row[n]][None]).logits_BAK[0]
        tokens = replay.action_tokens[n].tolist()
        rows.append(torch.stack([logits[a, k] - logits[a].exp().sum().log() for a, k in enumerate(tokens)]))
    return torch.stack(rows)


def ppo_clip_objective(ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """Equation 7 of the PPO paper, averaged over items."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage).mean()


def normalised(advantage: Tensor) -> Tensor:
    chosen = advantage[INDEX].tolist()
    mean = sum(chosen) / len(chosen)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in chosen) / (len(chosen) - 1))
    return torch.tensor([(a - mean) / (deviation + 1e-8) for a in chosen], dtype=torch.float64)


def gradients(loss: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters))


def assert_gradients(parameters: list[torch.nn.Parameter], expected: list[Tensor], rtol: float = 1e-5) -> None:
    assert any(gradient.abs().max() > 1e-6 for gradient in expected)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=rtol, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_a_policy_step_is_the_gradient_of_the_written_objective(epsilon: float) -> None:
    """PPO-clip per action token, advantages normalised in the batch, mean over items; some items are clipped."""
    learner = make_learner(config={"epsilon": epsilon})
    policy, replay = make_policy("start"), learner.replay
    advantage = normalised(learner.advantage)[:, None].expand(-1, TOKENS)
    ratio = (log_pi_by_hand(policy, replay) - replay.log_mu[INDEX]).exp()
    outside = ((ratio > 1 + epsilon) & (advantage > 0)) | ((ratio < 1 - epsilon) & (advantage < 0))
    assert 0 < outside.sum() < outside.numel()
    expected = gradients(-ppo_clip_objective(ratio, advantage, epsilon), policy.policy_parameters())
    learner.policy_step(INDEX)
    assert_gradients(learner.policy.policy_parameters(), expected)


def test_step_granularity_has_one_ratio_for_all_tokens_of_a_decision() -> None:
    """The same objective with the product of the tokens' ratios, averaged over decisions."""
    learner = make_learner(granularity="step")
    policy, replay = make_policy("start"), learner.replay
    log_ratio = (log_pi_by_hand(policy, replay) - replay.log_mu[INDEX]).sum(1)
    objective = ppo_clip_objective(log_ratio.exp(), normalised(learner.advantage), 0.2)
    expected = gradients(-objective, policy.policy_parameters())
    step = learner.policy_step(INDEX)
    assert step.items.log_pi.shape == (len(INDEX), 1)
    assert_gradients(learner.policy.policy_parameters(), expected)


def test_advantages_can_be_left_as_they_are() -> None:
    """With normalise = "none" the objective holds the estimated advantages themselves."""
    learner = make_learner("importance_sampling", advantage={"normalise": "none"})
    policy, replay = make_policy("start"), learner.replay
    ratio = (log_pi_by_hand(policy, replay) - replay.log_mu[INDEX]).exp()
    expected = gradients(-(ratio * learner.advantage[INDEX].double()[:, None]).mean(), policy.policy_parameters())
    step = learner.policy_step(INDEX)
    assert_gradients(learner.policy.policy_parameters(), expected)
    assert torch.equal(step.items.advantage[:, 0], learner.advantage[INDEX])


def test_the_value_head_learns_by_squared_error_and_leaves_the_encoder_alone() -> None:
    """The value gradient is that of half the mean squared error; with the zero baseline the policy gets none."""
    learner = make_learner("zero")
    policy = make_policy("start")
    values = torch.stack([policy.value(learner.replay.observations[learner.replay.row[n]][None])[0] for n in INDEX])
    loss = 0.5 * (values - learner.value_target[INDEX]).square().mean()
    expected = gradients(loss, policy.value_parameters())
    step = learner.policy_step(INDEX)
    assert_gradients(learner.policy.value_parameters(), expected)
    assert step.value_loss == pytest.approx(float(loss.detach()))
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in learner.policy.policy_parameters()
    )


def test_the_kl_penalty_is_the_exact_divergence_from_the_logged_logits() -> None:
    """With the zero baseline what is left is the coefficient times the mean KL(mu||pi) of torch.distributions."""
    learner = make_learner("zero", kl_coefficient=0.7)
    policy, replay = make_policy("start"), learner.replay
    assert replay.mu_logits is not None
    behaviour = torch.distributions.Categorical(logits=replay.mu_logits[INDEX])
    current = torch.distributions.Categorical(logits=policy(replay.observations[replay.row[INDEX]]).logits_BAK)
    penalty = 0.7 * torch.distributions.kl_divergence(behaviour, current).mean()
    expected = gradients(penalty, policy.policy_parameters())
    learner.policy_step(INDEX)
    assert_gradients(learner.policy.policy_parameters(), expected, rtol=1e-3)


def test_bfloat16_rounds_the_products_and_nothing_else() -> None:
    """Gradients near those of float64 and unequal to them; losses, weights and their changes keep their type."""
    exact, rounded = make_learner("no_correction"), make_learner("no_correction", precision="bfloat16")
    rounded.policy.float()  # type: ignore[attr-defined]
    rounded.replay = replace(rounded.replay, observations=rounded.replay.observations.float())
    exact_step, rounded_step = exact.policy_step(INDEX), rounded.policy_step(INDEX)
    assert rounded_step.items.log_pi.dtype == torch.float32
    assert rounded_step.value_loss == pytest.approx(exact_step.value_loss, rel=0.05)
    assert rounded_step.value_loss != pytest.approx(exact_step.value_loss, rel=1e-6)
    ours, expected = rounded.policy.policy_parameters(), exact.policy.policy_parameters()
    for parameter, reference in zip(ours, expected, strict=True):
        assert parameter.dtype == torch.float32 and parameter.grad is not None and reference.grad is not None
        assert (parameter.grad - reference.grad).norm() < 0.1 * reference.grad.norm() + 1e-6


def test_a_kl_penalty_without_logged_logits_is_refused() -> None:
    """The penalty cannot be estimated from log_mu alone, so the log must hold the logits."""
    replay = replace(make_replay(), mu_logits=None)
    baseline = load_baseline("zero")
    with pytest.raises(ConfigError, match="mu_logits"):
        Learner(make_policy("start"), baseline, baseline.config(), replay, TrainSettings(kl_coefficient=0.1))


def test_the_policys_gradient_is_clipped_to_its_norm_and_the_value_heads_is_not() -> None:
    """Clipping keeps the direction, scales the policy's norm to the limit, and reports the norm before."""
    free, clipped = make_learner(), make_learner(max_grad_norm=1e-3)
    free_step, clipped_step = free.policy_step(INDEX), clipped.policy_step(INDEX)
    flat = torch.cat([p.grad.flatten() for p in free.policy.policy_parameters() if p.grad is not None])
    scaled = torch.cat([p.grad.flatten() for p in clipped.policy.policy_parameters() if p.grad is not None])
    norm = float(flat.square().sum().sqrt())
    assert norm > 1e-3
    assert free_step.grad_norm == clipped_step.grad_norm == pytest.approx(norm)
    torch.testing.assert_close(scaled, flat * 1e-3 / norm, rtol=1e-3, atol=0)
    for left, right in zip(free.policy.value_parameters(), clipped.policy.value_parameters(), strict=True):
        assert left.grad is not None
        assert right.grad is not None
        assert torch.equal(left.grad, right.grad)


def test_the_first_update_is_adams_with_a_learning_rate_for_each_part() -> None:
    """By Adam's formulas the first step moves by learning rate * g / (|g| + 1e-8), without weight decay."""
    learner = make_learner(learning_rate=0.01, value_learning_rate=0.5)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    learner.policy_step(INDEX)
    named = dict(learner.policy.named_parameters())  # type: ignore[attr-defined]
    for name, parameter in named.items():
        rate = 0.5 if name.startswith("value_head") else 0.01
        expected = before[name] - rate * parameter.grad / (parameter.grad.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-9)


def by_episode(replay: Replay, values: Floats) -> list[slice]:
    """The decisions of each episode."""
    stops = np.cumsum(LENGTHS)
    assert len(values) == stops[-1] == replay.num_steps
    return [slice(stop - length, stop) for stop, length in zip(stops, LENGTHS, strict=True)]


def values_by_hand(policy: MLPPolicy) -> tuple[list[Floats], list[Floats]]:
    """Values of each episode's states and of what followed each, 0 after the end of a terminated one."""
    states, following = [], []
    for episode in make_episodes():
        with torch.no_grad():
            values = policy(torch.from_numpy(episode.observations).double()).value_B.numpy()
        after = values[1:].copy()
        if episode.terminated:
            after[-1] = 0.0
        states.append(values[:-1])
        following.append(after)
    return states, following


def series(deltas: Floats, factors: Floats) -> Floats:
    """sum_k delta_{t+k} prod_{j<k} factor_{t+j}, term by term."""
    sums = [sum(deltas[k] * np.prod(factors[t:k]) for k in range(t, len(deltas))) for t in range(len(deltas))]
    return np.array(sums)


def test_stored_advantages_use_the_logged_values_whatever_the_policy_thinks() -> None:
    """ "gae_stored" is the series over logged values and bootstrap values, the same for any current policy."""
    settings = AdvantageSettings(estimator="gae_stored", gamma=0.9, lam=0.8)
    replay = make_replay()
    found = estimate_advantages(make_policy("start"), replay, settings)
    for piece, episode in zip(by_episode(replay, found.advantage), make_episodes(), strict=True):
        value = episode.value.astype(np.float64)
        deltas = episode.reward + 0.9 * np.append(value[1:], episode.bootstrap_value) - value
        np.testing.assert_allclose(found.advantage[piece], series(deltas, np.full(len(deltas), 0.72)), rtol=1e-10)
        np.testing.assert_allclose(found.value_target[piece], found.advantage[piece] + value, rtol=1e-10)
    other = estimate_advantages(make_policy("another"), replay, settings)
    np.testing.assert_array_equal(other.advantage, found.advantage)


def test_recomputed_advantages_use_the_current_values_also_after_a_truncation() -> None:
    """ "gae" is the series over the current policy's values of all T+1 observations."""
    settings = AdvantageSettings(estimator="gae", gamma=0.9, lam=0.8)
    policy, replay = make_policy("start"), make_replay()
    found = estimate_advantages(policy, replay, settings)
    pieces = by_episode(replay, found.advantage)
    for piece, episode, value, after in zip(pieces, make_episodes(), *values_by_hand(policy), strict=True):
        deltas = episode.reward + 0.9 * after - value
        np.testing.assert_allclose(found.advantage[piece], series(deltas, np.full(len(deltas), 0.72)), rtol=1e-6)


def test_vtrace_corrects_by_the_truncated_joint_ratio() -> None:
    """The targets are the series of the paper's equation 1, with the product of the tokens' ratios truncated at 1.

    The advantage is r + gamma v' - V, without a further ratio.
    """
    settings = AdvantageSettings(estimator="vtrace", gamma=0.9, lam=0.8, rho_bar=1.0, c_bar=0.5)
    policy, replay = make_policy("start"), make_replay()
    found = estimate_advantages(policy, replay, settings)
    ratio = (log_pi_of_log(policy, replay) - replay.log_mu).sum(1).exp().numpy()
    assert (ratio > 1).any()
    assert (ratio < 1).any()
    pieces = by_episode(replay, found.advantage)
    for piece, episode, value, after in zip(pieces, make_episodes(), *values_by_hand(policy), strict=True):
        rho = np.minimum(ratio[piece], 1.0)
        deltas = rho * (episode.reward + 0.9 * after - value)
        target = value + series(deltas, 0.9 * 0.8 * np.minimum(ratio[piece], 0.5))
        np.testing.assert_allclose(found.value_target[piece], target, rtol=1e-6)
        expected = episode.reward + 0.9 * np.append(target[1:], after[-1]) - value
        np.testing.assert_allclose(found.advantage[piece], expected, rtol=1e-6, atol=1e-9)


def test_predictions_over_a_log_are_those_of_single_observations() -> None:
    """Values of all N+E observations and log-probabilities of all N decisions do not depend on how they are batched."""
    policy, replay = make_policy("start"), make_replay()
    values = [float(policy.value(row[None]).detach()) for row in replay.observations]
    assert len(values) == sum(LENGTHS) + len(LENGTHS)
    np.testing.assert_allclose(predict_values(policy, replay), values, rtol=1e-10)
    torch.testing.assert_close(log_pi_of_log(policy, replay)[INDEX], log_pi_by_hand(policy, replay).detach())


def weights_of(learner: Learner, part: Callable[[Any], list[torch.nn.Parameter]]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in part(learner.policy)]


def test_warming_up_the_value_head_leaves_the_policy_untouched() -> None:
    """Twenty value steps lower the value loss and change no bit of encoder and policy head."""
    learner = make_learner(value_learning_rate=0.02)
    before = weights_of(learner, MLPPolicy.policy_parameters)
    losses = [learner.value_step(torch.arange(sum(LENGTHS))) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    after = weights_of(learner, MLPPolicy.policy_parameters)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_zero_advantages_move_the_value_head_only() -> None:
    """Without advantages a correction that does not act on them leaves the policy as it was, bit by bit."""
    learner = make_learner(advantage={"normalise": "none"})
    learner.advantage = torch.zeros_like(learner.advantage)
    before = weights_of(learner, MLPPolicy.policy_parameters)
    value_before = weights_of(learner, MLPPolicy.value_parameters)
    assert learner.policy_step(INDEX).grad_norm == 0.0
    after = weights_of(learner, MLPPolicy.policy_parameters)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.equal(value_before[0], weights_of(learner, MLPPolicy.value_parameters)[0])


@pytest.mark.parametrize("what", ["log_mu", "value_target", "advantage"])
def test_numbers_out_of_range_raise_before_the_weights_change(what: str) -> None:
    """An overflowing ratio, an infinite value loss or a NaN advantage is a NumericalError; no weight has moved."""
    learner = make_learner("importance_sampling")
    if what == "log_mu":
        learner.replay = replace(learner.replay, log_mu=learner.replay.log_mu - 1e4)
    elif what == "value_target":
        learner.value_target = torch.full_like(learner.value_target, float("inf"))
    else:
        learner.advantage = torch.full_like(learner.advantage, float("nan"))
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    with pytest.raises(NumericalError):
        learner.policy_step(INDEX)
    after = learner.policy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


WHOLE_EPISODES = torch.arange(6, 16)


def test_the_learning_rate_follows_the_baselines_scale_and_comes_back() -> None:
    """By hand: VCPO's scale is the root of (sum W)^2 / (2 sum W^2) of the two episodes; the next batch has its own.

    A batch of one episode has the scale 1, so the rate is not multiplied twice.
    """
    learner = make_learner("vcpo", learning_rate=0.01)
    log_ratio = (log_pi_of_log(learner.policy, learner.replay) - learner.replay.log_mu).sum(1).tolist()
    weights = [math.exp(sum(log_ratio[6:13])), math.exp(sum(log_ratio[13:16]))]
    expected = math.sqrt(sum(weights) ** 2 / (2 * sum(weight**2 for weight in weights)))
    assert expected < 0.99
    learner.policy_step(WHOLE_EPISODES)
    assert learner.optimiser.param_groups[0]["lr"] == pytest.approx(0.01 * expected, rel=1e-6)
    learner.policy_step(torch.arange(5))
    assert learner.optimiser.param_groups[0]["lr"] == pytest.approx(0.01, rel=1e-6)


def test_the_value_heads_learning_rate_is_not_scaled() -> None:
    """The scale is the policy's: the value head keeps its own rate."""
    learner = make_learner("vcpo", learning_rate=0.01, value_learning_rate=0.5)
    learner.policy_step(WHOLE_EPISODES)
    assert learner.optimiser.param_groups[1]["lr"] == 0.5


def test_the_proximal_policy_is_that_of_the_last_recomputation() -> None:
    """After an update, log_prox is still the log-probability before it; refreshed, it is the current one."""
    learner = make_learner("decoupled_ppo", learning_rate=0.05)
    before = log_pi_of_log(learner.policy, learner.replay)[INDEX]
    first, second = learner.policy_step(INDEX).items, learner.policy_step(INDEX).items
    torch.testing.assert_close(first.proximal(), before)
    torch.testing.assert_close(second.proximal(), before)
    assert not torch.allclose(second.log_pi.detach(), before)
    learner.refresh_advantages()
    now = log_pi_of_log(learner.policy, learner.replay)[INDEX]
    torch.testing.assert_close(learner.policy_step(INDEX).items.proximal(), now)


def test_the_lag_grows_with_every_update() -> None:
    """Logged by version 0 and learnt from after 40 updates, decisions lag 40 at the first update and 41 at the next."""
    loaded = load_baseline("a3po")
    settings = TrainSettings(learning_rate=0.01)
    learner = Learner(make_policy("start"), loaded, loaded.config(), make_replay(), settings, start_version=40)
    learner.refresh_advantages()
    found = [learner.policy_step(INDEX).items.lag() for _ in range(2)]
    assert [lag.unique().tolist() for lag in found] == [[40], [41]]


@pytest.mark.parametrize(
    ("baseline", "column"),
    [("gspo", "episode"), ("truly_ppo", "logits"), ("truly_ppo", "mu_logits"), ("a3po", "lag_updates")],
)
def test_a_baseline_is_given_what_it_declares_and_no_more(baseline: str, column: str) -> None:
    """The declared column is there for the baseline that asks, and absent for one that does not."""
    assert getattr(make_learner(baseline).policy_step(WHOLE_EPISODES).items, column) is not None
    assert getattr(make_learner("ppo_clip").policy_step(WHOLE_EPISODES).items, column) is None


@pytest.mark.parametrize("granularity", ["token", "step"])
@pytest.mark.parametrize("path", baseline_paths().values(), ids=lambda path: path.stem)
def test_every_baseline_makes_updates_on_whole_episodes(path: Path, granularity: str) -> None:
    """The learner gives every shipped method all it reads at both granularities: two updates, no number out of range.

    What updates the policy has a gradient in a batch that holds the policy's own actions too.
    """
    learner = make_learner(str(path), granularity=granularity)
    fresh = torch.arange(5)
    learner.replay.log_mu[fresh] = log_pi_of_log(learner.policy, learner.replay)[fresh]
    steps = [learner.policy_step(torch.arange(16)) for _ in range(2)]
    assert all(math.isfinite(step.grad_norm) and math.isfinite(step.policy_loss) for step in steps)
    assert (steps[0].grad_norm > 0) == learner.baseline.declaration.updates_policy


@pytest.mark.parametrize("granularity", ["token", "step"])
def test_a_pull_on_the_logits_reaches_the_policy(granularity: str) -> None:
    """Truly PPO's gradient is that of its written objective, with the exact KL of torch.distributions."""
    learner = make_learner("truly_ppo", {"delta": 0.05, "rollback": 2.0}, granularity=granularity)
    policy, replay = make_policy("start"), learner.replay
    assert replay.mu_logits is not None
    is_joint = granularity == "step"
    log_ratio = log_pi_by_hand(policy, replay) - replay.log_mu[INDEX]
    behaviour = torch.distributions.Categorical(logits=replay.mu_logits[INDEX])
    current = torch.distributions.Categorical(logits=policy(replay.observations[replay.row[INDEX]]).logits_BAK)
    kl = torch.distributions.kl_divergence(behaviour, current)
    if is_joint:
        log_ratio, kl = log_ratio.sum(1, keepdim=True), kl.sum(1, keepdim=True)
    advantage = normalised(learner.advantage)[:, None].expand_as(log_ratio)
    outside = (kl >= 0.05) & ((log_ratio.exp() - 1) * advantage > 0)
    assert outside.any()
    objective = (log_ratio.exp() * advantage - 2.0 * outside * kl).mean()
    expected = gradients(-objective, policy.policy_parameters())
    learner.policy_step(INDEX)
    assert_gradients(learner.policy.policy_parameters(), expected, rtol=1e-3)
