"""Turns a sweep's TOML into runs: which data, which baselines at which settings, how often.

A cell is one baseline x dataset x freshness level x replay ratio; its runs differ by lineage and seed.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from replaybench.baseline import NEEDS, Baseline, config_record, load_baseline
from replaybench.errors import ConfigError, unknown_name
from replaybench.estimators import NEEDS as ESTIMATOR_NEEDS
from replaybench.estimators import find_estimator
from replaybench.paths import PRESETS_DIR
from replaybench.policy import has_action_values
from replaybench.recipe import Recipe, load_recipe, read_toml
from replaybench.spec import BufferedSettings, EvaluateSettings, Resources, RunSpec, Spec, TrainSettings, validate
from replaybench.store import Card, Log, is_url, open_log
from replaybench.train import steps_for

LEARNING_RATE = "learning_rate"


class Budget(Spec):
    """A size of log and the updates that are made on it."""

    log_steps: PositiveInt
    updates: PositiveInt


class PlannedCell(NamedTuple):
    """Where a baseline is trained: a level or regime, its replay ratio and the updates of the policy."""

    level: str
    replay_ratio: float
    updates: int


class GradientSettings(Spec):
    """Bias and variance of the gradient, in every lineage and level of a sweep.

    episodes: numbers of episodes that a gradient averages over.
    """

    episodes: tuple[PositiveInt, ...] = Field(min_length=1)


class SweepSpec(Spec):
    """A sweep as a user writes it.

    datasets: recipe names, recipe files, or folders of logs made elsewhere (<folder>/lineage-*/card.toml), by path or
        by a URL that fsspec reads, such as s3://bucket/logs/mine.
    baselines: names or .py files. control: the baseline that leaves the start policy as it is.
    reference: the baseline that the verdicts compare with.
    tuned: file of presets/tuned with each baseline's learning rate and settings.
    budgets: in place of replay_ratios: log sizes with the updates made on each.
    buffered: the buffered protocol's settings; without them the protocol is the logged one. regimes: under the buffered
        protocol, tables of settings that differ from these, by name; the names stand for the levels, and each regime
        has the replay ratio that follows from its settings.
    grid: per baseline, tables of learning_rate and settings, each a list of values; a table stands for every
        combination of its values. Overrides `tuned`.
    resources: what a run asks for; no part of the run's id.
    gradients: under the logged protocol, what is measured of the gradients on the logs once all runs have ended.
    """

    later: ClassVar[tuple[str, ...]] = ("budgets", "buffered", "regimes", "resources", "gradients")
    name: str
    description: str = ""
    datasets: tuple[str, ...] = Field(min_length=1)
    lineages: tuple[NonNegativeInt, ...] = Field(min_length=1)
    levels: tuple[str, ...] = ()
    replay_ratios: tuple[PositiveFloat, ...] = ()
    seeds: tuple[NonNegativeInt, ...] = (0,)
    baselines: tuple[str, ...] = Field(min_length=1)
    control: str = "zero"
    reference: str
    data_format: Literal["hdf5", "arrow"] = "arrow"
    tuned: str | None = None
    grid: dict[str, tuple[dict[str, tuple[float | str, ...]], ...]] = {}
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    budgets: tuple[Budget, ...] = ()
    buffered: BufferedSettings | None = None
    regimes: dict[str, dict[str, Any]] = {}
    resources: Resources = Resources()
    gradients: GradientSettings | None = None

    @model_validator(mode="after")
    def _has_cells(self) -> Self:
        if self.buffered is None:
            if not self.levels or bool(self.replay_ratios) == bool(self.budgets) or self.regimes:
                raise ValueError("the logged protocol needs levels and either replay_ratios or budgets, and no regimes")
        elif not self.regimes or self.levels or self.replay_ratios or self.budgets or self.gradients:
            raise ValueError(
                "the buffered protocol needs regimes; levels and replay_ratios follow from them, and there are no logs "
                "to measure gradients on"
            )
        for regime in self.regimes:
            self.regime(regime)
        return self

    def regime(self, name: str) -> BufferedSettings:
        """Returns the settings of a regime."""
        assert self.buffered is not None
        return validate(BufferedSettings, self.buffered.model_dump() | self.regimes[name], f"regime '{name}'")

    def cells(self) -> list[PlannedCell]:
        """Returns where every baseline is trained."""
        batch_size = self.train.batch_size
        if self.buffered is not None:
            regimes = {name: self.regime(name) for name in self.regimes}
            return [
                PlannedCell(name, regime.replay_ratio(batch_size), regime.iterations * regime.policy_updates)
                for name, regime in regimes.items()
            ]
        sizes = [(ratio, self.train.updates) for ratio in self.replay_ratios]
        sizes += [(budget.updates * batch_size / budget.log_steps, budget.updates) for budget in self.budgets]
        return [PlannedCell(level, *size) for level, size in itertools.product(self.levels, sizes)]

    def level_names(self) -> list[str]:
        """Returns the levels or regimes, as planned."""
        return list(dict.fromkeys(level for level, _, _ in self.cells()))

    def ratios(self) -> list[float]:
        """Returns the replay ratios, rising."""
        return sorted({cell.replay_ratio for cell in self.cells()})

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        for field in ("datasets", "lineages", "levels", "replay_ratios", "budgets", "seeds", "baselines"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field} names something twice")
        return self


class Arm(NamedTuple):
    """One baseline at one setting."""

    baseline: Baseline
    path: str | None
    learning_rate: float
    config: dict[str, Any]


class Source(NamedTuple):
    """Where a sweep's dataset comes from: a recipe to make it with, or a folder or URL made elsewhere (recipe None)."""

    name: str
    folder: Path | str
    recipe: Recipe | None


def preset_paths() -> dict[str, Path]:
    """Returns the presets that travel with the package, by name."""
    return {path.stem: path for path in sorted(PRESETS_DIR.glob("*.toml"))}


def load_sweep(name_or_path: str, extra_baselines: tuple[str, ...] = (), datasets: tuple[str, ...] = ()) -> SweepSpec:
    """Reads a sweep by preset name or TOML path, with a user's own baselines added and other datasets, if given.

    Raises:
        ConfigError: It does not exist or a key is wrong.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"No sweep at '{name_or_path}'.")
    else:
        presets = preset_paths()
        if name_or_path not in presets:
            raise unknown_name("preset", name_or_path, presets)
        path = presets[name_or_path]
    values = read_toml(path)
    if extra_baselines and isinstance(values.get("baselines", []), list):
        values["baselines"] = [*values.get("baselines", []), *extra_baselines]
    if datasets:
        values["datasets"] = list(datasets)
    return validate(SweepSpec, values, path.name)


def sources(spec: SweepSpec, data_dir: Path) -> list[Source]:
    """Returns where each dataset of the sweep comes from.

    Raises:
        ConfigError: A dataset is neither a recipe nor a folder of logs.
    """
    found = []
    for name in spec.datasets:
        folder = Path(name)
        if is_url(name):
            found.append(Source(folder.name, name.rstrip("/"), None))
        elif "/" in name and folder.is_dir():
            found.append(Source(folder.name, folder, None))
        else:
            recipe = load_recipe(name)
            found.append(Source(recipe.name, data_dir / recipe.name, recipe))
    return found


def lineage_folder(dataset_folder: Path | str, lineage: int) -> Path | str:
    """Returns the log folder of a lineage: a path, or a URL where the data set's is one."""
    name = f"lineage-{lineage:03d}"
    return f"{dataset_folder}/{name}" if is_url(dataset_folder) else Path(dataset_folder) / name


def check(spec: SweepSpec, found: list[Source]) -> list[Arm]:
    """Checks everything that can be wrong before data are made or anything runs, and returns the arms.

    Raises:
        ConfigError: Names what is unknown or impossible.
    """
    for source in found:
        if source.recipe is not None:
            for level in spec.levels:
                if level not in source.recipe.levels:
                    raise unknown_name(f"level of dataset '{source.name}'", level, source.recipe.levels)
            _check_policy(spec, source.name, source.recipe.policy.kind)
    all_arms = list(arms(spec))
    paths = {(arm.baseline.name, arm.baseline.path) for arm in all_arms}
    for name, count in Counter(name for name, _ in paths).items():
        if count > 1:
            raise ConfigError(f"Two baseline files are called '{name}'. Rename one: results go by that name.")
    names = {arm.baseline.name for arm in all_arms}
    for role, name in (("reference", spec.reference), ("control", spec.control)):
        if name not in names:
            raise ConfigError(f"The {role} '{name}' is not among the sweep's baselines: {', '.join(sorted(names))}.")
    for arm in all_arms:
        _check_estimator(spec, arm.baseline)
    updating = {arm.baseline.name: arm.baseline.declaration.updates_policy for arm in all_arms}
    if updating[spec.control]:
        raise ConfigError(
            f"The control '{spec.control}' updates the policy. Choose one that declares updates_policy=False."
        )
    return all_arms


def _check_estimator(spec: SweepSpec, baseline: Baseline) -> None:
    """Refuses a baseline that is defined with other advantages, or that would correct a second time."""
    estimator = find_estimator(spec.train.advantage.estimator)
    wanted = baseline.declaration.estimator
    if wanted not in (None, estimator.name):
        raise ConfigError(
            f"Baseline '{baseline.name}' is defined with advantage estimator '{wanted}', the sweep's is "
            f"'{estimator.name}'. Set train.advantage.estimator, or leave the baseline out."
        )
    if estimator.ratio == "without_another" and "log_mu" in baseline.declaration.needs:
        raise ConfigError(
            f"Advantage estimator '{estimator.name}' carries a policy ratio, and so does baseline '{baseline.name}': "
            'the data would be corrected twice. Set train.advantage.estimator = "vtrace", leave the baseline out, '
            "or ask for it by the name 'vtrace_double_correction'."
        )


def _check_policy(spec: SweepSpec, dataset: str, kind: str) -> None:
    """Refuses an estimator of action values where the policy has none."""
    estimator = find_estimator(spec.train.advantage.estimator)
    if "action_values" in estimator.needs and not has_action_values(kind):
        raise ConfigError(
            f"Advantage estimator '{estimator.name}' needs action_values, which policy '{kind}' of dataset '{dataset}' "
            f"lacks: {ESTIMATOR_NEEDS['action_values']}; or choose another estimator."
        )


def arms(spec: SweepSpec) -> Iterator[Arm]:
    """Yields every baseline at each of its settings, validated."""
    tuned = _load_tuned(spec.tuned) if spec.tuned else {}
    known = {load_baseline(name).name for name in spec.baselines}
    for name in spec.grid:
        if name not in known:
            raise unknown_name("baseline in [grid]", name, known)
    for name_or_path in spec.baselines:
        baseline = load_baseline(name_or_path)
        path = str(baseline.path) if name_or_path.endswith(".py") else None
        for settings in _settings(spec, baseline.name, tuned):
            learning_rate = float(settings.pop(LEARNING_RATE, spec.train.learning_rate))
            config = config_record(baseline.config(settings))
            yield Arm(baseline, path, learning_rate, config)


def _settings(spec: SweepSpec, name: str, tuned: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    if name in spec.grid:
        for table in spec.grid[name]:
            for values in itertools.product(*table.values()):
                yield dict(zip(table, values, strict=True))
    else:
        yield dict(tuned.get(name, {}))


def _load_tuned(name: str) -> dict[str, dict[str, Any]]:
    paths = {path.stem: path for path in (PRESETS_DIR / "tuned").glob("*.toml")}
    if name not in paths:
        raise unknown_name("tuned preset", name, paths)
    tables: dict[str, dict[str, Any]] = read_toml(paths[name]).get("settings", {})
    return tables


def runs(spec: SweepSpec, found: list[Source], all_arms: list[Arm]) -> list[RunSpec]:
    """Returns every run of the sweep on data that exist, lineage by lineage so that early results are complete.

    Raises:
        DataError: A log folder is missing or has no card.
        ConfigError: A level is missing in a log, or too short for a replay ratio.
    """
    planned: list[RunSpec] = []
    for lineage, source in itertools.product(spec.lineages, found):
        folder = lineage_folder(source.folder, lineage)
        log = open_log(folder)
        card = log.card
        _check_levels(spec, source, card)
        _check_policy(spec, source.name, card.policy)
        for arm in all_arms:
            _check_needs(arm.baseline, source.name, log, spec)
        for arm in all_arms:
            cells: list[tuple[str | None, float | None, int, int]]
            if arm.baseline.declaration.updates_policy:
                cells = [(*cell, seed) for cell in spec.cells() for seed in spec.seeds]
            else:
                cells = [(None, None, spec.train.updates, spec.seeds[0])]
            for level, replay_ratio, updates, seed in cells:
                buffered = spec.regime(level) if spec.buffered and level else spec.buffered
                planned.append(
                    RunSpec(
                        dataset=source.name,
                        data_folder=str(folder),
                        card_sha256=log.digest,
                        task=card.task,
                        lineage=lineage,
                        data_format=spec.data_format,
                        level=level,
                        replay_ratio=replay_ratio,
                        baseline=arm.baseline.name,
                        baseline_path=arm.path,
                        baseline_sha256=arm.baseline.digest,
                        config=arm.config,
                        seed=seed,
                        train=spec.train.model_copy(update={LEARNING_RATE: arm.learning_rate, "updates": updates}),
                        evaluate=spec.evaluate,
                        buffered=buffered,
                    )
                )
    return planned


def _check_levels(spec: SweepSpec, source: Source, card: Card) -> None:
    for level in spec.levels:
        if level not in card.levels:
            raise unknown_name(f"level of dataset '{source.name}'", level, card.levels)
        steps = sum(
            shard.num_steps for shard in card.shards if shard.level == level and shard.format == spec.data_format
        )
        if steps == 0:
            formats = sorted({shard.format for shard in card.shards})
            raise ConfigError(
                f"Dataset '{source.name}' has no {spec.data_format} shards; it has {', '.join(formats)}. "
                "Set data_format to one of these."
            )
        for cell in spec.cells():
            wanted = steps_for(cell.updates, spec.train.batch_size, cell.replay_ratio)
            if wanted > steps:
                raise ConfigError(
                    f"Dataset '{source.name}', lineage {card.lineage}, level '{level}' holds {steps} steps; replay "
                    f"ratio {cell.replay_ratio:g} with {cell.updates} updates of {spec.train.batch_size} needs "
                    f"{wanted}. Log more episodes, or raise the replay ratio."
                )


def _check_needs(baseline: Baseline, dataset: str, log: Log, spec: SweepSpec) -> None:
    """Refuses a baseline that reads what the logs lack."""
    card, needs = log.card, baseline.declaration.needs
    lacking = []
    if "mu_logits" in needs and not log.has_mu_logits(spec.levels, spec.data_format):
        lacking.append("mu_logits")
    reads_lag = "lag_updates" in needs or baseline.sampling_weight is not None
    if reads_lag and any(card.levels[level].lag_updates is None for level in spec.levels):
        lacking.append("lag_updates")
    for need in lacking:
        raise ConfigError(
            f"Baseline '{baseline.name}' needs {need}, which dataset '{dataset}', lineage {card.lineage} lacks at some "
            f"of the levels {', '.join(spec.levels)}: {NEEDS[need]}; or leave the baseline out."
        )


def count_runs(spec: SweepSpec, all_arms: list[Arm]) -> int:
    """Returns the number of runs without needing the data."""
    cells = len(spec.cells()) * len(spec.seeds)
    per_lineage = sum(cells if arm.baseline.declaration.updates_policy else 1 for arm in all_arms)
    return per_lineage * len(spec.lineages) * len(spec.datasets)
