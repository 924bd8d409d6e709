"""What a figure of the report consists of."""

from typing import NamedTuple

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure


class ShownFigure(NamedTuple):
    """A figure as the page needs it; `command` draws it again."""

    name: str
    title: str
    caption: str
    svg: Markup
    command: str


class Drawing(NamedTuple):
    """A figure, the table that it shows, and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure
    table: pl.DataFrame
