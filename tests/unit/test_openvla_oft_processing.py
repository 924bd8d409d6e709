"""Prompts, tokenizers, images and action units of OpenVLA-OFT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from replaybench.errors import ConfigError, DataError
from replaybench.policy.openvla_oft.actions import Bounds, decode_bins, encode_bins, read_bounds
from replaybench.policy.openvla_oft.config import NAMED, read_config
from replaybench.policy.openvla_oft.processing import (
    ByteTokenizer,
    centre_crop,
    encode_prompt,
    load_tokenizer,
    pixel_values_from_images,
    prompt_text,
    resize_lanczos,
)

TINY = read_config("tiny")


def statistics(**names: Any) -> dict[str, Any]:
    action = {"q01": [-1.0, 0.0], "q99": [3.0, 10.0], "mask": [True, False]}
    return {name: {"action": action | dict(changes)} for name, changes in names.items()}


def test_the_prompt_is_the_question_of_the_training_data() -> None:
    """Lower case, one line break; expected: the published format."""
    text = "In: What action should the robot take to open the drawer?\nOut:"
    assert prompt_text("Open the Drawer") == text


def test_the_byte_tokenizer_starts_with_bos_and_stays_below_the_actions() -> None:
    """Expected by hand: byte + 3; every byte of any text is below 259."""
    assert ByteTokenizer().encode("aé") == [1, 97 + 3, 0xC3 + 3, 0xA9 + 3]
    assert max(ByteTokenizer().encode(bytes(range(1, 256)).decode("latin-1"))) < 31744


def test_a_prompt_ends_in_29871_once() -> None:
    """The token is appended to what a tokenizer returns, and not doubled where it stands already."""

    class Fixed:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

        def encode(self, text: str) -> list[int]:
            return self.ids

    assert encode_prompt("push", Fixed([1, 5]), TINY) == [1, 5, 29871]
    assert encode_prompt("push", Fixed([1, 5, 29871]), TINY) == [1, 5, 29871]
    with pytest.raises(ConfigError, match="31744 on are actions"):
        encode_prompt("push", Fixed([1, 31744]), TINY)


def test_a_long_instruction_is_refused_at_the_first_token_too_many() -> None:
    """2048 positions - 16 patches - 56 actions - stop = 1975; the prompt's frame takes 49 bytes, BOS and 29871."""
    frame = len(ByteTokenizer().encode(prompt_text(""))) + 1
    longest = "x" * (1975 - frame)
    assert len(encode_prompt(longest, ByteTokenizer(), TINY)) == 1975
    with pytest.raises(ConfigError, match="has 1976 tokens with its prompt, the model has room for 1975"):
        encode_prompt(longest + "x", ByteTokenizer(), TINY)
    with pytest.raises(ConfigError, match="empty"):
        encode_prompt("  ", ByteTokenizer(), TINY)


def test_the_tokenizer_of_a_checkpoint_is_read_and_given_bos(tmp_path: Path) -> None:
    """A tokenizer.json in Hugging Face's format, without a template that adds BOS; expected ids by hand."""
    vocabulary = {"<unk>": 0, "<s>": 1, "In:": 2, "Out:": 3}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary | {"Out": 7, "go": 9}, "unk_token": "<unk>"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode("go Out") == [1, 9, 7]


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error names the file and what to do."""
    with pytest.raises(DataError, match=r"tokenizer\.json: is missing. Copy it"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="is no tokenizer"):
        load_tokenizer(tmp_path)


def test_pixels_are_normalised_for_both_towers() -> None:
    """Per view: three channels by ImageNet's numbers, three to [-1, 1]; expected by hand."""
    images = torch.zeros(1, 56, 56, 6, dtype=torch.uint8)
    images[..., 0], images[..., 4] = 255, 51
    pixels = pixel_values_from_images(images, TINY)
    assert pixels.shape == (1, 12, 56, 56)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225, 1.0, -1.0, -1.0]
    expected += [-0.485 / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225, -1.0, -0.6, -1.0]
    torch.testing.assert_close(pixels[0, :, 7, 9], torch.tensor(expected))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 56, 56, 3), torch.float32, "expected uint8"),
        ((1, 3, 56, 56), torch.uint8, "channels come first"),
        ((1, 48, 56, 3), torch.uint8, "Resize them first"),
        ((1, 56, 56, 4), torch.uint8, "3 per view"),
        ((56, 56, 3), torch.uint8, r"expected \[B, 56, 56"),
    ],
)
def test_images_of_another_form_are_refused(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    """Wrong type, channel order, size, channel count or a missing batch axis."""
    with pytest.raises(DataError, match=message):
        pixel_values_from_images(torch.zeros(shape, dtype=dtype), TINY)


@pytest.mark.parametrize(("before", "after"), [(256, 224), (100, 56), (40, 56)])
def test_lanczos_resizing_equals_pillows(before: int, after: int) -> None:
    """Pillow rounds and clips between the axes: one level of tolerance, and colours away from black and white."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (before, before, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((after, after), Image.Resampling.LANCZOS))
    assert np.abs(resize_lanczos(image, after).astype(int) - expected).max() <= 1


def test_the_centre_crop_equals_a_pixel_by_pixel_one() -> None:
    """Expected: bilinear interpolation written as loops over output pixels."""
    rng = np.random.default_rng(1)
    side = 9
    image = rng.integers(0, 256, (side, side, 2), dtype=np.uint8)
    share = 0.9**0.5
    expected = np.empty_like(image)
    for i in range(side):
        for j in range(side):
            y = (1 - share) / 2 * (side - 1) + i * share
            x = (1 - share) / 2 * (side - 1) + j * share
            top, left = int(y), int(x)
            down, right = y - top, x - left
            rows = image[top : top + 2, left : left + 2] / 255.0
            mixed = (rows[0] * (1 - down) + rows[1] * down) if len(rows) == 2 else rows[0]
            value = mixed[0] * (1 - right) + mixed[1] * right
            expected[i, j] = np.minimum(value * 255.5, 255).astype(np.uint8)
    np.testing.assert_array_equal(centre_crop(image), expected)


def test_cropping_the_whole_image_changes_nothing() -> None:
    """A share of one maps every pixel to itself."""
    image = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    np.testing.assert_array_equal(centre_crop(image, 1.0), image)
    with pytest.raises(DataError, match="expected uint8"):
        centre_crop(image.astype(np.float32))


def test_bins_run_against_actions() -> None:
    """Bin 255 is token 31999, the lowest; the two highest of the 256 tokens share a centre. Expected by hand."""
    width = 2 / 255
    expected = [1 - width / 2, 1 - width / 2, 1 - 3 * width / 2, -1 + width / 2]
    np.testing.assert_allclose(decode_bins([0, 1, 2, 255]), expected, atol=1e-15)
    with pytest.raises(DataError, match=r"span -1\.\.3"):
        decode_bins([-1, 3])


def test_encoding_a_bins_centre_returns_the_bin() -> None:
    """For every bin but the doubled one; the edges of the range are bins too."""
    bins = np.arange(1, 256)
    np.testing.assert_array_equal(encode_bins(decode_bins(bins)), bins)
    np.testing.assert_array_equal(encode_bins([1.0, -1.0]), [0, 255])
    with pytest.raises(DataError, match="expected -1..1"):
        encode_bins([0.0, 1.01])


def test_normalising_undoes_unnormalising() -> None:
    """And a number without a mask passes unchanged."""
    bounds = read_bounds(statistics(one={}))
    actions = bounds.unnormalise([[0.5, 0.5], [-1.0, -1.0]])
    np.testing.assert_allclose(actions, [[2.0, 0.5], [-1.0, -1.0]], atol=1e-7)
    np.testing.assert_allclose(bounds.normalise([[2.0, 0.5]]), [[0.5, 0.5]], atol=1e-7)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([3.5, 0.0], r"dimension 0 is 3.5, outside -1\.\.3"),
        ([0.0, -2.0], r"dimension 1 is -2, outside -1\.\.1"),
        ([0.0], "have 2 dimensions"),
        ([np.nan, 0.0], "not finite"),
    ],
)
def test_an_action_outside_the_statistics_is_refused(action: list[float], message: str) -> None:
    """The error names the statistics, the dimension and its range; clipping has to be asked for."""
    with pytest.raises(DataError, match=message) as caught:
        read_bounds(statistics(drawer={})).normalise(action)
    assert "'drawer'" in str(caught.value)


def test_clipping_moves_to_the_nearest_bound() -> None:
    """Then normalising accepts the action."""
    bounds = read_bounds(statistics(drawer={}))
    clipped = bounds.clip([[5.0, 5.0], [-5.0, -5.0]])
    np.testing.assert_array_equal(clipped, [[3.0, 1.0], [-1.0, -1.0]])
    assert np.abs(bounds.normalise(clipped)).max() <= 1


def test_an_unknown_statistics_key_suggests_the_nearest() -> None:
    """Fine-tuned checkpoints append words to the name, which is the usual mistake."""
    known = statistics(libero_spatial_no_noops={}, libero_goal_no_noops={})
    with pytest.raises(ConfigError, match="Did you mean 'libero_spatial_no_noops'"):
        read_bounds(known, "libero_spatial")
    with pytest.raises(ConfigError, match="2 data sets"):
        read_bounds(known)


def test_incomplete_statistics_are_refused() -> None:
    """A missing quantile and lengths that differ."""
    with pytest.raises(DataError, match="lacks q01 or q99"):
        read_bounds({"x": {"action": {"q01": [0.0]}}})
    with pytest.raises(DataError, match="differ in length"):
        read_bounds(statistics(x={"mask": [True]}))
    assert isinstance(read_bounds(statistics(x={})), Bounds)


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    """By its model_type, its tower, its bins or its mode; the error says what was expected."""
    tiny = NAMED["tiny"]
    with pytest.raises(ConfigError, match="model_type is 'llama', expected 'openvla'"):
        read_config(tiny | {"model_type": "llama"})
    with pytest.raises(ConfigError, match="Unknown vision_backbone_id 'dinosiglip-vit-so-384px'"):
        read_config(tiny | {"vision_backbone_id": "dinosiglip-vit-so-384px"})
    with pytest.raises(ConfigError, match="only the fused"):
        read_config(tiny | {"use_fused_vision_backbone": False})
    with pytest.raises(ConfigError, match="n_action_bins is 128"):
        read_config(tiny | {"n_action_bins": 128})
    with pytest.raises(ConfigError, match="Did you mean 'rlinf'"):
        read_config(tiny | {"mode": "rlinff"})
    with pytest.raises(ConfigError, match="Unknown vision tower"):
        read_config(tiny | {"timm_model_ids": ["tiny_dinov2", "other"]})
    with pytest.raises(ConfigError, match="Did you mean 'openvla-7b'"):
        read_config("openvla-7")


def test_the_number_of_action_tokens_is_chunk_times_dimension() -> None:
    """56 on LIBERO, which is also the default of published files, and 32 on Meta-World."""
    assert TINY.num_action_tokens == 56
    metaworld = read_config(NAMED["tiny"] | {"_constants": {"NUM_ACTIONS_CHUNK": 8, "ACTION_DIM": 4}})
    assert metaworld.num_action_tokens == 32
