"""What the two shard formats share: the columns of an episode, their types and the checks at the border.

Shape letters: T decisions of an episode, A action tokens of a decision, K bins of a token.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replaybench.episode import STEP_COLUMNS, Episode, check_episode
from replaybench.errors import DataError

SCHEMA_VERSION = 1
FORMAT_NAME = "replaybench-episodes"
OBSERVATION_TYPES = ("float32", "uint8")
EPISODE_COLUMNS: dict[str, type] = {
    "terminated": bool,
    "truncated": bool,
    "bootstrap_value": float,
    "behaviour_version": int,
    "task": str,
    "instruction": str,
    "seed": int,
    "success": bool,
    "simulator": str,
    "episode_id": str,
}
AXES = {"action_tokens": 2, "log_mu": 2, "reward": 1, "value": 1, "mu_logits": 3}
LOG_MU_MISSING = (
    "log_mu is missing. Log the behaviour policy's log-probability of each action token when acting; "
    "it cannot be recomputed afterwards with another policy."
)


class Layout(NamedTuple):
    """What all episodes of a shard have in common; `num_bins` is None where no logits are logged."""

    observation_shape: tuple[int, ...]
    observation_type: str
    num_action_tokens: int
    num_bins: int | None


def layout_of(episode: Episode) -> Layout:
    """Returns the layout of an episode that is known to be well formed."""
    num_bins = None if episode.mu_logits is None else episode.mu_logits.shape[2]
    observations = episode.observations
    return Layout(observations.shape[1:], observations.dtype.name, episode.action_tokens.shape[1], num_bins)


def checked_layout(episode: Episode) -> Layout:
    """Checks an episode completely, types included, and returns its layout.

    Raises:
        DataError: Names the episode, the field and what to do.
    """
    where = f"episode '{episode.episode_id}'"
    _check_scalars(where, episode)
    _check_arrays(where, episode)
    check_episode(episode)
    layout = layout_of(episode)
    if layout.num_bins is not None and (episode.action_tokens >= layout.num_bins).any():
        raise DataError(f"{where}: action_tokens has bins beyond the {layout.num_bins} of mu_logits.")
    if 0 in (*layout.observation_shape, layout.num_action_tokens, layout.num_bins):
        raise DataError(f"{where}: an axis has size 0 ({layout}). Log at least one number, action token and bin.")
    return layout


def _check_scalars(where: str, episode: Episode) -> None:
    allowed: dict[type, tuple[type, ...]] = {
        bool: (bool, np.bool_),
        int: (int, np.integer),
        float: (int, float, np.integer, np.floating),
        str: (str,),
    }
    for name, kind in EPISODE_COLUMNS.items():
        value = getattr(episode, name)
        # Python counts True as an integer.
        is_right = isinstance(value, allowed[kind]) and (kind is bool or not isinstance(value, bool))
        if not is_right:
            raise DataError(f"{where}: {name} is {type(value).__name__}, expected {kind.__name__}.")
        if kind is int and not -(2**63) <= int(value) < 2**63:
            raise DataError(f"{where}: {name} is {value}, which does not fit 64 signed bits. Use a smaller number.")
        if kind is str:
            _check_text(where, name, value)


def _check_text(where: str, name: str, value: str) -> None:
    if "\0" in value:
        raise DataError(f"{where}: {name} holds a NUL character, which shards cannot hold. Remove it.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name} is not valid Unicode text ({error}). Remove the bad characters.") from error


def _check_arrays(where: str, episode: Episode) -> None:
    if episode.log_mu is None:
        raise DataError(f"{where}: {LOG_MU_MISSING}")
    for name, axes in AXES.items():
        column = getattr(episode, name)
        if name == "mu_logits" and column is None:
            continue
        if not isinstance(column, np.ndarray) or column.ndim != axes:
            found = f"shape {column.shape}" if isinstance(column, np.ndarray) else type(column).__name__
            raise DataError(f"{where}: {name} is {found}, expected a NumPy array of {axes} axes.")
    if episode.mu_logits is not None and episode.mu_logits.dtype != np.float16:
        raise DataError(f"{where}: mu_logits is {episode.mu_logits.dtype}, expected float16.")
    observations = episode.observations
    if not isinstance(observations, np.ndarray) or observations.ndim == 0:
        raise DataError(f"{where}: observations must be a NumPy array with T+1 rows.")
    if observations.dtype not in [np.dtype(kind) for kind in OBSERVATION_TYPES]:
        raise DataError(f"{where}: observations is {observations.dtype}, expected float32 states or uint8 images.")


def common_layout(path: Path, episodes: Sequence[Episode]) -> Layout:
    """Checks every episode of a shard and returns the layout that they share.

    Raises:
        DataError: Names the file and the first episode that is malformed or shaped unlike the first.
    """
    if not episodes:
        raise DataError(f"{path}: holds no episodes. A shard needs at least one.")
    try:
        layout = checked_layout(episodes[0])
        for episode in episodes[1:]:
            check_same_layout(layout, checked_layout(episode), episode.episode_id)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return layout


def check_same_layout(expected: Layout, found: Layout, episode_id: str) -> None:
    """Refuses an episode whose sizes differ from those before it in the same level."""
    for name, want, got in zip(Layout._fields, expected, found, strict=True):
        if want != got:
            raise DataError(
                f"episode '{episode_id}': {name} is {got}, but {want} in the episodes before it. "
                "All episodes of a level share one layout; log the others under a level of their own."
            )


class LevelCheck:
    """Sees the episodes of one level one by one and refuses a repeated id or a second layout."""

    def __init__(self, level: str) -> None:
        self.level = level
        self._ids: set[str] = set()
        self._layout: Layout | None = None

    def add(self, episode: Episode) -> None:
        """Refuses an episode that does not go with those before it.

        Raises:
            DataError: Names the level and the episode.
        """
        if episode.episode_id in self._ids:
            raise DataError(
                f"level '{self.level}': episode '{episode.episode_id}' occurs twice. "
                "Give each episode an id of its own."
            )
        layout = layout_of(episode)
        self._layout = self._layout or layout
        check_same_layout(self._layout, layout, episode.episode_id)
        self._ids.add(episode.episode_id)


def make_episode(arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> Episode:
    """Returns an Episode of column slices and plain Python scalars, as a reader found them."""
    return Episode(**arrays, **scalars)


def scalar_column(episodes: Sequence[Episode], name: str) -> list[Any]:
    """Returns one per-episode column as plain Python scalars."""
    return [EPISODE_COLUMNS[name](getattr(episode, name)) for episode in episodes]


def step_column_types(layout: Layout) -> dict[str, np.dtype[Any]]:
    """Returns the NumPy type of every per-step column of this layout."""
    types = {name: np.dtype(kind) for name, kind in STEP_COLUMNS.items()}
    return types if layout.num_bins is None else types | {"mu_logits": np.dtype(np.float16)}


def check_schema(path: Path, format_name: object, version: object) -> None:
    """Refuses a file that is no shard, or one written by a newer replaybench."""
    if format_name != FORMAT_NAME:
        raise DataError(f"{path}: field 'format' is {format_name!r}, expected '{FORMAT_NAME}'. This is no shard.")
    if not isinstance(version, (int, np.integer)) or version < 1:
        raise DataError(f"{path}: field 'schema_version' is {version!r}, expected {SCHEMA_VERSION}.")
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: field 'schema_version' is {version}, newer schema than this replaybench reads "
            f"({SCHEMA_VERSION}): upgrade replaybench."
        )


def check_names(path: Path, what: str, found: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> None:
    """Refuses a file with missing or unknown columns."""
    missing = [name for name in required if name not in found]
    if "log_mu" in missing:
        raise DataError(f"{path}: {what} {LOG_MU_MISSING}")
    if missing:
        raise DataError(f"{path}: {what} '{missing[0]}' is missing. Write the log again with all of: {required}.")
    unknown = [name for name in found if name not in (*required, *optional)]
    if unknown:
        raise DataError(f"{path}: {what} '{unknown[0]}' is unknown. Remove it, or upgrade replaybench.")


def episode_digest(episode: Episode) -> str:
    """Returns a SHA-256 over every field of an episode, the same whatever format it was read from."""
    digest = hashlib.sha256()
    for field in fields(episode):
        value = getattr(episode, field.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{field.name} {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(f"{field.name} {value!r}\n".encode())
    return digest.hexdigest()
