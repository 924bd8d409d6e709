"""Makes a log folder from anyone's episodes: shards in every format, checkpoints, and the card last."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.store import checkpoint
from replaybench.store.card import (
    FILE_NAME,
    Card,
    CheckpointEntry,
    FileEntry,
    LevelCard,
    ShardEntry,
    validated,
    write_card,
)
from replaybench.store.files import sha256_file
from replaybench.store.formats import FORMATS
from replaybench.store.layout import LevelCheck, checked_layout
from replaybench.store.limited import remember

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_FOLDER = "checkpoints"


class ShardWriter:
    """Context manager that writes a log folder; leaving it without an exception writes the card.

    An exception removes what was written, so that the folder can be used again.

    Args:
        folder: Made if missing; must not hold a log or the remains of one.
        card: Everything but shards and checkpoints, which the writer fills in.
        formats: Names of FORMATS; each gets every episode.
        episodes_per_shard: Episodes that are held in memory for each level before a shard is written.

    Raises:
        ConfigError: A format or level is unknown, or the card lists files already.
        DataError: An episode is malformed or does not fit, or the disk refused.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        card: Card,
        formats: Sequence[str] = ("hdf5", "arrow"),
        episodes_per_shard: int = 200,
    ) -> None:
        for name in formats:
            if name not in FORMATS:
                raise unknown_name("format", name, FORMATS)
        if not formats or len(set(formats)) < len(formats):
            raise ConfigError(f"formats is {list(formats)}: give at least one of {', '.join(FORMATS)}, each once.")
        if episodes_per_shard < 1:
            raise ConfigError(f"episodes_per_shard is {episodes_per_shard}, expected 1 or more.")
        if card.shards or card.checkpoints:
            raise ConfigError("The writer's card lists files already. Leave its shards and checkpoints empty.")
        self._folder = Path(folder)
        self._card = card
        self._formats = tuple(formats)
        self._episodes_per_shard = episodes_per_shard
        self._levels = dict(card.levels)
        self._checks = {level: LevelCheck(level) for level in card.levels}
        self._waiting: dict[str, list[Episode]] = {level: [] for level in card.levels}
        self._num_shards = dict.fromkeys(card.levels, 0)
        self._shards: list[ShardEntry] = []
        self._checkpoints: list[CheckpointEntry] = []

    def __enter__(self) -> Self:
        if (self._folder / FILE_NAME).exists():
            raise DataError(f"{self._folder}: already holds a complete log. Choose another folder or remove this one.")
        for name in (*FORMATS, CHECKPOINT_FOLDER):
            remains = self._folder / name
            if remains.is_dir() and any(remains.iterdir()):
                raise DataError(f"{remains}: holds files of an unfinished log. Remove the folder {self._folder}.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    def add(self, level: str, episode: Episode) -> None:
        """Adds one episode to a freshness level.

        Raises:
            ConfigError: The card has no such level.
            DataError: The episode is malformed, repeats an id or differs in layout from its level.
        """
        if level not in self._levels:
            raise unknown_name("level", level, self._levels)
        checked_layout(episode)
        self._checks[level].add(episode)
        self._waiting[level].append(episode)
        if len(self._waiting[level]) == self._episodes_per_shard:
            self._write_shards(level)

    def add_checkpoint(self, name: str, version: int, state_dict: "Mapping[str, Tensor]") -> None:
        """Writes policy weights under a name that the card can refer to.

        Args:
            name: Letters, digits, '.', '_' and '-'.
            version: Optimiser steps that had changed these weights.
            state_dict: Tensors by name.

        Raises:
            DataError: The name is taken or malformed, a value is no tensor, or the disk refused.
        """
        if name in [entry.name for entry in self._checkpoints]:
            raise DataError(f"{self._folder}: checkpoint '{name}' occurs twice. Give each a name of its own.")
        relative = f"{CHECKPOINT_FOLDER}/{name}{checkpoint.SUFFIX}"
        values = {"name": name, "path": relative, "sha256": "0" * 64, "version": version}
        # Validated before anything is written: the name becomes a path.
        entry = validated(CheckpointEntry, values, f"checkpoint '{name}'")
        path = self._folder / relative
        checkpoint.write_checkpoint(path, state_dict)
        self._checkpoints.append(entry.model_copy(update={"sha256": sha256_file(path)}))

    def update_levels(self, levels: Mapping[str, LevelCard]) -> None:
        """Replaces the cards of these levels, to add what was measured on them.

        Raises:
            ConfigError: The card has no such level.
        """
        for level, level_card in levels.items():
            if level not in self._levels:
                raise unknown_name("level", level, self._levels)
            self._levels[level] = level_card

    def _write_shards(self, level: str) -> None:
        episodes = self._waiting[level]
        for name in self._formats:
            relative = f"{name}/{level}-{self._num_shards[level]:05d}{FORMATS[name].SUFFIX}"
            path = self._folder / relative
            FORMATS[name].write_episodes(path, episodes)
            entry = ShardEntry(
                level=level,
                format=cast("Literal['hdf5', 'arrow']", name),
                path=relative,
                sha256=sha256_file(path),
                num_bytes=path.stat().st_size,
                num_episodes=len(episodes),
                num_steps=sum(episode.num_steps for episode in episodes),
            )
            self._shards.append(entry)
        self._num_shards[level] += 1
        self._waiting[level] = []

    def _finish(self) -> None:
        for level, episodes in self._waiting.items():
            if episodes:
                self._write_shards(level)
        shards = sorted(self._shards, key=lambda shard: shard.path)
        files = {"levels": self._levels, "shards": shards, "checkpoints": self._checkpoints}
        card = self._card.model_copy(update=files)
        write_card(self._folder, card)
        remember(card.files())

    def _discard(self) -> None:
        # Only what this writer made; a disk that refuses here must not hide the error that led here.
        files: list[FileEntry] = [*self._shards, *self._checkpoints]
        for entry in files:
            with suppress(OSError):
                (self._folder / entry.path).unlink(missing_ok=True)
        for name in (*self._formats, CHECKPOINT_FOLDER):
            with suppress(OSError):
                (self._folder / name).rmdir()
