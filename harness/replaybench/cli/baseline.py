"""`replaybench baseline`: corrections, their files and their coefficients."""

import json
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from replaybench.cli.terminal import (
    AsJson,
    emit,
    key_values,
    numbers,
)

if TYPE_CHECKING:
    pass

app = typer.Typer(no_args_is_help=True, help="List corrections and evaluate their gradient coefficient.")


@app.command("ls")
def baseline_ls(as_json: AsJson = False) -> None:
    """List the off-policy corrections.

    Example: replaybench baseline ls
    """
    from replaybench.baseline import baseline_paths, describe, load_baseline

    rows = [describe(load_baseline(name)) for name in baseline_paths()]
    emit(rows, as_json, "Baselines")


@app.command("show")
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


@app.command("coef")
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
    config = baseline.config(key_values(settings or []))
    values = torch.tensor(numbers(log_ratio), dtype=torch.float64)
    if baseline.declaration.discrete_only and float(values.max()) + log_mu > 0:
        raise ConfigError(
            f"Baseline '{name}' reads probabilities: choose --log-mu so that log_mu + l is at most 0 for every l."
        )
    coefficient = gradient_coefficient(baseline, config, values, advantage, log_mu=log_mu).tolist()
    if as_json:
        print(json.dumps({"log_ratio": values.tolist(), "coef": coefficient}))
    else:
        rows = [{"log_ratio": l, "coef": c} for l, c in zip(values.tolist(), coefficient, strict=True)]
        emit(rows, False, f"{name} at A={advantage:g}")


@app.command("match")
def baseline_match(
    names: list[str],
    upper: Annotated[
        str, typer.Option(help="Upper half-weight log-ratios in nats, separated by commas.")
    ] = "0.1823,0.4055,0.6931,1.1774",
    as_json: AsJson = False,
) -> None:
    """Print the knob at which corrections are equally wide: half of the ratio's weight is left at the log-ratio.

    Example: replaybench baseline match ppo_clip tis sapo gipo --upper 0.1823,1.1774
    """
    from replaybench.bandwidth import half_weight, matched_knob
    from replaybench.baseline import load_baseline

    rows = []
    for name in names:
        baseline = load_baseline(name)
        for width in numbers(upper):
            knob, value = matched_knob(baseline, width)
            lower = half_weight(baseline, baseline.config({knob: value}), "lower")
            rows.append({"name": name, "upper": width, "knob": knob, "value": value, "lower": lower})
    emit(rows, as_json, "Knobs at equal half-weight log-ratio (upper: A > 0; lower: A < 0, empty where w never halves)")
