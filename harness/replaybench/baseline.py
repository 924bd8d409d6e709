"""The contract of a baseline file, and how such files are found, loaded and evaluated.

Every off-policy correction maximises a per-item surrogate J whose gradient is
    sum_i mask_i h_i grad log pi(a_i|s_i),   h_i = dJ_i/d log pi_i = c(l_i, A_i) A_i,
with the gradient coefficient c. A baseline file states J; h and c follow by autograd on log pi.
"""

import hashlib
import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from replaybench.errors import ConfigError, ContractError, NumericalError, unknown_name
from replaybench.estimators import find_estimator
from replaybench.items import Items as Items
from replaybench.maths.shapes import check_shapes
from replaybench.paths import BASELINES_DIR

ENTRY_POINT_GROUP = "replaybench.baselines"
# What a surrogate may read beyond actions and advantages, and what to log or choose where it is lacking.
NEEDS = {
    "log_mu": "log each action token's log-probability when acting",
    "mu_logits": "log the behaviour policy's logits (mu_logits)",
    "log_prox": "nothing to log: the training loop recomputes the proximal policy's log-probabilities",
    "lag_updates": "log behaviour_version, and use a level whose lag is known (not a matched one)",
    "episodes": "log whole episodes in order",
}
Need = Literal["log_mu", "mu_logits", "log_prox", "lag_updates", "episodes"]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The one parameter of a baseline that trades bias for variance.

    Args:
        field: Its name in the baseline's Config.
        sweep: The values that the source sweeps, or that span its useful range.
        wider: Whether a larger value lets more off-policy weight through.
    """

    field: str
    sweep: tuple[float, ...]
    wider: bool = True


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What the harness must know about a baseline before it runs.

    Args:
        paper: Where the method comes from, in a few words.
        arxiv: arXiv id, or None.
        needs: Columns beyond actions and advantages that the surrogate reads.
        bounded: Whether c stays finite at any log-ratio; a function where that depends on the Config.
        knob: The bias-variance knob, or None.
        acts_at_zero_advantage: The policy gradient is not zero where the advantage is.
        batch_statistics: The surrogate of an item depends on the other items of the batch.
        discrete_only: The surrogate reads exp(log_pi) as a probability, which a density is not.
        updates_policy: False for the control that leaves the policy as it is.
        estimator: The advantage estimator that the method is defined with, or None where any will do.
    """

    paper: str
    bounded: bool | Callable[[Any], bool]
    arxiv: str | None = None
    needs: tuple[Need, ...] = ("log_mu",)
    knob: Knob | None = None
    acts_at_zero_advantage: bool = False
    batch_statistics: bool = False
    discrete_only: bool = False
    updates_policy: bool = True
    estimator: str | None = None

    @property
    def beyond_the_item(self) -> tuple[Need, ...]:
        """What the surrogate of an item reads beyond its log-ratio and advantage."""
        return tuple(need for need in self.needs if need != "log_mu")

    @property
    def why_no_curve(self) -> str | None:
        """Why c is no function of log-ratio and advantage alone, or None where it is one and can be drawn."""
        if self.beyond_the_item:
            return f"reads {', '.join(self.beyond_the_item)}"
        if self.batch_statistics:
            return "depends on the whole batch"
        if self.discrete_only:
            return "reads probabilities"
        return None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A loaded baseline file.

    Two outer controls are optional functions of the file: learning_rate_scale(items, config) multiplies the policy's
    learning rate in each update; sampling_weight(lag_updates, config) weighs decisions when minibatches are drawn.
    """

    name: str
    path: Path
    digest: str
    summary: str
    config_type: type[Any]
    surrogate: Callable[[Items, Any], Tensor]
    declaration: Declaration
    learning_rate_scale: Callable[[Items, Any], float] | None = None
    sampling_weight: Callable[[Tensor, Any], Tensor] | None = None

    def config(self, settings: Mapping[str, object] | None = None) -> Any:
        """Returns the Config with `settings` over its defaults.

        Raises:
            ConfigError: An unknown key, a value of the wrong type or range, or one that is not finite.
        """
        settings = dict(settings or {})
        for key in settings:
            if key not in {field.name for field in fields(self.config_type)}:
                raise unknown_name(
                    f"setting of baseline '{self.name}'", key, (f.name for f in fields(self.config_type))
                )
        try:
            config = TypeAdapter(self.config_type).validate_python(settings)
        except ValidationError as error:
            problem = error.errors()[0]
            # A check across several settings has no place of its own.
            place = ".".join(str(part) for part in problem["loc"]) or ", ".join(settings)
            raise ConfigError(f"Baseline '{self.name}', setting '{place}': {problem['msg']}.") from error
        for key, value in asdict(config).items():
            # An infinite width would make a baseline that declares itself bounded an unbounded one.
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(
                    f"Baseline '{self.name}', setting '{key}': {value} is not finite. Give a finite number."
                )
        return config

    def is_bounded(self, config: Any) -> bool:
        """Whether the gradient coefficient of this Config stays finite at any log-ratio."""
        bounded = self.declaration.bounded
        return bounded if isinstance(bounded, bool) else bounded(config)


class SurrogateValue(NamedTuple):
    """Per-item surrogate J and score coefficient h = dJ/d log pi, both [B, A], detached, 0 where masked.

    logits_score is dJ/d logits beyond that through log pi, [B, T, K], of a surrogate that reads the distribution.
    """

    surrogate: Tensor
    score: Tensor
    logits_score: Tensor | None = None


def evaluate_surrogate(baseline: Baseline, config: Any, items: Items) -> SurrogateValue:
    """Evaluates a baseline on a batch: the one place where masks act and overflow is caught.

    Masked items are replaced by on-policy items of zero advantage before the baseline sees them.

    Raises:
        NumericalError: A valid item's surrogate or score is not finite.
        ContractError: No item is valid, or the surrogate has the wrong shape.
    """
    check_shapes(
        log_pi=(items.log_pi, "BA"),
        log_mu=(items.log_mu, "BA"),
        advantage=(items.advantage, "BA"),
        mask=(items.mask, "BA"),
    )
    if not items.mask.any():
        raise ContractError("Every item of the batch is masked; there is nothing to learn from.")
    # Both sides are replaced: a masked log_mu may be NaN or infinite, and then so would be its log-ratio.
    log_mu = torch.where(items.mask, items.log_mu.detach(), 0.0)
    log_pi = torch.where(items.mask, items.log_pi.detach(), 0.0).requires_grad_()
    seen = replace(
        items,
        log_pi=log_pi,
        log_mu=log_mu,
        advantage=torch.where(items.mask, items.advantage.detach(), 0.0),
        log_prox=_masked(items.log_prox, items.mask),
        logits=_masked(items.logits, items.mask.unsqueeze(-1)),
        mu_logits=_masked(items.mu_logits, items.mask.unsqueeze(-1)),
    )
    leaves = [log_pi] if seen.logits is None else [log_pi, seen.logits.requires_grad_()]
    surrogate = baseline.surrogate(seen, config)
    if surrogate.shape != log_pi.shape:
        raise ContractError(
            f"Baseline '{baseline.name}' returned shape {tuple(surrogate.shape)}, expected one value an item, "
            f"{tuple(log_pi.shape)}. Do not reduce inside the surrogate."
        )
    if not surrogate.requires_grad:
        raise ContractError(
            f"Baseline '{baseline.name}': the surrogate does not depend on log_pi. State a constant one as "
            "with_gradient(value, score, items.log_pi)."
        )
    score, *rest = torch.autograd.grad(surrogate.sum(), leaves, allow_unused=True)
    score = torch.zeros_like(log_pi) if score is None else score
    _check_finite(baseline, items, surrogate, score)
    logits_score = rest[0] if rest else None
    if logits_score is not None and not torch.isfinite(logits_score).all():
        raise NumericalError(f"Baseline '{baseline.name}': the gradient by the logits is not finite. Use fresher data.")
    return SurrogateValue(
        torch.where(items.mask, surrogate.detach(), 0.0), torch.where(items.mask, score, 0.0), logits_score
    )


def _masked(values: Tensor | None, mask: Tensor) -> Tensor | None:
    """Returns detached values with 0 where masked; zero logits are the uniform distribution on both sides."""
    return None if values is None else torch.where(mask, values.detach(), 0.0)


def _check_finite(baseline: Baseline, items: Items, surrogate: Tensor, score: Tensor) -> None:
    broken = items.mask & ~(torch.isfinite(surrogate) & torch.isfinite(score))
    if broken.any():
        largest = float(items.log_ratio.detach()[broken].abs().max())
        raise NumericalError(
            f"Baseline '{baseline.name}': {int(broken.sum())} of {int(items.mask.sum())} items overflow "
            f"{items.log_pi.dtype}; largest |log-ratio| among them {largest:.3g}. The correction is unbounded there: "
            "use fresher data, a smaller learning rate or a bounded baseline."
        )


def gradient_coefficient(
    baseline: Baseline, config: Any, log_ratio: Tensor, advantage: float, *, log_mu: float = 0.0
) -> Tensor:
    """Returns c(l, A) = h / A at each log-ratio, [N], each item alone in its batch.

    A `discrete_only` baseline reads more than the log-ratio: give it a log_mu for which log_mu + l stays below 0.

    Raises:
        ConfigError: The advantage is 0, where c is not defined, or the baseline reads more than an item by itself.
    """
    check_shapes(log_ratio=(log_ratio, "N"))
    if baseline.declaration.beyond_the_item:
        raise ConfigError(
            f"Baseline '{baseline.name}' reads {', '.join(baseline.declaration.beyond_the_item)}; its coefficient is "
            "no function of the log-ratio and the advantage. Choose a baseline that needs log_mu only."
        )
    if advantage == 0.0:
        raise ConfigError("The gradient coefficient is h / A; choose an advantage other than 0.")
    # Statistics of the batch are those of an item alone; any other baseline takes all items at once.
    alone = 1 if baseline.declaration.batch_statistics else len(log_ratio)
    scores = []
    for values in log_ratio.reshape(-1, 1).split(max(1, alone)):
        items = Items(
            log_pi=values + log_mu,
            log_mu=torch.full_like(values, log_mu),
            advantage=torch.full_like(values, advantage),
            mask=torch.ones_like(values, dtype=torch.bool),
        )
        scores.append(evaluate_surrogate(baseline, config, items).score.flatten())
    return torch.cat(scores) / advantage


def with_gradient(value: Tensor, score: Tensor, log_pi: Tensor) -> Tensor:
    """Returns a tensor that equals `value` and whose gradient is `score` times that of log_pi.

    Lets a baseline state a coefficient in log space where the product of ratio and weight would overflow.
    """
    return value.detach() + score.detach() * (log_pi - log_pi.detach())


def baseline_paths() -> dict[str, Path]:
    """Returns the file of every baseline that is shipped or installed through an entry point, by name."""
    found = {path.stem: path for path in sorted(BASELINES_DIR.glob("*.py")) if not path.stem.startswith("_")}
    return found | _installed_paths()


@lru_cache(maxsize=1)
def _installed_paths() -> dict[str, Path]:
    """Returns the files of the entry points; looking through what is installed takes milliseconds."""
    found = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = importlib.util.find_spec(point.value)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise ConfigError(f"Entry point '{point.name}' of {ENTRY_POINT_GROUP} names no module: {point.value}.")
        found[point.name] = Path(spec.origin)
    return found


def load_baseline(name_or_path: str) -> Baseline:
    """Loads a baseline by its name or by the path of a .py file. Running a user's file runs its code.

    Raises:
        ConfigError: There is no such baseline or file.
        ContractError: The file breaks the contract.
    """
    if name_or_path.endswith(".py"):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"No baseline file at '{name_or_path}'. Give the path of an existing .py file.")
    else:
        paths = baseline_paths()
        if name_or_path not in paths:
            raise unknown_name("baseline", name_or_path, paths)
        path = paths[name_or_path]
    return _load_file(path.resolve(), path.read_bytes())


@lru_cache
def _load_file(path: Path, source: bytes) -> Baseline:
    module = _import_file(path, source)
    for name in ("Config", "DECLARATION", "surrogate"):
        if not hasattr(module, name):
            raise ContractError(
                f"{path.name}: '{name}' is missing. A baseline file defines Config, DECLARATION, surrogate."
            )
    declaration = module.DECLARATION
    if not isinstance(declaration, Declaration):
        raise ContractError(f"{path.name}: DECLARATION must be a replaybench.baseline.Declaration.")
    if declaration.estimator is not None:
        find_estimator(declaration.estimator)
    if not (isinstance(module.Config, type) and is_dataclass(module.Config)):
        raise ContractError(f"{path.name}: Config must be a frozen dataclass.")
    config_fields = {field.name for field in fields(module.Config)}
    if declaration.knob and declaration.knob.field not in config_fields:
        raise ContractError(f"{path.name}: knob '{declaration.knob.field}' is no field of Config.")
    return Baseline(
        name=path.stem,
        path=path,
        digest=hashlib.sha256(source).hexdigest(),
        summary=(module.__doc__ or "").strip().split("\n")[0],
        config_type=module.Config,
        surrogate=module.surrogate,
        declaration=declaration,
        learning_rate_scale=getattr(module, "learning_rate_scale", None),
        sampling_weight=getattr(module, "sampling_weight", None),
    )


def _import_file(path: Path, source: bytes) -> ModuleType:
    module_name = f"replaybench.plugins.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None:
        raise ConfigError(f"Cannot import '{path}' as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        # Python's bytecode cache tells versions apart by size and second; it may hold other code than the digest's.
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as error:
        raise ContractError(f"{path.name}: importing the baseline failed: {type(error).__name__}: {error}") from error
    return module


def config_record(config: Any) -> dict[str, Any]:
    """Returns a Config as plain values, for records and tables."""
    return asdict(config)


def describe(baseline: Baseline) -> dict[str, Any]:
    """Returns a baseline's declaration as a flat row."""
    declaration = baseline.declaration
    knob = declaration.knob
    return {
        "name": baseline.name,
        "paper": declaration.paper,
        "arxiv": declaration.arxiv,
        # A method that reads whole episodes has one weight for all items of a sequence.
        "granularity": ["sequence"] if "episodes" in declaration.needs else ["token", "step"],
        "needs": list(declaration.needs),
        "bounded": baseline.is_bounded(baseline.config()),
        "discrete_only": declaration.discrete_only,
        "estimator": declaration.estimator,
        "knob": knob.field if knob else None,
    }
