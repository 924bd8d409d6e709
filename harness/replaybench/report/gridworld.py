"""The exact GridWorld study in the report: where the published claims hold, by number of samples, cell and lag."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl

from replaybench import plots
from replaybench.analysis.bias_variance import (
    LAGS,
    NUM_SAMPLES,
    ZERO,
    StudyRow,
    cell_rows,
    lag_cells,
    paper_study,
    pareto_frontier,
    widest_cell,
)
from replaybench.analysis.claims import FrontierCell, frontiers, winners
from replaybench.baseline import baseline_paths
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material
from replaybench.report.words import listed
from replaybench.study import PublishedStudy, corrections_study, knob_curve, published_estimators, published_study

OTHERS = "another correction"
STUDY_NS = (1, 16, 64, 256, 1024, 4096)
LAG_NS = (16, 256)


@dataclass(frozen=True, kw_only=True)
class Study:
    """The study at the published settings, with every correction, and along policy-gradient steps.

    Cells in which the behaviour policy is the target are left out: there all corrections coincide.
    """

    setup: PublishedStudy
    published: list[StudyRow]
    corrections: list[StudyRow]
    lagged: list[StudyRow]
    frontiers: list[FrontierCell]
    curve_frontiers: list[FrontierCell]

    @property
    def num_settings(self) -> int:
        """At how many settings the family whose claims are checked enters."""
        return sum(name == self.setup.family for name, _ in self.setup.settings)

    def best(self, rows: Sequence[StudyRow]) -> dict[tuple[str, str, int], str]:
        """Returns the family of least mse by target, behaviour and n, the estimator that never moves ranked."""
        found = winners(rows, self.setup.unbiased, rank_inactive=True)
        return {(winner.target, winner.behaviour, winner.n): winner.family for winner in found}

    def wins(self, rows: Sequence[StudyRow], *, rank_inactive: bool) -> dict[int, Counter[str]]:
        """Returns how many cells each family wins at each number of samples."""
        found: dict[int, Counter[str]] = {n: Counter() for n in sorted({row.n for row in rows})}
        for winner in winners(rows, self.setup.unbiased, rank_inactive=rank_inactive):
            found[winner.n][winner.family] += 1
        return found


@lru_cache(maxsize=1)
def gridworld_study() -> Study:
    """Computes the exact study once a process; nothing in it depends on a sweep."""
    setup = published_study()
    published = _off_policy(paper_study(published_estimators()))
    along_curve = [*published_estimators(), *knob_curve(setup.family)]
    return Study(
        setup=setup,
        published=published,
        corrections=_off_policy(corrections_study()),
        lagged=[row for cell in lag_cells() for row in cell_rows(cell, published_estimators())],
        frontiers=frontiers(_at(published, 1), setup.family),
        curve_frontiers=frontiers(_off_policy(paper_study(along_curve, ns=(1,))), setup.family),
    )


def _at(rows: Sequence[StudyRow], n: int) -> list[StudyRow]:
    return [row for row in rows if row.n == n]


def _off_policy(rows: Sequence[StudyRow]) -> list[StudyRow]:
    return [row for row in rows if row.behaviour != "D"]


def study_words(study: Study) -> list[str]:
    """Returns where the published claims hold and where they do not, every number computed."""
    return [*_error_words(study), _frontier_words(study), _lag_words(study)]


def _error_words(study: Study) -> list[str]:
    family, unbiased = study.setup.family, study.setup.unbiased
    as_published = study.wins(study.published, rank_inactive=False)
    with_zero = study.wins(study.published, rank_inactive=True)
    everyone = study.wins(study.corrections, rank_inactive=True)
    most = {n: everyone[n].most_common(1)[0] for n in STUDY_NS}
    num_corrections = len({row.baseline for row in study.corrections} - {ZERO})
    return [
        f"Lowest error, as published (N = 1, estimators that never move left out): {family} has the least MSE in "
        f"{as_published[1][family]} of {len(study.frontiers)} off-policy cells. With the estimator that never moves in "
        f"the ranking it has it in {with_zero[1][family]}, and not moving is best in {with_zero[1][ZERO]}.",
        f"With more samples {family} is best in {_by_n({n: with_zero[n][family] for n in STUDY_NS})}; {unbiased} in "
        f"{_by_n({n: with_zero[n][unbiased] for n in STUDY_NS})}. {family} enters with {study.num_settings} settings, "
        "its rivals with one each.",
        f"Among all {num_corrections} corrections along their knobs {family} is best in "
        f"{_by_n({n: everyone[n][family] for n in STUDY_NS})}; most cells go to "
        f"{_by_n({n: f'{name} ({count})' for n, (name, count) in most.items()})}.",
    ]


def _by_n(values: Mapping[int, object]) -> str:
    return listed([f"{value} at N = {n}" for n, value in values.items()])


def _frontier_words(study: Study) -> str:
    holds = [f"{cell.target}/{cell.behaviour}" for cell in study.frontiers if not cell.undominated]
    published, along_curve = (
        listed([f"{name} in {count} cells" for name, count in counts.most_common()]) or "nobody"
        for counts in (_undominated(study.frontiers), _undominated(study.curve_frontiers))
    )
    return (
        "A dominant frontier: a squared bias does not depend on N and a variance is divided by it, so a cell has the "
        f"same Pareto frontier at every N. The {study.num_settings} published settings of {study.setup.family} "
        f"dominate every rival in {len(holds)} of {len(study.frontiers)} cells ({listed(holds) or 'none'}); not "
        f"dominated: {published}. Not dominated by its whole curve either: {along_curve}."
    )


def _undominated(cells: Sequence[FrontierCell]) -> Counter[str]:
    return Counter(name for cell in cells for name in cell.undominated)


def _lag_words(study: Study) -> str:
    parts = []
    best = study.best(study.lagged)
    for n in LAG_NS:
        by_family: dict[str, list[str]] = {}
        for (_, behaviour, samples), family in best.items():
            if samples == n:
                by_family.setdefault(family, []).append(behaviour.removeprefix("lag "))
        parts.append(f"at N = {n} " + ", ".join(f"{name} at lag {listed(lags)}" for name, lags in by_family.items()))
    return (
        f"Along real policy-gradient steps (the behaviour is the policy 1 to {max(LAGS)} steps earlier) the least MSE "
        f"of the published settings is that of: {'; '.join(parts)}."
    )


def draw_study(material: Material) -> list[Drawing]:
    """Figure 6b: who has the least error by number of samples, and by lag."""
    study = gridworld_study()
    families = [ZERO, *study.setup.families]
    styles = plots.styles({name: name for name in families}, list(baseline_paths()), ZERO)
    look = material.look._replace(styles={**styles, OTHERS: plots.Style("#d9d9d9", "", "-")})
    figure, axes = plots.panels(2, 3, width=3.7, height=2.7)
    wins = {
        "as published": study.wins(study.published, rank_inactive=False),
        "never moving ranked": study.wins(study.published, rank_inactive=True),
        "every correction along its knob": study.wins(study.corrections, rank_inactive=True),
    }
    tables = [_wins_table(title, counts, families) for title, counts in wins.items()]
    for panel, table in zip(axes[0], tables, strict=True):
        plots.wins_by_n(panel, table, look)
        panel.set_title(table["panel"][0])
        panel.set_xlabel("number of samples N")
    axes[0, 0].set_ylabel("off-policy cells won")
    cell = widest_cell()
    in_widest = [row for row in study.published if (row.target, row.behaviour) == (cell.target, cell.behaviour)]
    errors = [_errors_table(f"cell {cell.target}/{cell.behaviour}", in_widest, "n")]
    errors += [_errors_table(f"N = {n}", _at(study.lagged, n), "lag") for n in LAG_NS]
    for panel, table in zip(axes[1], errors, strict=True):
        plots.relative_error(panel, table, look)
        panel.set_title(table["panel"][0])
        panel.set_xlabel("number of samples N" if panel is axes[1, 0] else "lag in policy-gradient steps")
    axes[1, 0].set_ylabel("least MSE / MSE of not moving")
    note = (
        "Exact, 2x2 GridWorld. Top: which family has the least MSE in how many of the 18 off-policy cells; a tie goes "
        "to the simpler one. Bottom: least MSE over a family's published settings, in the cell with the widest ratios "
        "and along the lag."
    )
    plots.finish(figure, look, [*families, OTHERS], note)
    table = pl.concat([*tables, *errors], how="diagonal")
    return [Drawing("6-study", "The published claim by number of samples and by lag", note, figure, table)]


def _wins_table(panel: str, wins: Mapping[int, Counter[str]], families: Sequence[str]) -> pl.DataFrame:
    records = []
    for n, counts in wins.items():
        named = {name: counts[name] for name in families}
        named[OTHERS] = counts.total() - sum(named.values())
        records += [(panel, name, n, count) for name, count in named.items()]
    return pl.DataFrame(records, schema=["panel", "baseline", "n", "cells"], orient="row")


def _errors_table(panel: str, rows: Sequence[StudyRow], axis: str) -> pl.DataFrame:
    """Returns the least mse of each family relative to that of not moving, along the samples or the lag."""
    least: dict[tuple[str, int], float] = {}
    for row in rows:
        place = row.n if axis == "n" else int(row.behaviour.removeprefix("lag "))
        key = (row.baseline, place)
        least[key] = min(row.mse, least.get(key, np.inf))
    records = [(panel, name, place, mse / least[ZERO, place]) for (name, place), mse in sorted(least.items())]
    return pl.DataFrame(records, schema=["panel", "baseline", "x", "relative_mse"], orient="row")


def study_frames() -> dict[str, pl.DataFrame]:
    """Returns the published study by row, and its winners and frontier by cell, to be written as CSV."""
    study = gridworld_study()
    family, best = study.setup.family, study.best(study.published)
    rows = [
        row._asdict() | {"config": json.dumps(row.config, sort_keys=True), "is_frontier": is_frontier}
        for row, is_frontier in zip(study.published, pareto_frontier(study.published), strict=True)
    ]
    cells = []
    for cell in study.frontiers:
        place = (cell.target, cell.behaviour)
        ns = [n for n in NUM_SAMPLES if best[*place, n] == family]
        cells.append(
            {"target": cell.target, "behaviour": cell.behaviour}
            | {f"best_at_{n}": best[*place, n] for n in STUDY_NS}
            | {f"{family}_best_for_n": f"{ns[0]} to {ns[-1]}" if ns else "never"}
            | {f"not_dominated_by_{family}": listed(cell.undominated)}
        )
    return {"study": pl.DataFrame(rows, infer_schema_length=None), "study-cells": pl.DataFrame(cells)}
