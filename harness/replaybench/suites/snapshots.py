"""Exact snapshots of a MuJoCo simulation and of the Python objects around it.

Positions and velocities alone do not continue the same way: solver warm starts, actuator inputs, controllers
and counters take part too.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Arrays of mjData that environments are known to keep as attributes; a restored copy would no longer follow it.
LIVE_ARRAYS = ("xpos", "xquat", "xipos", "xmat", "geom_xpos", "site_xpos", "mocap_pos", "mocap_quat", "qpos", "qvel")
SCALARS = (bool, int, float, str, bytes, np.generic, type(None))


class Snapshot(NamedTuple):
    """The integration state of mjData, and the plain attributes of each object."""

    state: NDArray[np.float64]
    attributes: list[dict[str, Any]]


def take_snapshot(model: Any, data: Any, objects: Sequence[object]) -> Snapshot:
    """Copies the state and whatever the objects hold in numbers, strings, arrays and containers of these."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    live = [getattr(data, name) for name in LIVE_ARRAYS]
    return Snapshot(state, [_plain_attributes(thing, live) for thing in objects])


def restore_snapshot(model: Any, data: Any, objects: Sequence[object], snapshot: Snapshot) -> None:
    """Puts everything back; the same actions then give the same results, bit by bit."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, snapshot.state, kind)
    mujoco.mj_forward(model, data)
    # The forward pass has overwritten the solver's warm start.
    mujoco.mj_setState(model, data, snapshot.state, kind)
    for thing, attributes in zip(objects, snapshot.attributes, strict=True):
        vars(thing).update(deepcopy(attributes))


def _plain_attributes(thing: object, live: Sequence[NDArray[Any]]) -> dict[str, Any]:
    return {name: deepcopy(value) for name, value in vars(thing).items() if _is_plain(value, live)}


def _is_plain(value: object, live: Sequence[NDArray[Any]]) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype != object and not any(np.may_share_memory(value, array) for array in live)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, live) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item, live) for pair in value.items() for item in pair)
    return isinstance(value, SCALARS)
