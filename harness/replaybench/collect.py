"""Makes the log folder of one lineage: behaviour checkpoints, logged episodes of every level, the measured card."""

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError
from replaybench.evaluate import World, open_world
from replaybench.learner import CHUNK, log_pi_of_log
from replaybench.lineage import CPU, Breeder, Checkpoint, Family, Report
from replaybench.maths.ratios import categorical_kl, off_policyness
from replaybench.policy import Policy
from replaybench.provenance import versions
from replaybench.recipe import Level, Recipe
from replaybench.replay import Replay, pack
from replaybench.spec import RunSpec
from replaybench.store import Card, LevelCard, Log, ShardWriter
from replaybench.train import RunResult

LOG_BATCH = 50
# A sibling is looked for between these multiples of the updates that the start policy made since the branching.
MIN_BRANCH_RATIO = 0.5
MAX_BRANCH_RATIO = 2.0
MAX_SIBLINGS = 4
ALPHA = 0.05


class LoggedLevel(NamedTuple):
    """The episodes of a level and its place on the freshness axis."""

    episodes: list[Episode]
    lag_updates: tuple[int, int] | None
    branch_updates: int | None


def make_lineage(recipe: Recipe, lineage: int, folder: Path, command: str, report: Report) -> Card:
    """Makes lineage number `lineage` of a recipe and writes its log folder.

    Raises:
        DataError: The lineage does not rise, a level cannot be reached, or levels cannot be told apart.
    """
    world = open_world(recipe.suite, recipe.suite_settings, recipe.task)
    breeder = Breeder(recipe, lineage, world, report)
    family = breeder.grow()
    levels = _log_levels(breeder, family)
    measured = _measure_levels(breeder, family, levels)
    kept = {family.start.version, family.warm_start.version}.union(*map(_versions, levels.values()))
    with ShardWriter(
        folder,
        card=_card(recipe, lineage, family, levels, measured, world, command),
        formats=recipe.formats,
        episodes_per_shard=recipe.episodes_per_shard,
    ) as writer:
        for checkpoint in family.checkpoints:
            if checkpoint.version in kept:
                writer.add_checkpoint(_name(checkpoint), checkpoint.version, checkpoint.weights)
        for name, level in levels.items():
            for episode in level.episodes:
                writer.add(name, episode)
    return _card(recipe, lineage, family, levels, measured, world, command)


def write_collected(folder: Path, spec: RunSpec, log: Log, result: RunResult) -> None:
    """Writes what a buffered run collected as a log folder, from which the logged protocol goes on.

    Its start policy is the trained one. Level `collected` is everything; `behaviour_version` counts the run's updates.
    """
    shutil.rmtree(folder, ignore_errors=True)
    policy, episodes = result.policy, result.collected
    replay = pack(episodes, CPU)
    newest = spec.train.updates
    lags = newest - replay.behaviour_version
    measured = _measure(policy, replay, episodes) | {"kl": float(_exact_kl(policy, replay).mean())}
    level = LevelCard(lag_updates=(int(lags.min()), int(lags.max())), measured=measured)
    name = f"u{newest:05d}"
    card = log.card.model_copy(
        update={
            "dataset": spec.run_id(),
            "policy_settings": policy.settings,
            "start_checkpoint": name,
            "recipe_sha256": "",
            "command": f"buffered run {spec.run_id()}",
            "versions": versions(log.card.versions.get("simulator", log.card.suite)),
            "levels": {"collected": level},
            "shards": [],
            "checkpoints": [],
        }
    )
    with ShardWriter(folder, card=card, formats=(spec.data_format,)) as writer:
        writer.add_checkpoint(name, newest, policy.state_dict())
        for episode in episodes:
            writer.add("collected", episode)


def _log_levels(breeder: Breeder, family: Family) -> dict[str, LoggedLevel]:
    logged: dict[str, LoggedLevel] = {}
    recipe = breeder.recipe
    for name, level in recipe.levels.items():
        if level.lag_updates is not None:
            logged[name] = _log_lagged(breeder, family, name, level, level.lag_updates)
    fresh = next(logged[name] for name, level in recipe.levels.items() if level.lag_updates == (0, 0))
    start_success = _success(fresh.episodes)
    for name, level in recipe.levels.items():
        if level.branch_updates is not None:
            logged[name] = _log_matched(breeder, family, name, level, start_success)
    for name, level in recipe.levels.items():
        if level.mixture_of:
            logged[name] = _mix(name, level, logged, family)
    return {name: logged[name] for name in recipe.levels}


def _log_lagged(breeder: Breeder, family: Family, name: str, level: Level, lag_range: tuple[int, int]) -> LoggedLevel:
    middle = sum(lag_range) / 2
    newest = family.start.version
    candidates = [c for c in family.checkpoints if lag_range[0] <= newest - c.version <= lag_range[1]]
    if not candidates:
        raise DataError(
            f"{breeder.where}: level '{name}': no checkpoint lies {lag_range[0]} to {lag_range[1]} updates before the "
            f"newest (version {newest}). Widen lag_updates or raise reinforcement.min_updates."
        )
    chosen = min(candidates, key=lambda c: abs(newest - c.version - middle))
    lag = newest - chosen.version
    episodes = _log_enough(breeder, breeder.restore(chosen), chosen.version, level, name)
    return LoggedLevel(episodes, (lag, lag), None)


def _log_enough(breeder: Breeder, policy: Policy, version: int, level: Level, *purpose: object) -> list[Episode]:
    """Logs in batches until the level has its episodes and its steps."""
    episodes: list[Episode] = []
    while len(episodes) < level.episodes or sum(e.num_steps for e in episodes) < level.steps:
        batch = len(episodes) // LOG_BATCH
        episodes += breeder.log(policy, version, LOG_BATCH, *purpose, f"b{batch}")
        breeder.report(f"{breeder.where}: level {purpose[0]}: {len(episodes)} episodes")
    return episodes


def _log_matched(breeder: Breeder, family: Family, name: str, level: Level, start_success: float) -> LoggedLevel:
    """Logs a sibling that branched off earlier and stands at the start policy's success."""
    assert level.branch_updates is not None
    target = family.start.version - level.branch_updates
    ancestor = min(family.checkpoints, key=lambda c: abs(c.version - target))
    branch = family.start.version - ancestor.version
    for attempt in range(MAX_SIBLINGS):
        purpose = (name, attempt)
        for updates, policy in breeder.siblings(ancestor, family.learning_rate, MAX_BRANCH_RATIO * branch, *purpose):
            version = ancestor.version + updates
            if updates < MIN_BRANCH_RATIO * branch:
                continue
            # A first batch, not kept, tells cheaply whether the whole log is worth collecting.
            first = breeder.log(policy, version, 2 * LOG_BATCH, *purpose, "try", updates)
            if abs(_success(first) - start_success) > level.tolerance:
                continue
            episodes = _log_enough(breeder, policy, version, level, *purpose, updates)
            if abs(_success(episodes) - start_success) <= level.tolerance:
                return LoggedLevel(episodes, None, branch + updates)
    raise DataError(
        f"{breeder.where}: level '{name}': no sibling out of {MAX_SIBLINGS} came within {level.tolerance} of the "
        f"start policy's success {start_success:.2f} within {MAX_BRANCH_RATIO * branch:.0f} updates after "
        "branching. Change branch_updates or tolerance, or use another lineage."
    )


def _mix(name: str, level: Level, logged: dict[str, LoggedLevel], family: Family) -> LoggedLevel:
    """Interleaves the parts' episodes, so that any prefix holds them in equal number."""
    parts = [logged[part] for part in level.mixture_of]
    count = min(len(part.episodes) for part in parts)
    episodes = [part.episodes[i] for i in range(count) for part in parts]
    lags = [family.start.version - episode.behaviour_version for episode in episodes]
    needed = int(np.searchsorted(np.cumsum([e.num_steps for e in episodes]), level.steps)) + 1
    if needed > count * len(parts):
        raise ConfigError(f"Level '{name}' needs {level.steps} steps, its parts hold fewer. Log more episodes in them.")
    return LoggedLevel(episodes[: max(needed, level.episodes)], (min(lags), max(lags)), None)


def _measure_levels(breeder: Breeder, family: Family, levels: dict[str, LoggedLevel]) -> dict[str, dict[str, Any]]:
    """Measures every level against the start policy and refuses lagged levels that cannot be told apart."""
    start = breeder.restore(family.start)
    per_episode: dict[str, np.ndarray[Any, Any]] = {}
    measured: dict[str, dict[str, Any]] = {}
    for name, level in levels.items():
        replay = pack(level.episodes, breeder.device)
        kl_N = _exact_kl(start, replay)
        boundaries = np.flatnonzero(replay.ends)[:-1] + 1
        per_episode[name] = np.array([part.mean() for part in np.split(kl_N, boundaries)])
        measured[name] = _measure(start, replay, level.episodes) | {"kl": float(kl_N.mean())}
    _check_apart(breeder.where, levels, per_episode)
    return measured


def _measure(start: Policy, replay: Replay, episodes: Sequence[Episode]) -> dict[str, Any]:
    log_ratio_NA = log_pi_of_log(start, replay) - replay.log_mu
    token, joint = off_policyness(log_ratio_NA), off_policyness(log_ratio_NA.sum(-1))
    return {
        "success": _success(episodes),
        "num_episodes": len(episodes),
        "num_steps": replay.num_steps,
        "episode_length": replay.num_steps / len(episodes),
        "kl_k3": token.k3,
        "ess_token": token.ess,
        "ess_joint": joint.ess,
        "abs_log_ratio_p95_token": token.abs_log_ratio_p95,
        "abs_log_ratio_p95_joint": joint.abs_log_ratio_p95,
        "near_zero_share_joint": float((log_ratio_NA.sum(-1) < np.log(1e-3)).float().mean()),
    }


def _exact_kl(start: Policy, replay: Replay) -> np.ndarray[Any, Any]:
    """Returns KL(mu||pi_start) of each decision, averaged over its action tokens, in nats."""
    assert replay.mu_logits is not None
    with torch.no_grad():
        chunks = [
            categorical_kl(mu_logits.float(), start(replay.observations[rows]).logits_BAK).mean(-1)
            for rows, mu_logits in zip(replay.row.split(CHUNK), replay.mu_logits.split(CHUNK), strict=True)
        ]
    return np.asarray(torch.cat(chunks).double().cpu().numpy())


def _check_apart(where: str, levels: dict[str, LoggedLevel], per_episode: dict[str, np.ndarray[Any, Any]]) -> None:
    single = {name: level for name, level in levels.items() if level.lag_updates and len(set(level.lag_updates)) == 1}
    ordered = sorted(single, key=lambda name: single[name].lag_updates or (0, 0))
    for fresher, staler in pairwise(ordered):
        test = stats.ttest_ind(per_episode[staler], per_episode[fresher], equal_var=False, alternative="greater")
        if not test.pvalue < ALPHA:
            raise DataError(
                f"{where}: levels '{fresher}' and '{staler}' cannot be told apart: KL(mu||pi_start) "
                f"{per_episode[fresher].mean():.4f} and {per_episode[staler].mean():.4f} nats. Move their lag_updates "
                "further apart, raise reinforcement.learning_rates, or log more episodes."
            )


def _success(episodes: Sequence[Episode]) -> float:
    return float(np.mean([episode.success for episode in episodes]))


def _versions(level: LoggedLevel) -> set[int]:
    return {episode.behaviour_version for episode in level.episodes} if level.lag_updates else set()


def _name(checkpoint: Checkpoint) -> str:
    return f"u{checkpoint.version:05d}"


def _card(
    recipe: Recipe,
    lineage: int,
    family: Family,
    levels: dict[str, LoggedLevel],
    measured: dict[str, dict[str, Any]],
    world: World,
    command: str,
) -> Card:
    return Card(
        dataset=recipe.name,
        lineage=lineage,
        suite=recipe.suite,
        suite_settings=recipe.suite_settings,
        task=recipe.task,
        policy=recipe.policy.kind,
        policy_settings=world.suite.policy_settings(recipe.task) | recipe.policy.settings,
        start_checkpoint=_name(family.start),
        warm_start_checkpoint=_name(family.warm_start)
        if family.checkpoints[0].version < family.warm_start.version
        else None,
        recipe_sha256=recipe.digest(),
        licence=recipe.licence,
        command=command,
        versions=versions(world.suite.simulator),
        levels={
            name: LevelCard(lag_updates=level.lag_updates, branch_updates=level.branch_updates, measured=measured[name])
            for name, level in levels.items()
        },
    )
