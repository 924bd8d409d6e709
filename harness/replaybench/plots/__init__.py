"""The report's figures: every function takes a table and an Axes and draws exactly what the table holds.

Colour and marker = baseline, the same in all figures; x = freshness or updates; bar or band = 95 % t interval over
lineages; small dots = lineages. Tables carry a column `kind`: "mean" rows have the interval, "lineage" rows are dots.
"""

from replaybench.plots.episode import contact_sheet
from replaybench.plots.levels import dataset_handles, level_measure
from replaybench.plots.render import Rendered, colour_css, inline_svg, render, renderers
from replaybench.plots.style import (
    COLOURS,
    COLOURS_ON_DARK,
    GREY,
    LINEAGE_DOT,
    MEAN,
    Look,
    Style,
    add_note,
    finish,
    log_where_positive,
    mark,
    panels,
    plain_log_ticks,
    styles,
    theme,
)
from replaybench.plots.success import (
    difference_forest,
    profiles,
    show_all_success,
    speed_up_forest,
    success_by_cost,
    success_by_level,
    success_by_width,
)
from replaybench.plots.theory import concentration, gradient_left, peaks
from replaybench.plots.training import along_knob, by_bucket, distances, metric_over_updates, zoom_to_values
from replaybench.plots.weights import (
    bias_variance,
    linear_near_zero,
    relative_error,
    sign_handles,
    weight_curves,
    weight_panel,
    wins_by_n,
)

__all__ = [
    "COLOURS",
    "COLOURS_ON_DARK",
    "GREY",
    "LINEAGE_DOT",
    "MEAN",
    "Look",
    "Rendered",
    "Style",
    "add_note",
    "along_knob",
    "bias_variance",
    "by_bucket",
    "colour_css",
    "concentration",
    "contact_sheet",
    "dataset_handles",
    "difference_forest",
    "distances",
    "finish",
    "gradient_left",
    "inline_svg",
    "level_measure",
    "linear_near_zero",
    "log_where_positive",
    "mark",
    "metric_over_updates",
    "panels",
    "peaks",
    "plain_log_ticks",
    "profiles",
    "relative_error",
    "render",
    "renderers",
    "show_all_success",
    "sign_handles",
    "speed_up_forest",
    "styles",
    "success_by_cost",
    "success_by_level",
    "success_by_width",
    "theme",
    "weight_curves",
    "weight_panel",
    "wins_by_n",
    "zoom_to_values",
]
