"""Prompt text, tokenizers and images, in plain arithmetic.

Shape letters: B images, H height, W width, n views (cameras) side by side in the channels.
"""

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaybench.errors import ConfigError, DataError
from replaybench.policy.openvla_oft.config import FIRST_ACTION_TOKEN, SPACE_TOKEN, VLAConfig

BOS_TOKEN = 1
# Per tower: mean and standard deviation of the red, green and blue channel. DINOv2's are ImageNet's.
DINO_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIGLIP_NORM = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def prompt_text(instruction: str) -> str:
    """Returns the question that the model was trained on."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class Tokenizer(Protocol):
    """Maps a prompt's text to token ids with BOS first."""

    def encode(self, text: str) -> list[int]: ...


class ByteTokenizer:
    """One token a byte, ids 3..258; for tiny models, which have no vocabulary of their own."""

    def encode(self, text: str) -> list[int]:
        return [BOS_TOKEN, *(byte + 3 for byte in text.encode())]


class LlamaTokenizer:
    """The Llama-2 tokenizer that lies beside a checkpoint as tokenizer.json."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_file(str(path))
        # The library raises plain Exception for every damaged file.
        except Exception as error:
            raise DataError(f"{path}: is no tokenizer ({error}). Copy it again from the checkpoint.") from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text).ids
        return ids if ids[:1] == [BOS_TOKEN] else [BOS_TOKEN, *ids]


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Returns the tokenizer of a checkpoint folder.

    Raises:
        DataError: The folder has no tokenizer.json.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        raise DataError(
            f"{path}: is missing. Copy it from the checkpoint; a tiny model without one is read with ByteTokenizer."
        )
    return LlamaTokenizer(path)


def encode_prompt(instruction: str, tokenizer: Tokenizer, config: VLAConfig, num_images: int = 1) -> list[int]:
    """Returns the token ids of a prompt, which end in 29871.

    Raises:
        ConfigError: The instruction is empty, too long for the model, or holds action tokens.
    """
    if not instruction.strip():
        raise ConfigError("The instruction is empty. Say what the robot is to do.")
    ids = tokenizer.encode(prompt_text(instruction))
    ids = ids if ids[-1] == SPACE_TOKEN else [*ids, SPACE_TOKEN]
    if max(ids) >= FIRST_ACTION_TOKEN:
        raise ConfigError(
            f"The instruction '{instruction[:60]}' holds token {max(ids)}; ids from {FIRST_ACTION_TOKEN} on are "
            "actions. Use plain words, or the checkpoint's own tokenizer."
        )
    others = num_images * config.patches_per_image + config.num_action_tokens + config.has_stop_token
    room = config.text["max_position_embeddings"] - others - (config.proprio_dim is not None)
    if len(ids) > room:
        raise ConfigError(
            f"The instruction '{instruction[:60]}...' has {len(ids)} tokens with its prompt, the model has room for "
            f"{room}. Shorten it."
        )
    return ids


def pixel_values_from_images(images: Tensor, config: VLAConfig) -> Tensor:
    """Returns the model's input [B, 6 n, H, W] float32 from uint8 images [B, H, W, 3 n].

    Raises:
        DataError: The images are not uint8, not of the model's size, or their channels do not come last.
    """
    side = config.image_size
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise DataError(f"Images are {images.dtype}, expected uint8 in 0..255. Store them before any normalisation.")
    if images.ndim == 4 and shape[1] % 3 == 0 and shape[2:] == (side, side):
        raise DataError(f"Images have shape {shape}: channels come first. Expected [B, {side}, {side}, 3 per view].")
    if images.ndim != 4 or shape[1:3] != (side, side) or shape[3] == 0 or shape[3] % 3:
        raise DataError(f"Images have shape {shape}, expected [B, {side}, {side}, 3 per view]. Resize them first.")
    views = (images.float() / 255.0).split(3, dim=-1)
    towers = [_normalised(view, *norm) for view in views for norm in (DINO_NORM, SIGLIP_NORM)]
    return torch.cat(towers, dim=-1).permute(0, 3, 1, 2).contiguous()


def _normalised(view: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (view - torch.tensor(mean, device=view.device)) / torch.tensor(std, device=view.device)


def resize_lanczos(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Returns an image [H, W, C] scaled to [side, side, C] with the antialiased Lanczos kernel of radius 3."""
    _check_image(image)
    rows, columns = (_lanczos_weights(length, side) for length in image.shape[:2])
    scaled = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns, optimize=True)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


@lru_cache(maxsize=8)
def _lanczos_weights(length: int, side: int) -> NDArray[np.float64]:
    """Returns the weights [side, length] of each old pixel in each new one; a row sums to one."""
    # When shrinking, the kernel is widened, so that no detail finer than a new pixel gets through.
    stretch = max(length / side, 1.0)
    centres = (np.arange(side) + 0.5) * length / side
    distance = (np.arange(length) + 0.5 - centres[:, None]) / stretch
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def centre_crop(image: NDArray[np.uint8], area: float = 0.9) -> NDArray[np.uint8]:
    """Returns the centre of an image [H, W, C], which holds this share of its area, scaled back to the whole.

    Policies that were trained on random crops see this at test time. Bilinear without antialiasing; the corners of the
    box are pixel centres.
    """
    _check_image(image)
    rows, columns = (_crop_weights(length, area**0.5) for length in image.shape[:2])
    scaled = np.einsum("ih,hwc,jw->ijc", rows, image / 255.0, columns, optimize=True)
    # Half a level is added before the fraction is cut off, as TensorFlow does.
    return np.asarray(np.minimum(np.clip(scaled, 0.0, 1.0) * 255.5, 255.0), dtype=np.uint8)


@lru_cache(maxsize=8)
def _crop_weights(length: int, share: float) -> NDArray[np.float64]:
    first = (1 - share) / 2 * (length - 1)
    position = first + np.arange(length) * share
    distance = np.abs(position[:, None] - np.arange(length))
    return np.asarray(np.maximum(0.0, 1.0 - distance))


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3:
        raise DataError(f"The image is {image.dtype} of shape {image.shape}, expected uint8 [H, W, channels].")
