"""The settings of training and evaluation, validated where they enter."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from replaybench.errors import ConfigError, unknown_name
from replaybench.estimators import ESTIMATORS, find_estimator


class Spec(BaseModel):
    """Base of the frozen, strict records that TOML and JSON are read into.

    later: Fields that came after the first records were written. They are left out where they have their default, so
        that records without them keep their ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                values.pop(name, None)
        return values


def _known_estimator(name: str) -> str:
    try:
        return find_estimator(name).name
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _interval(value: object) -> int | Literal["epoch"]:
    if value == "epoch":
        return "epoch"
    if value == "batch":
        return 1
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("is a number of updates from 1, 'batch' (before each update) or 'epoch' (at each pass's start)")


class AdvantageSettings(Spec):
    """How advantages are estimated.

    estimator: One of the table in estimators.py.
    lam: Of GAE, V-trace's traces, Retrace and tree backup. rho_bar, c_bar: Of V-trace.
    normalise: "batch" shifts and scales the advantages of each minibatch to mean 0 and deviation 1.
    recompute_every: When advantages are estimated anew with the current value function, and the proximal policy is
        renewed: each so many updates, before each "batch", or at the start of each pass over the replay ("epoch").
    alpha: Of leaky V-trace: 1 is V-trace, 0 plain importance sampling.
    """

    later: ClassVar[tuple[str, ...]] = ("alpha",)
    estimator: Annotated[str, AfterValidator(_known_estimator)] = "gae"
    gamma: float = Field(0.99, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    rho_bar: PositiveFloat = 1.0
    c_bar: PositiveFloat = 1.0
    normalise: Literal["none", "batch"] = "batch"
    recompute_every: Annotated[int | Literal["epoch"], PlainValidator(_interval)] = 16
    alpha: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _is_normalised_once(self) -> Self:
        if ESTIMATORS[self.estimator].normalises and self.normalise != "none":
            raise ValueError(
                f"estimator '{self.estimator}' says itself how advantages are scaled; set normalise = \"none\""
            )
        return self


class TrainSettings(Spec):
    """What every baseline of a sweep shares, apart from its own learning rate.

    updates: Optimiser steps of the policy, U. batch_size: decisions of a step, B.
    value_warmup_updates: Steps of the value head alone before the first policy update.
    granularity: Whether one ratio belongs to an action token or to all tokens of a step.
    kl_coefficient: Weight of the exact KL(mu||pi); needs logged mu_logits.
    fused_optimiser: One kernel for all of AdamW: faster, and equal to it up to float32 rounding.
    precision: Of the matrix products in updates; weights and losses stay in float32. With bfloat16, log pi of an update
        differs from the log mu of acting by rounding, too.
    """

    later: ClassVar[tuple[str, ...]] = ("fused_optimiser", "precision")
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
    fused_optimiser: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"


class BufferedSettings(Spec):
    """The buffered protocol: collect with the current policy into a first-in-first-out buffer, learn from it, again.

    start: Checkpoint of the log folder that is trained on: its "start_policy", the "warm_start" that this came from,
        or "scratch", new weights.
    collect_steps: Environment steps of an iteration, S. capacity: decisions that the buffer holds.
    environments: Act at once, each S / environments steps an iteration. Episodes go on from one iteration to the next.
    sample_rounds: Minibatches of an iteration. reuse: times that each is learned from in a row; every `actor_every`-th
        time, from the first, moves policy and value head, the others the value head alone. The policy's loss at reuse
        i is scaled by 1 / sqrt(i + 1).
    rate_decay: Of both learning rates over the run.
    first_goal_seed: Lineage i collects on the goals of this seed + i.
    keep_log: Everything that is collected is also written as a log folder.
    """

    iterations: PositiveInt
    start: Literal["start_policy", "warm_start", "scratch"] = "warm_start"
    collect_steps: PositiveInt = 500
    environments: PositiveInt = 1
    capacity: PositiveInt = 20_000
    sample_rounds: PositiveInt = 10
    reuse: PositiveInt = 1
    actor_every: PositiveInt = 1
    rate_decay: Literal["none", "cosine"] = "none"
    first_goal_seed: NonNegativeInt = 20_000
    keep_log: bool = False

    @model_validator(mode="after")
    def _environments_share_the_steps(self) -> Self:
        if self.collect_steps % self.environments:
            raise ValueError(f"collect_steps {self.collect_steps} is no multiple of environments {self.environments}")
        return self

    @property
    def policy_updates(self) -> int:
        """Updates of an iteration that move the policy."""
        return self.sample_rounds * -(-self.reuse // self.actor_every)

    @property
    def value_updates(self) -> int:
        """Updates of an iteration that move the value head."""
        return self.sample_rounds * self.reuse

    def replay_ratio(self, batch_size: int) -> float:
        """Returns the decisions that policy updates consume for each one collected."""
        return self.policy_updates * batch_size / self.collect_steps


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


class Resources(Spec):
    """What a run, or the making of a lineage, asks for; parts of a GPU share it.

    num_cpus: Of a Ray cluster's node. num_gpus: Of a node, or of this machine, whose GPUs limit the workers.
    """

    num_cpus: PositiveFloat = 1
    num_gpus: NonNegativeFloat = 0


class RunSpec(Spec):
    """Everything that decides a run's numbers, apart from versions and the machine; its record rebuilds it.

    level and replay_ratio are None for a control that does not train. card_sha256 stands for the whole log.
    buffered: None under the logged protocol. Else level is the name of a regime, log and data format say where the
        policy starts from, and train.updates are the policy updates of all iterations.
    """

    later: ClassVar[tuple[str, ...]] = ("buffered",)

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
    buffered: BufferedSettings | None = None

    def run_id(self) -> str:
        """Returns the readable cell and a hash of everything that decides the numbers."""
        return self._run_id

    def __copy__(self) -> Self:
        copied = super().__copy__()
        # A copy is made to be changed.
        copied.__dict__.pop("_run_id", None)
        return copied

    @cached_property
    def _run_id(self) -> str:
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
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigError(f"{where}: '{place}': {message}.") from error


def _known_keys(model: type[BaseModel], parents: tuple[int | str, ...], place: str) -> list[str]:
    """Returns the keys that the table at `parents` may hold, spelt like `place`."""
    annotation: Any = model
    for parent in parents:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif parent in getattr(annotation, "model_fields", {}):
            annotation = annotation.model_fields[parent].annotation
            # A table that may be left out.
            annotation = next((part for part in get_args(annotation) if hasattr(part, "model_fields")), annotation)
    prefix = place.rpartition(".")[0]
    return [f"{prefix}.{name}" if prefix else name for name in getattr(annotation, "model_fields", {})]
