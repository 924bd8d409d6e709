"""Where training took the policy: towards the log or away from the start, and which part of the gradient did it."""

from functools import lru_cache

import polars as pl

from replaybench.report.cells import Cell, Table, number
from replaybench.report.material import Material
from replaybench.report.words import counted, mean_fact, short
from replaybench.results import lineage_means, metric_rows

BACK, TO_LOG, TO_START = "score_share_back", "end_kl_k3_behaviour", "end_kl_start"
MEASURES = {
    BACK: "share of |h| that moves back",
    TO_LOG: "KL to the log, k3",
    TO_START: "KL from the start",
    "end_abs_log_ratio_p95_behaviour": "P95 |l| to the log",
    "end_abs_log_ratio_p95_start": "P95 |l| to the start",
}
# Below this KL(mu || start) in nats there is nowhere to walk back to.
OFF_POLICY = 1e-3


@lru_cache(maxsize=1)
def distance_means(material: Material) -> pl.DataFrame:
    """Returns each measure's mean over lineages, every data set with equal weight, and over updates where it has many.

    Returns:
        level, replay_ratio, baseline, n lineages, and a column for each measure.
    """
    place = ["level", "replay_ratio", "baseline"]
    # A control makes no update and has no distance.
    rows = metric_rows(material.measured, list(MEASURES)).drop_nulls("level")
    if rows.is_empty():
        return pl.DataFrame(schema=dict.fromkeys(place, pl.String) | dict.fromkeys(MEASURES, pl.Float64))
    by_lineage = lineage_means(rows, ["dataset", *place, "metric"])
    means = by_lineage.group_by("dataset", *place, "metric").agg(pl.col("value").mean(), n=pl.len().cast(pl.Int64))
    pooled = means.group_by(*place, "metric").agg(pl.col("value").mean(), pl.col("n").sum())
    wide = pooled.pivot(on="metric", index=[*place, "n"], values="value").sort(*place)
    return wide.with_columns(pl.lit(None, pl.Float64).alias(name) for name in MEASURES if name not in wide.columns)


def walk_words(material: Material) -> list[str]:
    """Returns whether the reference walks back to the log where the others do not, every number computed."""
    means, reference = distance_means(material), material.sweep.reference
    found = []
    for (level, ratio), cell in means.group_by("level", "replay_ratio", maintain_order=True):
        start = mean_fact(material.facts.frame, "kl", str(level))
        if start is not None and start > OFF_POLICY and reference in cell["baseline"] and len(cell) > 1:
            found.append((f"{level} at replay ratio {ratio:g}", start, cell))
    if not found:
        return []
    nearest = sum(_first(cell, TO_LOG) == reference for _, _, cell in found)
    farthest = sum(_first(cell, TO_START, descending=True) == reference for _, _, cell in found)
    most_back = sum(_first(cell, BACK, descending=True) == reference for _, _, cell in found)
    words = [
        f"On {counted(len(found), 'off-policy cell')} {reference} ends nearest of all to the log in {nearest}, "
        f"farthest from its start in {farthest}, and has the largest share of |h| that moves back in {most_back}."
    ]
    for place, start, cell in found:
        own = cell.row(by_predicate=pl.col("baseline") == reference, named=True)
        others = cell.filter(pl.col("baseline") != reference)
        ranges = {name: f"{short(_low(others, name))} to {short(_high(others, name))}" for name in MEASURES}
        words.append(
            f"{place}: {reference} walks from KL {short(start)} of the log to {short(own[TO_LOG])} (the others end at "
            f"{ranges[TO_LOG]}) and to {short(own[TO_START])} from its start ({ranges[TO_START]}); the share that "
            f"moves back is {short(own[BACK])} ({ranges[BACK]}); n = {own['n']} lineages."
        )
    return words


def _first(cell: pl.DataFrame, measure: str, *, descending: bool = False) -> str:
    return str(cell.sort(measure, descending=descending, nulls_last=True)["baseline"][0])


def _low(table: pl.DataFrame, measure: str) -> float:
    return float(table[measure].to_numpy().min())


def _high(table: pl.DataFrame, measure: str) -> float:
    return float(table[measure].to_numpy().max())


def distances_table(material: Material) -> Table:
    """Returns where every correction ended on every level."""
    order = {level: place for place, level in enumerate(material.look.levels)}
    rows = [
        [
            Cell(row["baseline"], row["baseline"], "name"),
            Cell(row["level"], order[row["level"]]),
            number(row["replay_ratio"], "g"),
            *(number(row[name], ".3g") for name in MEASURES),
            number(row["n"], "d"),
        ]
        for row in distance_means(material).to_dicts()
    ]
    headings = ["baseline", "level", "replay ratio", *MEASURES.values(), "n"]
    note = (
        "Means over lineages, each data set with equal weight; the share is the mean over training, 0.5 is no "
        "preference. l to the log or to the start after training, action tokens on the replayed states."
    )
    return Table("distances", "Where the policy went", headings, rows, note, "distances")
