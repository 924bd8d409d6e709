"""What is printed while jobs run."""

import pytest

from replaybench import progress
from replaybench.progress import listening
from replaybench.sweep import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at its only entry."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_counts_time_left_and_mean_success(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of eight jobs in 60 s leave six jobs of 30 s each: 3 minutes, counted from the stage's announcement."""
    with listening() as listen:
        listen(Progress("runs", 0, 8))
        clock[0] = 130.0
        listen(Progress("runs", 1, 8, "a", success=0.2))
        clock[0] = 160.0
        listen(Progress("runs", 2, 8, "b", success=0.5))
    assert capsys.readouterr().err.splitlines() == [
        "runs: 0/8 done",
        "runs: 1/8 done, ETA 3.5 min, mean success 0.20",
        "runs: 2/8 done, ETA 3.0 min, mean success 0.35",
    ]


def test_a_failure_is_printed_at_once_and_leaves_the_mean_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Also between the twenty lines that a long stage gets."""
    with listening() as listen:
        listen(Progress("runs", 0, 100))
        listen(Progress("runs", 1, 100, "a", error="ZeroDivisionError: x"))
        listen(Progress("runs", 100, 100, "b", success=1.0))
    assert capsys.readouterr().err.splitlines() == [
        "runs: 0/100 done",
        "failed: a: ZeroDivisionError: x",
        "runs: 100/100 done, mean success 1.00",
    ]


def test_a_long_silence_is_broken_by_what_is_being_done(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Not within 30 s of the line before; a bar shows it at once."""
    with listening() as listen:
        listen(Progress("logs", 0, 2))
        for clock[0] in (110.0, 135.0, 140.0):
            listen(Progress("logs", 0, 2, doing=f"at {clock[0]:g}"))
    assert capsys.readouterr().err.splitlines() == ["logs: 0/2 done", "logs: at 135"]
