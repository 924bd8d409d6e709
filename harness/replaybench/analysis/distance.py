"""Compares corrections at equal distance to the start policy: who gains more from a policy that moved as far.

A method that moves further has more to gain and to lose: settings compared at one learning rate confound the
direction of a step with its length.
"""

import numpy as np
import polars as pl

from replaybench.analysis.compare import DIFFERENCE_SCHEMA, LINEAGE, SETTING, paired_differences

# KL(start || end) in nats of an action token.
TARGETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def at_distance(points: pl.DataFrame, target: float) -> pl.DataFrame:
    """Returns each family's value at one distance, interpolated between its settings within the lineage and setting.

    Linear in the square root of the KL, which is a length. The start policy itself is the point at distance 0. A family
    none of whose settings went as far has no row: nothing is extrapolated.

    Args:
        points: dataset, task, lineage, level, replay_ratio, family, distance, value; start, the start policy's value.

    Returns:
        The columns of `compare.RUN_SCHEMA`; `baseline` names families.
    """
    rows = []
    place = [*LINEAGE, *SETTING, "family"]
    for key, group in sorted(points.group_by(place)):
        reached = group.sort("distance")
        if float(reached["distance"][-1]) < target:
            continue
        lengths = np.sqrt(np.array([0.0, *reached["distance"]]))
        values = np.array([reached["start"][0], *reached["value"]])
        rows.append((*key, float(np.interp(np.sqrt(target), lengths, values))))
    schema = {name: points.schema[name] for name in place} | {"value": pl.Float64()}
    found = pl.DataFrame(rows, schema=schema, orient="row")
    return found.rename({"family": "baseline"}).with_columns(seed=pl.lit(0, pl.Int64))


def distance_differences(points: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Compares families with the reference family at each distance of TARGETS that both reach.

    Returns:
        distance and the columns of `compare.paired_differences`; num_missing counts lineages on which one of the two
        did not move as far. Holm's adjustment is over the families and settings of a distance.
    """
    blocks = []
    for target in TARGETS:
        values = at_distance(points, target)
        if reference in values["baseline"] and values["baseline"].n_unique() > 1:
            table = paired_differences(values, reference)
            blocks.append(table.select(pl.lit(target).alias("distance"), pl.all()))
    schema: dict[str, type[pl.DataType]] = {"distance": pl.Float64, **DIFFERENCE_SCHEMA}
    return pl.concat(blocks) if blocks else pl.DataFrame(schema=schema)
