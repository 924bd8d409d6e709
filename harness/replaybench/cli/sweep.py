"""`replaybench sweep` and `replaybench report`: plans, runs and their reports."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from replaybench.cli.terminal import (
    DATA_DIR,
    EXIT_SOME_FAILED,
    AsJson,
    DataDir,
    OutDir,
    OwnBaselines,
    OwnDatasets,
    Workers,
    command_line,
    emit,
    hint,
    whole_numbers,
    worker_count,
)

if TYPE_CHECKING:
    from replaybench.executor_ray import Cluster
    from replaybench.record import SweepFolder
    from replaybench.spec import Resources, RunSpec

WATCH_S = 1.0

Executor = Annotated[
    Literal["pool", "ray"], typer.Option(help="Processes on this machine, or a Ray cluster (extra `ray`).")
]
Address = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Ray cluster: 'auto' or HOST:PORT of a running one; default one on this machine."),
]

sweep_app = typer.Typer(no_args_is_help=True, help="Plan, run and watch sweeps.")
report_app = typer.Typer(no_args_is_help=True, help="Turn a sweep's results into a report.")


@sweep_app.command("ls")
def sweep_ls(as_json: AsJson = False) -> None:
    """List the presets.

    Example: replaybench sweep ls
    """
    from replaybench.plan import load_sweep, preset_paths

    rows = [{"preset": name, "description": load_sweep(name).description} for name in preset_paths()]
    emit(rows, as_json, "Presets")


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
    emit(price(spec, found, check(spec, found)), as_json, f"Plan of {spec.name}")
    hint(f"Next: replaybench sweep run {name}")


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
    executor: Executor = "pool",
    address: Address = None,
    report: Annotated[bool, typer.Option(help="Build the report at the end.")] = True,
) -> None:
    """Run a sweep: make missing logs, run missing runs, build the report. Run it again to resume.

    Example: replaybench sweep run smoke --baseline mine.py --out reports/mine
    """
    from replaybench.plan import check, load_sweep, sources
    from replaybench.progress import listening
    from replaybench.record import SweepFolder
    from replaybench.sweep import claim, due_runs, make_data, renew_unread, run_sweep
    from replaybench.sweep_gradients import measure_due_gradients

    spec = load_sweep(name, tuple(baseline or ()), tuple(dataset or ()))
    runner = _runner(executor, address, worker_count(workers), spec.resources)
    folder = SweepFolder(out or Path("reports") / spec.name)
    found = sources(spec, data)
    check(spec, found)
    with folder.lock(), listening() as listen:
        folder.refuse_foreign(spec.model_dump(mode="json"))
        # Logs belong into this machine's data folder, and are made once: they stay in its own processes.
        make_data(found, spec.lineages, worker_count(workers), command_line(), listen)
        planned = claim(folder, spec, found)
        renew_unread(folder)
        run_sweep(folder, due_runs(folder, planned, only, limit), runner, listen)
        measure_due_gradients(folder, worker_count(workers), listen)
    _finish(folder, planned, report)


@sweep_app.command("retry")
def sweep_retry(
    out: Path,
    workers: Workers = None,
    executor: Executor = "pool",
    address: Address = None,
    report: Annotated[bool, typer.Option(help="Build the report at the end.")] = True,
) -> None:
    """Run the failed runs of a sweep again.

    Example: replaybench sweep retry reports/default
    """
    from replaybench.plan import SweepSpec
    from replaybench.progress import listening
    from replaybench.record import SweepFolder
    from replaybench.sweep import due_runs, retry_failed, run_sweep
    from replaybench.sweep_gradients import measure_due_gradients

    folder = SweepFolder(out)
    planned = folder.runs()
    spec = SweepSpec.model_validate(folder.plan()["sweep"])
    runner = _runner(executor, address, worker_count(workers), spec.resources)
    with folder.lock():
        print(f"{retry_failed(folder)} failed runs are due again", file=sys.stderr)
        with listening() as listen:
            run_sweep(folder, due_runs(folder, planned, None, None), runner, listen)
            measure_due_gradients(folder, worker_count(workers), listen)
    _finish(folder, planned, report)


@sweep_app.command("status")
def sweep_status(
    out: Path,
    watch: Annotated[bool, typer.Option(help="Show every change until the sweep ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a sweep is, what runs where, and why runs failed.

    Example: replaybench sweep status reports/default --watch
    """
    from replaybench.record import SweepFolder
    from replaybench.sweep import status

    folder = SweepFolder(out)
    planned = folder.runs()
    shown = None
    while True:
        is_running = watch and folder.is_locked()
        rows = status(folder, planned)
        if rows != shown:
            _show_status(rows, as_json, out, clear=watch)
            shown = rows
        if not is_running:
            break
        time.sleep(WATCH_S)
    for failure in folder.failures():
        print(f"failed: {failure['run_id']}: {failure['reason']}", file=sys.stderr)


def _show_status(rows: "list[dict[str, Any]]", as_json: bool, out: Path, *, clear: bool) -> None:
    from rich.console import Console

    if as_json:
        emit(rows, as_json, "")
        return
    if clear:
        Console().clear()
    emit([row | {"running": len(row["running"])} for row in rows], as_json, f"Sweep in {out}")
    running = [
        {
            "run": note["run_id"],
            "host": note["host"],
            "node": note["node"],
            "process": note["process"],
            "since": time.strftime("%H:%M:%S", time.localtime(note["since_unix_s"])),
        }
        for row in rows
        for note in row["running"]
    ]
    if running:
        emit(running, as_json, "Running")


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
    emit([choice._asdict() for choice in chosen], as_json, f"Best of the trials in {out}")
    if write is not None:
        write_tuned(write, folder, chosen)
        hint(f"Next: commit {write}, then replaybench sweep run default")


CollectCost = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0, help="Cost of an environment step in learner samples; default: as the runs took."),
]


@report_app.command("build")
def report_build(out: Path, collect_cost: CollectCost = None) -> None:
    """Build the report of a sweep from its records.

    Example: replaybench report build reports/default
    """
    from replaybench.record import SweepFolder

    folder = SweepFolder(out)
    _finish(folder, folder.runs(), build=True, collect_cost=collect_cost)


@report_app.command("figure")
def report_figure(
    out: Path,
    name: str,
    to: Annotated[Optional[Path], typer.Option(help="Folder of the files; default: the report's figures.")] = None,  # noqa: UP045
    collect_cost: CollectCost = None,
) -> None:
    """Draw one figure of a report again, from the records: SVG, PNG, PDF and CSV. The page says its name.

    Example: replaybench report figure reports/default 1-success --to slides
    """
    from replaybench.record import SweepFolder
    from replaybench.report import redraw_figure

    for path in redraw_figure(SweepFolder(out), name, to or out / "report" / "figures", collect_cost):
        print(path)


@report_app.command("gradients")
def report_gradients(
    out: Path,
    n: Annotated[str, typer.Option("--n", help="Numbers of episodes averaged over.")] = "1,4,16,64,256",
    lineages: Annotated[Optional[str], typer.Option(help="Lineages, e.g. 0-2; default all.")] = None,  # noqa: UP045
    knob: Annotated[bool, typer.Option("--knob", help="Each baseline along its knob, not as in the sweep.")] = False,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Measure bias and variance of the gradient on a sweep's logs, at its settings, for its report.

    Example: replaybench report gradients reports/default --lineages 0-2
    """
    from replaybench.progress import listening
    from replaybench.record import SweepFolder
    from replaybench.sweep_gradients import measure_gradients, read_errors

    folder, chosen = SweepFolder(out), whole_numbers(lineages) if lineages else None
    with listening() as listen:
        measure_gradients(
            folder, whole_numbers(n), chosen, along_knob=knob, workers=worker_count(workers), listen=listen
        )
    errors = read_errors(folder, along_knob=knob)
    assert errors is not None
    emit(errors.to_dicts(), as_json, "Error of the gradient relative to the reference's, 95 % intervals over lineages")
    hint(f"Next: replaybench report build {out}")


@report_app.command("compare")
def report_compare(first: Path, second: Path, as_json: AsJson = False) -> None:
    """Compare two sweeps: success of the second minus that of the first, wherever both have the cell.

    Example: replaybench report compare reports/default reports/mine
    """
    from replaybench.record import SweepFolder
    from replaybench.report.across import compare_sweeps

    compared = compare_sweeps(SweepFolder(first), SweepFolder(second))
    emit(compared.table.to_dicts(), as_json, f"{second} minus {first}: success after training, 95 % t interval")
    hint(compared.note)


def _runner(executor: str, address: str | None, workers: int, resources: "Resources") -> "int | Cluster":
    """Returns what carries the runs out.

    Raises:
        ConfigError: An address is given without the executor that it is for.
    """
    from replaybench.errors import ConfigError
    from replaybench.executor import fitting_workers
    from replaybench.executor_ray import Cluster

    if executor == "ray":
        return Cluster(address, resources)
    if address is not None:
        raise ConfigError("--address is of a Ray cluster. Add --executor ray, or leave it out.")
    return fitting_workers(workers, resources.num_gpus)


def _finish(folder: "SweepFolder", planned: "list[RunSpec]", build: bool, collect_cost: float | None = None) -> None:
    """Prints the verdicts, builds the report, and exits 1 if runs failed."""
    failures = folder.failures()
    for failure in failures:
        print(f"failed: {failure['run_id']}: {failure['reason']}", file=sys.stderr)
    complete = sum(folder.is_complete(run.run_id()) for run in planned)
    print(f"{complete} of {len(planned)} runs complete, {len(failures)} failed", file=sys.stderr)
    if build and complete:
        from replaybench.report import build_report

        built = build_report(folder, collect_cost)
        print(built.verdict_text)
        print(f"Report: {built.index}")
    if failures:
        hint(f"Next: replaybench sweep retry {folder.path}")
        raise typer.Exit(EXIT_SOME_FAILED)
