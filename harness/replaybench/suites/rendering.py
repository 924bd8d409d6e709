"""Pictures of MuJoCo scenes without a display: finds an OpenGL that works here, and renders with it.

One renderer serves every suite, so a quality or a crop means the same in all of them.
"""

import atexit
import importlib
import os
import subprocess
import sys
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ConfigError, RunFailed, unknown_name

BACKENDS = ("egl", "osmesa")
OFF = ("disable", "disabled", "off", "false", "0")
QUALITIES = ("fast", "default")
INSTALL = "apt-get install libosmesa6 libegl1 libgl1-mesa-dri libgles2"
PROBE_TIMEOUT_S = 120
# Run in a process of its own: a backend that fails to load spoils OpenGL for the process that tried it.
PROBE = """
import importlib, sys
import mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(8, 8)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150).free()
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode())
context.free()
"""


class Probe(NamedTuple):
    """Whether a backend renders on this machine; `found` is its driver, or why it does not."""

    backend: str
    works: bool
    found: str


@cache
def probe(backend: str) -> Probe:
    """Tries a backend in a process of its own."""
    environment = os.environ | {"MUJOCO_GL": backend}
    command = [sys.executable, "-c", PROBE, backend]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Probe(backend, False, f"no answer within {PROBE_TIMEOUT_S} s")
    last_line = ((done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"])[-1]
    return Probe(backend, done.returncode == 0, last_line)


@cache
def find_backend() -> str:
    """Returns the backend to render with: MUJOCO_GL where it is set, else the first of BACKENDS that works.

    Raises:
        ConfigError: None works, or MUJOCO_GL turns rendering off.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in OFF:
        raise ConfigError(f"MUJOCO_GL={wanted} turns rendering off, and this suite makes images. Unset MUJOCO_GL.")
    candidates = (wanted,) if wanted else BACKENDS
    tried = []
    for backend in candidates:
        tried.append(probe(backend))
        if tried[-1].works:
            # Worker processes and libraries that look for a backend themselves then take the same one.
            os.environ["MUJOCO_GL"] = backend
            return backend
    findings = "; ".join(f"{attempt.backend}: {attempt.found}" for attempt in tried)
    hint = " or unset MUJOCO_GL" if wanted else ""
    raise ConfigError(f"No OpenGL to render images with ({findings}). Run `{INSTALL}`{hint}.")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is rendered for one observation.

    Args:
        cameras: Names of the cameras; their images lie behind one another on the last axis.
        resolution: Height and width of each image in pixels, after the crop.
        crop: Share of the height and width that is kept, around the centre, in (0, 1].
        quality: "default" has shadows, reflections and 4x multisampling as the model says; "fast" has none of
            them and is many times faster in software. The two show different pixels.
    """

    cameras: tuple[str, ...]
    resolution: int
    crop: float
    quality: str

    def __post_init__(self) -> None:
        """Checks the values, except for the cameras' names, which only a model knows."""
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ConfigError(f"cameras is {list(self.cameras)}: name at least one camera, each once.")
        if self.resolution < 1:
            raise ConfigError(f"resolution is {self.resolution}, expected pixels, 1 or more.")
        if not 0.0 < self.crop <= 1.0:
            raise ConfigError(f"crop is {self.crop}, expected the share of the image that is kept, in (0, 1].")
        if self.quality not in QUALITIES:
            raise unknown_name("quality", self.quality, QUALITIES)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an observation, [H, W, 3 x cameras]."""
        return (self.resolution, self.resolution, 3 * len(self.cameras))

    @property
    def full_size(self) -> int:
        """Height and width that are rendered before the crop."""
        return round(self.resolution / self.crop)


class Renderer:
    """Renders one model's cameras as uint8 images with the first row on top.

    Args:
        model, data: The simulator's mjModel and mjData. The model's visual settings are set to the quality.
        pictures: What to render.
        upside_down: Cameras that were mounted upside down; their images are turned by 180 degrees.
        hidden_groups: Geom groups that are left out, such as collision shapes.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        pictures: Pictures,
        *,
        upside_down: Collection[str] = (),
        hidden_groups: Collection[int] = (),
    ) -> None:
        self._model, self._data, self._pictures = model, data, pictures
        self._is_open = False
        self._upside_down = frozenset(upside_down)
        self._camera_ids = [_camera_id(model, name) for name in pictures.cameras]
        size = pictures.full_size
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        if pictures.quality == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self._open(size, hidden_groups)

    def _open(self, size: int, hidden_groups: Collection[int]) -> None:
        import mujoco

        backend = find_backend()
        self._gl: Any = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        self._gl.make_current()
        self._context: Any = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._scene = mujoco.MjvScene(self._model, maxgeom=10_000)
        if self._pictures.quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._is_open = True
        _renderers.add(self)
        # Registered after the first context, so that it runs before the driver is shut down.
        atexit.unregister(_close_all)
        atexit.register(_close_all)

    def render(self) -> NDArray[np.uint8]:
        """Returns the present scene, [H, W, 3 x cameras]."""
        import mujoco

        # Other renderers of this process may have been used in between.
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        named = zip(self._pictures.cameras, self._camera_ids, strict=True)
        return np.concatenate([self._render_one(name, camera_id) for name, camera_id in named], axis=-1)

    def _render_one(self, name: str, camera_id: int) -> NDArray[np.uint8]:
        import mujoco

        self._camera.fixedcamid = camera_id
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._camera, every, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        size = self._pictures.full_size
        image = np.zeros((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._context)
        if error := mujoco.mjr_getError():
            raise RunFailed(
                f"OpenGL did not render camera '{name}' (error {error}). Try the other MUJOCO_GL of {BACKENDS}."
            )
        # OpenGL's first row is the bottom one.
        image = image[:, ::-1] if name in self._upside_down else image[::-1]
        return centre(image, self._pictures.resolution)

    def close(self) -> None:
        """Frees the graphics memory; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            # Freed under another renderer's context, the same numbers would name that renderer's buffers.
            self._gl.make_current()
            self._context.free()
            self._gl.free()

    def __del__(self) -> None:
        self.close()


_renderers: "weakref.WeakSet[Renderer]" = weakref.WeakSet()


def _close_all() -> None:
    """Closes what is open when the interpreter ends; contexts that outlive the driver raise in their teardown."""
    for renderer in list(_renderers):
        renderer.close()


def _camera_id(model: Any, name: str) -> int:
    known = [model.camera(i).name for i in range(model.ncam)]
    if name not in known:
        raise unknown_name("camera", name, known)
    return known.index(name)


def centre(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Returns the size x size pixels in the middle of a square image."""
    margin = (len(image) - size) // 2
    return image[margin : margin + size, margin : margin + size]
