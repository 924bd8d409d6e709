"""Which baselines the exact GridWorld study takes, and that it feeds them as they are."""

from pathlib import Path

import pytest

from replaybench import study


def test_the_study_leaves_out_what_reads_more_than_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six baselines, those that read probabilities, the batch, episodes or logits have no exact bias here."""
    names = ["zero", "no_correction", "dppo_tv", "m2po", "gspo", "tr_ppo"]
    monkeypatch.setattr(study, "baseline_paths", lambda: dict.fromkeys(names, Path()))
    assert {name for name, _, _ in study.knob_estimators()} == {"zero", "no_correction"}


def test_the_rows_hold_the_published_settings() -> None:
    """GIPO's width 0.3 and SAPO at 1 and 2 are on no knob's sweep, and are in every one of the 21 cells, once."""
    rows = study.gridworld_rows()
    published = [row for row in rows if row["n"] == 1 and row["config"].get("sigma") == 0.3]
    assert len(published) == 21
    keys = [(row["target"], row["behaviour"], row["baseline"], str(row["config"]), row["n"]) for row in rows]
    assert len(keys) == len(set(keys))
