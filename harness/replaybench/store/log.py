"""Reads a log folder: nothing is handed out before it matches the card."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.store.card import Card, FileEntry, card_digest, checked_path, read_card, read_shard
from replaybench.store.checkpoint import read_checkpoint
from replaybench.store.layout import LevelCheck
from replaybench.store.limited import vouch
from replaybench.store.mapped import release_pages
from replaybench.store.remote import fetch, fetch_card, is_url

if TYPE_CHECKING:
    from torch import Tensor


class Log:
    """A complete log folder; see `open_log`. origin: the URL that a cached folder is filled from as it is read."""

    def __init__(self, folder: Path | str, origin: str | None = None) -> None:
        self.folder = Path(folder)
        self.origin = origin
        self.card: Card = read_card(self.folder)
        self.digest: str = card_digest(self.folder)

    def episodes(self, level: str, format: str = "arrow", *, with_mu_logits: bool = True) -> list[Episode]:
        """Returns the episodes of a freshness level, the same ones whatever the format; their arrays are read-only.

        Args:
            level: A level of the card.
            format: "arrow" or "hdf5"; either is mapped into memory and read when it is looked at.
            with_mu_logits: Whether to read the behaviour policy's logits where they are logged.

        Raises:
            ConfigError: The log has no such level or format.
            DataError: A shard does not match the card, or an episode is malformed.
        """
        if level not in self.card.levels:
            raise unknown_name("level", level, self.card.levels)
        formats = sorted({shard.format for shard in self.card.shards})
        if format not in formats:
            raise ConfigError(f"{self.folder}: the log has no shards in format '{format}', only {', '.join(formats)}.")
        check = LevelCheck(level)
        episodes: list[Episode] = []
        shards = [shard for shard in self.card.shards if (shard.level, shard.format) == (level, format)]
        self._bring(shards)
        for shard in shards:
            episodes += read_shard(self.folder, shard, with_mu_logits=with_mu_logits)
            # Checking it read all of it.
            release_pages()
        for episode in episodes:
            check.add(episode)
        return episodes

    def has_mu_logits(self, levels: Sequence[str], format: str = "arrow") -> bool:
        """Whether every episode of these levels holds the behaviour policy's logits."""
        return all(episode.mu_logits is not None for level in levels for episode in self.episodes(level, format))

    def checkpoint(self, name: str) -> "dict[str, Tensor]":
        """Returns the tensors of a checkpoint.

        Raises:
            ConfigError: The log has no such checkpoint.
            DataError: The file does not match the card.
        """
        entries = {entry.name: entry for entry in self.card.checkpoints}
        if name not in entries:
            raise unknown_name("checkpoint", name, entries)
        self._bring([entries[name]])
        return read_checkpoint(checked_path(self.folder, entries[name]))

    def _bring(self, entries: Sequence[FileEntry]) -> None:
        """Fetches these files if they are elsewhere, and has those of strangers checked in a process with limits."""
        if self.origin is not None:
            for entry in entries:
                fetch(self.origin, self.folder, entry)
        vouch(self.folder, entries)


def open_log(location: Path | str, card_sha256: str | None = None) -> Log:
    """Opens the log folder of one lineage, at a path or at a URL that fsspec reads.

    Args:
        card_sha256: The card that is expected, if any.

    Raises:
        ConfigError: The URL's protocol is unknown or its package is missing.
        DataError: There is no card, or it is malformed, of a newer schema or not the one that is expected.
    """
    if is_url(location):
        url = str(location)
        return Log(fetch_card(url, card_sha256), origin=url)
    log = Log(location)
    if card_sha256 not in (None, log.digest):
        raise DataError(f"{location}: its card changed since the sweep was planned. Start a new sweep.")
    return log
