"""Turns the records of a sweep into verdicts for the terminal and one self-contained page with figures and tables.

Every sentence is a template filled from a table; a verdict that the tables do not resolve is printed as such.
"""

import gc
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup

from replaybench import plots
from replaybench.record import SweepFolder
from replaybench.report.drawing import Drawing, ShownFigure
from replaybench.report.figures import draw, draw_one
from replaybench.report.material import Material, gather
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

    Figures are rendered in processes of their own: a script calls this under `if __name__ == "__main__":`.

    Args:
        collect_cost: Cost of an environment step in learner samples; as measured in the runs if it is not given.

    Raises:
        ConfigError: The folder holds no sweep.
        DataError: A record is damaged.
    """
    out = folder.path / "report"
    with plots.renderers() as start_rendering, _undisturbed():
        material = gather(folder, collect_cost)
        with plots.theme():
            drawn = [(drawing, start_rendering(drawing.figure)) for drawing in draw(material)]
        # While the figures are being rendered.
        tables = page_tables(material)
        for name, frame in csv_tables(material).items():
            _write(out / "tables" / f"{name}.csv", frame.write_csv().encode())
        shown = {
            drawing.name: _show(material, drawing, rendered.result(), f"f{number}", collect_cost)
            for number, (drawing, rendered) in enumerate(drawn)
        }
        index = out / "index.html"
        _write(index, render_page(material, shown, tables).encode())
        return Built(verdict_text=verdict_text(material), index=index)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps torch to this thread and the interpreter from looking for cycles: a third of the time of a large report.

    The renderers have the other processors, for which torch's threads would wait; figures and records, in millions of
    objects, stay to the end anyway.
    """
    threads, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def redraw_figure(folder: SweepFolder, name: str, to: Path, collect_cost: float | None = None) -> list[Path]:
    """Draws one figure of the report from the records and returns the files written: SVG, PNG, PDF and CSV.

    Raises:
        ConfigError: The folder holds no sweep, or its report no figure of that name.
    """
    with plots.theme():
        drawing = draw_one(gather(folder, collect_cost), name)
        return _write_figure(to, drawing, plots.render(drawing.figure))


def _show(
    material: Material, drawing: Drawing, rendered: plots.Rendered, ids: str, collect_cost: float | None
) -> ShownFigure:
    _write_figure(material.folder.path / "report" / "figures", drawing, rendered)
    svg = plots.inline_svg(rendered.svg, ids)
    command = ["replaybench", "report", "figure", os.path.relpath(material.folder.path), drawing.name]
    command += [] if collect_cost is None else ["--collect-cost", f"{collect_cost:g}"]
    return ShownFigure(drawing.name, drawing.title, drawing.caption, Markup(svg), shlex.join(command))


def _write_figure(folder: Path, drawing: Drawing, rendered: plots.Rendered) -> list[Path]:
    contents = {
        "svg": rendered.svg.encode(),
        "png": rendered.png,
        "pdf": rendered.pdf,
        "csv": drawing.table.write_csv().encode(),
    }
    paths = {folder / f"{drawing.name}.{suffix}": content for suffix, content in contents.items()}
    for path, content in paths.items():
        _write(path, content)
    return list(paths)
