"""What a table of the page consists of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from replaybench.analysis.compare import BETTER, WORSE


class Cell(NamedTuple):
    """One cell of a table in the page: what is shown, what sorts, and its CSS classes."""

    text: str
    sort: str | float = ""
    css: str = ""


class Table(NamedTuple):
    """A table of the page; `csv` names the file that holds all its columns."""

    name: str
    title: str
    headings: list[str]
    rows: list[list[Cell]]
    note: str = ""
    csv: str = ""


def verdict_cell(row: Mapping[str, Any], show: Callable[[Mapping[str, Any]], str]) -> Cell:
    """Returns an estimate as `show` writes it, marked by its verdict."""
    # Colour is never the only sign: the arrow says the same.
    mark, css = {BETTER: ("\u25b2 ", "better"), WORSE: ("\u25bc ", "worse")}.get(row["verdict"], ("", "unresolved"))
    return Cell(mark + show(row), sortable(row["estimate"]), f"number {css}")


def sortable(value: float | None) -> str | float:
    """Returns what a cell is sorted by; nothing comes last."""
    return "" if value is None else value


def number(value: float | None, form: str) -> Cell:
    """Returns a number in a format, or a dash."""
    return Cell("-" if value is None else format(value, form), sortable(value), "number")
