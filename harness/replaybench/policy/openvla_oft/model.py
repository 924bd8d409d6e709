"""OpenVLA-OFT: image patches and a prompt enter a language model, all actions of a chunk leave it in one pass.

    [BOS] [patches of each image] [proprio] [rest of the prompt, ends in 29871] [A zero vectors] [stop]

Every token sees every other, and token i predicts token i+1 as in the causal model that it was trained from, so the
last prompt token predicts the first action token. The action placeholders are zeros, so nothing depends on the
actions: one pass gives the whole factorised distribution.
Shape letters: B batch, A action tokens, K bins, N patches and proprio, P prompt, S sequence, D width, V values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from replaybench.errors import ConfigError, ContractError
from replaybench.policy.openvla_oft import checkpoint
from replaybench.policy.openvla_oft.config import (
    ACTION_TOKENS,
    SPACE_TOKEN,
    STOP_TOKEN,
    VLAConfig,
    read_config,
)
from replaybench.policy.openvla_oft.heads import Projector, ProprioProjector, ValueHead
from replaybench.policy.openvla_oft.vision import FusedVision


class VLAOutput(NamedTuple):
    """logits [B, A, K] in vocabulary order 31744..31999, and values [B, V], None for a model without a value head."""

    logits_BAK: Tensor
    value_BV: Tensor | None


class Tokens(NamedTuple):
    """A batch on its way through the language model.

    `key_mask_BS` is None where no row is padded; `readout_BA` points at the tokens that predict the actions.
    """

    hidden_BSD: Tensor
    key_mask_BS: Tensor | None
    readout_BA: Tensor


class OpenVLAOFT(nn.Module):
    """The model, with the parameter names of the published checkpoints.

    Build it with `from_pretrained` or `from_config`.
    """

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text["hidden_size"]
        self.vision_backbone = FusedVision(config.towers, config.patches_per_image)
        self.projector = Projector(sum(tower.embed_dim for tower in config.towers), width)
        self.language_model = LlamaForCausalLM(LlamaConfig(**{**config.text, "attn_implementation": "sdpa"}))
        if config.proprio_dim is not None:
            self.proprio_projector = ProprioProjector(config.proprio_dim, width)
        if config.value_outputs is not None:
            self.value_head = ValueHead(width, config.value_outputs)

    @classmethod
    def from_config(
        cls,
        config: VLAConfig | Mapping[str, Any] | str,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "OpenVLAOFT":
        """Builds the model without a checkpoint.

        Args:
            config: A published name such as `openvla-7b`, the content of a config.json, or a VLAConfig.
            device: On `meta` the parameters have names and shapes alone.
            generator: Source of the weights; needed on every other device.
            dtype: Of the weights.
        """
        config = config if isinstance(config, VLAConfig) else read_config(config)
        with torch.device("meta"):
            model = cls(config)
        for parameter in model.parameters():
            # Not model.to(), which would round the rotary frequencies too.
            parameter.data = parameter.data.to(dtype)
        if torch.device(device).type != "meta":
            if generator is None:
                raise ConfigError("from_config: weights are drawn at random; pass the generator to draw them from.")
            model.to_empty(device=device)
            _restore_rotary(model, device)
            initialise(model, generator)
        return model

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        dtype: torch.dtype = torch.float32,
        *,
        adapter: Path | str | None = None,
        overrides: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> "OpenVLAOFT":
        """Loads a checkpoint folder: config.json, model.safetensors or its shards, and separate heads if present.

        Args:
            folder: A published checkpoint or what `save_pretrained` wrote.
            dtype: Of the weights, whatever the file holds.
            adapter: Folder of a LoRA adapter to put on top. Published folders hold weights into which their own
                `lora_adapter/` is merged already, so none is applied unasked unless config.json says it is not merged.
            overrides: Fields that replace those of config.json, e.g. `{"mode": "rlinf", "value_outputs": 1}`.
            generator: Source of the weights of a value head that the checkpoint lacks.

        Raises:
            ConfigError: The checkpoint is of another architecture or has no discrete policy.
            DataError: A file or a tensor is missing or damaged.
        """
        folder = Path(folder)
        config = checkpoint.load_config(folder, overrides or {})
        model = checkpoint.empty_model(cls, config, folder)
        checkpoint.load_weights(model, folder, dtype)
        _restore_rotary(model, "cpu")
        if config.value_outputs is not None and model.value_head.is_meta:
            if generator is None:
                raise ConfigError(f"{folder}: holds no value head; pass the generator to draw a new one from.")
            model.value_head.to_empty(device="cpu").to(dtype)
            initialise(model.value_head, generator)
        checkpoint.load_adapter(model, folder, adapter)
        return model.eval()

    def save_pretrained(self, folder: Path | str, max_shard_bytes: int = 5_000_000_000) -> None:
        """Writes the layout that `from_pretrained` reads; LoRA weights stay apart, in `lora_adapter/`."""
        checkpoint.save(self, Path(folder), max_shard_bytes)

    def action_logits(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        proprio: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits of every action token, [B, A, 256] float32, in vocabulary order 31744..31999.

        Args:
            pixel_values: [B, 6 n, H, W]; per image DINOv2's three normalised channels, then SigLIP's.
            input_ids: [B, P] prompts with BOS first; 29871 is appended where it is missing.
            attention_mask: [B, P], 0 at pads, which may lie anywhere; by default the pad token tells.
            proprio: [B, proprio_dim] in [-1, 1], for a model that has a proprio projector.
        """
        output: VLAOutput = self(pixel_values, input_ids, attention_mask, proprio)
        return output.logits_BAK

    def value(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        proprio: Tensor | None = None,
    ) -> Tensor:
        """Returns the values, [B, V] float32; gradients reach the value head alone. Arguments as `action_logits`."""
        if self.config.value_outputs is None:
            raise ContractError("This model has no value head; load it with the override value_outputs = 1.")
        with torch.no_grad():
            tokens = self.embed(pixel_values, input_ids, attention_mask, proprio)
        return self._value_from(tokens, 0)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        proprio: Tensor | None = None,
    ) -> VLAOutput:
        """Returns logits and values from one pass. Arguments as `action_logits`."""
        return self._output_from(self.embed(pixel_values, input_ids, attention_mask, proprio), 0)

    def encode(self, pixel_values: Tensor, input_ids: Tensor, stop: int) -> Tokens:
        """Returns the sequence that leaves the layers 0..stop-1, from which the `resume` methods go on."""
        return self.run_layers(self.embed(pixel_values, input_ids, None, None), 0, stop)

    def resume(self, tokens: Tokens, start: int) -> VLAOutput:
        """Returns logits and values from the sequence that enters layer `start`."""
        return self._output_from(tokens, start)

    def resume_value(self, tokens: Tokens, start: int) -> Tensor:
        """Returns the values from the sequence that enters layer `start`."""
        return self._value_from(tokens, start)

    @property
    def layers(self) -> nn.ModuleList:
        """The language model's layers."""
        layers: nn.ModuleList = self.language_model.model.layers
        return layers

    def embed(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None, proprio: Tensor | None
    ) -> Tokens:
        """Returns the sequence that enters the first layer."""
        self._check_inputs(pixel_values, input_ids, proprio)
        is_prompt_BP = input_ids != self.config.pad_token if attention_mask is None else attention_mask.bool()
        prompt_BP, length_B = pack_prompts(input_ids, is_prompt_BP)
        text_BSD, is_text_BS = self._embed_text(prompt_BP, length_B)
        context_BND = self._embed_context(pixel_values, proprio).to(text_BSD.dtype)
        num_context = context_BND.shape[1]
        hidden_BSD = torch.cat([text_BSD[:, :1], context_BND, text_BSD[:, 1:]], dim=1)
        self._check_length(hidden_BSD.shape[1])
        key_mask_BS = F.pad(is_text_BS, (num_context, 0), value=True)
        readout_BA = num_context + length_B[:, None] - 1 + self._action_range(input_ids.device)
        return Tokens(hidden_BSD, None if bool(is_text_BS.all()) else key_mask_BS, readout_BA)

    def run_layers(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Passes the sequence through the layers start..stop-1, every query seeing every key that is no pad."""
        hidden_BSD, key_mask_BS, _ = tokens
        mask = None if key_mask_BS is None else key_mask_BS[:, None, None, :]
        positions = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)[None]
        rotary = self.language_model.model.rotary_emb(hidden_BSD, positions)
        for layer in self.layers[start:stop]:
            # Without is_causal=False an absent mask would mean the causal one.
            hidden_BSD = layer(hidden_BSD, attention_mask=mask, position_embeddings=rotary, is_causal=False)
        return tokens._replace(hidden_BSD=hidden_BSD)

    def _output_from(self, tokens: Tokens, start: int) -> VLAOutput:
        return self.read_out(self.run_layers(tokens, start, len(self.layers)))

    def _value_from(self, tokens: Tokens, start: int) -> Tensor:
        with torch.no_grad():
            hidden_BAD = self.action_hidden(self.run_layers(tokens, start, len(self.layers)))
        value_BV: Tensor = self.value_head(hidden_BAD[:, 0]).float()
        return value_BV

    def read_out(self, tokens: Tokens) -> VLAOutput:
        """Returns logits and values from the sequence that leaves the last layer."""
        hidden_BAD = self.action_hidden(tokens)
        # In float32 also where the model computes in bfloat16, whose steps of .06 at 12 would be noise in the ratios.
        with torch.autocast(hidden_BAD.device.type, enabled=False):
            logits_BAK = slice_of_head(self.language_model.lm_head, hidden_BAD.float(), ACTION_TOKENS)
        if self.config.value_outputs is None:
            return VLAOutput(logits_BAK, None)
        # The value reads the last prompt token, which predicts the first action token; it does not shape the features.
        return VLAOutput(logits_BAK, self.value_head(hidden_BAD[:, 0].detach()).float())

    def action_hidden(self, tokens: Tokens) -> Tensor:
        """Returns the normalised hidden states that predict the action tokens, [B, A, D]."""
        hidden_BSD, _, readout_BA = tokens
        hidden_BAD = hidden_BSD.gather(1, readout_BA[..., None].expand(-1, -1, hidden_BSD.shape[-1]))
        normalised: Tensor = self.language_model.model.norm(hidden_BAD)
        return normalised

    def _embed_text(self, prompt_BP: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embeddings of prompt, placeholders and stop token, and which of them are no pads."""
        num_actions, num_stop = self.config.num_action_tokens, int(self.config.has_stop_token)
        ids = F.pad(prompt_BP, (0, num_actions + num_stop), value=self.config.pad_token)
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        after_actions = length_B[:, None] + num_actions
        is_placeholder = (position >= length_B[:, None]) & (position < after_actions)
        if num_stop:
            ids = torch.where(position == after_actions, STOP_TOKEN, ids)
        text_BSD = self.language_model.model.embed_tokens(ids)
        return text_BSD.masked_fill(is_placeholder[..., None], 0.0), position < after_actions + num_stop

    def _embed_context(self, pixel_values: Tensor, proprio: Tensor | None) -> Tensor:
        patches = self.vision_backbone(pixel_values.to(self.projector.fc1.weight.dtype))
        context: Tensor = self.projector(patches)
        if proprio is None:
            return context
        state = self.proprio_projector(proprio.to(self.proprio_projector.fc1.weight.dtype))
        return torch.cat([context, state[:, None]], dim=1)

    def _action_range(self, device: torch.device) -> Tensor:
        return torch.arange(self.config.num_action_tokens, device=device)

    def _check_inputs(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None) -> None:
        side = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] % 6 or pixel_values.shape[2:] != (side, side):
            raise ContractError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected [B, 6 per image, {side}, {side}]. "
                "Make it from uint8 images with pixel_values_from_images."
            )
        if input_ids.ndim != 2 or len(input_ids) != len(pixel_values):
            raise ContractError(
                f"input_ids has shape {tuple(input_ids.shape)}, expected one prompt [{len(pixel_values)}, P] an image."
            )
        if proprio is None:
            return
        if self.config.proprio_dim is None:
            raise ContractError("proprio was given, but this checkpoint has no proprio projector. Leave it out.")
        if tuple(proprio.shape) != (len(pixel_values), self.config.proprio_dim):
            raise ContractError(
                f"proprio has shape {tuple(proprio.shape)}, expected {(len(pixel_values), self.config.proprio_dim)}: "
                "one row of normalised robot state an observation."
            )

    def _check_length(self, length: int) -> None:
        longest = self.config.text["max_position_embeddings"]
        if length > longest:
            raise ContractError(
                f"The sequence has {length} tokens, the model takes {longest}. Shorten the instruction."
            )


def pack_prompts(input_ids: Tensor, is_prompt_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Moves pads behind each prompt and appends 29871 where it is missing; returns ids [B, P+1] and lengths [B].

    Codebases keep pads in different places (left, right, between patches and prompt) with positions that skip them.
    A masked key weighs nothing, so the packed row gives the numbers of all of them, at positions 0, 1, 2, ...
    """
    if not bool(is_prompt_BP.any(1).all()):
        raise ContractError("A row of input_ids holds no prompt at all. Give every observation an instruction.")
    order = is_prompt_BP.logical_not().long().argsort(dim=1, stable=True)
    ids = F.pad(input_ids.gather(1, order), (0, 1), value=SPACE_TOKEN)
    length_B = is_prompt_BP.sum(1)
    has_space = ids.gather(1, length_B[:, None] - 1)[:, 0] == SPACE_TOKEN
    length_B = torch.where(has_space, length_B, length_B + 1)
    ids = ids.scatter(1, length_B[:, None] - 1, SPACE_TOKEN)
    return ids[:, : int(length_B.max())], length_B


def slice_of_head(head: Any, hidden: Tensor, rows: slice) -> Tensor:
    """Returns some rows of a linear head's output without computing the others; a LoRA on the head is included.

    The product has the precision of `hidden`.
    """
    if not hasattr(head, "base_layer"):
        return F.linear(hidden, head.weight[rows].to(hidden.dtype))
    out = F.linear(hidden, head.base_layer.weight[rows].to(hidden.dtype))
    for name in head.active_adapters:
        low_rank = F.linear(hidden, head.lora_A[name].weight.to(hidden.dtype))
        out = out + F.linear(low_rank, head.lora_B[name].weight[rows].to(hidden.dtype)) * head.scaling[name]
    return out


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws matrices from a normal distribution of variance 1 / inputs; norms and scales become 1, biases 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                draws = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(draws * parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _restore_rotary(model: OpenVLAOFT, device: torch.device | str) -> None:
    """Computes the rotary frequencies, which no checkpoint holds and the meta device does not compute."""
    llama = model.language_model.model
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config).to(device)
