"""`replaybench analyze`: analyses that need no sweep."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from replaybench.cli.terminal import DATA_DIR, AsJson, DataDir, OwnBaselines, emit, hint, whole_numbers

app = typer.Typer(no_args_is_help=True, help="Analyses that need no sweep.")


@app.command("bias-variance")
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

    ns = tuple(whole_numbers(n)) if n else ()
    if dataset == EXACT:
        _exact(tuple(baseline or ()), ns, as_json)
    else:
        _by_monte_carlo(data, dataset, lineages, tuple(baseline or ()), tuple(level or ()), ns, knob, seed, as_json)


def _exact(baselines: tuple[str, ...], ns: tuple[int, ...], as_json: bool) -> None:
    from replaybench.study import gridworld_rows

    rows = [row for row in gridworld_rows(baselines) if not ns or row["n"] in ns]
    if ns or as_json:
        emit(rows, as_json, "Exact bias and variance")
    else:
        emit([row for row in rows if row["n"] == 1], False, "Exact bias and variance, one sample")


def _by_monte_carlo(
    data: Path,
    dataset: str,
    lineages: str | None,
    baselines: tuple[str, ...],
    levels: tuple[str, ...],
    ns: tuple[int, ...],
    along_knob: bool,
    seed: int,
    as_json: bool,
) -> None:
    from replaybench.gradient_study import open_logs, preset_methods, preset_settings, readable, study_logs

    logs = open_logs(data, dataset, whole_numbers(lineages) if lineages else None)
    methods = preset_methods(baselines, along_knob=along_knob)
    rows = study_logs(logs, levels, methods, preset_settings(ns, seed), hint)
    emit(rows if as_json else readable(rows), as_json, f"Bias and variance of the gradient on {dataset}")
