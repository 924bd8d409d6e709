"""Numbers of the reference implementations of OpenVLA-OFT, and of twelve ways to get them wrong.

The origin of every file is in openvla_oft_56/README.md.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from replaybench.maths.ratios import categorical_entropy, token_log_prob
from replaybench.policy.openvla_oft import OpenVLAOFT
from replaybench.policy.openvla_oft import model as model_module
from replaybench.policy.openvla_oft.actions import decode_bins, read_bounds
from replaybench.policy.openvla_oft.model import Tokens, pack_prompts
from replaybench.policy.openvla_oft.vision import VisionTransformer

FOLDER = Path(__file__).parent / "openvla_oft_56"
FIRST = 31744
TOLERANCE = 2e-4
CONTROLS = json.loads((FOLDER / "negative_controls.json").read_text())


@lru_cache
def inputs() -> dict[str, Tensor]:
    """All inputs, in float32 where the file holds bfloat16."""
    loaded = load_file(FOLDER / "inputs.safetensors")
    return {name: value.float() if value.is_floating_point() else value for name, value in loaded.items()}


@lru_cache
def outputs() -> dict[str, Tensor]:
    return dict(load_file(FOLDER / "outputs.safetensors"))


@lru_cache
def model(mode: str = "oft") -> OpenVLAOFT:
    """The tiny model, shared by tests that do not change it."""
    return OpenVLAOFT.from_pretrained(FOLDER, overrides={"mode": mode})


def fresh_model(**overrides: Any) -> OpenVLAOFT:
    return OpenVLAOFT.from_pretrained(FOLDER, overrides=overrides)


def case(name: str) -> dict[str, Any]:
    """The arguments of `action_logits` in one case; prompts as the reference was given them, without actions."""
    given = {key.removeprefix(f"{name}."): value for key, value in inputs().items() if key.startswith(f"{name}.")}
    if name == "B":
        longest = int(given["prompt_lengths"].max())
        mask = torch.arange(longest) < given["prompt_lengths"][:, None]
        return {
            "pixel_values": given["pixel_values"],
            "input_ids": given["input_ids"][:, :longest],
            "attention_mask": mask,
            "proprio": given["proprio_normalized"],
        }
    ids = given.get("input_ids", given.get("input_ids_left_padded"))
    return {"pixel_values": given["pixel_values"], "input_ids": ids, "attention_mask": given["attention_mask"]}


def logits_of(name: str) -> Tensor:
    with torch.no_grad():
        return model("rlinf" if name == "R" else "oft").action_logits(**case(name))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "column"),
    [("A", "logits_256"), ("B", "logits_256"), ("C", "forward_logits_256"), ("R", "logits_256")],
)
def test_logits_equal_those_of_the_reference(name: str, column: str) -> None:
    """A: one image. B: two images, proprio, three prompts. C: left pads. R: pads inside, no stop token."""
    assert_close(logits_of(name), outputs()[f"{name}.{column}"])


@pytest.mark.parametrize(
    ("name", "temperatures"), [("A", (1.0, 1.6)), ("B", (1.0, 1.6)), ("C", (1.6,)), ("R", (1.0, 1.6))]
)
def test_log_probabilities_and_entropies_equal_those_of_the_reference(name: str, temperatures: tuple[float]) -> None:
    """At both temperatures; expected values come from the codebases' own helpers."""
    logits = logits_of(name)
    ids = inputs().get(f"{name}.action_tokens", outputs().get(f"{name}.generate_token_ids"))
    assert ids is not None
    bins = ids.reshape(len(ids), -1) - FIRST
    for temperature in temperatures:
        label = f"t{temperature}"
        assert_close(token_log_prob(logits / temperature, bins), outputs()[f"{name}.logprobs_{label}"])
        assert_close(categorical_entropy(logits / temperature), outputs()[f"{name}.entropy_{label}"])


def test_greedy_token_ids_equal_those_of_the_reference() -> None:
    """Exactly, in the two cases for which the reference decoded greedily."""
    assert torch.equal(logits_of("A").argmax(-1) + FIRST, outputs()["A.token_ids_argmax_256"])
    assert torch.equal(logits_of("C").argmax(-1) + FIRST, outputs()["C.generate_token_ids"])


def test_actions_equal_those_of_the_reference() -> None:
    """Bins become robot actions to the last bit of float64, by the statistics in the checkpoint folder."""
    bounds = read_bounds(model().config.norm_stats, "libero_tiny_no_noops")
    actions = bounds.unnormalise(decode_bins(logits_of("A").argmax(-1)).reshape(-1, 8, 7))
    np.testing.assert_array_equal(actions[0], outputs()["A.actions_from_256"].numpy())
    actions = bounds.unnormalise(decode_bins(logits_of("C").argmax(-1)).reshape(-1, 8, 7))
    np.testing.assert_array_equal(actions, outputs()["C.generate_actions"].numpy())


def test_values_equal_those_of_the_reference() -> None:
    """Eight values from the last prompt token's hidden state, alone and in one pass with the logits."""
    with torch.no_grad():
        logits, values = model("rlinf")(**case("R"))
        alone = model("rlinf").value(**case("R"))
    assert_close(values, outputs()["R.values"])
    assert_close(logits, outputs()["R.logits_256"])
    assert torch.equal(values, alone)


def test_intermediate_tensors_equal_those_of_the_reference() -> None:
    """Patch features, projected patches, the sequence that enters the language model and what leaves its norm."""
    network, given, expected = model(), case("A"), outputs()
    with torch.no_grad():
        features = network.vision_backbone(given["pixel_values"])
        tokens = network.embed(**given, proprio=None)
        last = network.run_layers(tokens, 0, len(network.layers))
        hidden = network.action_hidden(last)
        everywhere = network.language_model.model.norm(last.hidden_BSD)
        projected = network.projector(features)
    assert_close(features, expected["A.patch_features"])
    assert_close(projected, expected["A.projected_patch_embeddings"])
    assert_close(tokens.hidden_BSD, expected["A.inputs_embeds"])
    assert_close(everywhere, expected["A.last_hidden_state"])
    assert_close(hidden, expected["A.action_hidden_states"])


def test_action_positions_equal_those_of_the_reference() -> None:
    """With two images and proprio, each row reads out behind its own prompt."""
    with torch.no_grad():
        tokens = model().embed(**case("B"))
    assert torch.equal(tokens.readout_BA, outputs()["B.gather_index"])


def test_the_training_loss_equals_that_of_the_reference() -> None:
    """Cross-entropy over the whole vocabulary, of the actions and the stop token behind them."""
    network, given = model(), inputs()
    with torch.no_grad():
        tokens = network.run_layers(network.embed(**case("B")), 0, len(network.layers))
        next_BA = torch.cat([tokens.readout_BA, tokens.readout_BA[:, -1:] + 1], dim=1)
        hidden = network.action_hidden(tokens._replace(readout_BA=next_BA))
        logits = network.language_model.lm_head(hidden)
    targets = F.pad(given["B.action_tokens"], (0, 1), value=2)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert_close(loss[None], outputs()["B.loss"])


# Each of the following builds a wrong variant of the model and returns its logits on case A.


def _with_embedding(change: Callable[[OpenVLAOFT, Tokens], Tokens]) -> Tensor:
    network = model()
    tokens = change(network, network.embed(**case("A"), proprio=None))
    return network.read_out(network.run_layers(tokens, 0, len(network.layers))).logits_BAK


def _causal_mask() -> Tensor:
    network = model()
    tokens = network.embed(**case("A"), proprio=None)
    hidden = network.language_model.model(inputs_embeds=tokens.hidden_BSD, use_cache=False).last_hidden_state
    index = tokens.readout_BA[..., None].expand(-1, -1, hidden.shape[-1])
    return network.language_model.lm_head(hidden.gather(1, index))[..., FIRST : FIRST + 256]


def _unshifted_slice() -> Tensor:
    return _with_embedding(lambda _, tokens: tokens._replace(readout_BA=tokens.readout_BA + 1))


def _no_stop_token() -> Tensor:
    return model("rlinf").action_logits(**case("A"))


def _stop_embedding_zeroed() -> Tensor:
    def change(_: OpenVLAOFT, tokens: Tokens) -> Tokens:
        hidden = tokens.hidden_BSD.clone()
        hidden[:, -1] = 0
        return tokens._replace(hidden_BSD=hidden)

    return _with_embedding(change)


def _placeholders_not_zeroed() -> Tensor:
    def change(network: OpenVLAOFT, tokens: Tokens) -> Tokens:
        hidden = tokens.hidden_BSD.clone()
        hidden[:, -57:-1] = network.language_model.model.embed_tokens.weight[1]
        return tokens._replace(hidden_BSD=hidden)

    return _with_embedding(change)


def _no_29871(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    def pack_without_space(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        packed, length = pack_prompts(ids, mask)
        return packed[:, :-1], length - 1

    monkeypatch.setattr(model_module, "pack_prompts", pack_without_space)
    return model().action_logits(**case("A"))


def _last_layer_features() -> Tensor:
    network = fresh_model()
    for tower in (network.vision_backbone.featurizer, network.vision_backbone.fused_featurizer):
        assert isinstance(tower, VisionTransformer)
        tower.blocks.append(torch.nn.Identity())
    return network.action_logits(**case("A"))


def _final_norm_applied() -> Tensor:
    network = fresh_model()
    for tower in (network.vision_backbone.featurizer, network.vision_backbone.fused_featurizer):
        tower.register_forward_hook(lambda module, _, output: module.norm(output))
    return network.action_logits(**case("A"))


def _swapped_channels() -> Tensor:
    pixels = case("A")["pixel_values"]
    return model().action_logits(**case("A") | {"pixel_values": pixels.roll(3, dims=1)})


def _patches_before_bos() -> Tensor:
    def change(_: OpenVLAOFT, tokens: Tokens) -> Tokens:
        hidden = tokens.hidden_BSD
        return tokens._replace(hidden_BSD=torch.cat([hidden[:, 1:17], hidden[:, :1], hidden[:, 17:]], dim=1))

    return _with_embedding(change)


def _rms_eps() -> Tensor:
    text = json.loads((FOLDER / "config.json").read_text())["text_config"]
    return fresh_model(text_config=text | {"rms_norm_eps": 1e-5}).action_logits(**case("A"))


WRONG: dict[str, Callable[..., Tensor]] = {
    "causal_mask": _causal_mask,
    "unshifted_slice(+1)": _unshifted_slice,
    "no_stop_token": _no_stop_token,
    "stop_embedding_zeroed": _stop_embedding_zeroed,
    "placeholders_not_zeroed": _placeholders_not_zeroed,
    "no_29871": _no_29871,
    "last_layer_features": _last_layer_features,
    "final_norm_applied": _final_norm_applied,
    "swap_image_channels(dino<->siglip)": _swapped_channels,
    "patches_before_bos": _patches_before_bos,
    "rms_eps_1e-5": _rms_eps,
}


@pytest.mark.parametrize("name", WRONG)
def test_the_parity_test_would_notice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong variant misses the tolerance, by as much as it did when built from the reference code."""
    build = WRONG[name]
    with torch.no_grad():
        logits = build(monkeypatch) if name == "no_29871" else build()
    correct = outputs()["A.logits_256"]
    difference = float((logits - correct).abs().max())
    recorded = CONTROLS[name]
    assert difference > TOLERANCE
    assert difference == pytest.approx(recorded["max_abs_logit_diff"], abs=2 * TOLERANCE)
    changed = float((logits.argmax(-1) != correct.argmax(-1)).float().mean())
    assert changed == pytest.approx(recorded["argmax_changed"], abs=1e-6)


def test_the_parity_test_would_notice_a_softmax_over_the_whole_vocabulary() -> None:
    """Log-probabilities that count all 32064 tokens are off by nats; the 256-way softmax is the right one."""
    network = model()
    with torch.no_grad():
        tokens = network.run_layers(network.embed(**case("A"), proprio=None), 0, len(network.layers))
        everything = network.language_model.lm_head(network.action_hidden(tokens))
    assert_close(torch.logsumexp(everything, -1), outputs()["A.logits_logsumexp_full_vocab"])
    log_p = torch.log_softmax(everything, -1).gather(-1, inputs()["A.action_tokens"][..., None])[..., 0]
    difference = float((log_p - outputs()["A.logprobs_t1.0"]).abs().max())
    recorded = CONTROLS["softmax_over_full_vocab_logprob_maxdiff"]["max_abs_logit_diff"]
    assert difference == pytest.approx(recorded, abs=2 * TOLERANCE)


def test_every_recorded_wrong_variant_is_built() -> None:
    """No control of the list is left out."""
    assert {*WRONG, "softmax_over_full_vocab_logprob_maxdiff", "identity"} == set(CONTROLS)


def test_the_published_geometry_has_the_published_parameters() -> None:
    """Expected: counted on the reference model of real size, on the meta device."""
    parameters = dict(OpenVLAOFT.from_config("openvla-7b", device="meta").named_parameters())
    assert len(parameters) == 982
    assert sum(parameter.numel() for parameter in parameters.values()) == 7_541_237_184
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    assert shapes["vision_backbone.featurizer.reg_token"] == [1, 4, 1024]
    assert shapes["vision_backbone.featurizer.blocks.23.ls2.scale_factor"] == [1024]
    assert shapes["vision_backbone.fused_featurizer.blocks.26.mlp.fc1.weight"] == [4304, 1152]
    assert shapes["vision_backbone.fused_featurizer.attn_pool.kv.weight"] == [2304, 1152]
    assert shapes["projector.fc1.weight"] == [8704, 2176]
    assert shapes["language_model.model.layers.31.mlp.down_proj.weight"] == [4096, 11008]
    assert shapes["language_model.lm_head.weight"] == [32064, 4096]
