"""The command line. Tables go to stdout, progress and warnings to stderr; heavy imports wait for the command."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from replaybench import __version__
from replaybench.errors import ReplayBenchError

if TYPE_CHECKING:
    from replaybench.plan import SweepSpec
    from replaybench.record import SweepFolder
    from replaybench.spec import RunSpec

EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Compare off-policy corrections on replayed robot trajectories.\n\nExample: replaybench sweep run smoke",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, check and describe logs of trajectories.")
baseline_app = typer.Typer(no_args_is_help=True, help="List corrections and evaluate their gradient coefficient.")
sweep_app = typer.Typer(no_args_is_help=True, help="Plan, run and watch sweeps.")
report_app = typer.Typer(no_args_is_help=True, help="Turn a sweep's results into a report.")
analyze_app = typer.Typer(no_args_is_help=True, help="Analyses that need no sweep.")
app.add_typer(data_app, name="data")
app.add_typer(baseline_app, name="baseline")
app.add_typer(sweep_app, name="sweep")
app.add_typer(report_app, name="report")
app.add_typer(analyze_app, name="analyze")

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


def main() -> NoReturn:
    """Runs the command line; an error that the user can mend is one line, without a traceback."""
    try:
        # Outside standalone mode typer returns the exit code instead of leaving with it.
        code = app(standalone_mode=False) or 0
    except ReplayBenchError as error:
        print(f"replaybench: {error}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        # Usage errors know how to print themselves.
        if not hasattr(error, "show"):
            raise
        error.show()
        code = EXIT_BAD_INPUT
    if code == EXIT_INTERRUPTED:
        print("replaybench: interrupted. Run the same command again to go on.", file=sys.stderr)
    sys.exit(code)


def _emit(value: Any, as_json: bool, title: str) -> None:
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
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, dict):
        return ", ".join(f"{key}={_cell(value)}" for key, value in item.items())
    if isinstance(item, (list, tuple)):
        return ", ".join(map(_cell, item))
    return "" if item is None else str(item)


def _next(line: str) -> None:
    print(line, file=sys.stderr)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check that this machine can run a sweep.

    Example: replaybench doctor
    """
    from replaybench.doctor import examine

    checks = examine()
    _emit([check._asdict() for check in checks], as_json, "This machine")
    if not all(check.ok for check in checks):
        raise typer.Exit(EXIT_SOME_FAILED)
    _next("Next: replaybench sweep run smoke")


@baseline_app.command("ls")
def baseline_ls(as_json: AsJson = False) -> None:
    """List the off-policy corrections.

    Example: replaybench baseline ls
    """
    from replaybench.baseline import baseline_paths, describe, load_baseline

    rows = [describe(load_baseline(name)) for name in baseline_paths()]
    _emit(rows, as_json, "Baselines")


@baseline_app.command("show")
def baseline_show(name: str, as_json: AsJson = False) -> None:
    """Show a correction's file, settings and origin.

    Example: replaybench baseline show gipo
    """
    from replaybench.baseline import config_record, describe, load_baseline

    baseline = load_baseline(name)
    if as_json:
        print(
            json.dumps(describe(baseline) | {"defaults": config_record(baseline.config()), "path": str(baseline.path)})
        )
    else:
        print(baseline.path.read_text(encoding="utf-8"))


@baseline_app.command("coef")
def baseline_coef(
    name: str,
    log_ratio: Annotated[str, typer.Option(help="Log-ratios, separated by commas.")] = "-3,-2,-1,-0.5,0,0.5,1,2,3",
    advantage: Annotated[float, typer.Option(help="Advantage; its sign matters.")] = 1.0,
    settings: Annotated[Optional[list[str]], typer.Option("--set", help="KEY=VALUE of the Config.")] = None,  # noqa: UP045
    log_mu: Annotated[float, typer.Option(help="log mu of the action, for corrections that read probabilities.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Print the gradient coefficient c(l, A) that multiplies A * grad log pi.

    Example: replaybench baseline coef gipo --log-ratio=-3,-1,0,1,3 --advantage=1 --set sigma=0.5
    """
    import torch

    from replaybench.baseline import gradient_coefficient, load_baseline
    from replaybench.errors import ConfigError

    baseline = load_baseline(name)
    config = baseline.config(_key_values(settings or []))
    values = torch.tensor(_numbers(log_ratio), dtype=torch.float64)
    if baseline.declaration.discrete_only and float(values.max()) + log_mu > 0:
        raise ConfigError(
            f"Baseline '{name}' reads probabilities: choose --log-mu so that log_mu + l is at most 0 for every l."
        )
    coefficient = gradient_coefficient(baseline, config, values, advantage, log_mu=log_mu).tolist()
    if as_json:
        print(json.dumps({"log_ratio": values.tolist(), "coef": coefficient}))
    else:
        rows = [{"log_ratio": l, "coef": c} for l, c in zip(values.tolist(), coefficient, strict=True)]
        _emit(rows, False, f"{name} at A={advantage:g}")


def _numbers(text: str) -> list[float]:
    from replaybench.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"'{text}' is no list of numbers separated by commas.") from error


def _key_values(pairs: list[str]) -> dict[str, Any]:
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


@data_app.command("ls")
def data_ls(data: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List the recipes and which lineages are made.

    Example: replaybench data ls
    """
    from replaybench.inventory import list_data

    _emit(list_data(data), as_json, f"Data in {data}")


@data_app.command("make")
def data_make(
    name: str,
    lineages: Annotated[str, typer.Option(help="Lineages, e.g. 0-5 or 0,3.")] = "0-5",
    data: DataDir = DATA_DIR,
    workers: Workers = None,
) -> None:
    """Make the logs of a recipe: warm start, RL, and logged episodes of every freshness level.

    Example: replaybench data make button-press-topdown --lineages 0-5
    """
    from replaybench.plan import Source
    from replaybench.progress import listening
    from replaybench.recipe import load_recipe
    from replaybench.sweep import make_data

    recipe = load_recipe(name)
    source = Source(recipe.name, data / recipe.name, recipe)
    with listening() as listen:
        make_data([source], _whole_numbers(lineages), _workers(workers), _command(), listen)
    _next(f"Next: replaybench data info {name}")


@data_app.command("info")
def data_info(name: str, data: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Show what was measured on each freshness level of each lineage.

    Example: replaybench data info button-press-topdown
    """
    from replaybench.inventory import describe_data

    _emit(describe_data(data, name), as_json, f"Levels of {name} (KL in nats a token, to the start policy)")


@data_app.command("verify")
def data_verify(name: str, data: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Check every byte and every episode of a data set against its cards.

    Example: replaybench data verify button-press-topdown
    """
    from replaybench.inventory import log_folders
    from replaybench.store import verify

    rows = [{"folder": str(folder), "files_that_match": len(verify(folder))} for folder in log_folders(data, name)]
    _emit(rows, as_json, f"Files of {name} that match their cards")
    _next(f"Next: every file is sound; replaybench data info {name}")


@sweep_app.command("ls")
def sweep_ls(as_json: AsJson = False) -> None:
    """List the presets.

    Example: replaybench sweep ls
    """
    from replaybench.plan import load_sweep, preset_paths

    rows = [{"preset": name, "description": load_sweep(name).description} for name in preset_paths()]
    _emit(rows, as_json, "Presets")


@sweep_app.command("plan")
def sweep_plan(
    name: str,
    baseline: OwnBaselines = None,
    dataset: OwnDatasets = None,
    data: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show what a sweep would run and what it would cost on this machine, without running it.

    Example: replaybench sweep plan paper-stale
    """
    from replaybench.plan import check, load_sweep, sources
    from replaybench.price import price

    spec = load_sweep(name, tuple(baseline or ()), tuple(dataset or ()))
    found = sources(spec, data)
    _emit(price(spec, found, check(spec, found)), as_json, f"Plan of {spec.name}")
    _next(f"Next: replaybench sweep run {name}")


@sweep_app.command("run")
def sweep_run(
    name: str,
    out: OutDir = None,
    baseline: OwnBaselines = None,
    dataset: OwnDatasets = None,
    data: DataDir = DATA_DIR,
    only: Annotated[Optional[str], typer.Option(help="Only runs whose id contains this.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many runs.")] = None,  # noqa: UP045
    workers: Workers = None,
    report: Annotated[bool, typer.Option(help="Build the report at the end.")] = True,
) -> None:
    """Run a sweep: make missing logs, run missing runs, build the report. Run it again to resume.

    Example: replaybench sweep run smoke --baseline mine.py --out reports/mine
    """
    from replaybench.plan import load_sweep
    from replaybench.record import SweepFolder

    spec = load_sweep(name, tuple(baseline or ()), tuple(dataset or ()))
    _sweep(spec, SweepFolder(out or Path("reports") / spec.name), data, only, limit, _workers(workers), report)


@sweep_app.command("retry")
def sweep_retry(
    out: Path,
    workers: Workers = None,
    report: Annotated[bool, typer.Option(help="Build the report at the end.")] = True,
) -> None:
    """Run the failed runs of a sweep again.

    Example: replaybench sweep retry reports/default
    """
    from replaybench.progress import listening
    from replaybench.record import SweepFolder
    from replaybench.sweep import due_runs, retry_failed, run_sweep

    folder = SweepFolder(out)
    planned = folder.runs()
    with folder.lock():
        print(f"{retry_failed(folder)} failed runs are due again", file=sys.stderr)
        with listening() as listen:
            run_sweep(folder, due_runs(folder, planned, None, None), _workers(workers), listen)
    _finish(folder, planned, report)


@sweep_app.command("status")
def sweep_status(out: Path, as_json: AsJson = False) -> None:
    """Show how far a sweep is and why runs failed.

    Example: replaybench sweep status reports/default
    """
    from replaybench.record import SweepFolder
    from replaybench.sweep import iterate_status

    folder = SweepFolder(out)
    rows = [
        {
            "baseline": baseline,
            "complete": complete,
            "failed": failed,
            "missing": total - complete - failed,
            "planned": total,
        }
        for baseline, complete, failed, total in iterate_status(folder, folder.runs())
    ]
    _emit(rows, as_json, f"Sweep in {out}")
    for failure in folder.failures():
        print(f"failed: {failure['run_id']}: {failure['reason']}", file=sys.stderr)


@sweep_app.command("choose")
def sweep_choose(
    out: Path,
    write: Annotated[Optional[Path], typer.Option(help="Write the settings as a tuned preset.")] = None,  # noqa: UP045
    as_json: AsJson = False,
) -> None:
    """Choose each baseline's best trial, the mean over datasets, lineages, levels and ratios.

    Example: replaybench sweep choose reports/tune --write harness/replaybench/presets/tuned/default.toml
    """
    from replaybench.record import SweepFolder
    from replaybench.tuned import choices, write_tuned

    folder = SweepFolder(out)
    chosen = choices(folder)
    _emit([choice._asdict() for choice in chosen], as_json, f"Best of the trials in {out}")
    if write is not None:
        write_tuned(write, folder, chosen)
        _next(f"Next: commit {write}, then replaybench sweep run default")


@report_app.command("build")
def report_build(out: Path) -> None:
    """Build the report of a sweep from its records.

    Example: replaybench report build reports/default
    """
    from replaybench.record import SweepFolder

    folder = SweepFolder(out)
    _finish(folder, folder.runs(), build=True)


@analyze_app.command("bias-variance")
def analyze_bias_variance(
    dataset: Annotated[str, typer.Option(help="'gridworld' (exact), a data set, or a folder of logs.")] = "gridworld",
    baseline: OwnBaselines = None,
    level: Annotated[Optional[list[str]], typer.Option(help="Freshness level; default all. Repeatable.")] = None,  # noqa: UP045
    lineages: Annotated[Optional[str], typer.Option(help="Lineages, e.g. 0-5; default all.")] = None,  # noqa: UP045
    n: Annotated[str, typer.Option("--n", help="Numbers of samples (episodes of a log) averaged over.")] = "",
    knob: Annotated[bool, typer.Option("--knob", help="Each baseline along its knob, not as tuned.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Which episodes fit the value function.")] = 0,
    data: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Bias and variance of the gradient estimators: exact in the 2x2 GridWorld, by Monte Carlo on a log.

    On a log bias2_weight is against importance sampling on the same decisions, bias2_data that against the start
    policy's own episodes, and n counts episodes. Intervals are 95 %, over the episodes of one lineage.

    Example: replaybench analyze bias-variance --dataset button-press-topdown --lineages 0 --level lag100 --n 1,64
    """
    from replaybench.gradient_study import EXACT
    from replaybench.study import gridworld_rows

    ns = tuple(_whole_numbers(n)) if n else ()
    if dataset == EXACT:
        rows = gridworld_rows(tuple(baseline or ()))
        if ns or as_json:
            _emit([row for row in rows if not ns or row["n"] in ns], as_json, "Exact bias and variance")
        else:
            _emit([row for row in rows if row["n"] == 1], False, "Exact bias and variance, one sample")
        return
    _analyze_logs(dataset, baseline, level, lineages, ns, knob, seed, data, as_json)


def _analyze_logs(
    dataset: str,
    baseline: list[str] | None,
    level: list[str] | None,
    lineages: str | None,
    ns: tuple[int, ...],
    knob: bool,
    seed: int,
    data: Path,
    as_json: bool,
) -> None:
    from replaybench.gradient_study import open_logs, preset_methods, preset_settings, readable, study_logs

    logs = open_logs(data, dataset, _whole_numbers(lineages) if lineages else None)
    methods = preset_methods(baseline or (), along_knob=knob)
    rows = study_logs(logs, level or (), methods, preset_settings(ns, seed), _next)
    _emit(rows if as_json else readable(rows), as_json, f"Bias and variance of the gradient on {dataset}")


def _sweep(
    spec: "SweepSpec",
    folder: "SweepFolder",
    data: Path,
    only: str | None,
    limit: int | None,
    workers: int,
    build: bool,
) -> None:
    from replaybench.plan import check, sources
    from replaybench.progress import listening
    from replaybench.sweep import claim, due_runs, make_data, run_sweep

    found = sources(spec, data)
    check(spec, found)
    with folder.lock(), listening() as listen:
        folder.refuse_foreign(spec.model_dump(mode="json"))
        make_data(found, spec.lineages, workers, _command(), listen)
        planned = claim(folder, spec, found)
        run_sweep(folder, due_runs(folder, planned, only, limit), workers, listen)
    _finish(folder, planned, build)


def _finish(folder: "SweepFolder", planned: "list[RunSpec]", build: bool) -> None:
    """Prints the verdicts, builds the report, and exits 1 if runs failed."""
    failures = folder.failures()
    for failure in failures:
        print(f"failed: {failure['run_id']}: {failure['reason']}", file=sys.stderr)
    complete = sum(folder.is_complete(run.run_id()) for run in planned)
    print(f"{complete} of {len(planned)} runs complete, {len(failures)} failed", file=sys.stderr)
    if build and complete:
        from replaybench.report import build_report

        built = build_report(folder)
        print(built.verdict_text)
        print(f"Report: {built.index}")
    if failures:
        _next(f"Next: replaybench sweep retry {folder.path}")
        raise typer.Exit(EXIT_SOME_FAILED)


def _workers(workers: int | None) -> int:
    import os

    return workers or len(os.sched_getaffinity(0))


def _whole_numbers(text: str) -> list[int]:
    from replaybench.errors import ConfigError

    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise ConfigError(f"'{text}' is no list of whole numbers such as 0-5 or 0,3.") from error
    return numbers


def _command() -> str:
    return " ".join(["replaybench", *sys.argv[1:]])
