"""The examples of docs/: logs, a policy, a simulator and a correction that the project does not know."""

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from replaybench.baseline import gradient_coefficient, load_baseline
from replaybench.errors import ConfigError
from replaybench.store import open_log, verify

DOCS = Path(__file__).parents[2] / "docs"
OWN_LOGS, OWN_BASELINE = DOCS / "own_logs.py", DOCS / "own_baseline.py"
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Cli = Callable[..., subprocess.CompletedProcess[str]]


def lines_of_code(source: str) -> int:
    """Lines on which a token of code begins; comments and docstrings are none, a long string is one."""
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            documentation |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type not in LAYOUT} - documentation)


def test_lines_of_code_are_counted_as_a_person_would() -> None:
    """By hand: five of these lines are code."""
    source = '"""Doc."""\n\nimport a\n# note\nX = """a\nb"""\n\ndef f():\n    """Doc.\n    More."""\n    return (\n1)\n'
    assert lines_of_code(source) == 5


@pytest.mark.parametrize("path", [OWN_LOGS, OWN_BASELINE], ids=lambda path: path.name)
def test_the_examples_are_short(path: Path) -> None:
    """Bringing your own takes at most 40 lines of code."""
    assert lines_of_code(path.read_text(encoding="utf-8")) <= 40


@pytest.mark.slow
def test_own_logs_policy_and_simulator_are_swept(tmp_path: Path, cli: Cli) -> None:
    """The example writes sound logs, and the sweep that its docstring names completes on them.

    A correction that learns to walk to the right beats the start policy by far, so the logs were really used.
    """
    subprocess.run([sys.executable, str(OWN_LOGS)], cwd=tmp_path, check=True)
    for lineage in ("lineage-000", "lineage-001"):
        folder = tmp_path / "my-data" / "walk" / lineage
        assert verify(folder)
        assert len(open_log(folder).episodes("old")) == 150
    environment = {"PYTHONPATH": str(DOCS)}
    done = cli("sweep", "run", "my-sweep.toml", "--out", "out", "--no-report", "--workers", 2, env=environment)
    assert done.returncode == 0, done.stderr
    status = json.loads(cli("sweep", "status", "out", "--json").stdout)
    assert {row["baseline"]: row["complete"] for row in status} == {
        "zero": 2,
        "no_correction": 4,
        "ppo_clip": 4,
        "gipo": 4,
    }
    rows = pl.concat([pl.read_parquet(path) for path in (tmp_path / "out" / "runs").glob("*/rows.parquet")])
    success = rows.filter(pl.col("metric") == "success").group_by("baseline").agg(pl.col("value").mean())
    mean = dict(success.iter_rows())
    assert mean["gipo"] > mean["zero"] + 0.1


@pytest.mark.slow
def test_own_logs_without_their_module_say_what_cannot_be_loaded(tmp_path: Path, cli: Cli) -> None:
    """A sweep that cannot import the suite names the module."""
    subprocess.run([sys.executable, str(OWN_LOGS)], cwd=tmp_path, check=True)
    done = cli("sweep", "run", "my-sweep.toml", "--out", "out", "--no-report", "--limit", 1)
    assert "Cannot load suite 'own_logs:Walk'" in done.stderr
    assert "No module named 'own_logs'" in done.stderr


def test_the_own_baseline_is_the_trapezoid_it_says() -> None:
    """By hand, with inner = 0.2 and outer = 1: c = e^l inside, half of that at |l| = 0.6, and 0 from 1 on."""
    baseline = load_baseline(str(OWN_BASELINE))
    log_ratio = torch.tensor([-80.0, -1.0, -0.6, -0.2, 0.0, 0.2, 0.6, 1.0, 1e6], dtype=torch.float64)
    weight = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    for advantage in (2.0, -2.0):
        found = gradient_coefficient(baseline, baseline.config(), log_ratio, advantage)
        expected = torch.where(weight > 0, weight * log_ratio.clamp(max=1.0).exp(), 0.0)
        torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigError, match="must exceed inner"):
        baseline.config({"outer": 0.1})


def test_the_own_baseline_obeys_the_laws_of_the_shipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law of the contract suite that takes a baseline's name, at the default and along the knob."""
    laws = load_laws(monkeypatch)
    assert len(laws) >= 10
    knob = load_baseline(str(OWN_BASELINE)).declaration.knob
    assert knob is not None
    for law, arguments in laws:
        for settings in [{}, *({knob.field: value} for value in knob.sweep)]:
            for extra in arguments:
                takes_settings = "settings" in law.__code__.co_varnames[: law.__code__.co_argcount]
                law(str(OWN_BASELINE), **({"settings": settings} if takes_settings else {}), **extra)


def load_laws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[dict[str, Any]]]]:
    """The contract suite's laws with the combinations of their further parameters."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "contract"))
    import test_baselines

    laws = []
    for name, law in vars(test_baselines).items():
        if not name.startswith("test_") or "name" not in law.__code__.co_varnames[: law.__code__.co_argcount]:
            continue
        # Laws of some kinds of baselines only, such as those that read whole episodes, are not for this one.
        if any(mark.args[0] == "name" and mark.args[1] != test_baselines.NAMES for mark in law.pytestmark):
            continue
        combinations: list[dict[str, Any]] = [{}]
        for mark in law.pytestmark:
            argument, values = mark.args
            if isinstance(argument, str):
                combinations = [{**known, argument: value} for known in combinations for value in values]
        laws.append((law, [{key: value for key, value in one.items() if key != "name"} for one in combinations]))
    return laws
