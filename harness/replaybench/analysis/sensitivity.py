"""Compares corrections that a sweep runs at several settings: at equal width, and each at its own best setting.

A family is a baseline; an arm is a family at one learning rate and one value of its knob.
"""

import polars as pl

from replaybench.analysis.compare import DIFFERENCE_SCHEMA, LINEAGE, cell_means, paired_differences

ARM_SCHEMA: dict[str, type[pl.DataType]] = {
    "baseline": pl.String,
    "family": pl.String,
    "learning_rate": pl.Float64,
    "knob": pl.String,
    "knob_value": pl.Float64,
    "upper": pl.Float64,
}
# Knobs are written with a few digits; widths that agree to a thousandth of a nat are meant to be equal.
WIDTH_DECIMALS = 3


def matched_differences(runs: pl.DataFrame, arms: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Compares families with the reference family at equal upper half-weight log-ratio and equal learning rate.

    Args:
        runs: One row a run, as `compare.paired_differences` takes it; `baseline` names arms.
        arms: ARM_SCHEMA, one row an arm.
        reference: A family.

    Returns:
        learning_rate, upper, and the columns of `compare.paired_differences`, whose `baseline` names families; one
        block for each width and learning rate at which the reference and at least one other family stand. Holm's
        adjustment is over the families and settings of a block.
    """
    blocks = []
    rounded = arms.drop_nulls("upper").with_columns(pl.col("upper").round(WIDTH_DECIMALS))
    for (rate, upper), group in sorted(rounded.group_by("learning_rate", "upper")):
        if reference not in group["family"] or group["family"].n_unique() < 2:
            continue
        # Arms of one family can be equally wide and differ in another field; the first one stands for it.
        one_each = group.unique("family", keep="first", maintain_order=True)
        named = runs.join(one_each.select("baseline", "family"), on="baseline")
        table = paired_differences(named.drop("baseline").rename({"family": "baseline"}), reference)
        blocks.append(table.select(pl.lit(rate).alias("learning_rate"), pl.lit(upper).alias("upper"), pl.all()))
    schema: dict[str, type[pl.DataType]] = {"learning_rate": pl.Float64, "upper": pl.Float64, **DIFFERENCE_SCHEMA}
    return pl.concat(blocks) if blocks else pl.DataFrame(schema=schema)


def best_against_best(runs: pl.DataFrame, arms: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Compares families at their best settings, chosen without the lineage on which they are compared.

    For each lineage the arm is taken whose mean value over all settings of the *other* lineages is highest, so that the
    choice does not flatter a family with many arms.

    Returns:
        The columns of `compare.paired_differences`; `baseline` names families.
    """
    chosen = cross_fitted_choice(runs, arms)
    picked = runs.join(chosen.select(*LINEAGE, "baseline", "family"), on=[*LINEAGE, "baseline"])
    return paired_differences(picked.drop("baseline").rename({"family": "baseline"}), reference)


def cross_fitted_choice(runs: pl.DataFrame, arms: pl.DataFrame) -> pl.DataFrame:
    """Returns, for each lineage and family, the arm that was best on the mean over all other lineages.

    Returns:
        dataset, task, lineage, family, baseline (the arm), value, its mean over the settings of the other lineages.
    """
    trained = cell_means(runs).filter(pl.col("level").is_not_null()).join(arms, on="baseline")
    per_lineage = trained.group_by(*LINEAGE, "family", "baseline").agg(pl.col("value").mean())
    totals = per_lineage.group_by("family", "baseline").agg(total=pl.col("value").sum(), count=pl.len())
    # A lineage on which an arm failed still chooses among the arms by the others.
    lineages = per_lineage.select(LINEAGE).unique()
    everywhere = lineages.join(totals, how="cross").join(
        per_lineage, on=[*LINEAGE, "family", "baseline"], how="left", nulls_equal=True
    )
    others = everywhere.with_columns(
        others=(pl.col("total") - pl.col("value").fill_null(0.0))
        / (pl.col("count") - pl.col("value").is_not_null().cast(pl.Int64))
    ).filter(pl.col("others").is_finite())
    return (
        others.sort("others", "baseline", descending=[True, False])
        .group_by(*LINEAGE, "family", maintain_order=True)
        .first()
        .select(*LINEAGE, "family", "baseline", pl.col("others").alias("value"))
        .sort(*LINEAGE, "family")
    )
