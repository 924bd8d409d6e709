"""Meta-World v3 tasks seen through cameras, with action chunks."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaybench.suites.chunks import ChunkedEnvironment, checked_chunk_size
from replaybench.suites.metaworld import GOALS_PER_SEED, NUM_ACTION_TOKENS, MetaWorldEnvironment, MetaWorldSuite
from replaybench.suites.rendering import Pictures, Renderer, find_backend

UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")


class MetaWorldPixelsSuite:
    """The tasks of `metaworld` with images as observations and a chunk of steps as a decision.

    Args:
        num_bins, reward, expert_width: As in `metaworld`; the reward of a decision is the sum over its steps.
        chunk_size: Simulator steps of a decision.
        cameras: Among topview, corner, corner2, corner3, corner4, behindGripper, gripperPOV. Those mounted upside
            down are turned.
        resolution: Pixels of height and width that are stored, after the crop.
        crop: Share of the height and width that is kept around the centre.
        quality: "fast" (no shadows, reflections or multisampling) or "default" (the model's own).

    Raises:
        ConfigError: A setting is wrong, or there is no OpenGL to render with.
    """

    num_goals = GOALS_PER_SEED

    def __init__(
        self,
        *,
        num_bins: int = 256,
        reward: str = "progress",
        expert_width: float = 0.1,
        chunk_size: int = 8,
        cameras: Sequence[str] = ("corner2",),
        resolution: int = 128,
        crop: float = 2 / 3,
        quality: str = "fast",
    ) -> None:
        self._states = MetaWorldSuite(num_bins=num_bins, reward=reward, expert_width=expert_width)
        self._chunk_size = checked_chunk_size(chunk_size)
        self._pictures = Pictures(cameras=tuple(cameras), resolution=resolution, crop=crop, quality=quality)
        self.simulator = f"{self._states.simulator}, {find_backend()} {quality}"

    def tasks(self) -> list[str]:
        return self._states.tasks()

    def instruction(self, task: str) -> str:
        return self._states.instruction(task)

    def policy_settings(self, task: str) -> dict[str, Any]:
        return {
            "observation_shape": list(self._pictures.shape),
            "num_action_tokens": self._chunk_size * NUM_ACTION_TOKENS,
            "num_bins": self._states.num_bins,
        }

    def make(self, task: str) -> ChunkedEnvironment:
        environment = self._states.make(task)
        return ChunkedEnvironment(environment, self._chunk_size, _Camera(environment, self._pictures).observe)


class _Camera:
    """Renders the simulator of a state environment."""

    def __init__(self, environment: MetaWorldEnvironment, pictures: Pictures) -> None:
        self._simulator = environment.simulator
        # A time limit is the caller's business; the simulator's own would cut the expert's look ahead.
        self._simulator.max_path_length = sys.maxsize
        self._renderer = Renderer(self._simulator.model, self._simulator.data, pictures, upside_down=UPSIDE_DOWN)

    def observe(self) -> NDArray[np.uint8]:
        # A step leaves the goal's marker where the model has it, which is not always the goal of the episode.
        for name, position in self._simulator._target_site_config:
            self._simulator._set_pos_site(name, position)
        return self._renderer.render()
