"""What logs exist and what was measured on them, as rows for tables."""

from pathlib import Path
from typing import Any

from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.recipe import load_recipe, recipe_paths
from replaybench.store import open_log, read_card
from replaybench.store.card import FILE_NAME

SHOWN = (
    "success",
    "kl",
    "abs_log_ratio_p95_token",
    "abs_log_ratio_p95_joint",
    "ess_token",
    "ess_joint",
    "episode_length",
    "num_episodes",
    "num_steps",
)


def log_folders(data: Path, name: str) -> list[Path]:
    """Returns the complete lineages of a data set, by name or by folder.

    Raises:
        DataError: There are none.
    """
    folder = Path(name) if "/" in name else data / name
    found = sorted(path.parent for path in folder.glob(f"lineage-*/{FILE_NAME}"))
    if not found:
        if "/" not in name:
            load_recipe(name)
        raise DataError(f"{folder}: holds no complete lineage. Make one with `replaybench data make {name}`.")
    return found


def find_episode(data: Path, name: str, lineage: int, level: str, number: int) -> Episode:
    """Returns one episode of a data set, counted from 0 in the order in which its level was logged.

    Raises:
        ConfigError: There is no such lineage, level or episode.
        DataError: The log is damaged.
    """
    folders = {folder.name: folder for folder in log_folders(data, name)}
    wanted = f"lineage-{lineage:03d}"
    if wanted not in folders:
        raise unknown_name(f"lineage of '{name}':", wanted, folders)
    log = open_log(folders[wanted])
    episodes = log.episodes(level, log.card.shards[0].format, with_mu_logits=False)
    if number >= len(episodes):
        raise ConfigError(f"{log.folder}: level '{level}' has episodes 0 to {len(episodes) - 1}, not {number}.")
    return episodes[number]


def list_data(data: Path) -> list[dict[str, Any]]:
    """Returns a row for each recipe and for each folder of logs in `data`."""
    names = list(recipe_paths())
    if data.is_dir():
        names += sorted(path.name for path in data.iterdir() if path.is_dir() and path.name not in names)
    rows = []
    for name in names:
        made = sorted(
            path.parent.name.removeprefix("lineage-") for path in (data / name).glob(f"lineage-*/{FILE_NAME}")
        )
        description = load_recipe(name).description if name in recipe_paths() else "made elsewhere"
        rows.append({"dataset": name, "lineages_made": made, "description": description})
    return rows


def describe_data(data: Path, name: str) -> list[dict[str, Any]]:
    """Returns what each level of each lineage measured."""
    rows = []
    for folder in log_folders(data, name):
        card = read_card(folder)
        for level, entry in card.levels.items():
            lag = entry.lag_updates
            rows.append(
                {
                    "lineage": card.lineage,
                    "level": level,
                    "lag_updates": None if lag is None else (lag[0] if lag[0] == lag[1] else list(lag)),
                    "branch_updates": entry.branch_updates,
                    **{key: entry.measured.get(key) for key in SHOWN},
                }
            )
    return rows
