"""What the exact study says about two published claims: the lowest error, and a dominant Pareto frontier.

A family is a baseline at any of its settings. A squared bias does not depend on the number of samples N and a variance
is divided by it, so that the frontier of a cell is the same at every N; only the row of least error moves along it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from replaybench.analysis.bias_variance import RELATIVE_TOLERANCE, ZERO, RankedRow, StudyRow, pareto_frontier, ranking


class CellWinner(NamedTuple):
    """The family of least error in one cell, and the least error of any of its settings."""

    target: str
    behaviour: str
    n: int
    family: str
    mse: float


class FrontierCell(NamedTuple):
    """Who is on the frontier of a cell.

    families: those with a setting on it. undominated: rivals of `family` that none of its settings dominates, those
    without variance (never moving) or without bias aside: nothing ever dominates them.
    """

    target: str
    behaviour: str
    families: tuple[str, ...]
    undominated: tuple[str, ...]


def is_inactive(row: StudyRow) -> bool:
    """Whether the estimator never moves: an estimate that is the same on all actions has no other value than 0."""
    return row.variance == 0.0


def winners(rows: Sequence[StudyRow], unbiased: str, *, rank_inactive: bool) -> list[CellWinner]:
    """Returns the family of least mse in each cell and at each n; a tie goes to the simpler one.

    Args:
        rows: Whole cells, the zero estimator among them.
        unbiased: The family that is next in simplicity to not moving.
        rank_inactive: Whether estimators that never move take part; the published study leaves them out.
    """
    found = []
    for cell, ranked in ranking(rows).items():
        taking_part = [entry for entry in ranked if rank_inactive or not is_inactive(entry.row)]
        if not taking_part:
            continue
        best = min(taking_part, key=lambda entry: _place(entry, (ZERO, unbiased)))
        found.append(CellWinner(*cell, best.row.baseline, best.row.mse))
    return found


def _place(entry: RankedRow, simplest: Sequence[str]) -> tuple[int, int, str]:
    name = entry.row.baseline
    return entry.rank, simplest.index(name) if name in simplest else len(simplest), name


def frontiers(rows: Sequence[StudyRow], family: str) -> list[FrontierCell]:
    """Returns who is on the frontier of each cell, and which rivals `family` does not dominate there.

    Args:
        rows: Whole cells of one n.
    """
    cells: dict[tuple[str, str], list[StudyRow]] = {}
    for row in rows:
        cells.setdefault((row.target, row.behaviour), []).append(row)
    found = []
    for (target, behaviour), members in cells.items():
        on_frontier = {row.baseline for row, is_on in zip(members, pareto_frontier(members), strict=True) if is_on}
        own = [row for row in members if row.baseline == family]
        rounding = RELATIVE_TOLERANCE * max(row.mse for row in members)
        rivals = [r for r in members if r.baseline != family and not is_inactive(r) and r.bias2 > rounding]
        undominated = {row.baseline for row in rivals if pareto_frontier([row, *own])[0]}
        found.append(FrontierCell(target, behaviour, tuple(sorted(on_frontier)), tuple(sorted(undominated))))
    return found
