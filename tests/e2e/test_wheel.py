"""The wheel: what it holds, and that it works where there is no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from replaybench.paths import BASELINES_DIR, PRESETS_DIR, RECIPES_DIR, ROOT, TEMPLATE_DIR

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command without the settings that would lead it back to the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "REPLAYBENCH_DATA", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a virtual environment that holds the wheel and sees this one's other packages."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # Python reads no .pth files of a folder that a .pth file names, so an editable install there stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    """Installing it cannot overwrite another package, such as Hugging Face's `datasets`."""
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"replaybench"}
    assert len(names) == 2


def test_the_wheel_carries_everything_that_a_sweep_reads(wheel: Path) -> None:
    """Baselines, recipes, presets and the report's template travel with it; tests and outputs do not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    bundled = "replaybench/_bundled"
    expected = {f"{bundled}/baselines/{path.name}" for path in BASELINES_DIR.glob("*.py")}
    expected |= {f"{bundled}/datasets/{path.name}" for path in RECIPES_DIR.glob("*.toml")}
    expected |= {f"replaybench/presets/{path.relative_to(PRESETS_DIR)}" for path in PRESETS_DIR.rglob("*.toml")}
    parts = [path.relative_to(TEMPLATE_DIR) for path in TEMPLATE_DIR.rglob("*") if path.is_file()]
    assert len(parts) > 10
    expected |= {f"{bundled}/reports/template/{part}" for part in parts}
    expected |= {"replaybench/py.typed", "replaybench/cli/__init__.py"}
    assert expected <= names
    kinds = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert kinds <= {".py", ".toml", ".html", ".css", ".js", ".typed"}
    assert not [name for name in names if "test" in Path(name).name or "__pycache__" in name]


def test_the_installed_wheel_lists_its_baselines_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """The console script runs the wheel's own code and files."""
    where = run(installed / "python", "-c", "import replaybench; print(replaybench.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)
    rows = json.loads(run(installed / "replaybench", "baseline", "ls", "--json", cwd=tmp_path).stdout)
    assert [row["name"] for row in rows] == sorted(path.stem for path in BASELINES_DIR.glob("*.py"))
    shown = json.loads(run(installed / "replaybench", "baseline", "show", "gipo", "--json", cwd=tmp_path).stdout)
    assert Path(shown["path"]).is_relative_to(installed.parent)


def test_the_installed_wheel_makes_data_and_runs(installed: Path, tmp_path: Path) -> None:
    """Three runs of the smoke preset complete in an empty folder, from recipes and presets of the wheel."""
    options = ["--data", "data", "--out", "out", "--no-report", "--limit", 3, "--workers", 2]
    done = run(installed / "replaybench", "sweep", "run", "smoke", *options, cwd=tmp_path)
    assert "logs: 3/3 done" in done.stderr
    assert "3 of 87 runs complete, 0 failed" in done.stderr
    assert len(list((tmp_path / "out" / "runs").glob("*/manifest.json"))) == 3
