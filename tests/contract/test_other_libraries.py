"""The corrections against other people's code: the losses of TRL and torchrl, called on the same numbers.

TRL computes its losses inside a trainer; its method is called here on an object that has what the loss reads and
nothing else, so no model and no tokenizer is needed. Both libraries are installed for these tests alone.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from replaybench.baseline import Items, evaluate_surrogate, load_baseline
from replaybench.maths.advantages import gae, vtrace

pytestmark = pytest.mark.slow

EPISODES, STEPS = 6, 5
# Both libraries round settings to float32; these are the same number in either precision.
GAMMA, LAM, TAU_NEGATIVE = 0.96875, 0.875, 1.125


class Batch(NamedTuple):
    """Episodes as other libraries hold them: [EPISODES, STEPS] with a mask, one advantage an episode."""

    log_pi: Tensor
    log_mu: Tensor
    advantage: Tensor
    mask: Tensor


def batch(spread: float, *, ragged: bool = True) -> Batch:
    """Log-ratios of the given standard deviation, both signs of the advantage, padding behind shorter episodes."""
    generator = torch.Generator().manual_seed(7)
    log_mu = -8 + torch.randn(EPISODES, STEPS, generator=generator, dtype=torch.float64)
    log_ratio = spread * torch.randn(EPISODES, STEPS, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([5, 3, 4, 5, 2, 1]) if ragged else torch.full((EPISODES,), STEPS)
    mask = torch.arange(STEPS) < lengths[:, None]
    return Batch(log_mu + log_ratio, log_mu, torch.tensor([1.0, -0.5, 2.0, -1.5, -2.0, 0.7], dtype=torch.float64), mask)


def scores_here(name: str, data: Batch, **settings: float) -> Tensor:
    """dJ / d log pi of every item, [EPISODES, STEPS], 0 where padded."""
    baseline = load_baseline(name)
    items = Items(
        log_pi=data.log_pi.reshape(-1, 1),
        log_mu=data.log_mu.reshape(-1, 1),
        advantage=data.advantage[:, None].expand(-1, STEPS).reshape(-1, 1),
        mask=data.mask.reshape(-1, 1),
        episode=torch.arange(EPISODES).repeat_interleave(STEPS),
    )
    return evaluate_surrogate(baseline, baseline.config(settings), items).score.reshape(EPISODES, STEPS)


def scores_of_trl(
    data: Batch, loss_type: str, *, level: str = "token", opsm: float | None = None, **args: Any
) -> Tensor:
    """The same from `GRPOTrainer`: the gradient of its loss by the log-probabilities, times the number of items."""
    trainer_class = pytest.importorskip("trl").GRPOTrainer
    log_pi = data.log_pi.clone().requires_grad_()
    settings = {
        "delta": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": TAU_NEGATIVE,
        "steps_per_generation": 1,
    }
    settings |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
    identity = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_pi, torch.zeros_like(log_pi), None),
        get_off_policy_mask=trainer_class.get_off_policy_mask,
        get_gamma_weights=trainer_class.get_gamma_weights,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=opsm,
        importance_sampling_level=level,
        beta=0.0,
        loss_type=loss_type,
        epsilon_low=args.pop("epsilon_low", 0.2),
        epsilon_high=args.pop("epsilon_high", 0.2),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=identity,
        args=SimpleNamespace(**settings | args),
        _entropy_bonus_enabled=False,
        _metrics={"train": _Anything()},
    )
    empty = torch.zeros(EPISODES, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros(EPISODES, STEPS, dtype=torch.long),
        "completion_mask": data.mask.to(torch.float64),
        "advantages": data.advantage,
        "old_per_token_logps": data.log_mu,
        "num_items_in_batch": data.mask.sum(),
    }
    loss = trainer_class._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(loss, log_pi)
    return -gradient * data.mask.sum()


class _Anything(dict[str, list[float]]):
    """Metrics, of which any may be appended to."""

    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


TRL_CASES = {
    "ppo_clip": (("ppo_clip", {}), ("bnpo", {})),
    "dapo": (("dapo", {}), ("bnpo", {"epsilon_high": 0.28})),
    "ppo_delta": (("ppo_delta", {}), ("bnpo", {"delta": 4.0})),
    "cispo": (("cispo", {}), ("cispo", {"epsilon_high": 5.0})),
    "gspo": (
        ("gspo", {"epsilon_low": 0.3, "epsilon_high": 0.4}),
        ("bnpo", {"level": "sequence", "epsilon_low": 0.3, "epsilon_high": 0.4}),
    ),
    "vespo": (("vespo", {}), ("vespo", {})),
    "opsm": (("opsm", {"delta": 0.1}), ("bnpo", {"opsm": 0.1})),
}


@pytest.mark.parametrize("spread", [0.1, 0.6, 2.0])
@pytest.mark.parametrize("case", TRL_CASES)
def test_the_score_equals_that_of_trl(case: str, spread: float) -> None:
    """Every item's coefficient, inside and outside the bands, for both signs of the advantage, with padding."""
    (name, ours), (loss_type, theirs) = TRL_CASES[case]
    data = batch(spread)
    expected = scores_of_trl(data, loss_type, **theirs)
    torch.testing.assert_close(scores_here(name, data, **ours), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spread", [0.1, 0.6, 2.0])
def test_the_score_of_sapo_equals_that_of_trl(spread: float) -> None:
    """On episodes of equal length, because TRL averages within an episode first and this harness does not."""
    data = batch(spread, ragged=False)
    found = scores_here("sapo", data, tau_negative=TAU_NEGATIVE)
    torch.testing.assert_close(found, scores_of_trl(data, "sapo"), rtol=1e-9, atol=1e-12)


NUM_STATES, NUM_ACTIONS = 6, 4


def torchrl_gradient(loss_name: str, logits: Tensor, mu_logits: Tensor, advantage: Tensor, **args: Any) -> Tensor:
    """The gradient by the logits of minus a torchrl loss on every action of every state, [NUM_STATES, NUM_ACTIONS].

    The policy is a table of logits that the observation, a state's number, looks up.
    """
    pytest.importorskip("torchrl")
    from tensordict import TensorDict
    from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
    from torchrl import objectives
    from torchrl.modules import OneHotCategorical

    table = torch.nn.Embedding.from_pretrained(logits.clone(), freeze=False)
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(table, in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"], out_keys=["action"], distribution_class=OneHotCategorical, return_log_prob=True
        ),
    )
    loss = getattr(objectives, loss_name)(
        actor, None, entropy_bonus=False, normalize_advantage=False, functional=False, reduction="sum", **args
    )
    states = torch.arange(NUM_STATES).repeat_interleave(NUM_ACTIONS)
    actions = torch.arange(NUM_ACTIONS).repeat(NUM_STATES)
    data = TensorDict(
        {
            "observation": states,
            "logits": mu_logits[states],
            "action": torch.nn.functional.one_hot(actions, NUM_ACTIONS),
            "action_log_prob": mu_logits.log_softmax(-1)[states, actions],
            "advantage": advantage.reshape(-1, 1),
        },
        batch_size=[len(states)],
    )
    loss(data)["loss_objective"].backward()
    gradient: Tensor = table.weight.grad
    return -gradient


def gradient_here(
    name: str, logits: Tensor, mu_logits: Tensor, advantage: Tensor, weight: Tensor, **args: float
) -> Tensor:
    """The same from a baseline: the sum over actions of weight times score times grad log pi."""
    baseline = load_baseline(name)
    leaf = logits.clone().requires_grad_()
    log_pi = leaf.log_softmax(-1)
    items = Items(
        log_pi=log_pi.detach().reshape(-1, 1),
        log_mu=mu_logits.log_softmax(-1).reshape(-1, 1),
        advantage=advantage.reshape(-1, 1),
        mask=torch.ones(advantage.numel(), 1, dtype=torch.bool),
    )
    score = evaluate_surrogate(baseline, baseline.config(args), items).score.reshape(log_pi.shape)
    (gradient,) = torch.autograd.grad((weight * score * log_pi).sum(), leaf)
    return gradient


def policies() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the current and the behaviour policy, and an advantage of each action."""
    generator = torch.Generator().manual_seed(3)
    draw = (torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator, dtype=torch.float64) for _ in range(3))
    logits, mu_logits, advantage = draw
    return logits, mu_logits, advantage


@pytest.mark.parametrize(
    ("name", "loss_name", "ours", "theirs"),
    [
        ("importance_sampling", "PPOLoss", {}, {}),
        ("ppo_clip", "ClipPPOLoss", {"epsilon": 0.2}, {"clip_epsilon": 0.2}),
        ("ppo_clip", "ClipPPOLoss", {"epsilon": 0.5}, {"clip_epsilon": 0.5}),
    ],
)
def test_the_policy_gradient_equals_that_of_torchrl(
    name: str, loss_name: str, ours: dict[str, float], theirs: dict[str, float]
) -> None:
    """By the logits of a categorical policy, through the library's own log-probabilities."""
    logits, mu_logits, advantage = policies()
    expected = torchrl_gradient(loss_name, logits, mu_logits, advantage, **theirs)
    found = gradient_here(name, logits, mu_logits, advantage, torch.ones_like(logits), **ours)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_kl_penalty_has_the_mean_gradient_of_torchrl() -> None:
    """torchrl takes the exact KL(mu||pi), here it is estimated on the logged action: equal on average over mu.

    Averaged over all actions with weight mu; torchrl's sum counts the KL of a state once for each of its rows.
    Its coefficient is held fixed: where it adapts, it changes in place between the loss and its gradient.
    """
    logits, mu_logits, _ = policies()
    nothing = torch.zeros_like(logits)
    expected = (
        torchrl_gradient("KLPENPPOLoss", logits, mu_logits, nothing, beta=0.75, increment=1.0, decrement=1.0)
        / NUM_ACTIONS
    )
    found = gradient_here("ppo_klpen", logits, mu_logits, nothing, mu_logits.softmax(-1), beta=0.75)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def trajectories() -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Twelve steps: an episode that terminates, one that is truncated, one that the log cuts off."""
    rng = np.random.default_rng(5)
    steps = 12
    columns = {name: rng.normal(size=steps) for name in ("reward", "value", "next_value", "log_ratio")}
    done = np.zeros(steps, dtype=bool)
    terminated = done.copy()
    done[[4, 8, 11]] = True
    terminated[4] = True
    return {**columns, "done": done, "terminated": terminated}


def as_time(values: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    return torch.from_numpy(values).reshape(1, -1, 1)


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 0.75)])
def test_vtrace_equals_that_of_torchrl(rho_bar: float, c_bar: float) -> None:
    """The library multiplies the advantage by the truncated ratio; here that factor belongs to the surrogate."""
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    data = trajectories()
    next_value = np.where(data["terminated"], 0.0, data["next_value"])
    found = vtrace(
        data["reward"],
        data["value"],
        next_value,
        data["done"],
        data["log_ratio"],
        gamma=GAMMA,
        rho_bar=rho_bar,
        c_bar=c_bar,
    )
    advantage, target = functional.vtrace_advantage_estimate(
        gamma=GAMMA,
        log_pi=as_time(data["log_ratio"]),
        log_mu=torch.zeros(1, 12, 1, dtype=torch.float64),
        state_value=as_time(data["value"]),
        next_state_value=as_time(data["next_value"]),
        reward=as_time(data["reward"]),
        done=as_time(data["done"]),
        terminated=as_time(data["terminated"]),
        rho_thresh=rho_bar,
        c_thresh=c_bar,
    )
    rho = np.minimum(np.exp(data["log_ratio"]), rho_bar)
    np.testing.assert_allclose(rho * found.advantage, advantage.flatten().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.value_target, target.flatten().numpy(), rtol=1e-12)


def test_gae_equals_that_of_torchrl() -> None:
    """Over a terminal step, a truncation and the end of the log."""
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    data = trajectories()
    next_value = np.where(data["terminated"], 0.0, data["next_value"])
    found = gae(data["reward"], data["value"], next_value, data["done"], gamma=GAMMA, lam=LAM)
    advantage, target = functional.generalized_advantage_estimate(
        gamma=GAMMA,
        lmbda=LAM,
        state_value=as_time(data["value"]),
        next_state_value=as_time(data["next_value"]),
        reward=as_time(data["reward"]),
        done=as_time(data["done"]),
        terminated=as_time(data["terminated"]),
    )
    np.testing.assert_allclose(found.advantage, advantage.flatten().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.value_target, target.flatten().numpy(), rtol=1e-12)
