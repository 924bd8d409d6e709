"""`replaybench data`: logs of trajectories."""

from pathlib import Path
from typing import Annotated

import typer

from replaybench.cli.terminal import (
    DATA_DIR,
    AsJson,
    DataDir,
    Workers,
    command_line,
    emit,
    hint,
    whole_numbers,
    worker_count,
)

app = typer.Typer(no_args_is_help=True, help="Make, check and describe logs of trajectories.")


@app.command("ls")
def data_ls(data: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List the recipes and which lineages are made.

    Example: replaybench data ls
    """
    from replaybench.inventory import list_data

    emit(list_data(data), as_json, f"Data in {data}")


@app.command("make")
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
        make_data([source], whole_numbers(lineages), worker_count(workers), command_line(), listen)
    hint(f"Next: replaybench data info {name}")


@app.command("info")
def data_info(name: str, data: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Show what was measured on each freshness level of each lineage.

    Example: replaybench data info button-press-topdown
    """
    from replaybench.inventory import describe_data

    emit(describe_data(data, name), as_json, f"Levels of {name} (KL in nats a token, to the start policy)")


@app.command("verify")
def data_verify(name: str, data: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Check every byte and every episode of a data set against its cards, in a process with limits.

    Example: replaybench data verify button-press-topdown
    """
    from replaybench.inventory import log_folders
    from replaybench.store.limited import verify_limited

    rows = [
        {"folder": str(folder), "files_that_match": len(verify_limited(folder))} for folder in log_folders(data, name)
    ]
    emit(rows, as_json, f"Files of {name} that match their cards")
    hint(f"Next: every file is sound; replaybench data info {name}")


@app.command("show")
def data_show(
    name: str,
    level: Annotated[str, typer.Option(help="Freshness level.")] = "fresh",
    lineage: Annotated[int, typer.Option(min=0)] = 0,
    episode: Annotated[int, typer.Option(min=0, help="Number of the episode in its level.")] = 0,
    to: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("episode.png"),
    data: DataDir = DATA_DIR,
) -> None:
    """Draw the images of one logged episode, as the policy saw them.

    Example: replaybench data show openvla-tiny-libero --level clone --episode 3
    """
    from replaybench.inventory import find_episode
    from replaybench.plots import contact_sheet, theme
    from replaybench.store import atomic_write

    found = find_episode(data, name, lineage, level, episode)
    outcome = "success" if found.success else "no success"
    title = (
        f"{name}, lineage {lineage}, level {level}, episode {found.episode_id}: {found.instruction}. "
        f"Policy version {found.behaviour_version}, {found.num_steps} decisions, {outcome}"
    )
    with theme():
        sheet = contact_sheet(found, title)
        with atomic_write(to) as temporary:
            sheet.savefig(temporary, format="png", dpi=120)
    print(to)
