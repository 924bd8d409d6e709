"""A figure as PNG, PDF and SVG; in a page an SVG follows the light or dark theme, and its marks say what they show."""

import gc
import io
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from replaybench.plots.style import on_dark, theme


class Rendered(NamedTuple):
    """A figure in its three formats."""

    png: bytes
    pdf: bytes
    svg: str


@contextmanager
def renderers() -> Iterator[Callable[[Figure], "Future[Rendered]"]]:
    """Yields what renders a figure in another process, one a processor; they start at once."""
    count = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_prepare) as processes:
        # A process starts with the first thing that it is asked, and then takes seconds to load what it draws with.
        for _ in range(count):
            processes.submit(os.getpid)
        yield lambda figure: processes.submit(render, figure)


def _prepare() -> None:
    # A process renders a few figures and ends; looking for cycles among their objects takes longer than it frees.
    gc.disable()


def render(figure: Figure) -> Rendered:
    """Returns the figure as PNG (200 dpi), PDF and SVG; the same figure gives the same bytes."""
    png, pdf, svg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with theme():
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
        # Solved once; and the canvases are called directly because savefig draws everything twice.
        figure.set_layout_engine("none")
        figure.set_dpi(200)
        to_png: Any = FigureCanvasAgg(figure)
        to_png.print_png(png, metadata={"Software": None})
        to_pdf: Any = FigureCanvasPdf(figure)
        to_pdf.print_pdf(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
        to_svg: Any = FigureCanvasSVG(figure)
        to_svg.print_svg(svg, metadata={"Date": None, "Creator": None})
    return Rendered(png.getvalue(), pdf.getvalue(), _with_marks(svg.getvalue().decode()))


def _with_marks(document: str) -> str:
    """Turns the addresses that `mark` gave to artists into titles, which browsers show on hovering."""
    opened = re.sub(r'<a xlink:href="([^"]*)"[^>]*>', r'<g class="mark"><title>\1</title>', document)
    return opened.replace("</a>", "</g>")


def inline_svg(document: str, name: str) -> str:
    """Returns the <svg> element of a document for use inside a page, whose font it takes and whose theme it follows.

    Args:
        name: Prefix of the element's ids, which must differ between the figures of a page.
    """
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", element, flags=re.DOTALL)
    # A quarter of the bytes is indentation, names of groups that nothing refers to, and digits that nobody sees.
    element = re.sub(r">\s+<", "><", element)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = element.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    # A hundredth of a point is finer than any screen; transforms stay exact.
    element = re.sub(r' (?:d|x|y)="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", _hundredth, path[0]), element)
    element = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", element)
    element = re.sub(r"(fill|stroke): #([0-9a-f]{6})", r"\1: var(--c\2)", element)
    # The page chooses the width and needs to know the natural one; the viewBox keeps the proportions.
    opening, rest = element.split(">", 1)
    width = re.search(r' width="([0-9.]+)pt"', opening)
    natural = f' style="--natural: {width[1]}pt"' if width else ""
    return re.sub(r' (width|height)="[^"]*"', "", opening) + natural + ">" + rest


def colour_css(elements: Iterable[str]) -> str:
    """Returns the style sheet that defines the colours of inline elements, for a light and for a dark page."""
    used = sorted({colour for element in elements for colour in re.findall(r"var\(--c([0-9a-f]{6})\)", element)})
    light = "".join(f"--c{colour}:#{colour};" for colour in used)
    dark = "".join(f"--c{colour}:{on_dark(f'#{colour}')};" for colour in used)
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _hundredth(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
