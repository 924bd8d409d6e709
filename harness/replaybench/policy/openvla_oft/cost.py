"""What training costs at a size, by arithmetic from the model's geometry: memory by part, operations, hours.

For models that do not fit where the sweep is planned. A multiply-add counts as two operations; norms, activation
functions and the value head are left out (below 1 %).
Letters: S tokens of an observation, D width and F hidden width of the language model, b bytes of a weight.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from replaybench.policy import Workload
from replaybench.policy.openvla_oft import checkpoint
from replaybench.policy.openvla_oft.adapt import AdaptSettings, adapt, read_adapt_settings
from replaybench.policy.openvla_oft.config import NAMED, NUM_BINS, TowerConfig, VLAConfig, policy_fields, read_config
from replaybench.policy.openvla_oft.model import OpenVLAOFT

GB = 1e9
TERA = 1e12
# A model below this size is quicker to time than to reason about.
SMALLEST = 1_000_000_000
GPU_GB = 80.0
# Of an H100's 989 dense bfloat16 TFLOP/s, the share that well-tuned training of a 7B reaches; an assumption.
USEFUL_TFLOPS = 350.0
# A LIBERO instruction in its prompt, in tokens of Llama-2's tokenizer, which a plan can do without.
PROMPT_TOKENS = 35
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
# LoRA, value head, their gradients and AdamW's two moments are float32.
TRAINED_BYTES = 16
# What autograd keeps of a token in a layer, in bytes: multiples of D, and of F. RMSNorm keeps its input in float32,
# LoRA a float32 copy of each adapted layer's input, attention q, k, v and its output, SwiGLU three factors.
SAVED_BYTES = {
    ("bfloat16", "lora"): (40, 10),
    ("bfloat16", "full"): (24, 8),
    ("float32", "lora"): (32, 16),
    ("float32", "full"): (40, 16),
}


class Cost(NamedTuple):
    """One figure and how it comes about."""

    quantity: str
    value: float
    arithmetic: str


class Size(NamedTuple):
    """What the figures follow from. `trained` counts the numbers that learn, the value head's among them."""

    config: VLAConfig
    train: AdaptSettings
    dtype: str
    microbatch: int
    cache_observations: int
    views: int
    numbers: int
    trained: int
    where: str

    @property
    def tokens(self) -> int:
        """Tokens S of one observation."""
        config = self.config
        others = PROMPT_TOKENS + config.num_action_tokens + config.has_stop_token + (config.proprio_dim is not None)
        return self.views * config.patches_per_image + others

    @property
    def top_layers(self) -> int:
        """Layers of the language model that learn, or lie above one that does."""
        return int(self.config.text["num_hidden_layers"]) - self.frozen

    @property
    def frozen(self) -> int:
        """Layers of the language model below everything that learns."""
        return (
            0 if self.train.top_layers is None else int(self.config.text["num_hidden_layers"]) - self.train.top_layers
        )


def size_of(settings: Mapping[str, Any]) -> Size:
    """Returns the size of a policy with these settings, without weights; a checkpoint need not be here."""
    config, where = _config(settings)
    train = read_adapt_settings(settings.get("train", {}))
    model = OpenVLAOFT.from_config(config, device="meta")
    numbers = sum(parameter.numel() for parameter in model.parameters())
    adapt(model, train)
    return Size(
        config=config,
        train=train,
        dtype=settings.get("dtype", "float32"),
        microbatch=settings.get("microbatch", 16),
        cache_observations=settings.get("cache_observations", 0),
        views=settings.get("observation_shape", (0, 0, 3))[-1] // 3,
        numbers=numbers,
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        where=where,
    )


def _config(settings: Mapping[str, Any]) -> tuple[VLAConfig, str]:
    fields = policy_fields(settings.get("overrides"))
    if "checkpoint" not in settings:
        return read_config(NAMED[settings["config"]] | fields), str(settings["config"])
    folder = Path(settings["checkpoint"])
    if folder.exists():
        return checkpoint.load_config(folder, fields), str(folder)
    return read_config(NAMED["openvla-7b"] | fields), f"openvla-7b as published, as {folder} is not here"


def costs(size: Size, run: Workload, lineage: Workload | None) -> list[Cost]:
    """Returns memory by part, operations by part, and hours of the runs and of the lineages that they start from."""
    rows = [
        Cost("geometry", float(size.numbers), f"numbers of {size.where}"),
        *_memory(size, run),
        *_forward(size),
        *_hours(size, run),
    ]
    return rows if lineage is None else rows + _hours(size, lineage)


def _memory(size: Size, workload: Workload) -> list[Cost]:
    b, text = WEIGHT_BYTES[size.dtype], size.config.text
    width, hidden = text["hidden_size"], text["intermediate_size"]
    weights = size.numbers * b
    is_full = size.train.method == "full"
    learning = size.trained * (3 * b if is_full else TRAINED_BYTES)
    learning_text = (
        f"3 x {b} bytes (gradient, two moments)" if is_full else "16 bytes (float32: itself, gradient, two moments)"
    )
    of_width, of_hidden = SAVED_BYTES[size.dtype, "full" if is_full else "lora"]
    layer = size.microbatch * size.tokens * (of_width * width + of_hidden * hidden)
    batch_text = f"{size.microbatch} observations x {size.tokens} tokens"
    kept = layer * size.top_layers
    inputs = size.microbatch * size.tokens * size.top_layers * b * width
    activations = inputs + layer if size.train.gradient_checkpointing else kept
    images = workload.logged_observations * 3 * size.views * size.config.image_size**2
    rows = [
        Cost("GPU memory: weights, GB", weights / GB, f"{size.numbers:,} numbers x {b} bytes"),
        Cost("GPU memory: the start policy, kept to measure distances to, GB", weights / GB, "as many"),
        Cost(
            f"GPU memory: {size.train.method} and value head in training, GB",
            learning / GB,
            f"{size.trained:,} numbers x {learning_text}",
        ),
        Cost(
            "GPU memory: activations without gradient checkpointing, GB",
            kept / GB,
            f"{batch_text} x {size.top_layers} layers x ({of_width} x {width} + {of_hidden} x {hidden}) bytes",
        ),
        Cost(
            "GPU memory: activations with gradient checkpointing, GB",
            (inputs + layer) / GB,
            f"{batch_text} x ({size.top_layers} layers x {b} x {width} + one layer's "
            f"({of_width} x {width} + {of_hidden} x {hidden})) bytes",
        ),
        Cost(
            "GPU memory: logged images, GB",
            images / GB,
            f"{workload.logged_observations:,} observations x {size.views} x {size.config.image_size}^2 x 3 bytes",
        ),
    ]
    total = (2 * weights + learning + activations + images) / GB
    which = "with" if size.train.gradient_checkpointing else "without"
    rows.append(Cost("GPU memory: all, GB", total, f"sum, activations {which} checkpointing; one H100 has {GPU_GB:g}"))
    kept_states = size.cache_observations if size.frozen else 0
    rows.append(
        Cost(
            "main memory: hidden states at the frozen boundary, GB",
            kept_states * size.tokens * width * b / GB,
            f"{kept_states:,} observations x {size.tokens} tokens x {width} x {b} bytes",
        )
    )
    return rows


class Pass(NamedTuple):
    """Operations of one observation's forward pass, by part; `layer` is one layer of the language model."""

    towers: float
    projector: float
    layer: float
    head: float


def forward_pass(size: Size) -> Pass:
    """Returns the operations of one forward pass."""
    config, text = size.config, size.config.text
    width, hidden = text["hidden_size"], text["intermediate_size"]
    patches = config.patches_per_image
    key_value = width * text["num_key_value_heads"] // text["num_attention_heads"]
    layer_numbers = 2 * width * (width + key_value) + 3 * width * hidden
    features = sum(tower.embed_dim for tower in config.towers)
    projector_numbers = 4 * features**2 + 4 * features * width + width**2
    return Pass(
        towers=size.views * sum(_tower_operations(tower, patches) for tower in config.towers),
        projector=2 * size.views * patches * projector_numbers,
        layer=2 * size.tokens * layer_numbers + 4 * size.tokens**2 * width,
        head=2 * config.num_action_tokens * width * NUM_BINS,
    )


def _tower_operations(tower: TowerConfig, patches: int) -> float:
    """Returns the operations of one image in one tower, whose last block is never run."""
    width, tokens = tower.embed_dim, patches + tower.has_class_token + tower.num_registers
    block = 2 * tokens * (4 * width**2 + 2 * width * tower.mlp_hidden) + 4 * tokens**2 * width
    return (tower.depth - 1) * block + 2 * patches * 3 * tower.patch_size**2 * width


def _forward(size: Size) -> list[Cost]:
    one, text = forward_pass(size), size.config.text
    num_layers = text["num_hidden_layers"]
    towers = " + ".join(f"{tower.depth - 1} blocks of width {tower.embed_dim}" for tower in size.config.towers)
    what = "forward pass of one observation"
    return [
        Cost(
            f"{what}: towers, TFLOP",
            one.towers / TERA,
            f"{size.views} view(s) x ({towers}) on {size.config.patches_per_image} patches",
        ),
        Cost(f"{what}: projector, TFLOP", one.projector / TERA, "2 x patches x its weights"),
        Cost(
            f"{what}: language model, TFLOP",
            num_layers * one.layer / TERA,
            f"{num_layers} layers x (2 S (2 D^2 + 2 D D_kv + 3 D F) + 4 S^2 D), S {size.tokens}, "
            f"D {text['hidden_size']}, F {text['intermediate_size']}",
        ),
        Cost(
            f"{what}: action head, TFLOP",
            one.head / TERA,
            f"2 x {size.config.num_action_tokens} action positions x D x {NUM_BINS} bins",
        ),
    ]


def _hours(size: Size, work: Workload) -> list[Cost]:
    one = forward_pass(size)
    below = one.towers + one.projector + size.frozen * one.layer
    top = size.top_layers * one.layer + one.head
    is_cached = bool(size.frozen and size.cache_observations)
    # A batch runs once without a graph; the backward pass runs each microbatch again, a checkpointed layer once more.
    forwards = (1 if size.microbatch >= work.batch_size else 2) + size.train.gradient_checkpointing
    backwards = {"lora": 1, "full": 2, "frozen": 0}[size.train.method]
    passes_below = 0 if is_cached else forwards + backwards * (size.train.scope == "all")
    update = work.batch_size * ((forwards + backwards) * top + passes_below * below)
    read = top if is_cached else below + top
    terms = [
        (work.updates, update, "updates"),
        (work.value_forwards, read, "observations for values, advantages and distances"),
        (work.decisions, below + top, "decisions to act"),
        (work.logged_observations if is_cached else 0, below, "observations into the cache"),
    ]
    operations = sum(count * each for count, each, _ in terms)
    hours = operations / (USEFUL_TFLOPS * TERA) / 3600
    return [
        Cost(
            f"one update of a {work.what}, TFLOP",
            update / TERA,
            f"{work.batch_size} observations x ({forwards + backwards} x {top / TERA:.4g} where it learns + "
            f"{passes_below} x {below / TERA:.4g} below it); {forwards} forward, {backwards} backward",
        ),
        Cost(
            f"one {work.what}, TFLOP (where no episode ends early)",
            operations / TERA,
            " + ".join(f"{count:,} {name} x {each / TERA:.4g}" for count, each, name in terms if count),
        ),
        Cost(
            f"one {work.what}, hours on one H100",
            hours,
            f"at {USEFUL_TFLOPS:g} useful TFLOP/s, an assumption; the simulator's own time comes on top",
        ),
        Cost(f"all {work.what}s, hours on one H100", work.runs * hours, f"{work.runs} x {hours:.4g}"),
    ]
