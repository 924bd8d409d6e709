"""The shard formats by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from replaybench.episode import Episode
from replaybench.store import arrow, hdf5


class ShardFormat(Protocol):
    """What a format's module offers."""

    @property
    def SUFFIX(self) -> str: ...  # noqa: N802  a constant of the module
    def write_episodes(self, path: Path | str, episodes: Sequence[Episode]) -> None: ...
    def read_episodes(self, path: Path | str, *, with_mu_logits: bool = True) -> list[Episode]: ...


FORMATS: dict[str, ShardFormat] = {"hdf5": hdf5, "arrow": arrow}
