"""Which baselines the exact GridWorld study takes, and that it feeds them as they are."""

from pathlib import Path

import pytest

from replaybench import study


def test_the_study_leaves_out_what_reads_more_than_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six baselines, those that read probabilities, the batch, episodes or logits have no exact bias here."""
    names = ["zero", "no_correction", "dppo_tv", "m2po", "gspo", "tr_ppo"]
    monkeypatch.setattr(study, "baseline_paths", lambda: dict.fromkeys(names, Path()))
    assert {row["baseline"] for row in study.gridworld_rows()} == {"zero", "no_correction"}
