"""Finding an OpenGL and rendering with it: the choice of a backend, crops, orientation, several renderers at once."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from replaybench.errors import ConfigError
from replaybench.suites import rendering
from replaybench.suites.rendering import Pictures, Probe, Renderer

# Seen from the front: red above, green below, blue on the right; the second camera hangs upside down.
SCENE = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <geom type="sphere" size=".3" pos="0 0 1" rgba="1 0 0 1"/>
    <geom type="sphere" size=".3" pos="0 0 -1" rgba="0 1 0 1"/>
    <geom type="sphere" size=".3" pos="1 0 0" rgba="0 0 1 1"/>
    <camera name="front" pos="0 -4 0" xyaxes="1 0 0 0 0 1"/>
    <camera name="hanging" pos="0 -4 0" xyaxes="-1 0 0 0 0 -1"/>
  </worldbody>
</mujoco>
"""


def pictures(**changes: Any) -> Pictures:
    """Returns settings that are right but for the changes."""
    values: dict[str, Any] = {"cameras": ("front",), "resolution": 32, "crop": 1.0, "quality": "fast"}
    return Pictures(**values | changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forgets which backend was found, before and after."""
    rendering.find_backend.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "")
    yield monkeypatch
    rendering.find_backend.cache_clear()


def answers(machine: pytest.MonkeyPatch, *working: str) -> list[str]:
    """Lets only these backends work; returns the list of those that are tried."""
    tried: list[str] = []

    def probe(backend: str) -> Probe:
        tried.append(backend)
        return Probe(backend, backend in working, "driver" if backend in working else "library not found")

    machine.setattr(rendering, "probe", probe)
    return tried


@pytest.mark.parametrize(
    ("asked", "working", "expected", "expected_tries"),
    [
        ("", ("egl", "osmesa"), "egl", ["egl"]),
        ("", ("osmesa",), "osmesa", ["egl", "osmesa"]),
        ("osmesa", ("egl", "osmesa"), "osmesa", ["osmesa"]),
        ("OSMesa", ("egl", "osmesa"), "osmesa", ["osmesa"]),
    ],
)
def test_the_first_backend_that_works_is_taken_unless_one_is_asked_for(
    machine: pytest.MonkeyPatch, asked: str, working: tuple[str, ...], expected: str, expected_tries: list[str]
) -> None:
    """EGL comes first; MUJOCO_GL is respected, and tells worker processes afterwards."""
    tried = answers(machine, *working)
    machine.setenv("MUJOCO_GL", asked)
    assert rendering.find_backend() == expected
    assert tried == expected_tries
    assert rendering.os.environ["MUJOCO_GL"] == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("", r"egl: library not found; osmesa: library not found\). Run `apt-get install libosmesa6 libegl1"),
        ("egl", r"egl: library not found\). Run `apt-get .*libgles2` or unset MUJOCO_GL"),
        ("off", "MUJOCO_GL=off turns rendering off"),
    ],
)
def test_no_opengl_is_said_with_what_to_install(machine: pytest.MonkeyPatch, asked: str, message: str) -> None:
    """Every backend that was tried is named with its reason; another than the one asked for is not taken."""
    answers(machine, *(["osmesa"] if asked else []))
    machine.setenv("MUJOCO_GL", asked)
    with pytest.raises(ConfigError, match=message):
        rendering.find_backend()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ()}, "cameras is"),
        ({"cameras": ("front", "front")}, "each once"),
        ({"resolution": 0}, "resolution is 0"),
        ({"crop": 0.0}, "crop is 0.0"),
        ({"crop": 1.5}, "crop is 1.5"),
        ({"quality": "fas"}, "Did you mean 'fast'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    """Before anything is rendered."""
    with pytest.raises(ConfigError, match=message):
        pictures(**changes)


def test_sizes_follow_from_the_settings() -> None:
    """64 pixels kept of a crop of 2/3 are rendered as 96; two cameras give six channels (by hand)."""
    settings = pictures(cameras=("a", "b"), resolution=64, crop=2 / 3)
    assert (settings.full_size, settings.shape) == (96, (64, 64, 6))


def test_the_crop_is_around_the_centre() -> None:
    """The 2 x 2 pixels in the middle of 6 x 6 are rows and columns 2 and 3 (by hand)."""
    image = np.arange(36, dtype=np.uint8).reshape(6, 6)[..., None]
    assert rendering.centre(image, 2)[..., 0].tolist() == [[14, 15], [20, 21]]


@pytest.fixture(scope="module")
def scene() -> tuple[Any, Any]:
    """The model and data of SCENE, where some OpenGL works."""
    mujoco = pytest.importorskip("mujoco")
    if not any(rendering.probe(backend).works for backend in rendering.BACKENDS):
        pytest.skip("no OpenGL on this machine")
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def centre_of(image: NDArray[np.uint8], channel: int) -> tuple[float, float]:
    """Mean row and column, as shares of the size, of the pixels where this colour channel alone is bright."""
    others = np.delete(image, channel, axis=-1).max(-1)
    rows, columns = np.nonzero((image[..., channel] > 128) & (others < 64))
    return float(rows.mean()) / len(image), float(columns.mean()) / len(image)


@pytest.mark.slow
@pytest.mark.parametrize("camera", ["front", "hanging"])
def test_up_is_up_and_right_is_right(scene: tuple[Any, Any], camera: str) -> None:
    """The red ball is above the middle, the green below, the blue on the right, also by a camera upside down."""
    renderer = Renderer(*scene, pictures(cameras=(camera,), resolution=64), upside_down=("hanging",))
    image = renderer.render()
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    red, green, blue = (centre_of(image, channel) for channel in range(3))
    assert red[0] < 0.4 < 0.6 < green[0]
    assert abs(red[1] - 0.5) < 0.05
    assert blue[1] > 0.6
    assert abs(blue[0] - 0.5) < 0.05
    renderer.close()


@pytest.mark.slow
def test_a_crop_is_the_middle_of_the_whole_picture(scene: tuple[Any, Any]) -> None:
    """Half of the picture, stored at 32, is the middle 32 x 32 of a whole one at 64."""
    whole, cropped = Renderer(*scene, pictures(resolution=64)), Renderer(*scene, pictures(crop=0.5))
    np.testing.assert_array_equal(cropped.render(), whole.render()[16:48, 16:48])


@pytest.mark.slow
def test_cameras_lie_behind_one_another(scene: tuple[Any, Any]) -> None:
    """Each three channels are what a renderer of that camera alone gives."""
    both = Renderer(*scene, pictures(cameras=("front", "hanging"))).render()
    for index, camera in enumerate(("front", "hanging")):
        alone = Renderer(*scene, pictures(cameras=(camera,)))
        np.testing.assert_array_equal(both[..., 3 * index : 3 * index + 3], alone.render())


@pytest.mark.slow
def test_renderers_do_not_disturb_each_other(scene: tuple[Any, Any]) -> None:
    """Used in turns, and after one of three is closed and another dropped, each renders what it did alone."""
    renderers = [Renderer(*scene, pictures(resolution=size)) for size in (16, 32, 48)]
    alone = [renderer.render() for renderer in renderers]
    for renderer, image in zip(renderers[::-1], alone[::-1], strict=True):
        np.testing.assert_array_equal(renderer.render(), image)
    renderers.pop(0).close()
    np.testing.assert_array_equal(renderers[0].render(), alone[1])
    del renderers[0], renderer
    np.testing.assert_array_equal(renderers[0].render(), alone[2])


@pytest.mark.slow
def test_an_unknown_camera_gets_the_nearest(scene: tuple[Any, Any]) -> None:
    """The model's own cameras are listed."""
    with pytest.raises(ConfigError, match="Unknown camera 'fron'. Did you mean 'front'"):
        Renderer(*scene, pictures(cameras=("fron",)))


PROGRAM = f"""
import mujoco
from replaybench.suites.rendering import Pictures, Renderer
model = mujoco.MjModel.from_xml_string('''{SCENE}''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
settings = Pictures(cameras=("front",), resolution=32, crop=1.0, quality="default")
kept = [Renderer(model, data, settings) for _ in range(2)]
print(kept[1].render().max())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", rendering.BACKENDS)
def test_a_program_that_rendered_ends_in_silence(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With renderers still open, the interpreter ends without a traceback, on each backend that works here."""
    monkeypatch.setenv("MUJOCO_GL", backend)
    # Left behind where this process has loaded the other backend.
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    if not rendering.probe.__wrapped__(backend).works:
        pytest.skip(f"no {backend} on this machine")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 200
