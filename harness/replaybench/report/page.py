"""Renders the page from the templates: one file, a section of it from each file in `sections/`."""

import os
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from replaybench import plots
from replaybench.paths import TEMPLATE_DIR
from replaybench.report.cells import Table
from replaybench.report.distances import walk_words
from replaybench.report.drawing import ShownFigure
from replaybench.report.efficiency import literature_words
from replaybench.report.gradients import gradient_words
from replaybench.report.gridworld import gridworld_study, study_words
from replaybench.report.knobs import knob_words
from replaybench.report.material import Material
from replaybench.report.theory import measured_theory, theory_words
from replaybench.report.verdict import conclusion, opening
from replaybench.report.words import plain, pooled

# In the order of the page; each is a file of its name, and one that renders to nothing is left out.
SECTIONS = {
    "overview": "Verdict",
    "differences": "Differences",
    "freshness": "Freshness",
    "replay-ratio": "Replay ratio",
    "sample-efficiency": "Sample efficiency",
    "bias-variance": "Bias and variance",
    "stability": "Stability",
    "sensitivity": "Sensitivity",
    "weights": "Weights",
    "data": "Data",
    "provenance": "Provenance",
}


class Section(NamedTuple):
    """A section of the page; `name` is its id."""

    name: str
    title: str
    content: Markup


def render_page(material: Material, figures: Mapping[str, ShownFigure], tables: Mapping[str, Table]) -> str:
    """Returns the page: one file that needs no other one and no network."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_DIR), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    content = _content(material, figures, tables)
    sections = []
    for name, title in SECTIONS.items():
        rendered = environment.get_template(f"sections/{name}.html").render(content).strip()
        if rendered:
            sections.append(Section(name, title, Markup(rendered)))
    colours = Markup(plots.colour_css(figure.svg for figure in figures.values()))
    return environment.get_template("index.html").render(
        name=material.sweep.spec.name, sections=sections, colours=colours
    )


def _content(material: Material, figures: Mapping[str, ShownFigure], tables: Mapping[str, Table]) -> dict[str, Any]:
    """Returns what the sections may show."""
    spec = material.sweep.spec
    missing = len(material.sweep.runs) - len(material.measured.finished)
    return {
        "description": spec.description,
        "reference": material.sweep.reference,
        "control": material.sweep.control,
        "arms_of_reference": sum(run.baseline == spec.reference for run in material.first_runs.values()),
        "levels": material.look.levels,
        "ratios": [f"{ratio:g}" for ratio in spec.ratios()],
        "datasets": material.datasets,
        "num_lineages": len(spec.lineages),
        "num_seeds": len(spec.seeds),
        "num_episodes": spec.evaluate.episodes,
        "num_planned": len(material.sweep.runs),
        "num_complete": len(material.measured.finished),
        "num_missing": missing,
        "opening": opening(material),
        "conclusion": conclusion(material),
        "detectable": _missed_range(material),
        "figures": figures,
        "literature": literature_words(material),
        "diagnostics": [figure for name, figure in figures.items() if name.startswith("3-diagnostics")],
        "ages": [figure for name, figure in figures.items() if name.startswith("3-ages")],
        "tables": tables,
        "study": study_words(gridworld_study()),
        "knobs": knob_words(),
        "walk": walk_words(material),
        "theory": theory_words(measured_theory()),
        "trains_on_logs": spec.buffered is None,
        "gradients": gradient_words(material),
        "measure_gradients": shlex.join(["replaybench", "report", "gradients", os.path.relpath(material.folder.path)]),
        "unread": material.facts.unread,
    }


def _missed_range(material: Material) -> str:
    limits = pooled(material.differences)["minimum_detectable"].drop_nulls().to_list()
    return f"{plain(min(limits))} to {plain(max(limits))}" if limits else ""
