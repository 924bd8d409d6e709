"""What of the model is trained: LoRA or everything, the language model or all of it, or its top layers alone."""

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.policy.openvla_oft.model import OpenVLAOFT

if TYPE_CHECKING:
    from peft import LoraConfig

LLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# As in the published adapters; `proj` is the towers' attention output and patch convolution.
ALL_TARGETS = (*LLM_TARGETS, "lm_head", "proj", "qkv", "fc1", "fc2", "fc3", "q", "kv")
# These have separate files and are trained in full.
NOT_ADAPTED = r"(proprio_projector|value_head)\..*"


class AdaptSettings(BaseModel):
    """What is trained; a value head always is.

    Args:
        method: `lora` adds low-rank updates, `full` trains the weights themselves, `frozen` neither.
        scope: `llm` is the language model; `all` includes towers and projector (with LoRA, also the token head).
        rank: Rank of the LoRA updates.
        alpha: LoRA updates are scaled by alpha / rank; RLinf takes them equal.
        targets: Last parts of the names of the adapted layers; by default all linear layers of the scope.
        top_layers: Train these many last layers of the language model alone, so that what enters them can be cached.
        gradient_checkpointing: Recompute each layer in the backward pass, for memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["lora", "full", "frozen"] = "lora"
    scope: Literal["llm", "all"] = "llm"
    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[str, ...] | None = None
    top_layers: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False


def read_adapt_settings(fields: Mapping[str, Any]) -> AdaptSettings:
    """Returns the settings from the `train` table of a policy.

    Raises:
        ConfigError: A field is unknown or has a value that is not allowed.
    """
    for name in fields:
        if name not in AdaptSettings.model_fields:
            raise unknown_name("field of train", name, AdaptSettings.model_fields)
    try:
        return AdaptSettings.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"train.{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def adapt(model: OpenVLAOFT, settings: AdaptSettings, generator: torch.Generator | None = None) -> None:
    """Prepares a model for training in place: adds LoRA, freezes the rest, switches checkpointing.

    A fresh LoRA changes nothing yet: its second factor is zero. No part of the model drops out, so train mode only
    switches gradient checkpointing.

    Args:
        model: From `from_pretrained` or `from_config`.
        settings: What is trained.
        generator: Source of LoRA's first factors.
    """
    _check(model, settings)
    model.requires_grad_(False)
    if settings.method == "lora":
        add_lora(model, lora_config(model, settings), generator)
    elif settings.method == "full":
        for parameter in _full_parameters(model, settings):
            parameter.requires_grad_(True)
    if model.config.value_outputs is not None:
        model.value_head.requires_grad_(True)
    if settings.gradient_checkpointing:
        # The library's own switch has another name in each of its versions.
        for layer in model.layers:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
            layer.gradient_checkpointing = True  # type: ignore[assignment]
        for tower in model.vision_backbone.children():
            tower.checkpointing = True  # type: ignore[assignment]
    model.train()


def frozen_layers(model: OpenVLAOFT, settings: AdaptSettings) -> int:
    """Returns how many layers of the language model lie below everything that is trained; 0 if all do train."""
    return 0 if settings.top_layers is None else len(model.layers) - settings.top_layers


def _check(model: OpenVLAOFT, settings: AdaptSettings) -> None:
    if settings.top_layers is None:
        return
    if settings.scope == "all":
        raise ConfigError("top_layers trains layers of the language model alone; set scope to 'llm' or leave one out.")
    if settings.top_layers > len(model.layers):
        raise ConfigError(f"top_layers is {settings.top_layers}, the model has {len(model.layers)} layers.")


def _full_parameters(model: OpenVLAOFT, settings: AdaptSettings) -> list[nn.Parameter]:
    if settings.top_layers is not None:
        return list(model.layers[-settings.top_layers :].parameters())
    if settings.scope == "llm":
        return list(model.language_model.parameters())
    # An optimiser would only carry along what the forward pass never reads.
    towers = model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer
    unused = {id(parameter) for tower in towers for parameter in tower.unused_parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in unused]


def lora_config(model: OpenVLAOFT, settings: AdaptSettings) -> "LoraConfig":
    """Returns peft's description of the LoRA that the settings ask for."""
    from peft import LoraConfig

    if settings.scope == "all":
        modules: str | list[str] = list(settings.targets or ALL_TARGETS)
    else:
        names = "|".join(map(re.escape, settings.targets or LLM_TARGETS))
        layers = "|".join(map(str, range(frozen_layers(model, settings), len(model.layers))))
        modules = rf"language_model\.model\.layers\.({layers})\..*\.({names})"
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=modules, lora_dropout=0.0)  # type: ignore[arg-type]


def refuse_other_adapters(content: Mapping[str, Any]) -> None:
    """Refuses what an adapter_config.json describes unless it is plain LoRA.

    Raises:
        ConfigError: The adapter is of another kind.
    """
    if content.get("peft_type") != "LORA" or content.get("modules_to_save") or content.get("use_dora"):
        raise ConfigError(
            f"adapter_config.json: peft_type is {content.get('peft_type')!r} (modules_to_save: "
            f"{content.get('modules_to_save')}); only plain LoRA is read. Merge the adapter into its base instead."
        )


def lora_config_from_json(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> "LoraConfig":
    """Returns peft's description of a LoRA from the content of an adapter_config.json.

    Args:
        state: The adapter's tensors, which its ranks must not exceed: they decide what is allocated.

    Raises:
        DataError: Its ranks are not those of its tensors, or a pattern of module names is none.
    """
    from peft import LoraConfig

    fields = ("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern")
    known = {name: content[name] for name in (*fields, "alpha_pattern", "use_rslora") if content.get(name) is not None}
    largest = max((tensor.shape[0] for name, tensor in state.items() if ".lora_A." in name and tensor.dim()), default=0)
    for rank in (known.get("r", 8), *_values(known.get("rank_pattern"))):
        if not isinstance(rank, int) or not 1 <= rank <= largest:
            raise DataError(
                f"adapter_config.json: rank {rank!r}, its tensors have at most {largest}. Use its own file."
            )
    for scale in (known.get("lora_alpha", 8), *_values(known.get("alpha_pattern"))):
        if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise DataError(f"adapter_config.json: lora_alpha {scale!r}, expected a number above 0.")
    for name in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        patterns = [known[name]] if isinstance(known.get(name), str) else list(known.get(name, ()))
        if not all(isinstance(pattern, str) and _is_harmless(pattern) for pattern in patterns):
            raise DataError(
                f"adapter_config.json: {name} must be names of modules, or a pattern that repeats no group."
            )
    return LoraConfig(**known)


def _values(pattern: object) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, Mapping) else []


def _is_harmless(pattern: str) -> bool:
    """Whether matching takes no time that grows without bound: few repetitions, none of a group."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return sum(map(pattern.count, "*+{")) <= 4 and not re.search(r"\)[*+{?]", pattern)


def lora_config_of(model: OpenVLAOFT) -> dict[str, Any]:
    """Returns the content of adapter_config.json for a model that carries a LoRA."""
    fields = model.peft_config["default"].to_dict()  # type: ignore[union-attr,index]
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else None


def add_lora(model: OpenVLAOFT, config: "LoraConfig", generator: torch.Generator | None = None) -> None:
    """Puts LoRA layers into the model, in float32 whatever the base is, and leaves them alone to be trained.

    Without a generator the first factors stay empty, to be loaded.
    """
    from peft import inject_adapter_in_model

    has_parts = model.config.proprio_dim is not None or model.config.value_outputs is not None
    is_pattern = isinstance(config.target_modules, str) and config.target_modules != "all-linear"
    if has_parts and not is_pattern:
        config.exclude_modules = config.exclude_modules or NOT_ADAPTED
    try:
        # peft would draw from the global stream; on the meta device it draws nothing.
        inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    except ValueError as error:
        raise ConfigError(f"LoRA targets: {error}") from error
    device = model.projector.fc1.weight.device
    for module in model.modules():
        for name in ("lora_A", "lora_B"):
            factor = getattr(module, name, {})
            if "default" not in factor:
                continue
            factor["default"].to_empty(device=device)
            weight = factor["default"].weight
            with torch.no_grad():
                if name == "lora_B":
                    weight.zero_()
                elif generator is not None and device.type != "meta":
                    weight.copy_(torch.randn(weight.shape, generator=generator) / config.r)


def merge_lora(model: OpenVLAOFT) -> None:
    """Adds the LoRA that a model carries to its weights and removes it; nothing happens to a model without one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
