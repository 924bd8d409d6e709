"""Renders the page from the template."""

from collections.abc import Mapping

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from replaybench.paths import TEMPLATE
from replaybench.report.cells import Table
from replaybench.report.distances import walk_words
from replaybench.report.drawing import ShownFigure
from replaybench.report.efficiency import literature_sentence
from replaybench.report.gridworld import gridworld_study, study_words
from replaybench.report.knobs import knob_words
from replaybench.report.material import Material, first_runs
from replaybench.report.theory import measured_theory, theory_words
from replaybench.report.verdict import conclusion
from replaybench.report.words import plain, pooled


def render_page(material: Material, figures: Mapping[str, ShownFigure], tables: Mapping[str, Table]) -> str:
    """Returns the page: one file that needs no other one and no network."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    spec = material.sweep.spec
    missing = len(material.sweep.runs) - material.num_complete
    return environment.get_template(TEMPLATE.name).render(
        name=spec.name,
        description=spec.description,
        reference=material.sweep.reference,
        control=material.sweep.control,
        arms_of_reference=sum(run.baseline == spec.reference for run in first_runs(material.sweep).values()),
        levels=material.look.levels,
        ratios=[f"{ratio:g}" for ratio in spec.ratios()],
        datasets=material.datasets,
        num_lineages=len(spec.lineages),
        num_seeds=len(spec.seeds),
        num_episodes=spec.evaluate.episodes,
        num_planned=len(material.sweep.runs),
        num_complete=material.num_complete,
        num_missing=missing,
        conclusion=conclusion(material),
        detectable=_missed_range(material),
        figures=figures,
        literature=literature_sentence(material),
        diagnostics=[figure for name, figure in figures.items() if name.startswith("3-diagnostics")],
        tables=tables,
        study=study_words(gridworld_study()),
        knobs=knob_words(),
        walk=walk_words(material),
        theory=theory_words(measured_theory()),
        unread=material.facts.unread,
    )


def _missed_range(material: Material) -> str:
    limits = pooled(material.differences)["minimum_detectable"].drop_nulls().to_list()
    return f"{plain(min(limits))} to {plain(max(limits))}" if limits else ""
