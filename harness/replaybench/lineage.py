"""A policy lineage: behaviour cloning to a weak start, then strictly on-policy RL, keeping every checkpoint.

Its checkpoints are the behaviour policies that write the logs. Each decision is used for one policy update
only, where all corrections all but coincide, so the logs favour no method.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from replaybench.baseline import load_baseline
from replaybench.episode import Episode
from replaybench.errors import DataError
from replaybench.evaluate import World, outcome
from replaybench.learner import Learner
from replaybench.policy import Policy, make_policy
from replaybench.recipe import Recipe, Reinforcement, WarmStart
from replaybench.replay import minibatches, pack
from replaybench.rollout import Acting, EpisodePlan, goal_plans, policy_actor, rollout
from replaybench.seeding import numpy_generator, seed_for, torch_generator
from replaybench.spec import TrainSettings
from replaybench.train import choose_device

CPU = torch.device("cpu")
Weights = dict[str, Tensor]
Report = Callable[[str], None]

WARM_START_ATTEMPTS = 4


class Checkpoint(NamedTuple):
    """A policy's weights after `version` optimiser steps, of RL or, where a recipe counts them, also of cloning."""

    version: int
    weights: Weights


class Family(NamedTuple):
    """Main line: the clones on the way to the warm start, if they count, the warm start, then those of RL."""

    checkpoints: list[Checkpoint]
    warm_start: Checkpoint
    learning_rate: float

    @property
    def start(self) -> Checkpoint:
        """The newest checkpoint, from which every run starts."""
        return self.checkpoints[-1]


class Breeder:
    """Grows the lineage number `lineage` of a recipe in a world.

    Args:
        report: Receives a line of progress now and then.
    """

    def __init__(self, recipe: Recipe, lineage: int, world: World, report: Report) -> None:
        self.recipe, self.lineage, self.world, self.report = recipe, lineage, world, report
        self.where = f"dataset '{recipe.name}', lineage {lineage}"
        self.device = choose_device(recipe.device)

    def stream(self, *purpose: object) -> tuple[object, ...]:
        """Returns the name of a random stream of this lineage."""
        return (self.recipe.name, self.lineage, *purpose)

    def new_policy(self, **changed: Any) -> Policy:
        """Returns a policy with this lineage's initial weights, with some settings changed."""
        settings = self.world.suite.policy_settings(self.recipe.task) | self.recipe.policy.settings | changed
        policy = make_policy(self.recipe.policy.kind, settings, torch_generator(*self.stream("initialise")))
        policy.to(self.device)
        return policy

    def restore(self, checkpoint: Checkpoint) -> Policy:
        """Returns a policy with a checkpoint's weights."""
        policy = self.new_policy()
        policy.load_state_dict(checkpoint.weights)
        return policy

    def success(self, policy: Policy, episodes: int) -> float:
        """Returns the success on the stop-rule goals, which no run is evaluated on."""
        plans = goal_plans(self.world.suite, self.recipe.stop_goal_seed, episodes, "stop-rule")
        return float(outcome(self._act(policy, plans, version=0)).success.mean())

    def log(self, policy: Policy, version: int, count: int, *purpose: object) -> list[Episode]:
        """Returns `count` episodes on this lineage's training goals."""
        goal_seed = self.recipe.first_train_goal_seed + self.lineage
        stream = self.stream(*purpose)
        plans = goal_plans(self.world.suite, goal_seed, count, seed_for(*stream))
        prefix = "-".join(str(part) for part in stream)
        return self._act(policy, plans, version=version, prefix=prefix, keep_logits=True)

    def _act(
        self,
        policy: Policy,
        plans: list[EpisodePlan],
        *,
        version: int,
        prefix: str = "check",
        keep_logits: bool = False,
    ) -> list[Episode]:
        acting = Acting(max_steps=self.recipe.max_steps, keep_logits=keep_logits)
        return rollout(
            policy_actor(policy, self.device),
            self.world.environments,
            plans,
            acting,
            self.world.labels(prefix, version),
        )

    def grow(self) -> Family:
        """Makes the main line, at the first learning rate that does not carry it past its band.

        Raises:
            DataError: The warm start or the RL did not reach its band of success.
        """
        rules = self.recipe.warm_start
        clones = [Checkpoint(0, _weights(self.new_policy()))] if rules is None else self._warm_start(rules)
        warm_start = clones[-1]
        reinforcement = self.recipe.reinforcement
        if reinforcement is None:
            return Family(clones, warm_start, 0.0)
        if rules is None:
            self._refuse_too_good(warm_start, reinforcement)
        for learning_rate in reinforcement.learning_rates:
            checkpoints = self._climb(warm_start, learning_rate, reinforcement)
            if checkpoints is not None:
                return Family([*clones, *checkpoints], warm_start, learning_rate)
        raise DataError(
            f"{self.where}: success is above {reinforcement.success[1]} after {reinforcement.min_updates} updates "
            f"at every rate of {list(reinforcement.learning_rates)}. Add a lower one, lower min_updates, or choose a "
            "harder task."
        )

    def _refuse_too_good(self, warm_start: Checkpoint, rules: Reinforcement) -> None:
        """Refuses a policy from elsewhere that stands above the band already, before RL is spent on it."""
        success = self.success(self.restore(warm_start), rules.check_episodes)
        self.report(f"{self.where}: warm start as it came, success {success:.2f}")
        if success > rules.success[1]:
            raise DataError(
                f"{self.where}: the policy that it starts from succeeds on {success:.2f} of {rules.check_episodes} "
                f"episodes, above the band {list(rules.success)} in which RL is to end. Take a weaker checkpoint, such "
                "as one fine-tuned on few demonstrations, or a harder task."
            )

    def _climb(self, warm_start: Checkpoint, learning_rate: float, rules: Reinforcement) -> list[Checkpoint] | None:
        """Returns the checkpoints up to the first one in the band, or None if it was overshot."""
        policy = self.restore(warm_start)
        checkpoints: list[Checkpoint] = []
        for version in self._reinforce(policy, warm_start.version, learning_rate, "main", learning_rate):
            checkpoints.append(Checkpoint(version, _weights(policy)))
            updates = version - warm_start.version
            self.report(f"{self.where}: {updates} updates at {learning_rate:g}")
            # Checked only where it could end: a check costs as much as two iterations of learning.
            if updates >= rules.min_updates and len(checkpoints) % rules.check_every == 0:
                success = self.success(policy, rules.check_episodes)
                self.report(f"{self.where}: {updates} updates at {learning_rate:g}, success {success:.2f}")
                if success > rules.success[1]:
                    return None
                if success >= rules.success[0]:
                    return checkpoints
            if updates >= rules.max_updates:
                raise DataError(
                    f"{self.where}: did not rise: success is still below {rules.success[0]} after {updates} updates "
                    f"at learning rate {learning_rate:g}. Raise reinforcement.max_updates or the learning rates, start "
                    "from a better warm start, or choose an easier task."
                )
        raise AssertionError("reinforcement ends only by its stop rule")

    def siblings(
        self, ancestor: Checkpoint, learning_rate: float, max_updates: float, *purpose: object
    ) -> Iterator[tuple[int, Policy]]:
        """Yields (updates since the ancestor, policy) of a branch with draws of its own, named by `purpose`."""
        policy = self.restore(ancestor)
        for version in self._reinforce(policy, ancestor.version, learning_rate, *purpose):
            yield version - ancestor.version, policy
            if version - ancestor.version >= max_updates:
                return

    def _warm_start(self, rules: WarmStart) -> list[Checkpoint]:
        """Clones the expert into the band: from more demonstrations where it stays below, in smaller steps if it jumps.

        Returns the warm start, after the clones on the way to it where the recipe counts them.

        Raises:
            DataError: No attempt ended in the band.
        """
        demonstrations, learning_rate = rules.demonstrations, rules.learning_rate
        low, high = rules.success
        outcomes = []
        for _ in range(WARM_START_ATTEMPTS):
            clones, success = self._clone(rules, demonstrations, learning_rate)
            if low <= success <= high:
                newest = clones[-1]
                self.report(f"{self.where}: warm start of {newest.version} updates, success {success:.2f}")
                return clones if rules.counted else [newest._replace(version=0)]
            outcomes.append(f"{success:.2f} from {demonstrations} demonstrations at learning rate {learning_rate:g}")
            if success < low:
                demonstrations *= 2
            else:
                learning_rate /= 2
        raise DataError(
            f"{self.where}: behaviour cloning missed the band [{low}, {high}] of success: {'; '.join(outcomes)}. "
            "Change warm_start.demonstrations, learning_rate, check_every or max_updates, or choose another task."
        )

    def _clone(self, rules: WarmStart, demonstrations: int, learning_rate: float) -> tuple[list[Checkpoint], float]:
        """Returns the clones at every check and the last one's success: the first to reach the band's lower end."""
        policy = self.new_policy(**rules.policy_settings)
        observations, targets = (part.to(self.device) for part in self._demonstrations(demonstrations))
        policy.fit_normaliser(observations)
        optimiser = torch.optim.AdamW(policy.policy_parameters(), lr=learning_rate, weight_decay=0.0)
        rng = numpy_generator(*self.stream("clone"))
        clones, success = [Checkpoint(0, _weights(policy))], 0.0
        for update, index in enumerate(minibatches(len(targets), rules.batch_size, rules.max_updates, rng), start=1):
            log_p_BAK = torch.log_softmax(policy(observations[index]).logits_BAK, dim=-1)
            loss = -(targets[index] * log_p_BAK).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if update % rules.check_every == 0 or update == rules.max_updates:
                clones.append(Checkpoint(update, _weights(policy)))
            if update % rules.check_every == 0 and update >= rules.min_updates:
                success = self.success(policy, rules.check_episodes)
                self.report(f"{self.where}: cloned for {update} updates, success {success:.2f}")
                if success >= rules.success[0]:
                    break
            elif update % rules.check_every == 0:
                self.report(f"{self.where}: cloned for {update} updates")
        return clones, success

    def _demonstrations(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns observations [N, ...] of `count` episodes and the expert's distribution over bins there [N, A, K]."""
        observations, targets = [], []
        goal_seed = self.recipe.first_train_goal_seed + self.lineage
        environment = self.world.environments[0]
        for i in range(count):
            self.report(f"{self.where}: demonstration {i + 1} of {count}")
            rng = numpy_generator(*self.stream("demonstrate", i))
            observation = environment.reset((goal_seed, i % self.world.suite.num_goals), rng)
            for _ in range(self.recipe.max_steps):
                distribution = environment.expert()
                observations.append(observation)
                targets.append(distribution)
                tokens = [rng.choice(len(row), p=row) for row in distribution]
                observation, _, terminated, _ = environment.step(np.asarray(tokens, dtype=np.int16))
                if terminated:
                    break
        return torch.from_numpy(np.stack(observations)), torch.from_numpy(np.stack(targets)).float()

    def _reinforce(self, policy: Policy, version: int, learning_rate: float, *purpose: object) -> Iterator[int]:
        """Trains the policy in place; yields its version after each iteration of collecting and learning."""
        rules = self.recipe.reinforcement
        assert rules is not None
        baseline = load_baseline(rules.baseline)
        config = baseline.config()
        settings = _train_settings(rules, learning_rate)
        goal_seed = self.recipe.first_train_goal_seed + self.lineage
        optimiser_state = None
        iteration = 0
        while True:
            rng = numpy_generator(*self.stream(*purpose, iteration))
            goals = rng.integers(self.world.suite.num_goals, size=rules.episodes_per_iteration)
            plans = [EpisodePlan((goal_seed, int(goal)), int(rng.integers(2**63))) for goal in goals]
            replay = pack(self._act(policy, plans, version=version), self.device)
            learner = Learner(policy, baseline, config, replay, settings)
            if optimiser_state is not None:
                learner.optimiser.load_state_dict(optimiser_state)
            updates = max(1, replay.num_steps // rules.batch_size)
            passes = rules.value_passes * (5 if optimiser_state is None else 1)
            for _ in range(passes):
                learner.refresh_advantages()
                for index in minibatches(replay.num_steps, rules.batch_size, updates, rng):
                    learner.value_step(index.to(self.device))
            learner.refresh_advantages()
            for index in minibatches(replay.num_steps, rules.batch_size, updates, rng):
                learner.policy_step(index.to(self.device))
            optimiser_state = learner.optimiser.state_dict()
            version += updates
            iteration += 1
            yield version


def _train_settings(rules: Reinforcement, learning_rate: float) -> TrainSettings:
    return TrainSettings(
        learning_rate=learning_rate,
        value_learning_rate=rules.value_learning_rate,
        batch_size=rules.batch_size,
        advantage=rules.advantage,
        device="cpu",
    )


def _weights(policy: Policy) -> Weights:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in policy.state_dict().items()}
