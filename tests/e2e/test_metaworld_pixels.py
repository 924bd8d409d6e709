"""Meta-World seen through cameras, for real: orientation, chunks, plans, and the state suite beside it."""

from typing import Any

import numpy as np
import pytest

from replaybench.errors import ConfigError
from replaybench.suites import make_suite, rendering
from replaybench.suites.metaworld import MetaWorldSuite
from replaybench.suites.metaworld_pixels import UPSIDE_DOWN

pytestmark = pytest.mark.slow
TASK = "button-press-topdown-v3"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    """Skips the file where nothing renders."""
    if not any(rendering.probe(backend).works for backend in rendering.BACKENDS):
        pytest.skip("no OpenGL on this machine")


def make(task: str = TASK, **settings: Any) -> Any:
    """An environment of the suite with small images."""
    return make_suite("metaworld-pixels", {"resolution": 48, "num_bins": 32} | settings).make(task)


def test_the_cameras_that_are_turned_are_those_upside_down() -> None:
    """By the model: of the cameras that do not move with the arm, these have their upward axis pointing down."""
    model, data = (make()._simulator.simulator.model, make()._simulator.simulator.data)
    import mujoco

    mujoco.mj_forward(model, data)
    names = [model.camera(i).name for i in range(model.ncam)]
    fixed = [name for name in names if model.cam_bodyid[names.index(name)] == 0]
    up = {name: data.cam_xmat[names.index(name)].reshape(3, 3)[2, 1] for name in fixed}
    assert sorted(name for name in fixed if up[name] < -0.1) == sorted(UPSIDE_DOWN)


def test_a_picture_equals_gymnasiums_own() -> None:
    """Whole pictures in default quality are those of the simulator's own rendering, turned; three decisions long."""
    environment = make(cameras=["corner2"], crop=1.0, quality="default")
    image = environment.reset((1, 0), RNG)
    from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

    simulator = environment._simulator.simulator
    viewer = OffScreenViewer(simulator.model, simulator.data, 48, 48)
    camera = simulator.model.camera("corner2").id
    for _ in range(3):
        np.testing.assert_array_equal(image, viewer.render("rgb_array", camera_id=camera)[::-1, ::-1])
        image = environment.step(environment.expert().argmax(1).astype(np.int16)).observation
    viewer.opengl_context.make_current()
    viewer.con.free()


def test_the_button_is_seen() -> None:
    """Yellow lies in the middle of corner2's crop, on two goals at two places; the two cameras give six channels."""
    environment = make(cameras=["corner2", "gripperPOV"])
    places = []
    for index in (0, 1):
        image = environment.reset((1, index), RNG).astype(int)
        assert image.shape == (48, 48, 6)
        yellow = (image[..., 0] > 150) & (image[..., 1] > 90) & (image[..., 2] < 90)
        assert yellow[..., :].sum() > 10
        places.append(np.argwhere(yellow).mean(0))
    assert 12 < places[0][0] < 36
    assert np.abs(places[0] - places[1]).max() > 0.5


def test_a_chunk_is_the_same_as_its_steps_in_the_state_suite() -> None:
    """Rewards add up to those of single steps with the same tokens in `metaworld`, for 4 decisions of 5 steps."""
    chunked = make(chunk_size=5, cameras=["topview"])
    single = MetaWorldSuite(num_bins=32).make(TASK)
    chunked.reset((3, 4), RNG)
    single.reset((3, 4), RNG)
    tokens = np.random.default_rng(0).integers(0, 32, (4, 5, 4)).astype(np.int16)
    for chunk in tokens:
        rewards = [single.step(step).reward for step in chunk]
        assert chunked.step(chunk.reshape(-1)).reward == pytest.approx(sum(rewards), abs=1e-12)


@pytest.mark.parametrize("task", [TASK, "pick-place-v3", "drawer-open-v3"])
def test_looking_ahead_changes_nothing(task: str) -> None:
    """Decisions with plans in between give the images and rewards of decisions without, bit by bit."""
    environment = make(task)
    tokens = np.random.default_rng(1).integers(0, 32, (6, 32)).astype(np.int16)
    seen = []
    for plans in (0, 2):
        environment.reset((3, 1), RNG)
        for chunk in tokens:
            for _ in range(plans):
                environment.expert()
            observation, reward, *_ = environment.step(chunk)
            seen.append((observation.tobytes(), reward))
    assert seen[:6] == seen[6:]


@pytest.mark.parametrize("task", [TASK, "pick-place-v3", "drawer-open-v3"])
def test_the_experts_plans_succeed_when_their_tokens_are_replayed(task: str) -> None:
    """Recorded modes reach success on three goals, and again in a new simulator."""
    acting, replaying = make(task), make(task)
    for index in range(3):
        first = acting.reset((777, index), RNG)
        np.testing.assert_array_equal(replaying.reset((777, index), RNG), first)
        for _ in range(20):
            tokens = acting.expert().argmax(1).astype(np.int16)
            acting.step(tokens)
            transition = replaying.step(tokens)
            if transition.success:
                break
        assert transition.success


def test_an_episode_may_outlast_the_simulators_own_limit() -> None:
    """Meta-World refuses the 501st step; here 70 decisions of 8 are taken, and planned, without complaint."""
    environment = make(resolution=8)
    environment.reset((0, 0), RNG)
    still = np.full(32, 16, np.int16)
    for _ in range(70):
        environment.step(still)
    assert environment.expert().shape == (32, 32)


def test_the_card_says_how_images_were_made() -> None:
    """Backend and quality stand in the simulator's name; sizes in the policy's settings."""
    suite = make_suite("metaworld-pixels", {"cameras": ["corner2", "gripperPOV"], "resolution": 64, "chunk_size": 4})
    assert suite.simulator.endswith(f"{rendering.find_backend()} fast")
    assert suite.policy_settings(TASK) == {"observation_shape": [64, 64, 6], "num_action_tokens": 16, "num_bins": 256}
    with pytest.raises(ConfigError, match="Unknown camera 'corner9'"):
        make(cameras=["corner9"])
    assert suite.instruction(TASK) == "button press topdown"
