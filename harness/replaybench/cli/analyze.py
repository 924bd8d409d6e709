"""`replaybench analyze`: analyses that need no sweep."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from replaybench.cli.terminal import (
    AsJson,
    OwnBaselines,
    emit,
)

if TYPE_CHECKING:
    pass

app = typer.Typer(no_args_is_help=True, help="Analyses that need no sweep.")


@app.command("bias-variance")
def analyze_bias_variance(
    dataset: Annotated[str, typer.Option(help="'gridworld' for the exact 2x2 study.")] = "gridworld",
    baseline: OwnBaselines = None,
    as_json: AsJson = False,
) -> None:
    """Exact bias and variance of the gradient estimators in the 2x2 GridWorld, for N = 1 ... 4096 samples.

    Example: replaybench analyze bias-variance --dataset gridworld --json
    """
    from replaybench.errors import unknown_name
    from replaybench.study import gridworld_rows

    if dataset != "gridworld":
        raise unknown_name("dataset of the exact study", dataset, ["gridworld"])
    rows = gridworld_rows(tuple(baseline or ()))
    if as_json:
        print(json.dumps(rows))
    else:
        emit([row for row in rows if row["n"] == 1], False, "Exact bias and variance, one sample")
