"""Meta-World's simulator without the work that it repeats; observations, rewards and states keep every bit.

A reset simulates the hand's way to its start twice, for goals that come back hundreds of times; and putting an
observation together takes a fifth of a step. Both are replaced on single instances; a test compares all 50 tasks
with the untouched simulator.
"""

from types import MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITION, QUATERNION = 3, 4
WIDEST_GRIP_M = 0.1
HAND_STEPS = 50

HandStates = dict[bytes, NDArray[np.float64]]


def without_repeated_work(environment: Any, hand_states: HandStates) -> Any:
    """Returns the environment with a faster `reset` and observation.

    Args:
        environment: A `SawyerXYZEnv` with its task fixed by `set_task`.
        hand_states: Simulator states with the hand at its start, by goal; instances of one task may share it.
    """

    def reset(self: Any, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _reset(self, hand_states)

    environment.reset = MethodType(reset, environment)
    environment._get_curr_obs_combined_no_goal = MethodType(_state, environment)
    return environment


def _reset(environment: Any, hand_states: HandStates) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Meta-World's `reset` with the hand moved once.

    The first of its two passes only puts the goal's bodies in place, before which the hand must not be simulated.
    """
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    environment.curr_path_length = 0

    def leave_hand(steps: int = HAND_STEPS) -> None:
        environment.init_tcp = environment.tcp_center

    def place_hand(steps: int = HAND_STEPS) -> None:
        _place_hand(environment, steps, hand_states)

    environment._reset_hand = leave_hand
    try:
        environment.reset_model()
        environment._reset_hand = place_hand
        observation, info = super(SawyerXYZEnv, environment).reset()
    finally:
        del environment._reset_hand
    environment._prev_obs = observation[:18].copy()
    observation[18:36] = environment._prev_obs
    return observation.astype(np.float64), info


def _place_hand(environment: Any, steps: int, hand_states: HandStates) -> None:
    """Moves the hand to its start: all steps for a new goal, else the last one from the remembered state.

    The last step computes every derived quantity anew, so that only the integrator's state need be remembered.
    """
    import mujoco

    full_state = mujoco.mjtState.mjSTATE_INTEGRATION
    simulate = type(environment)._reset_hand
    goal = environment._last_rand_vec.tobytes()
    if goal in hand_states:
        mujoco.mj_setState(environment.model, environment.data, hand_states[goal], full_state)
    else:
        simulate(environment, steps - 1)
        state = np.empty(mujoco.mj_stateSize(environment.model, full_state))
        mujoco.mj_getState(environment.model, environment.data, state, full_state)
        hand_states[goal] = state
    simulate(environment, 1)


def _state(environment: Any) -> NDArray[np.float64]:
    """Returns the hand's position, the grip's opening in [0, 1] and each object's position and quaternion [18]."""
    state = np.zeros(4 + environment._obs_obj_max_len)
    state[:POSITION] = environment.get_endeff_pos()
    right, left = environment.data.body("rightclaw").xpos, environment.data.body("leftclaw").xpos
    state[POSITION] = min(max(np.linalg.norm(right - left) / WIDEST_GRIP_M, 0.0), 1.0)
    positions = environment._get_pos_objects().reshape(-1, POSITION)
    size = len(positions) * (POSITION + QUATERNION)
    objects = state[4 : 4 + size].reshape(len(positions), POSITION + QUATERNION)
    objects[:, :POSITION] = positions
    objects[:, POSITION:] = environment._get_quat_objects().reshape(-1, QUATERNION)
    return state
