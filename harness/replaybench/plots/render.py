"""A figure as PNG, PDF and inline SVG."""

import io
import re
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from replaybench.plots.style import (
    theme,
)


class Rendered(NamedTuple):
    """A figure in its three formats; `svg` is an element that can stand in a page."""

    png: bytes
    pdf: bytes
    svg: str


def render(figure: Figure, name: str) -> Rendered:
    """Returns the figure as PNG (200 dpi), PDF and inline SVG; the same figure gives the same bytes.

    Args:
        name: Prefix of the SVG's ids, which must differ between the figures of a page.
    """
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    # Solved once; and the canvases are called directly because savefig draws everything twice.
    figure.set_layout_engine("none")
    png, pdf, svg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with theme():
        figure.set_dpi(200)
        to_png: Any = FigureCanvasAgg(figure)
        to_png.print_png(png, metadata={"Software": None})
        to_pdf: Any = FigureCanvasPdf(figure)
        to_pdf.print_pdf(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
        to_svg: Any = FigureCanvasSVG(figure)
        to_svg.print_svg(svg, metadata={"Date": None, "Creator": None})
    return Rendered(png.getvalue(), pdf.getvalue(), inline_svg(svg.getvalue().decode(), name))


def inline_svg(document: str, name: str) -> str:
    """Returns the <svg> element of a document for use inside a page: no prologue, no metadata, ids of its own."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = element.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    # A hundredth of a point is finer than any screen; glyph outlines are whole numbers, transforms stay exact.
    element = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", _hundredth, path[0]), element)
    # The page chooses the width and needs to know the natural one; the viewBox keeps the proportions.
    opening, rest = element.split(">", 1)
    width = re.search(r' width="([0-9.]+)pt"', opening)
    natural = f' style="--natural: {width[1]}pt"' if width else ""
    return re.sub(r' (width|height)="[^"]*"', "", opening) + natural + ">" + rest


def _hundredth(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
