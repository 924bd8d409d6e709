"""The 7B priced by arithmetic: against published figures, and against what the code really does at a tiny size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from replaybench.policy import Workload
from replaybench.policy.openvla_oft.adapt import AdaptSettings, adapt
from replaybench.policy.openvla_oft.config import NAMED, read_config
from replaybench.policy.openvla_oft.cost import PROMPT_TOKENS, SAVED_BYTES, Cost, costs, forward_pass, size_of
from replaybench.policy.openvla_oft.model import OpenVLAOFT
from replaybench.policy.openvla_oft.policy import OpenVLAOFTPolicy
from replaybench.seeding import torch_generator

RUN = Workload(
    what="run", runs=10, updates=64, batch_size=64, value_forwards=1000, decisions=3200, logged_observations=4096
)
LORA = {"method": "lora", "scope": "llm", "rank": 32}
SEVEN_B: dict[str, Any] = {"checkpoint": "not/here", "dtype": "bfloat16", "microbatch": 1, "train": LORA}


def price(**changes: Any) -> dict[str, Cost]:
    return {cost.quantity: cost for cost in costs(size_of(SEVEN_B | changes), RUN, None)}


def test_the_7b_costs_what_is_published_about_it() -> None:
    """15.1 GB of weights, 1.3 GB of LoRA in training, 3 GB of activations an observation, 4.6 TFLOP a forward pass."""
    rows = price()
    assert rows["GPU memory: weights, GB"].value == pytest.approx(15.1, abs=0.05)
    assert rows["GPU memory: lora and value head in training, GB"].value == pytest.approx(1.3, abs=0.05)
    assert rows["GPU memory: activations without gradient checkpointing, GB"].value == pytest.approx(3.0, abs=0.1)
    assert 0.15 < rows["GPU memory: activations with gradient checkpointing, GB"].value < 0.3
    assert rows["forward pass of one observation: language model, TFLOP"].value == pytest.approx(4.6, abs=0.05)
    assert rows["forward pass of one observation: towers, TFLOP"].value == pytest.approx(0.35, abs=0.03)
    assert "not/here is not here" in rows["geometry"].arithmetic


def test_caching_below_the_top_layers_saves_what_lies_below() -> None:
    """With 8 of 32 layers learning from cached states, an update costs a quarter of the language model alone."""
    top = LORA | {"top_layers": 8}
    cached = price(train=top, cache_observations=4096)
    uncached = price(train=top)
    update = "one update of a run, TFLOP"
    assert cached[update].value == pytest.approx(64 * 3 * 4.571 / 4, rel=1e-3)
    assert uncached[update].value > 2 * cached[update].value
    assert cached["main memory: hidden states at the frozen boundary, GB"].value == pytest.approx(
        4096 * 2.85e-3, rel=0.01
    )


def test_a_small_model_is_timed_instead() -> None:
    """The tiny configuration has no price by arithmetic."""
    assert OpenVLAOFTPolicy.costs({"config": "tiny"}, RUN, None) is None


def test_the_operations_are_those_that_the_model_makes() -> None:
    """torch's own counter sees the same operations in one forward pass of the tiny model, apart from the value head."""
    size = size_of({"config": "tiny"})
    one = forward_pass(size)
    model = OpenVLAOFT.from_config(NAMED["tiny"], "cpu", torch_generator("cost"))
    pixels = torch.zeros(1, 6, size.config.image_size, size.config.image_size)
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.action_logits(pixels, torch.tensor([[1] + [5] * (PROMPT_TOKENS - 2) + [29871]]))
    counted = one.towers + one.projector + size.config.text["num_hidden_layers"] * one.layer + one.head
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_activations_are_those_that_autograd_keeps(dtype: str, method: str) -> None:
    """The bytes that a layer's backward pass holds on to, counted through torch's hooks, are those of the table."""
    width, hidden, batch, length = 256, 688, 4, 48
    text = NAMED["tiny"]["text_config"] | {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": 1}
    model = OpenVLAOFT.from_config(read_config(NAMED["tiny"] | {"text_config": text}), "cpu", torch_generator("cost"))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    adapt(model, AdaptSettings(method=method, rank=1), torch_generator("lora"))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    # As if a layer that learns lay below.
    entering = torch.randn(batch, length, width, dtype=getattr(torch, dtype), requires_grad=True)
    rotary = model.language_model.model.rotary_emb(entering, torch.arange(length)[None])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        leaving = model.layers[0](entering, attention_mask=None, position_embeddings=rotary, is_causal=False)
    assert leaving.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (batch * length)
    of_width, of_hidden = SAVED_BYTES[dtype, method]
    assert of_width * width + of_hidden * hidden == pytest.approx(measured, rel=0.03)


def test_a_checkpoint_that_is_here_decides_the_geometry() -> None:
    """The numbers of the folder's own config.json are used, not those of the published 7B."""
    golden = Path(__file__).parents[1] / "golden" / "openvla_oft_56"
    assert size_of({"checkpoint": str(golden)}).numbers < 10_000_000
