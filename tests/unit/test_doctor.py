"""The machine's check-up: what is broken is said, with what to do about it."""

import shutil
from types import SimpleNamespace

import pytest

from replaybench import doctor
from replaybench.suites import metaworld, rendering


@pytest.mark.slow
def test_a_machine_that_runs_these_tests_is_well() -> None:
    """Every check that does not depend on free space passes here, and each names what it found."""
    checks = doctor.examine()
    assert [check.what for check in checks] == [*doctor.REQUIRED, "simulator", "rendering", "cores", "free disk"]
    assert all(check.found for check in checks)
    assert all(check.ok for check in checks if check.what != "free disk")


def test_a_missing_package_is_found_with_the_command_that_installs_it() -> None:
    """A package that cannot be imported is not ok."""
    check = doctor._package("no_such_package")
    assert not check.ok
    assert "ModuleNotFoundError" in check.found
    assert "pip install no_such_package" in check.advice


def test_a_simulator_that_does_not_start_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the simulator raises is shown, with the versions that work."""

    def broken(self: object, task: str) -> None:
        raise RuntimeError("no GL")

    monkeypatch.setattr(metaworld.MetaWorldSuite, "make", broken)
    check = doctor._simulator()
    assert not check.ok
    assert check.found == "RuntimeError: no GL"
    assert "mujoco==3.3.0" in check.advice


@pytest.mark.parametrize(
    ("works", "ok", "found"),
    [
        ((True, True), True, "egl (driver), osmesa (driver)"),
        ((False, True), True, "osmesa (driver)"),
        ((False, False), False, "egl: no library; osmesa: no library"),
    ],
)
def test_rendering_is_well_where_one_backend_works(
    monkeypatch: pytest.MonkeyPatch, works: tuple[bool, bool], ok: bool, found: str
) -> None:
    """What works is named with its driver; where nothing does, the reasons and the packages to install are."""
    answers = dict(zip(("egl", "osmesa"), works, strict=True))
    monkeypatch.setattr(
        rendering,
        "probe",
        lambda backend: rendering.Probe(backend, answers[backend], "driver" if answers[backend] else "no library"),
    )
    check = doctor._rendering()
    assert (check.ok, check.found) == (ok, found)
    assert "apt-get install libosmesa6 libegl1 libgl1-mesa-dri libgles2" in check.advice


@pytest.mark.parametrize(("free_gib", "ok"), [(1.9, False), (2.1, True)])
def test_little_free_space_is_found(monkeypatch: pytest.MonkeyPatch, free_gib: float, ok: bool) -> None:
    """Less than 2 GiB is not enough."""
    usage = SimpleNamespace(free=int(free_gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = doctor._disk()
    assert (check.ok, check.found) == (ok, f"{free_gib} GiB")
