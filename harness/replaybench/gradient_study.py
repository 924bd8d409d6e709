"""Bias and variance of each correction's gradient on a log, by Monte Carlo over its episodes, as a table.

Bias has two parts: *weight*, the correction against importance sampling by the joint ratio on the same decisions, and
*data*, that against the start policy's own episodes, which no weight can remove. n counts episodes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from replaybench.analysis.bias_variance import NUM_SAMPLES, ZERO
from replaybench.analysis.gradient_bias import GroupGradients, bias_columns, error_columns, ranks
from replaybench.baseline import NEEDS, Baseline, config_record, load_baseline
from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.gradients import GradientMeter
from replaybench.inventory import list_data, log_folders
from replaybench.learner import Learner
from replaybench.plan import arms, load_sweep
from replaybench.policy import Policy
from replaybench.probe import (
    MIN_UNITS,
    GroupSums,
    Probed,
    combine,
    fit_value,
    group_sums,
    joint_objective,
    method_objective,
    on_policy_objective,
    probe_advantages,
)
from replaybench.replay import pack
from replaybench.seeding import numpy_generator
from replaybench.spec import TrainSettings
from replaybench.store import Log, open_log
from replaybench.store.card import FILE_NAME, Card
from replaybench.study import configs_along_knob
from replaybench.train import choose_device, load_start_policy

DEFAULT_SWEEP = "default"
# The data set that is solved exactly instead, by the study of that name.
EXACT = "gridworld"

Method = tuple[Baseline, Any]
Report = Callable[[str], None]

MEASURED = ("bias2_weight", "bias2_data", "bias2", "variance", "mse", "cosine")
SCHEMA: dict[str, type[pl.DataType]] = {
    "dataset": pl.String,
    "lineage": pl.Int64,
    "level": pl.String,
    "baseline": pl.String,
    "config": pl.String,
    "granularity": pl.String,
    "n": pl.Int64,
    **{f"{name}{end}": pl.Float64 for name in MEASURED for end in ("", "_low", "_high")},
    "rank": pl.Int64,
    "reference_noise_share": pl.Float64,
    "num_episodes": pl.Int64,
    "num_fresh_episodes": pl.Int64,
}


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How the gradients of a log are measured.

    Args:
        ns: Numbers of episodes that a gradient averages over.
        seed: Which episodes go where; more seeds of one log are not more data.
        num_groups: Groups of episodes, the jackknife's units.
        fit_share: Share of the fresh episodes that only fit the value function.
        train: Advantages, value warm-up and granularity, as in a run.
    """

    ns: tuple[int, ...] = NUM_SAMPLES
    seed: int = 0
    num_groups: int = 20
    fit_share: float = 0.2
    train: TrainSettings = field(default_factory=TrainSettings)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """Disjoint episodes: those that fit the value function, those measured on, those of the start policy itself."""

    fit: list[Episode]
    log: list[Episode]
    fresh: list[Episode] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """What all corrections of a level are measured with; `references` by the episodes of a unit."""

    policy: Policy
    meter: GradientMeter
    log: Probed
    fresh: GroupSums | None
    num_fresh: int | None
    start_version: int
    settings: StudySettings
    references: dict[int, GroupSums] = field(default_factory=dict)

    def against_reference(self, method: Method | None, episodes_per_unit: int) -> GroupGradients:
        """Returns a correction's inner products with the references; those of no update where it is None."""
        if episodes_per_unit not in self.references:
            self.references[episodes_per_unit] = self._sums(None, episodes_per_unit)
        reference = self.references[episodes_per_unit]
        if method is None:
            nothing = torch.zeros_like(reference.gradient)
            sums = GroupSums(nothing, torch.zeros_like(reference.squared_norm), reference.sample)
        else:
            sums = self._sums(method, episodes_per_unit)
        return combine(sums, reference, self.fresh, episodes_per_unit)

    def _sums(self, method: Method | None, episodes_per_unit: int) -> GroupSums:
        objective = joint_objective(self.log)
        if method is not None:
            baseline, config = method
            objective = method_objective(
                self.policy, baseline, config, self.log, self.settings.train, self.start_version
            )
        return group_sums(self.meter, self.log.replay, objective, self.settings.num_groups, episodes_per_unit)


def gradient_study(
    log: Log, level: str, methods: Sequence[Method], settings: StudySettings, report: Report = lambda line: None
) -> pl.DataFrame:
    """Returns a row for each correction and number of episodes, and for the estimator that is always zero.

    Estimand: E over episodes of [sum_t h_t grad log pi_t] / E[number of steps] at the start policy, advantages from one
    value function that was fitted on other episodes and then frozen. Intervals are 95 %, over episodes of this one
    lineage; the rank is that of mse among rows of equal n, 1 the best. Where the log has no level of lag 0 the columns
    that need the on-policy gradient are null. A correction with batch statistics sees batches of n whole episodes, and
    has no row where they are fewer than MIN_UNITS.

    Raises:
        ConfigError: No such level, or a correction needs what the level has not logged.
        DataError: There are too few episodes.
        NumericalError: A correction overflows on this level.
    """
    if level not in log.card.levels:
        raise unknown_name("level", level, log.card.levels)
    if not methods or not settings.ns or min(settings.ns) < 1:
        raise ConfigError("A study needs at least one baseline, and numbers of episodes from 1 up.")
    for baseline, _ in methods:
        _check_needs(log, level, baseline, settings)
    bench = _prepare(log, level, methods, settings)
    rows = []
    for method in methods:
        report(f"{log.card.dataset}, lineage {log.card.lineage}, {level}: {method[0].name}")
        rows += _method_rows(bench, method)
    if all(baseline.declaration.updates_policy for baseline, _ in methods):
        rows += _rows(bench.against_reference(None, 1), settings.ns, ZERO, {})
    shared = {
        "dataset": log.card.dataset,
        "lineage": log.card.lineage,
        "level": level,
        "granularity": settings.train.granularity,
        "num_episodes": bench.log.num_episodes,
        "num_fresh_episodes": bench.num_fresh,
    }
    frame = pl.DataFrame([shared | row for row in rows], schema={k: v for k, v in SCHEMA.items() if k != "rank"})
    ranked = [part.with_columns(rank=pl.Series(ranks(part["mse"].to_list()))) for part in frame.partition_by("n")]
    return pl.concat(ranked).cast({"rank": pl.Int64}).select(list(SCHEMA))


def _method_rows(bench: _Bench, method: Method) -> list[dict[str, Any]]:
    baseline, config = method
    name, record, ns = baseline.name, config_record(config), bench.settings.ns
    if not baseline.declaration.batch_statistics:
        return _rows(bench.against_reference(method, 1), ns, name, record)
    measurable = [n for n in ns if bench.log.num_episodes // n >= MIN_UNITS]
    return [row for n in measurable for row in _rows(bench.against_reference(method, n), (n,), name, record)]


def _rows(gradients: GroupGradients, ns: Sequence[int], name: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = {"baseline": name, "config": json.dumps(dict(config))}
    bias = bias_columns(gradients)
    return [named | {"n": n} | bias | error_columns(gradients, n) for n in ns]


def _prepare(log: Log, level: str, methods: Sequence[Method], settings: StudySettings) -> _Bench:
    """Fits the value function, freezes the advantages and measures the on-policy gradient."""
    card, train = log.card, settings.train
    device = choose_device(train.device)
    policy = load_start_policy(log, device)
    parts = _split(log, level, methods, settings)
    start_version = card.version_of(card.start_checkpoint)
    baseline, config = methods[0]
    learner = Learner(policy, baseline, config, pack(parts.fit, device), train, start_version)
    standard = fit_value(learner, numpy_generator(*_stream(card, settings), "value"))
    meter = GradientMeter(policy)
    fresh = None
    if parts.fresh is not None:
        probed = probe_advantages(policy, pack(parts.fresh, device), train, standard)
        fresh = group_sums(meter, probed.replay, on_policy_objective(probed), settings.num_groups)
    return _Bench(
        policy=policy,
        meter=meter,
        log=probe_advantages(policy, pack(parts.log, device), train, standard),
        fresh=fresh,
        num_fresh=None if parts.fresh is None else len(parts.fresh),
        start_version=start_version,
        settings=settings,
    )


def _split(log: Log, level: str, methods: Sequence[Method], settings: StudySettings) -> _Parts:
    """Deals the episodes out; a level that is on-policy itself gives half of its episodes to the reference."""
    fresh_level = next((name for name, entry in log.card.levels.items() if entry.lag_updates == (0, 0)), None)
    with_logits = any("mu_logits" in baseline.declaration.needs for baseline, _ in methods)
    source = _shuffled(log, level if fresh_level is None else fresh_level, settings, with_logits)
    num_fit = max(1, round(settings.fit_share * len(source)))
    fit, rest = source[:num_fit], source[num_fit:]
    if fresh_level is None:
        parts = _Parts(fit=fit, log=rest, fresh=None)
    elif fresh_level == level:
        parts = _Parts(fit=fit, log=rest[::2], fresh=rest[1::2])
    else:
        parts = _Parts(fit=fit, log=_shuffled(log, level, settings, with_logits), fresh=rest)
    if with_logits and any(episode.mu_logits is None for episode in [*parts.log, *parts.fit]):
        raise ConfigError(f"Level '{level}' of {log.folder} has no mu_logits: {NEEDS['mu_logits']}.")
    if min(len(parts.log), MIN_UNITS if parts.fresh is None else len(parts.fresh)) < MIN_UNITS:
        raise DataError(
            f"{log.folder}: level '{level}' leaves {len(parts.log)} episodes to measure on"
            + ("" if parts.fresh is None else f" and {len(parts.fresh)} of the start policy")
            + f"; at least {MIN_UNITS} of each are needed. Log more episodes."
        )
    return parts


def _shuffled(log: Log, level: str, settings: StudySettings, with_logits: bool) -> list[Episode]:
    formats = sorted({shard.format for shard in log.card.shards})
    episodes = log.episodes(level, formats[0], with_mu_logits=with_logits)
    order = numpy_generator(*_stream(log.card, settings), level).permutation(len(episodes))
    return [episodes[i] for i in order]


def _stream(card: Card, settings: StudySettings) -> tuple[object, ...]:
    return ("gradient study", card.dataset, card.lineage, settings.seed)


def _check_needs(log: Log, level: str, baseline: Baseline, settings: StudySettings) -> None:
    """Refuses a correction that this level or these settings cannot serve."""
    declared = baseline.declaration
    if "lag_updates" in declared.needs and log.card.levels[level].lag_updates is None:
        raise ConfigError(f"Baseline '{baseline.name}' needs lag_updates on level '{level}': {NEEDS['lag_updates']}.")
    wanted = settings.train.advantage.estimator
    if declared.estimator not in (None, wanted):
        raise ConfigError(
            f"Baseline '{baseline.name}' is defined with advantage estimator '{declared.estimator}', the study's is "
            f"'{wanted}'. Leave the baseline out or change the estimator."
        )


def open_logs(data: Path, dataset: str, lineages: Sequence[int] | None = None) -> list[Log]:
    """Returns the logs of a data set by its name, of a folder of lineages, or the one of a log folder.

    Raises:
        ConfigError: There is no such data set or lineage.
        DataError: No lineage of it is complete.
    """
    if (Path(dataset) / FILE_NAME).is_file():
        logs = [open_log(dataset)]
    else:
        known = [row["dataset"] for row in list_data(data)]
        if dataset not in known and not Path(dataset).is_dir():
            raise unknown_name("dataset", dataset, [EXACT, *known])
        name = dataset if dataset in known or "/" in dataset else f"./{dataset}"
        logs = [open_log(folder) for folder in log_folders(data, name)]
    by_lineage = {log.card.lineage: log for log in logs}
    for lineage in lineages or ():
        if lineage not in by_lineage:
            raise unknown_name(f"lineage of dataset '{dataset}'", str(lineage), map(str, by_lineage))
    return [by_lineage[lineage] for lineage in lineages or by_lineage]


def preset_settings(ns: Sequence[int], seed: int) -> StudySettings:
    """Returns settings with the advantages of the default sweep; its numbers of episodes are powers of two."""
    return StudySettings(ns=tuple(ns) or NUM_SAMPLES, seed=seed, train=load_sweep(DEFAULT_SWEEP).train)


def preset_methods(names: Sequence[str], *, along_knob: bool = False) -> list[Method]:
    """Returns baselines at the settings of the default sweep, its own baselines where none is named.

    Args:
        names: Names or .py files.
        along_knob: Take each at its defaults and along its knob instead.
    """
    spec = load_sweep(DEFAULT_SWEEP)
    spec = spec.model_copy(update={"baselines": tuple(names) or spec.baselines})
    if not along_knob:
        return [(arm.baseline, arm.baseline.config(arm.config)) for arm in arms(spec)]
    loaded = [load_baseline(name) for name in spec.baselines]
    return [(baseline, config) for baseline in loaded for config in configs_along_knob(baseline)]


def study_logs(
    logs: Sequence[Log], levels: Sequence[str], methods: Sequence[Method], settings: StudySettings, report: Report
) -> list[dict[str, Any]]:
    """Returns the rows of every log and level (all of a log's where none is named) as plain values."""
    rows = []
    for log in logs:
        for level in levels or log.card.levels:
            frame = gradient_study(log, level, methods, settings, report)
            rows += [row | {"config": json.loads(row["config"])} for row in frame.to_dicts()]
    return rows


def readable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows for a table to read: every measured number with its interval."""
    names = ("rank", *MEASURED)
    shown = []
    for row in rows:
        plain = {name: row[name] for name in ("lineage", "level", "baseline", "config", "n")}
        plain["config"] = {key: value for key, value in row["config"].items() if value is not None}
        shown.append(plain | {name: _with_interval(row, name) for name in names})
    return shown


def _with_interval(row: Mapping[str, Any], name: str) -> Any:
    if name not in MEASURED or row[name] is None:
        return row[name]
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    bounds = "[?]" if low is None else f"[{low:.2g}, {high:.2g}]"
    return f"{row[name]:.2g} {bounds}"
