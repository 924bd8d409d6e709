"""Checks of the machine that a user can act on."""

import importlib
import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import NamedTuple

MIN_FREE_BYTES = 2 * 2**30
REQUIRED = ("torch", "numpy", "scipy", "datasets", "h5py", "pyarrow", "polars", "pandas", "matplotlib", "seaborn")


class Check(NamedTuple):
    """One finding; `advice` says what to do when it is not ok."""

    what: str
    ok: bool
    found: str
    advice: str


def examine() -> list[Check]:
    """Returns every check: packages, the simulator, rendering, cores, disk."""
    return [*(_package(name) for name in REQUIRED), _simulator(), _rendering(), _cores(), _disk()]


def _package(name: str) -> Check:
    try:
        importlib.import_module(name)
    except Exception as error:
        return Check(
            name, False, f"{type(error).__name__}: {error}", f"pip install {name}, or `make setup` in a checkout"
        )
    return Check(name, True, importlib.metadata.version(name), "")


def _simulator() -> Check:
    import numpy as np

    from replaybench.suites.metaworld import MetaWorldSuite

    try:
        suite = MetaWorldSuite()
        environment = suite.make("reach-v3")
        environment.reset((0, 0), np.random.default_rng(0))
        environment.step(np.zeros(4, dtype=np.int16))
    except Exception as error:
        return Check(
            "simulator", False, f"{type(error).__name__}: {error}", "pip install metaworld==3.1.1 mujoco==3.3.0"
        )
    return Check("simulator", True, suite.simulator, "")


def _rendering() -> Check:
    from replaybench.suites.rendering import BACKENDS, INSTALL, probe

    probes = [probe(backend) for backend in BACKENDS]
    working = [f"{one.backend} ({one.found})" for one in probes if one.works]
    found = ", ".join(working) or "; ".join(f"{one.backend}: {one.found}" for one in probes)
    return Check("rendering", bool(working), found, f"only suites with images need it: {INSTALL}")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    return Check("cores", True, str(cores), "")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check("free disk", free > MIN_FREE_BYTES, f"{free / 2**30:.1f} GiB", "free 2 GiB here, or work elsewhere")
