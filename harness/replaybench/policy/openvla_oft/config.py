"""Reads the config.json of an OpenVLA checkpoint into the few numbers that the model is built from.

The file is kept whole, so that a saved checkpoint says everything that the loaded one said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replaybench.errors import ConfigError, unknown_name

# Token ids of the Llama-2 tokenizer that the model itself adds to a prompt.
STOP_TOKEN = 2
SPACE_TOKEN = 29871
# Actions are the last 256 of the 32000 real tokens; 64 more pad the vocabulary.
NUM_BINS = 256
FIRST_ACTION_TOKEN = 31744
ACTION_TOKENS = slice(FIRST_ACTION_TOKEN, FIRST_ACTION_TOKEN + NUM_BINS)

MODES = ("oft", "rlinf")
# Layers are built before the weights are looked at; no published model has a tenth of these.
MAX_LAYERS = 1000


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Geometry of one vision transformer."""

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    has_class_token: bool
    num_registers: int
    has_layer_scale: bool
    has_attention_pool: bool
    norm_eps: float = 1e-6


TOWERS: dict[str, dict[str, Any]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": {
        "patch_size": 14,
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "mlp_ratio": 4.0,
        "class_token": True,
        "reg_tokens": 4,
        "layer_scale": True,
    },
    "vit_so400m_patch14_siglip_224": {
        "patch_size": 14,
        "embed_dim": 1152,
        "depth": 27,
        "num_heads": 16,
        "mlp_ratio": 3.7362,
        "attn_pool": True,
    },
}
BACKBONES = {
    "dinosiglip-vit-so-224px": (("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"), 224),
}
# Published files leave out what equals the library's defaults of the time, which may drift: all are named here.
# The eps is 1e-6, not the 1e-5 of Llama-2 itself.
LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "pad_token_id": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
COMMON: dict[str, Any] = {
    "architectures": ["OpenVLAForActionPrediction"],
    "model_type": "openvla",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "use_fused_vision_backbone": True,
    "image_resize_strategy": "resize-naive",
    "pad_token_id": 32000,
    "pad_to_multiple_of": 64,
    "n_action_bins": NUM_BINS,
}
NAMED: dict[str, dict[str, Any]] = {
    "openvla-7b": COMMON | {"hf_llm_id": "meta-llama/Llama-2-7b-hf", "text_config": LLAMA_2_7B},
    # The same architecture at a size that trains on a CPU: 4.6 million numbers, of which 4.1 are the vocabulary.
    "tiny": COMMON
    | {
        "timm_model_ids": ["tiny_dinov2", "tiny_siglip"],
        "image_sizes": [56, 56],
        "_tiny_towers": {
            "tiny_dinov2": {
                "patch_size": 14,
                "embed_dim": 32,
                "depth": 4,
                "num_heads": 4,
                "mlp_ratio": 4.0,
                "class_token": True,
                "reg_tokens": 4,
                "layer_scale": True,
            },
            "tiny_siglip": {
                "patch_size": 14,
                "embed_dim": 48,
                "depth": 3,
                "num_heads": 4,
                "mlp_ratio": 3.7362,
                "attn_pool": True,
            },
        },
        "text_config": LLAMA_2_7B
        | {
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    """What the model is built from.

    Args:
        image_size: Side of the square input images, in pixels.
        towers: DINOv2 first, SigLIP second, as their features are concatenated.
        text: Arguments of transformers' LlamaConfig.
        chunk: Actions that one decision holds; chunk x action_dim is the number of action tokens A.
        action_dim: Numbers of one action.
        proprio_dim: Numbers of the robot's own state, or None for a model that sees images alone.
        value_outputs: Values that the value head predicts, or None for a model without one.
        mode: `oft` ends the sequence with the stop token, `rlinf` does not.
        norm_stats: Statistics of each data set, by which actions are un-normalised.
        source: The whole config.json.
    """

    image_size: int
    towers: tuple[TowerConfig, TowerConfig]
    text: dict[str, Any]
    chunk: int
    action_dim: int
    proprio_dim: int | None
    value_outputs: int | None
    mode: str
    norm_stats: dict[str, Any]
    source: dict[str, Any]

    @property
    def num_action_tokens(self) -> int:
        """Action tokens A of one decision."""
        return self.chunk * self.action_dim

    @property
    def has_stop_token(self) -> bool:
        """Whether the stop token follows the action placeholders."""
        return self.mode == "oft"

    @property
    def pad_token(self) -> int:
        """Token id that fills rows of unequal length."""
        return int(self.text["pad_token_id"])

    @property
    def patches_per_image(self) -> int:
        """Patch tokens of one image."""
        return int((self.image_size // self.towers[0].patch_size) ** 2)


def read_config(source: Mapping[str, Any] | str) -> VLAConfig:
    """Returns the model's numbers from a config.json's content, or from a name: `openvla-7b`, `tiny`.

    Beyond the published fields it knows `mode` (`oft` | `rlinf`), `use_proprio` and `value_outputs`, and in
    `_constants` NUM_ACTIONS_CHUNK, ACTION_DIM and PROPRIO_DIM (8, 7 and 8 where missing, as on LIBERO).

    Raises:
        ConfigError: The checkpoint is of another architecture, or a field has a value that is not known.
    """
    if isinstance(source, str):
        if source not in NAMED:
            raise unknown_name("OpenVLA configuration", source, NAMED)
        source = NAMED[source]
    _check_architecture(source)
    constants = source.get("_constants", {})
    towers, image_size = _read_vision(source)
    mode = source.get("mode", "oft")
    if mode not in MODES:
        raise unknown_name("sequence mode", str(mode), MODES)
    text = LLAMA_2_7B | _text_fields(source)
    for count in (text["num_hidden_layers"], *(tower.depth for tower in towers)):
        if not (isinstance(count, int) and 1 <= count <= MAX_LAYERS):
            raise ConfigError(f"config.json: a model has {count!r} layers, expected 1 to {MAX_LAYERS}.")
    return VLAConfig(
        image_size=image_size,
        towers=towers,
        text=text,
        chunk=int(constants.get("NUM_ACTIONS_CHUNK", 8)),
        action_dim=int(constants.get("ACTION_DIM", 7)),
        proprio_dim=int(constants.get("PROPRIO_DIM", 8)) if source.get("use_proprio") else None,
        value_outputs=source.get("value_outputs"),
        mode=mode,
        norm_stats=dict(source.get("norm_stats") or {}),
        source=dict(source),
    )


def policy_fields(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the fields that replace those of a configuration where the model is a policy, which has one value."""
    return {"value_outputs": 1} | dict(overrides or {})


def _check_architecture(source: Mapping[str, Any]) -> None:
    found = source.get("model_type")
    if found != "openvla":
        raise ConfigError(
            f"config.json: model_type is {found!r}, expected 'openvla'. This loader reads OpenVLA checkpoints alone; "
            "name the folder of one."
        )
    if not source.get("use_fused_vision_backbone", True):
        raise ConfigError("config.json: use_fused_vision_backbone is false; only the fused DINOv2 + SigLIP is built.")
    if source.get("n_action_bins", NUM_BINS) != NUM_BINS:
        raise ConfigError(f"config.json: n_action_bins is {source['n_action_bins']}, expected {NUM_BINS}.")


def _text_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the language model's fields; those that say how weights are stored are left to the loader."""
    fields = source.get("text_config", {})
    return {name: value for name, value in fields.items() if name not in ("model_type", "torch_dtype", "dtype")}


def _read_vision(source: Mapping[str, Any]) -> tuple[tuple[TowerConfig, TowerConfig], int]:
    backbone = source.get("vision_backbone_id", "")
    if backbone not in BACKBONES:
        raise unknown_name("vision_backbone_id", str(backbone), BACKBONES)
    names, image_size = BACKBONES[backbone]
    # A tiny model, for tests, brings the geometry of its towers along.
    tiny = source.get("_tiny_towers", {})
    if tiny:
        names, image_size = tuple(source["timm_model_ids"]), source["image_sizes"][0]
    known = TOWERS | tiny
    for name in names:
        if name not in known:
            raise unknown_name("vision tower", name, known)
    first, second = (_read_tower(known[name]) for name in names)
    return (first, second), int(image_size)


def _read_tower(fields: Mapping[str, Any]) -> TowerConfig:
    return TowerConfig(
        patch_size=fields["patch_size"],
        embed_dim=fields["embed_dim"],
        depth=fields["depth"],
        num_heads=fields["num_heads"],
        mlp_hidden=int(fields["embed_dim"] * fields["mlp_ratio"]),
        has_class_token=fields.get("class_token", False),
        num_registers=fields.get("reg_tokens", 0),
        has_layer_scale=fields.get("layer_scale", False),
        has_attention_pool=fields.get("attn_pool", False),
        norm_eps=fields.get("norm_eps", 1e-6),
    )
