"""What the commands share: options, parsing of values, tables on stdout and hints on stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

DataDir = Annotated[Path, typer.Option("--data", envvar="REPLAYBENCH_DATA", help="Folder that holds the logs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Workers = Annotated[Optional[int], typer.Option("--workers", min=1, help="Worker processes; default one a core.")]  # noqa: UP045
OutDir = Annotated[Optional[Path], typer.Option("--out", help="Results folder; default reports/<sweep>.")]  # noqa: UP045
OwnBaselines = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--baseline", help="A further baseline: a name or your own .py file. Repeatable."),
]
OwnDatasets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--dataset", help="Sweep this recipe, recipe file or folder of logs instead. Repeatable."),
]
DATA_DIR = Path("data")


def emit(value: Any, as_json: bool, title: str) -> None:
    """Prints rows (a list of flat dicts) as JSON or as a table."""
    if as_json:
        print(json.dumps(value, indent=1))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    rows = value if isinstance(value, list) else [value]
    for column in rows[0] if rows else []:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(item) for item in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(item: Any) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, dict):
        return ", ".join(f"{key}={_cell(value)}" for key, value in item.items())
    if isinstance(item, (list, tuple)):
        return ", ".join(map(_cell, item))
    return "" if item is None else str(item)


def hint(line: str) -> None:
    print(line, file=sys.stderr)


def numbers(text: str) -> list[float]:
    from replaybench.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"'{text}' is no list of numbers separated by commas.") from error


def key_values(pairs: list[str]) -> dict[str, Any]:
    from replaybench.errors import ConfigError

    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"'{pair}' must be KEY=VALUE.")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def worker_count(workers: int | None) -> int:
    import os

    return workers or len(os.sched_getaffinity(0))


def whole_numbers(text: str) -> list[int]:
    from replaybench.errors import ConfigError

    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise ConfigError(f"'{text}' is no list of whole numbers such as 0-5 or 0,3.") from error
    return numbers


def command_line() -> str:
    return " ".join(["replaybench", *sys.argv[1:]])
