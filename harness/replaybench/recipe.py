"""A recipe says how a data set is made: datasets/<name>.toml, read and validated here."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from replaybench.errors import ConfigError, unknown_name
from replaybench.paths import RECIPES_DIR
from replaybench.spec import AdvantageSettings, Resources, Spec, validate
from replaybench.store.files import read_text

Range = tuple[float, float]


class PolicySettings(Spec):
    """Which policy is trained, and its sizes; the suite adds the sizes that the task dictates."""

    kind: str
    settings: dict[str, Any] = {}


class WarmStart(Spec):
    """Behaviour cloning of a few expert episodes, stopped as soon as success lies in the band.

    success: Band of the warm start's success on the stop-rule goals.
    min_updates: Updates before the first check of the stop rule.
    policy_settings: Settings of the policy that differ while it is cloned, such as how much of it is trained.
    counted: Versions count the optimiser steps of cloning too, and the clone is kept at every `check_every`, so that
        levels may reach back to before the warm start.
    """

    later: ClassVar[tuple[str, ...]] = ("min_updates", "policy_settings", "counted")
    demonstrations: PositiveInt
    success: Range
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 256
    check_every: PositiveInt = 3
    check_episodes: PositiveInt = 60
    max_updates: PositiveInt = 300
    min_updates: NonNegativeInt = 0
    policy_settings: dict[str, Any] = {}
    counted: bool = False


class Reinforcement(Spec):
    """Strictly on-policy RL: every collected decision is used for one policy update, once.

    learning_rates: Tried in this order, each from the warm start; the next, lower one is taken when success
        is above the band when it is checked.
    success: Band in which the newest checkpoint must stand on the stop-rule goals.
    min_updates: Updates that must lie between the warm start and the newest checkpoint.
    check_every: Iterations between checks of the stop rule, which begin at `min_updates`.
    """

    baseline: str
    success: Range
    learning_rates: tuple[PositiveFloat, ...] = Field(min_length=1)
    min_updates: PositiveInt
    max_updates: PositiveInt
    value_learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 128
    episodes_per_iteration: PositiveInt = 20
    value_passes: PositiveInt = 3
    check_every: PositiveInt = 2
    check_episodes: PositiveInt = 60
    advantage: AdvantageSettings = AdvantageSettings()


class Level(Spec):
    """A freshness level: one of a lag range, a matched sibling, or a mixture of other levels.

    lag_updates: Accepted range of (start version - behaviour version).
    branch_updates: For a matched level: updates before the newest checkpoint at which the sibling branched off.
    tolerance: For a matched level: largest accepted difference of its success from the start policy's.
    mixture_of: Other levels whose episodes are interleaved, as a FIFO buffer would hold them.
    episodes, steps: The level is logged until both are reached.
    """

    lag_updates: tuple[NonNegativeInt, NonNegativeInt] | None = None
    branch_updates: PositiveInt | None = None
    tolerance: PositiveFloat = 0.05
    mixture_of: tuple[str, ...] = ()
    episodes: PositiveInt = 100
    steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        kinds = (self.lag_updates is not None, self.branch_updates is not None, bool(self.mixture_of))
        if sum(kinds) != 1:
            raise ValueError("a level has exactly one of lag_updates, branch_updates, mixture_of")
        return self


class Recipe(Spec):
    """Everything that makes a data set; `lineage` and the machine decide the rest.

    warm_start: Without it the policy as its settings make it, such as a checkpoint from elsewhere, is the warm start.
    reinforcement: Without it the warm start is the start policy, and all that is logged are episodes of its own and of
        the clones on the way to it.
    device: Where lineages grow: `cpu`, or `auto` for CUDA where there is one.
    resources: What growing one asks for.
    """

    later: ClassVar[tuple[str, ...]] = ("device", "resources")
    name: str
    description: str
    suite: str
    task: str
    licence: str
    policy: PolicySettings
    warm_start: WarmStart | None = None
    reinforcement: Reinforcement | None = None
    levels: dict[str, Level]
    suite_settings: dict[str, Any] = {}
    max_steps: PositiveInt = 150
    stop_goal_seed: NonNegativeInt = 555
    first_train_goal_seed: NonNegativeInt = Field(10_000, description="lineage i trains on this seed + i")
    formats: tuple[str, ...] = ("hdf5", "arrow")
    episodes_per_shard: PositiveInt = 200
    device: Literal["cpu", "auto"] = "cpu"
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _levels_are_complete(self) -> Self:
        if self.fresh_levels() != 1:
            raise ValueError("exactly one level must have lag_updates = [0, 0]: the fresh one")
        counts_clones = self.warm_start is not None and self.warm_start.counted
        if self.reinforcement is None and len(self.levels) > 1 and not counts_clones:
            raise ValueError(
                "without [reinforcement] the fresh level is the only one there can be, unless warm_start.counted"
            )
        for name, level in self.levels.items():
            for part in level.mixture_of:
                if part not in self.levels or self.levels[part].mixture_of:
                    raise ValueError(f"level '{name}' mixes '{part}', which is no logged level of the recipe")
        return self

    def fresh_levels(self) -> int:
        """Number of levels logged by the start policy itself."""
        return sum(level.lag_updates == (0, 0) for level in self.levels.values())

    def digest(self) -> str:
        """Returns the sha256 of the recipe's values; formats, resources and description do not change it."""
        values = self.model_dump_json(exclude={"description", "formats", "resources"})
        return hashlib.sha256(values.encode()).hexdigest()


def recipe_paths() -> dict[str, Path]:
    """Returns the shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPES_DIR.glob("*.toml"))}


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe by name or by the path of a .toml file; `extends` names another whose values it overrides.

    Raises:
        ConfigError: It does not exist, is no TOML, or a key is wrong.
    """
    path = _recipe_path(name_or_path)
    return validate(Recipe, _read_extending(path, ()), path.name)


def _recipe_path(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"No recipe at '{name_or_path}'.")
    else:
        paths = recipe_paths()
        if name_or_path not in paths:
            raise unknown_name("dataset", name_or_path, paths)
        path = paths[name_or_path]
    return path


def _read_extending(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path.name}: extends itself through {', '.join(item.name for item in seen)}.")
    values = read_toml(path)
    base = values.pop("extends", None)
    return values if base is None else _merge(_read_extending(_recipe_path(base), (*seen, path)), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns base with the values of `over`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file; a syntax error names the file and the place."""
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from error
