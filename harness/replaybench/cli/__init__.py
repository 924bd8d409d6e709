"""The command line. Tables go to stdout, progress and warnings to stderr; heavy imports wait for the command."""

import sys
from typing import Annotated, NoReturn

import typer

from replaybench import __version__
from replaybench.cli import analyze, baseline, data, sweep
from replaybench.cli.terminal import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_SOME_FAILED, AsJson, emit, hint
from replaybench.errors import ReplayBenchError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Compare off-policy corrections on replayed robot trajectories.\n\nExample: replaybench sweep run smoke",
)
app.add_typer(data.app, name="data")
app.add_typer(baseline.app, name="baseline")
app.add_typer(sweep.sweep_app, name="sweep")
app.add_typer(sweep.report_app, name="report")
app.add_typer(analyze.app, name="analyze")


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
    emit([check._asdict() for check in checks], as_json, "This machine")
    if not all(check.ok for check in checks):
        raise typer.Exit(EXIT_SOME_FAILED)
    hint("Next: replaybench sweep run smoke")
