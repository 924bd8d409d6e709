"""Who wins and who is on the frontier, on rows made by hand, and what the real study says of the published claims."""

import pytest

from replaybench.analysis.bias_variance import StudyRow
from replaybench.analysis.claims import frontiers, winners
from replaybench.report.gridworld import gridworld_study, study_frames, study_words


def row(baseline: str, bias2: float, variance: float, n: int = 1, behaviour: str = "A") -> StudyRow:
    return StudyRow("PI-1", behaviour, baseline, {}, n, bias2, variance / n, bias2 + variance / n)


CELL = [row("zero", 4.0, 0.0), row("importance_sampling", 0.0, 9.0), row("ppo_clip", 4.0, 0.0), row("gipo", 3.0, 2.0)]


def test_what_never_moves_wins_only_where_it_is_ranked() -> None:
    """mse 4 for zero and a fully clipped PPO, 9 and 5 for the others: zero wins, or GIPO where zero is left out."""
    assert [w.family for w in winners(CELL, "importance_sampling", rank_inactive=True)] == ["zero"]
    assert [w.family for w in winners(CELL, "importance_sampling", rank_inactive=False)] == ["gipo"]


def test_a_tie_goes_to_the_simpler_estimator() -> None:
    """A correction that cuts nothing equals importance sampling, which is named."""
    tied = [*CELL[:1], row("tis", 0.0, 1.0), row("importance_sampling", 0.0, 1.0)]
    assert [w.family for w in winners(tied, "importance_sampling", rank_inactive=True)] == ["importance_sampling"]


def test_a_cell_in_which_nothing_moves_has_no_winner_as_published() -> None:
    """With only inactive estimators there is nobody to rank."""
    assert winners([row("zero", 4.0, 0.0), row("ppo_clip", 4.0, 0.0)], "importance_sampling", rank_inactive=False) == []


def test_rivals_that_no_setting_dominates_are_named() -> None:
    """SAPO at (2, 3) has less bias than GIPO at (3, 2), which dominates PPO at (3.5, 2)."""
    cell = [*CELL[:2], row("gipo", 3.0, 2.0), row("sapo", 2.0, 3.0), row("ppo_clip", 3.5, 2.0)]
    (found,) = frontiers(cell, "gipo")
    assert found.undominated == ("sapo",)
    assert found.families == ("gipo", "importance_sampling", "sapo", "zero")


def test_domination_is_the_same_at_every_number_of_samples() -> None:
    """Variances of a cell are all divided by N, which changes no comparison of two of them."""
    study = gridworld_study()
    at = {n: frontiers([r for r in study.published if r.n == n], "gipo") for n in (1, 64, 4096)}
    assert [c.undominated for c in at[1]] == [c.undominated for c in at[64]] == [c.undominated for c in at[4096]]


def test_a_denser_curve_dominates_no_less() -> None:
    """Widths between the published ones can only take rivals off the frontier."""
    study = gridworld_study()
    for five, curve in zip(study.frontiers, study.curve_frontiers, strict=True):
        assert set(curve.undominated) <= set(five.undominated)
    assert sum(len(cell.undominated) for cell in study.curve_frontiers) < sum(
        len(cell.undominated) for cell in study.frontiers
    )


def test_the_words_count_what_the_tables_hold() -> None:
    """GIPO wins 18 of 18 cells as published; with zero ranked as many as the table of cells says."""
    table = study_frames()["study-cells"]
    gipo, zero = ((table["best_at_1"] == name).sum() for name in ("gipo", "zero"))
    words = study_words(gridworld_study())
    assert "gipo has the least MSE in 18 of 18 off-policy cells" in words[0]
    assert f"it has it in {gipo}, and not moving is best in {zero}." in words[0]
    alone = (table["not_dominated_by_gipo"] == "").sum()
    assert f"dominate every rival in {alone} of 18 cells" in words[3]


@pytest.mark.parametrize("n", [1, 64])
def test_the_csv_ranks_as_the_figure_does(n: int) -> None:
    """The family of least mse in the CSV of rows is the one named for the cell."""
    frames = study_frames()
    rows = frames["study"].filter(n=n).sort("mse").group_by("target", "behaviour", maintain_order=True).first()
    named = frames["study-cells"].select("target", "behaviour", best=f"best_at_{n}")
    least = dict(zip(zip(rows["target"], rows["behaviour"], strict=True), rows["baseline"], strict=True))
    for target, behaviour, best in named.iter_rows():
        # Zero and a fully clipped PPO are equal.
        assert best == least[target, behaviour] or (best == "zero" and least[target, behaviour] == "ppo_clip")
