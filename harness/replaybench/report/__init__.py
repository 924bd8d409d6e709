"""Turns the records of a sweep into verdicts for the terminal and one self-contained page with figures and tables.

Every sentence is a template filled from a table; a verdict that the tables do not resolve is printed as such.
"""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from replaybench import plots
from replaybench.record import SweepFolder
from replaybench.report.drawing import Drawing, ShownFigure
from replaybench.report.figures import draw
from replaybench.report.material import gather
from replaybench.report.page import render_page
from replaybench.report.tables import csv_tables, page_tables
from replaybench.report.verdict import verdict_text
from replaybench.store import atomic_write


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build leaves: the verdicts for the terminal and the page."""

    verdict_text: str
    index: Path


def build_report(folder: SweepFolder, collect_cost: float | None = None) -> Built:
    """Builds <folder>/report from the records of the finished runs.

    Args:
        collect_cost: Cost of an environment step in learner samples; as measured in the runs if it is not given.

    Raises:
        ConfigError: The folder holds no sweep.
        DataError: A record is damaged.
    """
    material = gather(folder, collect_cost)
    out = folder.path / "report"
    with plots.theme():
        drawings = draw(material)
        shown = {drawing.name: _write_figure(out, drawing) for drawing in drawings}
    tables = page_tables(material)
    for name, frame in csv_tables(material).items():
        _write(out / "tables" / f"{name}.csv", frame.write_csv().encode())
    index = out / "index.html"
    _write(index, render_page(material, shown, tables).encode())
    return Built(verdict_text=verdict_text(material), index=index)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _write_figure(out: Path, drawing: Drawing) -> ShownFigure:
    rendered = plots.render(drawing.figure, f"figure-{drawing.name.replace('.', '-')}")
    for suffix, content in (
        ("png", rendered.png),
        ("pdf", rendered.pdf),
        ("csv", drawing.table.write_csv().encode()),
    ):
        _write(out / "figures" / f"{drawing.name}.{suffix}", content)
    return ShownFigure(drawing.name, drawing.title, drawing.caption, Markup(rendered.svg))
