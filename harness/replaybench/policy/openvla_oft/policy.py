"""OpenVLA-OFT as a policy of the benchmark: uint8 images in, logits and a value out.

The learner hands over whole minibatches. They pass through the model in microbatches, whose activations are recomputed
in the backward pass, so memory is that of one microbatch and the gradient is that of the whole batch, whatever the
loss; with several processes each takes its share of the microbatches.
Shape letters: B observations, A action tokens, K bins.
"""

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.policy import PolicyOutput, Workload
from replaybench.policy.openvla_oft.adapt import adapt, frozen_layers, merge_lora, read_adapt_settings
from replaybench.policy.openvla_oft.checkpoint import fingerprint, load_config, weight_files
from replaybench.policy.openvla_oft.config import NAMED, NUM_BINS, VLAConfig, policy_fields, read_config
from replaybench.policy.openvla_oft.cost import SMALLEST, costs, size_of
from replaybench.policy.openvla_oft.model import OpenVLAOFT, Tokens
from replaybench.policy.openvla_oft.processing import (
    ByteTokenizer,
    Tokenizer,
    encode_prompt,
    load_tokenizer,
    pixel_values_from_images,
)
from replaybench.policy.openvla_oft.sharding import SINGLE, Shares

# The buffer that says on which checkpoint the weights were trained that are saved without it.
BASE = "base_fingerprint"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class OpenVLAOFTPolicy(nn.Module):
    """The model with one instruction; an observation is a uint8 image [H, W, 3 per camera].

    Args:
        instruction: What the robot is told to do; fixed, as a log is of one task.
        generator: Source of all weights that no checkpoint holds.
        checkpoint: Folder of a checkpoint; the state dict then holds what is trained alone.
        config: Name of a configuration, instead of a checkpoint; all weights are drawn at random.
        overrides: Fields that replace those of the configuration.
        adapter: Folder of a LoRA adapter that is added to the weights before anything is trained.
        train: Fields of AdaptSettings.
        temperature: Divides the logits, when acting and when learning alike.
        dtype: Of the base weights: `float32` or `bfloat16`. LoRA and value head are float32 always.
        autocast: Compute in bfloat16 on float32 weights.
        microbatch: Observations that pass through the model at once.
        cache_observations: With `top_layers`, how many observations' hidden states are kept.
        observation_shape, num_action_tokens, num_bins: What the suite has; refused where the model has other sizes.
        statistics: Folder by whose statistics the suite un-normalises actions; it must be the checkpoint's.
    """

    def __init__(
        self,
        *,
        instruction: str,
        generator: torch.Generator,
        checkpoint: str | None = None,
        config: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        train: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        dtype: str = "float32",
        autocast: bool = False,
        microbatch: int = 16,
        cache_observations: int = 0,
        observation_shape: Sequence[int] | None = None,
        num_action_tokens: int | None = None,
        num_bins: int | None = None,
        statistics: str | None = None,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "generator", "__class__")}
        self.settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        described, self._prompt = _describe(self.settings)
        adapt_settings = read_adapt_settings(train or {})
        if checkpoint is not None:
            self.model = OpenVLAOFT.from_pretrained(
                checkpoint, DTYPES[dtype], adapter=adapter, overrides=policy_fields(overrides), generator=generator
            )
            # What is trained lies on top of what was loaded, and is saved with its fingerprint.
            merge_lora(self.model)
            base = bytearray(fingerprint(Path(checkpoint), adapter))
            self.register_buffer(BASE, torch.frombuffer(base, dtype=torch.uint8))
        else:
            self.model = OpenVLAOFT.from_config(described, "cpu", generator, DTYPES[dtype])
        adapt(self.model, adapt_settings, generator)
        self.model.value_head.float()
        self._frozen = frozen_layers(self.model, adapt_settings)
        self._cache = BoundaryCache(cache_observations) if self._frozen and cache_observations else None
        self._saves_all = checkpoint is None
        self.shares: Shares = SINGLE

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Refuses settings from which no policy can be made; of a checkpoint it reads what is small, and no weights.

        Raises:
            ConfigError: A setting is wrong, or the suite's sizes are not the model's.
            DataError: The checkpoint is incomplete.
        """
        given = inspect.signature(OpenVLAOFTPolicy).bind(**settings, generator=None)
        given.apply_defaults()
        config, _ = _describe({name: value for name, value in given.arguments.items() if value is not None})
        if folder := settings.get("checkpoint"):
            weight_files(Path(folder))
        adapt(OpenVLAOFT.from_config(config, "meta"), read_adapt_settings(settings.get("train", {})))

    @staticmethod
    def costs(settings: Mapping[str, Any], run: Workload, lineage: Workload | None) -> list[dict[str, Any]] | None:
        """Returns what a model of over a billion numbers costs, by arithmetic; a smaller one is to be timed."""
        size = size_of(settings)
        return None if size.numbers < SMALLEST else [cost._asdict() for cost in costs(size, run, lineage)]

    @property
    def microbatch(self) -> int:
        """Observations that pass through the model at once."""
        return int(self.settings["microbatch"])

    def forward(self, observations: Tensor) -> PolicyOutput:
        return PolicyOutput(*self._in_parts(observations, self._logits_and_value))

    def value(self, observations: Tensor) -> Tensor:
        return self._in_parts(observations, self._value_alone)[0]

    def fit_normaliser(self, observations: Tensor) -> None:
        """Images have the normalisation that the towers were trained with."""

    def policy_parameters(self) -> list[nn.Parameter]:
        head = {id(parameter) for parameter in self.value_parameters()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in head]

    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.model.value_head.parameters())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Returns the weights that the settings do not determine, in full also where they are sharded."""
        full: dict[str, Tensor] = super().state_dict(*args, **kwargs)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        kept = trained | {BASE}
        return {name: self.shares.whole(full[name]) for name in full if self._saves_all or name in kept}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        expected = self.state_dict().keys()
        if strict and expected != state_dict.keys():
            lacking, unknown = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
            raise DataError(
                f"The checkpoint is of other settings: lacks {lacking[:3]} ({len(lacking)}), has unknown "
                f"{unknown[:3]} ({len(unknown)}). Use the settings that it was trained with."
            )
        if BASE in state_dict and not torch.equal(state_dict[BASE].cpu(), self.get_buffer(BASE).cpu()):
            raise DataError(
                f"{self.settings['checkpoint']}: is not the checkpoint that these weights were trained on. Put that "
                "one back: on another one they make another policy than the one that was logged."
            )
        if self._cache is not None:
            self._cache.clear()
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def _in_parts(self, observations: Tensor, run: "Run") -> tuple[Tensor, ...]:
        share = self.shares.own(observations)
        parts = share.split(self.microbatch)
        if torch.is_grad_enabled() and (len(parts) > 1 or self.shares.count > 1):
            # Autograd calls a function back only if an input of it needs a gradient.
            anchor = torch.zeros((), requires_grad=True)
            outputs = _Recomputed.apply(anchor, run, parts, self.shares)  # type: ignore[no-untyped-call]
        else:
            outputs = _run_parts(run, parts, self.shares)
        return tuple(output[: len(observations)] for output in outputs)

    def _logits_and_value(self, images: Tensor) -> tuple[Tensor, ...]:
        with self._precision():
            if self._cache is None:
                output = self.model(*self._inputs(images))
            else:
                output = self.model.resume(self._cache.tokens(images, self._encode, self.shares), self._frozen)
        return output.logits_BAK / self.settings["temperature"], output.value_BV[:, 0]

    def _value_alone(self, images: Tensor) -> tuple[Tensor, ...]:
        with self._precision():
            if self._cache is None:
                value_B1 = self.model.value(*self._inputs(images))
            else:
                value_B1 = self.model.resume_value(self._cache.tokens(images, self._encode, self.shares), self._frozen)
        return (value_B1[:, 0],)

    def _inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prompt = torch.tensor(self._prompt, device=self._device).expand(len(images), -1)
        return pixel_values_from_images(images.to(self._device), self.model.config), prompt

    def _encode(self, images: Tensor) -> Tokens:
        """Returns the sequence that enters the first trained layer."""
        with torch.no_grad():
            return self.model.encode(*self._inputs(images), self._frozen)

    @property
    def _device(self) -> torch.device:
        return self.model.projector.fc1.weight.device

    def _precision(self) -> AbstractContextManager[object]:
        if not self.settings["autocast"]:
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


def _describe(settings: Mapping[str, Any]) -> tuple[VLAConfig, list[int]]:
    """Returns the model's configuration and the tokens of its prompt, having checked all that needs no weights."""
    _check_settings(settings)
    fields = policy_fields(settings.get("overrides"))
    tokenizer: Tokenizer = ByteTokenizer()
    if folder := settings.get("checkpoint"):
        config = load_config(Path(folder), fields)
        tokenizer = load_tokenizer(folder)
    else:
        config = read_config(NAMED[settings["config"]] | fields)
    _check_sizes(settings, config)
    num_images = settings.get("observation_shape", (0, 0, 3))[-1] // 3
    return config, encode_prompt(settings["instruction"], tokenizer, config, num_images)


def _check_settings(settings: Mapping[str, Any]) -> None:
    if ("checkpoint" in settings) == ("config" in settings):
        raise ConfigError("openvla_oft: give either checkpoint (a folder) or config (a name), not both.")
    if settings.get("config", "tiny") not in NAMED:
        raise unknown_name("OpenVLA configuration", settings["config"], NAMED)
    if settings["dtype"] not in DTYPES:
        raise unknown_name("dtype", settings["dtype"], DTYPES)
    if settings["dtype"] == "bfloat16" and settings.get("train", {}).get("method") == "full":
        raise ConfigError(
            "openvla_oft: updates of bfloat16 weights are mostly rounded away. To train all of them set dtype to "
            "'float32' and autocast to true."
        )
    if settings["temperature"] <= 0 or settings["microbatch"] < 1 or settings["cache_observations"] < 0:
        raise ConfigError("openvla_oft: temperature and microbatch must be positive, cache_observations at least 0.")


def _check_sizes(settings: Mapping[str, Any], config: VLAConfig) -> None:
    """Refuses a suite whose observations, action tokens or bins are not the model's."""
    if config.proprio_dim is not None:
        raise ConfigError(
            "This checkpoint reads the robot's own state beside the images (proprio_projector), which logs of images "
            "lack; without it its actions would be others. Use a checkpoint that was trained on images alone."
        )
    if config.value_outputs != 1:
        raise ConfigError(f"value_outputs is {config.value_outputs}; a policy has one value. Set it to 1.")
    if settings.get("num_bins", NUM_BINS) != NUM_BINS:
        raise ConfigError(f"The suite has {settings['num_bins']} bins, the model has {NUM_BINS}. Set the suite's.")
    if settings.get("num_action_tokens", config.num_action_tokens) != config.num_action_tokens:
        raise ConfigError(
            f"The suite has {settings['num_action_tokens']} action tokens, the model has {config.num_action_tokens} = "
            f"chunk x action dimension = {config.chunk} x {config.action_dim}. Set the suite's chunk, or the override "
            "_constants = { NUM_ACTIONS_CHUNK = ..., ACTION_DIM = ... }."
        )
    if "checkpoint" in settings and "observation_shape" in settings:
        _check_statistics(settings)
    side = config.image_size
    shape = tuple(settings.get("observation_shape", (side, side, 3)))
    if len(shape) != 3 or shape[:2] != (side, side) or shape[2] % 3:
        raise ConfigError(
            f"The suite's observations are {shape}, the model sees {side} x {side} with 3 channels a camera. Set the "
            "suite's image size, or for a tiny model the override image_sizes = [..., ...]."
        )


def _check_statistics(settings: Mapping[str, Any]) -> None:
    """Refuses a suite in which the checkpoint's tokens would mean other actions than those that it was trained on."""
    if settings.get("statistics") != settings["checkpoint"]:
        raise ConfigError(
            f"The suite un-normalises actions by {settings.get('statistics', 'bins of its own')}, the policy is "
            f"{settings['checkpoint']}: its tokens would mean other actions. Set suite_settings.statistics to the "
            "checkpoint's folder (suite `libero`)."
        )


# Maps uint8 images to tensors with one row an image.
Run = Callable[[Tensor], tuple[Tensor, ...]]


def _run_parts(run: Run, parts: tuple[Tensor, ...], shares: Shares) -> tuple[Tensor, ...]:
    columns = zip(*(run(part) for part in parts), strict=True)
    return tuple(shares.gather(torch.cat(column)) for column in columns)


class _Recomputed(torch.autograd.Function):
    """Runs microbatches without a graph, and again one by one with it when their gradients have arrived."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, run: Run, parts: tuple[Tensor, ...], shares: Shares) -> tuple[Tensor, ...]:
        ctx.run, ctx.parts, ctx.shares = run, parts, shares
        device = parts[0].device.type
        ctx.precision = partial(
            torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )
        return _run_parts(run, parts, shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        own = [ctx.shares.own_gradient(gradient) for gradient in gradients]
        start = 0
        for part in ctx.parts:
            with torch.enable_grad(), ctx.precision():
                outputs = ctx.run(part)
            pieces = [gradient[start : start + len(part)] for gradient in own]
            trained = [pair for pair in zip(outputs, pieces, strict=True) if pair[0].requires_grad]
            torch.autograd.backward([pair[0] for pair in trained], [pair[1] for pair in trained])
            start += len(part)
        return None, None, None, None


class BoundaryCache:
    """Hidden states that enter the first trained layer, by the image that they come from; the oldest go first.

    They are kept in main memory: 2.9 MB an observation at 7B in bfloat16.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_encoded = 0
        self.device = torch.device("cpu")
        self._kept: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def clear(self) -> None:
        """Forgets all, as what encoded it has changed."""
        self._kept.clear()

    def tokens(self, images: Tensor, encode: Callable[[Tensor], Tokens], shares: Shares) -> Tokens:
        """Returns the sequences of these images, encoding those alone that are not kept.

        Where processes share the model, all of them encode something as soon as one of them has to.
        """
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy()]
        fresh = {key: row for row, key in enumerate(keys) if key not in self._kept}
        rows = {key: self._kept[key] for key in keys if key in self._kept}
        if shares.any(bool(fresh)):
            encoded = encode(images[list(fresh.values()) or [0]])
            self.device = encoded.hidden_BSD.device
            self.num_encoded += len(fresh)
            for i, key in enumerate(fresh):
                # Cloned, since a view would keep its whole batch alive.
                rows[key] = self._kept[key] = (encoded.hidden_BSD[i].cpu().clone(), encoded.readout_BA[i].cpu())
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        hidden, readout = zip(*(rows[key] for key in keys), strict=True)
        # One prompt for all means that no row is padded.
        return Tokens(torch.stack(hidden).to(self.device), None, torch.stack(readout).to(self.device))
