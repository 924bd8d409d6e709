"""Snapshots of a small MuJoCo model and the objects around it."""

from typing import Any

import numpy as np
import pytest

from replaybench.suites.snapshots import restore_snapshot, take_snapshot

# A ball that rolls over a floor into a block: contacts make the solver's warm start matter.
MODEL = """
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body pos="0 0 .12"><freejoint/><geom type="sphere" size=".1"/></body>
    <body pos=".3 0 .1"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
  </worldbody>
</mujoco>
"""


class Holder:
    """What environments keep: numbers, containers, arrays, live views and the simulation itself."""

    def __init__(self, data: Any) -> None:
        self.count = 3
        self.history = [np.zeros(2), {"a": (1, None)}]
        self.array = np.ones(3)
        self.view = data.xpos[1]
        self.data = data
        self.parts = [data]


@pytest.fixture
def simulation() -> tuple[Any, Any, Holder]:
    """A rolling ball that is about to hit the block."""
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    data.qvel[0] = 1.5
    mujoco.mj_step(model, data, 40)
    return model, data, Holder(data)


def roll(model: Any, data: Any) -> list[bytes]:
    """Takes 60 steps; returns positions and velocities, bit by bit."""
    import mujoco

    seen = []
    for _ in range(60):
        mujoco.mj_step(model, data)
        seen.append(data.qpos.tobytes() + data.qvel.tobytes())
    return seen


def test_a_restored_simulation_goes_on_bit_by_bit(simulation: tuple[Any, Any, Holder]) -> None:
    """The 60 steps through the collision are the same twice; without the restoring they are not."""
    model, data, holder = simulation
    snapshot = take_snapshot(model, data, [holder])
    first = roll(model, data)
    assert roll(model, data) != first
    restore_snapshot(model, data, [holder], snapshot)
    assert roll(model, data) == first


def test_attributes_come_back_and_views_stay_live(simulation: tuple[Any, Any, Holder]) -> None:
    """Numbers, containers and arrays return to their values, twice from one snapshot; a view follows mjData."""
    model, data, holder = simulation
    snapshot = take_snapshot(model, data, [holder])
    for _ in range(2):
        holder.count = 9
        holder.history[0][:] = 7
        holder.history.append(5)
        holder.array += 1
        restore_snapshot(model, data, [holder], snapshot)
        assert holder.count == 3
        assert holder.history[0].tolist() == [0, 0]
        assert holder.history[1:] == [{"a": (1, None)}]
        assert holder.array.tolist() == [1, 1, 1]
    assert holder.data is data
    assert holder.parts == [data]
    roll(model, data)
    np.testing.assert_array_equal(holder.view, data.xpos[1])
    assert np.shares_memory(holder.view, data.xpos)


def test_attributes_that_are_no_plain_values_are_left_alone(simulation: tuple[Any, Any, Holder]) -> None:
    """The simulation, lists that hold it, and live views are no part of a snapshot."""
    model, data, holder = simulation
    (attributes,) = take_snapshot(model, data, [holder]).attributes
    assert set(attributes) == {"count", "history", "array"}
