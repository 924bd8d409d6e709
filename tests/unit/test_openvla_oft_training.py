"""Training OpenVLA-OFT: what is trained, in how much memory, and that the gradient stays the same."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openvla_oft_learning import FLATNESS, NUM_STEPS, episode, gradients, images, learner, make_policy, replay, shake
from torch import Tensor

from replaybench.errors import ConfigError, ContractError, DataError
from replaybench.gradients import GradientMeter
from replaybench.maths.ratios import categorical_entropy, categorical_kl, token_log_prob
from replaybench.policy import check_policy
from replaybench.policy import make_policy as make_any_policy
from replaybench.policy.openvla_oft import OpenVLAOFT
from replaybench.policy.openvla_oft.adapt import AdaptSettings, adapt
from replaybench.policy.openvla_oft.checkpoint import save_adapter
from replaybench.policy.openvla_oft.config import NAMED
from replaybench.policy.openvla_oft.policy import OpenVLAOFTPolicy
from replaybench.policy.openvla_oft.processing import pixel_values_from_images
from replaybench.seeding import torch_generator
from replaybench.store.checkpoint import read_checkpoint, write_checkpoint

LORA = {"method": "lora", "rank": 4}
BATCH = torch.arange(NUM_STEPS)


def trained(policy: OpenVLAOFTPolicy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def step_gradients(train: Mapping[str, Any], **settings: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of one update of the learner."""
    policy = make_policy(train, **settings)
    log = replay(make_policy(train))
    step = learner(policy, log).policy_step(BATCH)
    return step.policy_loss, gradients(policy)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=atol * max(1.0, largest), rtol=1e-4, msg=name)


@pytest.mark.parametrize(("scope", "count"), [("all", 110_828_288), ("llm", 79_953_920)])
def test_lora_has_the_published_size_on_the_published_model(scope: str, count: int) -> None:
    """Rank 32. All linear layers: counted on the reference model. LLM: by hand, 32 layers of 2,498,560."""
    model = OpenVLAOFT.from_config("openvla-7b", device="meta")
    adapt(model, AdaptSettings.model_validate({"scope": scope, "rank": 32}))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == count


def test_a_fresh_lora_leaves_the_logits_as_they_are() -> None:
    """Its second factor is zero; the first is drawn from the given stream, so two policies are equal."""
    model = OpenVLAOFT.from_config("tiny", generator=torch_generator("m")).eval()
    arguments = (pixel_values_from_images(images(2), model.config), torch.tensor([[1, 5, 29871]]).expand(2, -1))
    with torch.no_grad():
        before = model.action_logits(*arguments)
        adapt(model, AdaptSettings(scope="all"), torch_generator("lora"))
        torch.testing.assert_close(model.action_logits(*arguments), before, atol=5e-6, rtol=0)
    policies = [make_policy(LORA).state_dict() for _ in range(2)]
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])


def test_a_lora_on_the_token_head_reaches_the_action_logits() -> None:
    """The 256 rows that are computed equal those rows of the adapted head's whole output."""
    model = OpenVLAOFT.from_config("tiny", generator=torch_generator("m"))
    adapt(model, AdaptSettings(scope="all", targets=("lm_head",)), torch_generator("lora"))
    head = model.language_model.lm_head
    with torch.no_grad():
        head.lora_B["default"].weight.normal_(generator=torch_generator("b"))  # type: ignore[union-attr]
        tokens = model.embed(
            pixel_values_from_images(images(2), model.config), torch.tensor([[1, 5], [1, 6]]), None, None
        )
        expected = head(model.action_hidden(tokens))[..., 31744:32000]
        plain = head.base_layer(model.action_hidden(tokens))[..., 31744:32000]  # type: ignore[operator]
        torch.testing.assert_close(model.read_out(tokens).logits_BAK, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("train", "inside", "outside"),
    [
        ({"method": "lora"}, "layers.0.self_attn.q_proj.lora_A", "vision_backbone"),
        ({"method": "lora", "scope": "all"}, "featurizer.blocks.3.attn.qkv.lora_B", "value_head.mlp.0.lora"),
        ({"method": "lora", "targets": ("up_proj",)}, "mlp.up_proj.lora_A", "q_proj.lora"),
        ({"method": "lora", "top_layers": 2}, "layers.2.mlp", "layers.1.mlp"),
        ({"method": "full", "top_layers": 1}, "layers.3.mlp.up_proj.weight", "layers.2."),
        ({"method": "full"}, "embed_tokens.weight", "projector"),
        ({"method": "full", "scope": "all"}, "projector.fc1.weight", "attn_pool"),
        ({"method": "frozen"}, "value_head.mlp.0.weight", "language_model"),
    ],
)
def test_what_is_trained_is_what_was_asked_for(train: dict[str, Any], inside: str, outside: str) -> None:
    """A parameter that must be trained and a part that must not; the value head always is."""
    names = trained(make_policy(train))
    assert any(inside in name for name in names)
    assert not any(outside in name for name in names)
    assert any("value_head" in name for name in names)


@pytest.mark.parametrize("train", [LORA, {"method": "full", "scope": "all"}, LORA | {"scope": "all"}])
def test_every_trained_parameter_gets_a_gradient(train: dict[str, Any]) -> None:
    """With gradient checkpointing; adapters of what the forward pass never reads are the only exception."""
    policy = make_policy(train | {"gradient_checkpointing": True})
    learner(policy, replay(policy)).policy_step(BATCH)
    never_read = ("attn_pool", "featurizer.norm", "featurizer.blocks.3", "fused_featurizer.blocks.2")
    for name, parameter in policy.named_parameters():
        is_unread = any(part in name for part in never_read)
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert has_gradient == (parameter.requires_grad and not is_unread), name


@pytest.mark.parametrize("microbatch", [1, 4])
def test_microbatches_give_the_gradient_of_the_whole_batch(microbatch: int) -> None:
    """Expected: one pass over the batch. The loss normalises advantages over it and holds a KL; 4 divides unevenly."""
    train = {"method": "full", "scope": "all"}
    loss, expected = step_gradients(train, microbatch=NUM_STEPS)
    loss_in_parts, found = step_gradients(train, microbatch=microbatch)
    assert loss_in_parts == pytest.approx(loss, abs=1e-5)
    assert_same_gradients(found, expected)


def test_microbatches_are_recomputed_in_the_precision_of_the_forward_pass() -> None:
    """The gradient under the learner's own bfloat16, in three parts and in one; recomputed in float32: .1 apart."""
    found = []
    for microbatch in (2, 6):
        policy = make_policy(LORA, microbatch=microbatch)
        with torch.autocast("cpu", torch.bfloat16):
            log_p_BAK = torch.log_softmax(policy(images(6)).logits_BAK, -1)
        log_p_BAK[..., 0].mean().backward()
        found.append(torch.cat([grad.flatten() for name, grad in gradients(policy).items() if "lora_" in name]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.01


@pytest.mark.parametrize("train", [LORA, {"method": "full", "scope": "all"}])
def test_gradient_checkpointing_gives_the_same_gradient(train: dict[str, Any]) -> None:
    """Expected: the gradient without it; also when both kinds of recomputation are nested."""
    _, expected = step_gradients(train)
    _, found = step_gradients(train | {"gradient_checkpointing": True}, microbatch=2)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_boundary_cache_gives_the_same_gradient(method: str) -> None:
    """Expected: the gradient with the frozen layers computed each time."""
    train = {"method": method, "rank": 4, "top_layers": 2}
    loss, expected = step_gradients(train)
    loss_cached, found = step_gradients(train, cache_observations=100, microbatch=4)
    assert loss_cached == pytest.approx(loss, abs=1e-5)
    assert_same_gradients(found, expected)


def test_each_observation_passes_the_frozen_layers_once() -> None:
    """Values, two updates and two microbatches each: seven observations, seven encodings."""
    policy = make_policy(LORA | {"top_layers": 1}, cache_observations=100, microbatch=4)
    assert policy._cache is not None
    made = learner(policy, replay(policy))
    for _ in range(2):
        made.refresh_advantages()
        made.value_step(BATCH)
        made.policy_step(BATCH)
    assert policy._cache.num_encoded == NUM_STEPS + 1


def test_a_cache_that_is_too_small_stays_correct() -> None:
    """It forgets the oldest and encodes them again; doubled images in a batch are encoded once."""
    policy = make_policy(LORA | {"top_layers": 1}, cache_observations=2)
    plain = make_policy(LORA | {"top_layers": 1})
    batch = images(5)[[0, 1, 2, 3, 4, 4, 0]]
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(policy(batch).logits_BAK, plain(batch).logits_BAK, atol=1e-5, rtol=0)
    assert policy._cache is not None
    # Two of the five stay kept between the passes.
    assert policy._cache.num_encoded == 5 + 3


def test_the_temperature_of_acting_is_that_of_learning() -> None:
    """The logits of both are the model's divided by it; so are entropy and KL, which are exact over the 256 bins."""
    hot, cold = make_policy(LORA, temperature=1.6), make_policy(LORA)
    batch = images(3)
    with torch.no_grad():
        logits_hot, logits_cold = hot(batch).logits_BAK, cold(batch).logits_BAK
    torch.testing.assert_close(logits_hot * 1.6, logits_cold, atol=1e-5, rtol=0)
    p_hot, p_cold = (logits.double().softmax(-1) for logits in (logits_hot, logits_cold))
    torch.testing.assert_close(
        categorical_entropy(logits_hot), -(p_hot * p_hot.log()).sum(-1).float(), atol=1e-4, rtol=0
    )
    expected_kl = (p_hot * (p_hot.log() - p_cold.log())).sum(-1).float()
    torch.testing.assert_close(categorical_kl(logits_hot, logits_cold), expected_kl, atol=1e-4, rtol=0)
    logged = episode(hot)
    assert logged.mu_logits is not None
    with torch.no_grad():
        again = FLATNESS * hot(torch.from_numpy(logged.observations[:-1])).logits_BAK
    np.testing.assert_allclose(logged.mu_logits, again.numpy(), atol=5e-3)


def test_a_value_step_moves_the_value_head_alone() -> None:
    """In microbatches; the policy's parameters get no gradient at all, so an optimiser leaves them alone."""
    policy = make_policy(LORA, microbatch=4)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    made = learner(policy, replay(policy))
    made.value_step(BATCH)
    assert all("value_head" in name for name in gradients(policy))
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "value_head" in name}


def test_policy_and_value_parameters_are_disjoint_and_complete() -> None:
    """As the policy contract says."""
    policy = make_policy(LORA)
    both = [*policy.policy_parameters(), *policy.value_parameters()]
    assert len({id(parameter) for parameter in both}) == len(both)
    assert {id(p) for p in both} == {id(p) for p in policy.parameters() if p.requires_grad}


def test_updates_on_one_log_raise_the_surrogate() -> None:
    """The learner of the sweeps trains the policy as it trains any other."""
    policy = make_policy({"method": "full"})
    made = learner(policy, replay(policy))
    first = made.policy_step(BATCH).policy_loss
    for _ in range(4):
        last = made.policy_step(BATCH).policy_loss
    assert last < first - 0.05


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters_where_it_matters() -> None:
    """Logits of deviation 1 agree to a fifth of it (unrelated ones differ by 1.1). LoRA and value head stay float32."""
    batch = images(2)
    exact = make_policy(LORA)
    rounded, mixed = make_policy(LORA, dtype="bfloat16"), make_policy(LORA, autocast=True)
    with torch.no_grad():
        expected = exact(batch).logits_BAK
        for policy in (rounded, mixed):
            found = policy(batch).logits_BAK
            assert found.dtype == torch.float32
            assert 1e-4 < float((found - expected).abs().mean()) < 0.2 * float(expected.std())
    assert {parameter.dtype for parameter in rounded.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert rounded.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    learner(rounded, replay(rounded)).policy_step(BATCH)


def test_weights_survive_the_store_and_rebuild_the_policy(tmp_path: Path) -> None:
    """As a log's card does it: settings and safetensors give the same outputs."""
    policy = make_policy(LORA)
    write_checkpoint(tmp_path / "start.safetensors", policy.state_dict())
    again = make_any_policy("openvla_oft", policy.settings, torch_generator("other"))
    again.load_state_dict(read_checkpoint(tmp_path / "start.safetensors"))
    with torch.no_grad():
        for found, expected in zip(again(images(2)), policy(images(2)), strict=True):
            assert torch.equal(found, expected)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder with statistics and a tokenizer that knows no word."""
    fields = {"norm_stats": {"press": {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}}}
    folder = tmp_path / "checkpoint"
    OpenVLAOFT.from_config(NAMED["tiny"] | fields, generator=torch_generator("m")).save_pretrained(folder)
    model = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    (folder / "tokenizer.json").write_text(f'{{"version": "1.0", "model": {model}}}'.replace("'", '"'))
    return folder


def test_a_policy_on_a_checkpoint_saves_what_it_trains_alone(checkpoint: Path) -> None:
    """The base is in the checkpoint already; the weights of other settings are refused."""
    settings = {"instruction": "push", "checkpoint": str(checkpoint), "train": LORA}
    policy = OpenVLAOFTPolicy(**settings, generator=torch_generator("a"))
    shake(policy)
    state = policy.state_dict()
    assert state.keys() == trained(policy) | {"base_fingerprint"}
    again = OpenVLAOFTPolicy(**settings, generator=torch_generator("b"))
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again(images(1)).logits_BAK, policy(images(1)).logits_BAK)
    other = OpenVLAOFTPolicy(**settings | {"train": LORA | {"top_layers": 1}}, generator=torch_generator("b"))
    with pytest.raises(DataError, match="Use the settings that it was trained with"):
        other.load_state_dict(state)


def test_weights_are_refused_on_another_base(checkpoint: Path, tmp_path: Path) -> None:
    """The same names and sizes, other numbers in one matrix: what was logged was another policy."""
    settings = {"instruction": "push", "checkpoint": str(checkpoint), "train": LORA}
    state = OpenVLAOFTPolicy(**settings, generator=torch_generator("a")).state_dict()
    changed = OpenVLAOFT.from_pretrained(checkpoint)
    with torch.no_grad():
        changed.layers[2].mlp.up_proj.weight.add_(1e-3)  # type: ignore[union-attr,operator]
    changed.save_pretrained(checkpoint)
    with pytest.raises(DataError, match="is not the checkpoint that these weights were trained on"):
        OpenVLAOFTPolicy(**settings, generator=torch_generator("a")).load_state_dict(state)


def test_an_adapter_is_part_of_what_training_starts_from(checkpoint: Path, tmp_path: Path) -> None:
    """The policy's logits are those of base and adapter, before LoRA is trained on top or the whole is."""
    adapted = OpenVLAOFT.from_pretrained(checkpoint)
    adapt(adapted, AdaptSettings(rank=2), torch_generator("b"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05, generator=torch_generator(name))
    save_adapter(adapted, tmp_path / "adapter")
    settings = {"instruction": "push", "checkpoint": str(checkpoint)}
    bare = OpenVLAOFTPolicy(**settings, generator=torch_generator("a"))
    for train in (LORA, LORA | {"top_layers": 1}, {"method": "full"}):
        policy = OpenVLAOFTPolicy(
            **settings, train=train, adapter=str(tmp_path / "adapter"), generator=torch_generator("a")
        )
        inputs = policy._inputs(images(2))
        with torch.no_grad():
            found, expected = policy.model.action_logits(*inputs), adapted.action_logits(*inputs)
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=0.0)
            assert float((found - bare.model.action_logits(*inputs)).abs().max()) > 0.1
        names = trained(policy)
        assert any("lora_A.default" in name for name in names) == (train["method"] == "lora")
        assert not any("layers.0." in name for name in names) or "top_layers" not in train


def test_a_suite_that_reads_the_tokens_otherwise_is_refused(checkpoint: Path) -> None:
    """By no statistics or by another folder's; a policy without a suite is nobody's business."""
    settings = {"checkpoint": str(checkpoint), "instruction": "push", "observation_shape": [56, 56, 3]}
    check_policy("openvla_oft", settings | {"statistics": str(checkpoint)})
    for statistics in ({}, {"statistics": "elsewhere"}):
        with pytest.raises(ConfigError, match="would mean other actions"):
            check_policy("openvla_oft", settings | statistics)


def test_a_cache_forgets_what_other_weights_encoded() -> None:
    """Loading weights that lie below the boundary too changes what is cached."""
    policy, other = (make_policy({"method": "full", "top_layers": 1}, cache_observations=9) for _ in range(2))
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2.0)  # type: ignore[union-attr,operator]
        before = policy(images(2)).logits_BAK
        policy.load_state_dict(other.state_dict())
        torch.testing.assert_close(policy(images(2)).logits_BAK, other(images(2)).logits_BAK)
    assert not torch.allclose(before, other(images(2)).logits_BAK)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either checkpoint"),
        ({"config": "tiny", "checkpoint": "x"}, "either checkpoint"),
        ({"config": "tiiny"}, "Did you mean 'tiny'"),
        ({"config": "tiny", "dtype": "float16"}, "Unknown dtype"),
        ({"config": "tiny", "temperature": 0.0}, "must be positive"),
        ({"config": "tiny", "overrides": {"value_outputs": 8}}, "a policy has one value"),
        ({"config": "tiny", "overrides": {"use_proprio": True}}, "trained on images alone"),
        ({"config": "tiny", "train": {"top_layers": 9}}, "the model has 4 layers"),
        ({"config": "tiny", "train": {"top_layers": 1, "scope": "all"}}, "leave one out"),
        ({"config": "tiny", "train": {"targets": ["nothing"]}}, "LoRA targets"),
        ({"config": "tiny", "train": {"ranks": 4}}, "Did you mean 'rank'"),
        ({"config": "tiny", "train": {"rank": 0}}, "train.rank"),
        ({"config": "tiny", "num_action_tokens": 32}, "32 action tokens, the model has 56 = chunk x action dimension"),
        ({"config": "tiny", "num_bins": 20}, "20 bins, the model has 256"),
        ({"config": "tiny", "observation_shape": [64, 64, 3]}, "the model sees 56 x 56"),
        ({"config": "tiny", "dtype": "bfloat16", "train": {"method": "full"}}, "rounded away"),
    ],
)
def test_settings_that_make_no_policy_are_refused(settings: dict[str, Any], message: str) -> None:
    """The error says which field and what it may be, when the policy is made and before."""
    with pytest.raises(ConfigError, match=message):
        OpenVLAOFTPolicy(instruction="push", generator=torch_generator("a"), **settings)
    with pytest.raises(ConfigError, match=message):
        check_policy("openvla_oft", {"instruction": "push"} | settings)


def test_a_checkpoint_is_checked_without_its_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole one passes, also where no weight could be read; without its weights or with a wrong name it does not."""
    settings = {"checkpoint": str(checkpoint), "instruction": "push", "train": LORA}
    monkeypatch.setattr("replaybench.policy.openvla_oft.checkpoint.read_tensors", None)
    check_policy("openvla_oft", settings)
    with pytest.raises(ConfigError, match="Did you mean 'instruction'"):
        check_policy("openvla_oft", settings | {"instructions": "push"})
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(DataError, match="holds neither"):
        check_policy("openvla_oft", settings)


WITHOUT_TRANSFORMERS = """
import sys
import torch
sys.modules["transformers"] = None
from replaybench.policy import make_policy
from replaybench.policy.openvla_oft.processing import prompt_text
assert prompt_text("Push").endswith("Out:")
make_policy("openvla_oft", {"config": "tiny", "instruction": "push"}, torch.Generator())
"""


def test_a_machine_without_transformers_is_told_what_to_install() -> None:
    """The policy cannot be made; what suites need of the package, such as images, can do without."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRANSFORMERS], capture_output=True, text=True, check=False)
    assert "ConfigError" in done.stderr
    assert "pip install 'replaybench[vla]'" in done.stderr


@pytest.mark.parametrize("train", [{"method": "full", "top_layers": 1}, {"method": "lora", "rank": 2}])
def test_the_norms_of_unit_gradients_are_those_of_a_loop(train: dict[str, Any]) -> None:
    """All that is trained has a closed form, also with cached states: each unit's norm is that of its own gradient."""
    policy = make_policy(train, cache_observations=10 if "top_layers" in train else 0)
    observations, unit_B = images(5), torch.tensor([0, 0, 1, 1, 2])
    tokens = torch.zeros(5, policy.model.config.num_action_tokens, dtype=torch.long)
    meter = GradientMeter(policy)
    assert not meter._projected
    found = meter.measure(observations, unit_B, lambda logits: token_log_prob(logits, tokens).sum())
    for unit in range(3):
        rows = unit_B == unit
        log_pi = token_log_prob(policy(observations[rows]).logits_BAK, tokens[rows])
        gradient = torch.autograd.grad(log_pi.sum(), policy.policy_parameters())
        squared_norm = sum(part.square().sum() for part in gradient)
        assert float(found.squared_norm[unit]) == pytest.approx(float(squared_norm), rel=1e-3)


def test_more_decisions_than_a_microbatch_are_not_measured_together() -> None:
    """Layers of further microbatches run without a graph, so nothing could be measured there."""
    policy = make_policy({"method": "lora"}, microbatch=2)
    with pytest.raises(ContractError, match="Raise its microbatch to the longest episode"):
        GradientMeter(policy).measure(images(3), torch.tensor([0, 1, 2]), lambda logits: logits.sum())
