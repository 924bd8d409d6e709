"""Checkpoint folders of OpenVLA-OFT: round trips, and refusals of what cannot be used."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from replaybench.errors import ConfigError, ContractError, DataError
from replaybench.policy.openvla_oft import OpenVLAOFT
from replaybench.policy.openvla_oft.actions import read_bounds
from replaybench.policy.openvla_oft.adapt import AdaptSettings, adapt
from replaybench.policy.openvla_oft.config import NAMED
from replaybench.seeding import torch_generator

PROMPT = torch.tensor([[1, 5, 6, 29871]])


def pixels(images: int = 1) -> Tensor:
    return torch.randn(1, 6 * images, 56, 56, generator=torch_generator("pixels"))


def tiny(**fields: Any) -> OpenVLAOFT:
    return OpenVLAOFT.from_config(NAMED["tiny"] | fields, generator=torch_generator("weights")).eval()


def logits(model: OpenVLAOFT) -> Tensor:
    with torch.no_grad():
        return model.action_logits(pixels(), PROMPT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder of its own for each test."""
    tiny(norm_stats={"a": {"action": {"q01": [0.0], "q99": [1.0]}}}).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 3_000_000])
def test_saving_and_loading_returns_the_same_model(tmp_path: Path, shard_bytes: int) -> None:
    """In one file or in shards, with proprio projector and value head; every tensor and every output is equal."""
    model = tiny(use_proprio=True, value_outputs=8, mode="rlinf", norm_stats={"a": {"action": {}}})
    model.save_pretrained(tmp_path, shard_bytes)
    again = OpenVLAOFT.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 5_000_000_000)
    assert replace(again.config, source={}) == replace(model.config, source={})
    state, state_again = model.state_dict(), again.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    arguments = (pixels(2), PROMPT, None, torch.ones(1, 8))
    with torch.no_grad():
        for found, expected in zip(again(*arguments), model(*arguments), strict=True):
            assert torch.equal(found, expected)


def test_weights_are_converted_to_the_asked_precision(folder: Path) -> None:
    """Rotary frequencies stay in float32, as rounding them would move every position."""
    model = OpenVLAOFT.from_pretrained(folder, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert logits(model).dtype == torch.float32


def test_a_lora_is_saved_beside_its_base_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    """The base stays as it was; the adapter is read back unasked, since config.json says that it is not merged."""
    base = OpenVLAOFT.from_pretrained(folder)
    model = OpenVLAOFT.from_pretrained(folder)
    adapt(model, AdaptSettings(rank=4, scope="all"), torch_generator("lora"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=torch_generator(name))
    model.save_pretrained(tmp_path / "trained")
    again = OpenVLAOFT.from_pretrained(tmp_path / "trained")
    assert torch.equal(logits(again), logits(model))
    assert not torch.allclose(logits(again), logits(base), atol=1e-2)
    elsewhere = OpenVLAOFT.from_pretrained(folder, adapter=tmp_path / "trained" / "lora_adapter")
    assert torch.equal(logits(elsewhere), logits(model))
    stored = load_file(tmp_path / "trained" / "model.safetensors")
    assert stored.keys() == base.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in base.state_dict().items())


def test_peft_reads_the_saved_adapter(folder: Path, tmp_path: Path) -> None:
    """Expected: the outputs of peft's own loader on the same base."""
    from peft import PeftModel

    model = OpenVLAOFT.from_pretrained(folder)
    adapt(model, AdaptSettings(rank=4), torch_generator("lora"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=torch_generator(name))
    model.save_pretrained(tmp_path / "trained")
    wrapped = PeftModel.from_pretrained(OpenVLAOFT.from_pretrained(folder), str(tmp_path / "trained" / "lora_adapter"))
    with torch.no_grad():
        expected = wrapped.base_model.model.eval().action_logits(pixels(), PROMPT)
    torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=0)


def test_a_published_folder_does_not_get_its_merged_adapter_twice(folder: Path, tmp_path: Path) -> None:
    """Published folders keep the adapter that is merged into their weights already."""
    (folder / "lora_adapter").mkdir()
    (folder / "lora_adapter" / "adapter_config.json").write_text("{}")
    assert not any("lora" in name for name in OpenVLAOFT.from_pretrained(folder).state_dict())


def test_parts_in_pt_files_are_read_as_tensors(folder: Path) -> None:
    """A proprio projector as training writes it, with the prefix that data-parallel wrapping leaves."""
    projector = tiny(use_proprio=True).proprio_projector.state_dict()
    state = {f"module.{name}": tensor for name, tensor in projector.items()}
    torch.save(state, folder / "proprio_projector--1000_checkpoint.pt")
    loaded = OpenVLAOFT.from_pretrained(folder).proprio_projector.state_dict()
    assert loaded.keys() == projector.keys()
    assert all(torch.equal(loaded[name], projector[name]) for name in projector)


class Malicious:
    """Writes a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_could_run_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    """The object in the file would create another file; it must not exist afterwards."""
    trap = tmp_path / "trap"
    torch.save({"fc1.weight": Malicious(trap)}, folder / "proprio_projector--1_checkpoint.pt")
    with pytest.raises(DataError, match="it is not unpickled"):
        OpenVLAOFT.from_pretrained(folder)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious(trap)))  # noqa: S301
    assert trap.exists(), "the trap itself would have worked"


def test_a_new_value_head_needs_a_generator(folder: Path) -> None:
    """A checkpoint without one gets one by override; the same stream gives the same head."""
    with pytest.raises(ConfigError, match="holds no value head; pass the generator"):
        OpenVLAOFT.from_pretrained(folder, overrides={"value_outputs": 1})
    heads = [
        OpenVLAOFT.from_pretrained(folder, overrides={"value_outputs": 1}, generator=torch_generator("head"))
        for _ in range(2)
    ]
    values = [head.value(pixels(), PROMPT) for head in heads]
    assert torch.equal(values[0], values[1])
    assert values[0].shape == (1, 1)


def test_an_l1_regression_checkpoint_is_refused(folder: Path) -> None:
    """It has no discrete policy, since nothing trained its token logits."""
    (folder / "action_head--150000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="has no discrete policy"):
        OpenVLAOFT.from_pretrained(folder)


def test_an_action_head_of_unknown_origin_is_warned_of(folder: Path) -> None:
    """The model loads, since the head may lie beside trained token logits."""
    (folder / "action_head_l1.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="this action head is not read"):
        OpenVLAOFT.from_pretrained(folder)


def test_film_layers_are_refused(folder: Path) -> None:
    """They would change the towers' features, and without them the features would be wrong silently."""
    (folder / "vision_backbone--150000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="FiLM"):
        OpenVLAOFT.from_pretrained(folder)


def test_missing_unknown_and_misshapen_tensors_are_listed(folder: Path) -> None:
    """One message names all three kinds."""
    state = load_file(folder / "model.safetensors")
    state["projector.fc9.bias"] = state.pop("projector.fc3.bias")
    state["projector.fc2.bias"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(DataError) as caught:
        OpenVLAOFT.from_pretrained(folder)
    message = str(caught.value)
    assert "missing: projector.fc3.bias" in message
    assert "unknown: projector.fc9.bias" in message
    assert "projector.fc2.bias is [3], expected [64]" in message


def test_a_llama_checkpoint_is_refused(folder: Path) -> None:
    """By its config.json, before any weight is read."""
    edit_json(folder / "config.json", lambda content: content.update(model_type="llama"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        OpenVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "is missing"),
        ("config.json", "{", "no readable JSON"),
        ("config.json", "[]", "expected a JSON object"),
        ("model.safetensors", None, "holds neither model.safetensors nor"),
        ("dataset_statistics.json", "{", "no readable JSON"),
    ],
)
def test_a_broken_folder_is_refused(folder: Path, name: str, content: str | None, message: str) -> None:
    """The error names the file and what is wrong with it."""
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        OpenVLAOFT.from_pretrained(folder)


def test_a_config_with_a_malformed_field_is_refused(folder: Path) -> None:
    """A tower without a width is reported as such, not as a bare KeyError."""
    edit_json(folder / "config.json", lambda content: content["_tiny_towers"]["tiny_siglip"].pop("embed_dim"))
    with pytest.raises(DataError, match="a field is missing or malformed"):
        OpenVLAOFT.from_pretrained(folder)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "sharded", 3_000_000)
    return tmp_path / "sharded"


def test_a_download_without_its_last_shard_is_refused(shards: Path) -> None:
    """The missing file is named."""
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(DataError, match=f"{last.name} are missing. Finish the download"):
        OpenVLAOFT.from_pretrained(shards)


def test_a_shard_that_was_cut_short_is_refused(shards: Path) -> None:
    """As an interrupted download leaves it."""
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{last.name}: is damaged or cut short"):
        OpenVLAOFT.from_pretrained(shards)


def test_a_shard_that_lacks_what_the_index_promises_is_refused(shards: Path) -> None:
    """The tensor is named, and the shard that should hold it."""
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    state = load_file(last)
    name = sorted(state)[0]
    del state[name]
    save_file(state, last)
    with pytest.raises(DataError, match=f"{last.name}: lacks {name}"):
        OpenVLAOFT.from_pretrained(shards)


def test_two_files_of_one_part_are_refused(folder: Path) -> None:
    """Which of two training steps is meant cannot be guessed."""
    for step in (1, 2):
        (folder / f"proprio_projector--{step}_checkpoint.pt").write_bytes(b"")
    with pytest.raises(DataError, match="several proprio_projector files"):
        OpenVLAOFT.from_pretrained(folder)


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    """The error says how to load it."""
    (tmp_path / "config.json").write_text(json.dumps(NAMED["tiny"]))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="Load the base folder with adapter="):
        OpenVLAOFT.from_pretrained(tmp_path)


def test_an_adapter_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    """Only plain LoRA is read."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ConfigError, match="peft_type is 'IA3'"):
        OpenVLAOFT.from_pretrained(folder, adapter=tmp_path)


def test_the_statistics_are_those_of_the_fine_tuning(folder: Path) -> None:
    """config.json still holds those of earlier training; the file beside it counts, so one data set needs no name."""
    earlier = {"bridge": {"action": {"q01": [5.0], "q99": [6.0]}}, "fractal": {"action": {"q01": [7.0], "q99": [8.0]}}}
    edit_json(folder / "config.json", lambda content: content.update(norm_stats=earlier))
    bounds = read_bounds(OpenVLAOFT.from_pretrained(folder).config.norm_stats)
    assert (bounds.key, bounds.low[0], bounds.high[0]) == ("a", 0.0, 1.0)


def test_a_checkpoint_replaces_the_one_that_lay_there(folder: Path) -> None:
    """In shards over one file, without the parts of the old one."""
    tiny(use_proprio=True).save_pretrained(folder)
    newer = OpenVLAOFT.from_config("tiny", generator=torch_generator("newer")).eval()
    newer.save_pretrained(folder, 3_000_000)
    again = OpenVLAOFT.from_pretrained(folder)
    assert again.config.proprio_dim is None
    assert torch.equal(logits(again), logits(newer))


def test_inputs_that_do_not_fit_are_refused() -> None:
    """Wrong size or layout of pixels, prompts of another batch, an empty prompt, proprio of another size or unasked.

    The sequence that is too long: 2000 ids, 29871, 16 patches, 56 placeholders and the stop token.
    """
    model = tiny()
    with pytest.raises(ContractError, match="expected \\[B, 6 per image, 56, 56\\]"):
        model.action_logits(torch.zeros(1, 3, 56, 56), PROMPT)
    with pytest.raises(ContractError, match="expected one prompt"):
        model.action_logits(pixels(), PROMPT.expand(2, -1))
    with pytest.raises(ContractError, match="no prompt at all"):
        model.action_logits(pixels(), PROMPT, torch.zeros(1, 4))
    with pytest.raises(ContractError, match="no proprio projector"):
        model.action_logits(pixels(), PROMPT, None, torch.zeros(1, 8))
    with pytest.raises(ContractError, match=r"proprio has shape \(1, 7\), expected \(1, 8\)"):
        tiny(use_proprio=True).action_logits(pixels(), PROMPT, None, torch.zeros(1, 7))
    with pytest.raises(ContractError, match="has no value head"):
        model.value(pixels(), PROMPT)
    with pytest.raises(ContractError, match="The sequence has 2074 tokens, the model takes 2048"):
        model.action_logits(pixels(), torch.full((1, 2000), 5))
    with pytest.raises(ConfigError, match="pass the generator"):
        OpenVLAOFT.from_config("tiny")


@pytest.mark.parametrize("mode", ["oft", "rlinf"])
def test_the_place_of_pads_does_not_matter(mode: str) -> None:
    """Left, right, inside and no pads give the same logits, with a mask or by the pad token."""
    model = tiny(mode=mode)
    pad = 32000
    rows = [[pad, pad, 1, 5, 6, 29871], [1, 5, 6, 29871, pad, pad], [1, pad, pad, 5, 6, 29871], [1, 5, 6, 29871]]
    with torch.no_grad():
        expected = model.action_logits(pixels(), torch.tensor(rows[-1:]))
        for row in rows[:-1]:
            ids = torch.tensor([row])
            for mask in (None, ids != pad):
                torch.testing.assert_close(model.action_logits(pixels(), ids, mask), expected, atol=1e-5, rtol=0)
        both = model.action_logits(pixels().expand(2, -1, -1, -1), torch.tensor([rows[0], [1, *range(7, 11), 29871]]))
    torch.testing.assert_close(both[:1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("where", ["text_config", "_tiny_towers"])
def test_sizes_that_no_tensor_bears_out_are_refused_before_anything_is_built(folder: Path, where: str) -> None:
    """A billion declared layers would be built before the weights are looked at."""

    def grow(content: dict[str, Any]) -> None:
        if where == "text_config":
            content[where]["num_hidden_layers"] = 10**9
        else:
            content[where]["tiny_siglip"]["depth"] = 10**9

    edit_json(folder / "config.json", grow)
    with pytest.raises(ConfigError, match="1000000000 layers, expected 1 to 1000"):
        OpenVLAOFT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", 10**7, "rank 10000000, its tensors have at most 2"),
        ("rank_pattern", {"q_proj": 3}, "rank 3, its tensors have at most 2"),
        ("lora_alpha", -1, "lora_alpha -1"),
        ("target_modules", "(a*)*b", "target_modules must be names of modules"),
        ("target_modules", "[a", "target_modules must be names of modules"),
        ("alpha_pattern", {"(.+)+x": 2}, "alpha_pattern must be names of modules"),
    ],
)
def test_an_adapter_that_declares_what_its_tensors_are_not_is_refused(
    folder: Path, field: str, value: object, message: str
) -> None:
    """Neither memory nor time of the reader follows from a number or a pattern in the file."""
    model = OpenVLAOFT.from_pretrained(folder)
    adapt(model, AdaptSettings(rank=2), torch_generator("adapter"))
    model.save_pretrained(folder)
    OpenVLAOFT.from_pretrained(folder)
    edit_json(folder / "lora_adapter/adapter_config.json", lambda content: content.update({field: value}))
    with pytest.raises(DataError, match=re.escape(message)):
        OpenVLAOFT.from_pretrained(folder)
