"""A scripted expert that picks one object up and puts it on or in another, from privileged poses.

It has no memory: what it does depends on the present poses alone, so it also goes on from states that others led to.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float64]

# One unit of an action asks the controller for this much motion in a step.
METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
POSITION_GAIN = 0.6
ROTATION_GAIN = 0.5
OPEN, CLOSE = -1.0, 1.0
APPROACH_HEIGHT = 0.08
TRAVEL_HEIGHT = 0.20
ALIGNED = 0.015
NEAR_TARGET = 0.025
# Open fingers are 0.077 m apart. Contacts come and go in the simulator; fingers that are stopped do not.
FINGERS_OPEN = 0.074
FINGERS_STOPPED = 0.01
HOLDING = 0.04


class Poses(NamedTuple):
    """What the expert sees, in metres and world axes.

    Args:
        gripper, item, target: Positions.
        grasp: Where the gripper closes on the object.
        gripper_axes, upright_axes: Rotation matrices of the gripper, now and as it should be.
        finger_gap, finger_speed: Distance of the fingers, and metres a second of the faster one.
    """

    gripper: Floats
    gripper_axes: Floats
    upright_axes: Floats
    item: Floats
    grasp: Floats
    target: Floats
    finger_gap: float
    finger_speed: float


def pick_and_place(poses: Poses, release_height: float) -> Floats:
    """Returns the action [7] of the present step: motion, rotation and gripper, each in [-1, 1].

    Args:
        poses: What the expert sees.
        release_height: Height of the object above its target, in metres, below which it is let go.
    """
    waypoint, gripper = _waypoint(poses, release_height)
    motion = POSITION_GAIN * (waypoint - poses.gripper) / METRES_PER_UNIT
    error = Rotation.from_matrix(poses.upright_axes @ poses.gripper_axes.T).as_rotvec()
    rotation = ROTATION_GAIN * error / RADIANS_PER_UNIT
    return np.asarray(np.clip(np.concatenate([motion, rotation, [gripper]]), -1.0, 1.0))


def _waypoint(poses: Poses, release_height: float) -> tuple[Floats, float]:
    """Returns where the gripper should go, and whether it opens or closes."""
    gripper, item, grasp, target = poses.gripper, poses.item, poses.grasp, poses.target
    is_over_target = _distance(item, target) < NEAR_TARGET
    if is_over_target and item[2] < target[2] + release_height:
        return gripper + np.array([0.0, 0.0, 0.03]), OPEN
    if _is_held(poses):
        # Where the gripper must be for the object, as it hangs in it, to be over the target.
        over = target + (gripper - item)
        if is_over_target:
            return over, CLOSE
        travel = target[2] + TRAVEL_HEIGHT
        if item[2] < travel - 0.05:
            return np.array([gripper[0], gripper[1], travel + gripper[2] - item[2]]), CLOSE
        return np.array([over[0], over[1], travel + gripper[2] - item[2]]), CLOSE
    if _distance(gripper, grasp) > ALIGNED:
        return np.array([grasp[0], grasp[1], max(grasp[2] + APPROACH_HEIGHT, gripper[2])]), OPEN
    if gripper[2] > grasp[2] + 0.01:
        return grasp, OPEN
    return grasp, CLOSE


def _is_held(poses: Poses) -> bool:
    """Whether the fingers have stopped short of open where the object is grasped."""
    is_there = float(np.linalg.norm(poses.gripper - poses.grasp)) < HOLDING
    return is_there and poses.finger_gap < FINGERS_OPEN and poses.finger_speed < FINGERS_STOPPED


def _distance(one: Floats, other: Floats) -> float:
    """Returns the horizontal distance."""
    return float(np.linalg.norm(one[:2] - other[:2]))
