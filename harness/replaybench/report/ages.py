"""What each correction does to old and to new data, by the sign of the advantage."""

import polars as pl

from replaybench import plots
from replaybench.diagnostics import NEW_UPDATES, OLD_UPDATES
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material
from replaybench.report.words import from_to
from replaybench.results import lineage_intervals, lineage_means, metric_rows

BUCKETS = {
    "new_positive": "new\nA > 0",
    "new_negative": "new\nA < 0",
    "old_positive": "old\nA > 0",
    "old_negative": "old\nA < 0",
}
MEASURES = {
    "ess_token_raw": "ESS share (token, raw)",
    "kl_k3_token_raw": "KL to behaviour (k3)",
    "suppressed_share": "suppressed share",
    "near_zero_share": "near-zero share",
}


def draw_ages(material: Material) -> list[Drawing]:
    """Figure 3b: diagnostics by age of the data and sign of the advantage, one figure a replay ratio."""
    table = ages_table(material)
    drawings = []
    for ratio in material.sweep.spec.ratios():
        chosen = table.filter(pl.col("replay_ratio") == ratio)
        if not chosen.is_empty():
            drawings.append(_draw_ages_at(material, ratio, chosen))
    return drawings


def ages_table(material: Material) -> pl.DataFrame:
    """Returns each measure in each bucket, the mean over updates, with its interval over lineages of all data sets.

    Returns:
        replay_ratio, level, baseline, measure, bucket, value, low, high, n.
    """
    names = [(f"{measure}_{bucket}", measure, bucket) for measure in MEASURES for bucket in BUCKETS]
    place = ["replay_ratio", "level", "baseline", "metric"]
    rows = metric_rows(material.measured, [name for name, _, _ in names]).drop_nulls("level")
    means = lineage_means(rows, ["dataset", *place])
    known = pl.DataFrame(names, schema=["metric", "measure", "bucket"], orient="row")
    return lineage_intervals(means, place).join(known, on="metric", maintain_order="left").drop("metric")


def _draw_ages_at(material: Material, ratio: float, table: pl.DataFrame) -> Drawing:
    levels = [level for level in material.look.levels if level in set(table["level"])]
    measures = [measure for measure in MEASURES if measure in set(table["measure"])]
    figure, axes = plots.panels(len(measures), len(levels), width=3.1, height=1.9, share_x=True, share_y="row")
    for i, measure in enumerate(measures):
        for j, level in enumerate(levels):
            here = table.filter((pl.col("measure") == measure) & (pl.col("level") == level))
            plots.by_bucket(axes[i, j], here, BUCKETS, material.look)
            if i == 0:
                axes[i, j].set_title(level)
        axes[i, 0].set_ylabel(MEASURES[measure])
    counts = table["n"]
    note = (
        f"Replay ratio {ratio:g}: mean over updates and n = {from_to(counts.min(), counts.max())} lineages, 95 % t "  # type: ignore[arg-type]
        f"interval. Old: {OLD_UPDATES} updates of lag or more; new: up to {NEW_UPDATES}."
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = (
        f"{note} Suppressed: the correction leaves less than 0.001 of the ratio's weight; near zero: the weight itself "
        "is below 0.001. A bucket that a level never fills is empty."
    )
    name = f"3-ages-R{ratio:g}"
    return Drawing(name, f"By age and sign of the advantage, replay ratio {ratio:g}", caption, figure, table)
