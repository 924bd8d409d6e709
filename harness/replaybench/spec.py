"""The settings of training and evaluation, validated where they enter."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from replaybench.errors import ConfigError, unknown_name


class Spec(BaseModel):
    """Base of the frozen, strict records that TOML and JSON are read into."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdvantageSettings(Spec):
    """How advantages are estimated.

    estimator: "gae" recomputes values with the current value function, "gae_stored" uses the behaviour
        policy's logged values, "vtrace" recomputes and corrects the targets by truncated joint ratios.
    normalise: "batch" shifts and scales the advantages of each minibatch to mean 0 and deviation 1.
    recompute_every: Updates between recomputations of values (unused by "gae_stored").
    """

    estimator: Literal["gae", "gae_stored", "vtrace"] = "gae"
    gamma: float = Field(0.99, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    rho_bar: PositiveFloat = 1.0
    c_bar: PositiveFloat = 1.0
    normalise: Literal["none", "batch"] = "batch"
    recompute_every: PositiveInt = 16


class TrainSettings(Spec):
    """What every baseline of a sweep shares, apart from its own learning rate.

    updates: Optimiser steps of the policy, U. batch_size: decisions of a step, B.
    value_warmup_updates: Steps of the value head alone before the first policy update.
    granularity: Whether one ratio belongs to an action token or to all tokens of a step.
    kl_coefficient: Weight of the exact KL(mu||pi); needs logged mu_logits.
    """

    updates: NonNegativeInt = 64
    batch_size: int = Field(256, ge=2)
    learning_rate: PositiveFloat = 1e-4
    value_learning_rate: PositiveFloat = 1e-3
    value_warmup_updates: NonNegativeInt = 50
    max_grad_norm: PositiveFloat = 1.0
    kl_coefficient: NonNegativeFloat = 0.0
    granularity: Literal["token", "step"] = "token"
    advantage: AdvantageSettings = AdvantageSettings()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: PositiveInt = 8


class EvaluateSettings(Spec):
    """How a trained policy is measured.

    goal_seed: Seed of the fixed evaluation goals, shared by all runs. episodes: one a goal, cycling.
    every: Updates between intermediate evaluations, 0 for none. greedy: also evaluate the likeliest actions.
    """

    goal_seed: NonNegativeInt = 777
    episodes: PositiveInt = 50
    max_steps: PositiveInt = 150
    every: NonNegativeInt = 0
    greedy: bool = False


class RunSpec(Spec):
    """Everything that decides a run's numbers, apart from versions and the machine; its record rebuilds it.

    level and replay_ratio are None for a control that does not train. card_sha256 stands for the whole log.
    """

    dataset: str
    data_folder: str
    card_sha256: str
    task: str
    lineage: NonNegativeInt
    data_format: Literal["hdf5", "arrow"]
    level: str | None
    replay_ratio: PositiveFloat | None
    baseline: str
    baseline_path: str | None
    baseline_sha256: str
    config: dict[str, Any]
    seed: NonNegativeInt
    train: TrainSettings
    evaluate: EvaluateSettings

    def run_id(self) -> str:
        """Returns the readable cell and a hash of everything that decides the numbers."""
        decides = self.model_dump(mode="json", exclude={"data_folder", "baseline_path", "data_format"})
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
        cell = [self.dataset, f"L{self.lineage}"]
        if self.level is not None:
            cell += [self.level, f"R{self.replay_ratio:g}"]
        return "-".join([*cell, self.baseline, f"s{self.seed}", digest])


S = TypeVar("S", bound=BaseModel)


def validate(model: type[S], values: Mapping[str, Any], where: str) -> S:
    """Reads values into a model.

    Args:
        where: File or option that the values come from, for the message.

    Raises:
        ConfigError: Names the key, what is wrong with it and, if it is unknown, the nearest key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt key is both unknown and missing; its own name helps more.
        problem = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            unknown = unknown_name(f"key in {where}:", place, _known_keys(model, problem["loc"][:-1], place))
            raise unknown from error
        raise ConfigError(f"{where}: '{place}': {problem['msg']}.") from error


def _known_keys(model: type[BaseModel], parents: tuple[int | str, ...], place: str) -> list[str]:
    """Returns the keys that the table at `parents` may hold, spelt like `place`."""
    annotation: Any = model
    for parent in parents:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif parent in getattr(annotation, "model_fields", {}):
            annotation = annotation.model_fields[parent].annotation
    prefix = place.rpartition(".")[0]
    return [f"{prefix}.{name}" if prefix else name for name in getattr(annotation, "model_fields", {})]
