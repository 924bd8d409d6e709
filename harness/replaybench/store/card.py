"""The card of a log folder: what was logged, how, and the digest of every file.

`card.toml` is written last, so a folder that has one is complete.
"""

import tomllib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from replaybench.episode import Episode
from replaybench.errors import DataError
from replaybench.store.checkpoint import check_checkpoint
from replaybench.store.files import atomic_write, read_text, reading, sha256_file
from replaybench.store.formats import FORMATS
from replaybench.store.layout import LevelCheck, episode_digest
from replaybench.store.toml import check_plain, to_toml

SCHEMA_VERSION = 1
FILE_NAME = "card.toml"
MAX_PATH = 255
REPAIR = "Copy it again or make the log again with `replaybench data make`."


def _inside_folder(path: str) -> str:
    pure = PurePosixPath(path)
    is_inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in path and ":" not in path
    if not is_inside or str(pure) != path or path == "." or not path.isprintable() or len(path) > MAX_PATH:
        raise ValueError(f"{path!r} must be a relative path with '/' that stays inside the log folder")
    return path


def _plain_table(table: dict[str, Any]) -> dict[str, Any]:
    try:
        check_plain("", table)
    except DataError as error:
        raise ValueError(str(error)) from error
    return table


def _rising(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} must be [lowest, highest]")
    return pair


def _pair(value: object) -> object:
    # TOML has lists only.
    return tuple(value) if isinstance(value, list) else value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, AfterValidator(_inside_folder)]
PlainTable = Annotated[dict[str, Any], AfterValidator(_plain_table)]
LagRange = Annotated[tuple[Count, Count], BeforeValidator(_pair), AfterValidator(_rising)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileEntry(_Record):
    """A file of the log: `path` is relative to the folder."""

    path: RelativePath
    sha256: Sha256


class ShardEntry(FileEntry):
    """One file of episodes."""

    level: Name
    format: Literal["hdf5", "arrow"]
    num_bytes: Positive
    num_episodes: Positive
    num_steps: Positive


class CheckpointEntry(FileEntry):
    """One safetensors file of policy weights, after `version` optimiser steps."""

    name: Name
    version: Count


class LevelCard(_Record):
    """A freshness level: its lag range (or, if matched, its branch point) and what was measured on it."""

    lag_updates: LagRange | None = None
    branch_updates: Count | None = None
    measured: PlainTable = Field(default_factory=dict)


class Card(_Record):
    """Everything that a reader of a log folder must know; see `check_complete` for what ties the fields together."""

    schema_version: Positive = SCHEMA_VERSION
    dataset: str
    lineage: Count
    suite: str
    suite_settings: PlainTable
    task: str
    policy: str
    policy_settings: PlainTable
    start_checkpoint: Name
    # Where it is not the oldest checkpoint, because older clones are logged too.
    warm_start_checkpoint: Name | None = None
    recipe_sha256: str
    licence: str
    command: str
    versions: dict[str, str]
    levels: dict[Name, LevelCard]
    shards: list[ShardEntry] = Field(default_factory=list)
    checkpoints: list[CheckpointEntry] = Field(default_factory=list)

    def files(self) -> "list[FileEntry]":
        """Returns every file that the card vouches for."""
        return [*self.shards, *self.checkpoints]

    def version_of(self, checkpoint: str) -> int:
        """Returns the optimiser steps behind a checkpoint that the card names."""
        return next(entry.version for entry in self.checkpoints if entry.name == checkpoint)


Model = TypeVar("Model", bound=_Record)


def validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Returns the record of these values.

    Raises:
        DataError: Names every field that is missing, unknown or malformed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [f"field '{'.'.join(map(str, item['loc']))}': {item['msg']}" for item in error.errors()]
        raise DataError(f"{where}: {'; '.join(problems)}. Correct the file or make the log again.") from error


def read_card(folder: Path | str) -> Card:
    """Returns the card of a complete log folder.

    Raises:
        DataError: There is no card, or it is malformed, inconsistent or of a newer schema.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise DataError(
            f"{path}: there is no card, so this is no complete log folder. "
            "Check the path, or make the log again with `replaybench data make`."
        )
    try:
        with reading(path):
            values = tomllib.loads(read_text(path))
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply. {REPAIR}") from error
    _check_version(path, values.get("schema_version"))
    card = validated(Card, values, str(path))
    check_complete(card, str(path))
    return card


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise DataError(f"{path}: field 'schema_version' is {version!r}, expected {SCHEMA_VERSION}. Add it.")
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: field 'schema_version' is {version}, newer schema than this replaybench reads "
            f"({SCHEMA_VERSION}): upgrade replaybench."
        )


def write_card(folder: Path | str, card: Card) -> None:
    """Writes the card atomically; call it last, since its existence says that the folder is complete.

    Raises:
        DataError: The card is inconsistent, or the disk refused.
    """
    path = Path(folder) / FILE_NAME
    check_complete(card, str(path))
    # TOML has no null: a level's absent fields are left out.
    text = to_toml(card.model_dump(exclude_none=True))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def card_digest(folder: Path | str) -> str:
    """Returns the SHA-256 of the card's bytes, which through its digests stands for the whole log."""
    return sha256_file(Path(folder) / FILE_NAME)


def check_complete(card: Card, where: str) -> None:
    """Refuses a card whose entries do not fit together.

    Raises:
        DataError: A name or path is used twice, a name is not defined, or the formats hold different counts.
    """
    names = [entry.name for entry in card.checkpoints]
    _refuse_repeated(where, "checkpoints", names)
    _refuse_repeated(where, "path", [entry.path for entry in card.files()])
    for field in ("start_checkpoint", "warm_start_checkpoint"):
        if (name := getattr(card, field)) is not None and name not in names:
            raise DataError(
                f"{where}: field '{field}': '{name}' is none of the checkpoints "
                f"({', '.join(names) or 'none'}). Add that checkpoint or name another."
            )
    if not card.levels:
        raise DataError(f"{where}: field 'levels': there are none. A log needs at least one level.")
    totals: dict[str, dict[str, Counter[str]]] = {level: defaultdict(Counter) for level in card.levels}
    for shard in card.shards:
        if shard.level not in totals:
            raise DataError(f"{where}: field 'shards': {shard.path} is of level '{shard.level}', not in 'levels'.")
        totals[shard.level][shard.format].update(episodes=shard.num_episodes, steps=shard.num_steps)
    for level, by_format in totals.items():
        _check_totals(where, level, by_format, {shard.format for shard in card.shards})


def _refuse_repeated(where: str, field: str, names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{where}: field '{field}': '{repeated[0]}' occurs twice. Give each a name of its own.")


def _check_totals(where: str, level: str, by_format: Mapping[str, Counter[str]], formats: set[str]) -> None:
    if not by_format or set(by_format) != formats:
        missing = ", ".join(sorted(formats - set(by_format))) or "any format"
        raise DataError(f"{where}: field 'shards': level '{level}' has no shard in {missing}. Add episodes to it.")
    if len({tuple(sorted(total.items())) for total in by_format.values()}) > 1:
        counts = ", ".join(f"{name}: {dict(total)}" for name, total in sorted(by_format.items()))
        raise DataError(f"{where}: field 'shards': level '{level}' differs between formats ({counts}). {REPAIR}")


def checked_path(folder: Path | str, entry: FileEntry) -> Path:
    """Returns the path of an entry's file once its size and digest match the card.

    Raises:
        DataError: The file is missing, leads outside the folder, is truncated or differs.
    """
    path = Path(folder) / entry.path
    with reading(path):
        is_inside = path.resolve().is_relative_to(Path(folder).resolve())
    if not is_inside:
        raise DataError(f"{path}: is a link that leaves the log folder. Copy the file itself into the folder.")
    if not path.is_file():
        raise DataError(f"{path}: the file that the card names is missing. {REPAIR}")
    if isinstance(entry, ShardEntry) and path.stat().st_size != entry.num_bytes:
        raise DataError(
            f"{path}: has {path.stat().st_size} bytes, the card says {entry.num_bytes} (truncated or changed). {REPAIR}"
        )
    digest = sha256_file(path)
    if digest != entry.sha256:
        raise DataError(
            f"{path}: its sha256 {digest[:12]}... does not match the card's {entry.sha256[:12]}... "
            f"(changed or exchanged). {REPAIR}"
        )
    return path


def read_shard(folder: Path | str, entry: ShardEntry, *, with_mu_logits: bool = True) -> list[Episode]:
    """Returns the episodes of a shard whose size, digest and counts match the card.

    Raises:
        DataError: Anything does not match, or an episode is malformed.
    """
    return _read_entry(checked_path(folder, entry), entry, with_mu_logits)


def _read_entry(path: Path, entry: ShardEntry, with_mu_logits: bool = True) -> list[Episode]:
    episodes = FORMATS[entry.format].read_episodes(path, with_mu_logits=with_mu_logits)
    found = len(episodes), sum(episode.num_steps for episode in episodes)
    if found != (entry.num_episodes, entry.num_steps):
        raise DataError(
            f"{path}: holds {found[0]} episodes of {found[1]} steps, the card says {entry.num_episodes} "
            f"of {entry.num_steps}. {REPAIR}"
        )
    return episodes


def verify(folder: Path | str, paths: Collection[str] | None = None) -> list[str]:
    """Checks a whole log folder and returns the paths that were checked, relative to it.

    Every file's digest first; then every episode is read and checked, and the formats must hold the same ones.

    Args:
        paths: Only these files.

    Raises:
        DataError: The first thing that does not match.
    """
    card = read_card(folder)
    entries = [entry for entry in card.files() if paths is None or entry.path in paths]
    for entry in entries:
        checked_path(folder, entry)
    for entry in entries:
        if isinstance(entry, CheckpointEntry):
            check_checkpoint(Path(folder) / entry.path)
    shards = [entry for entry in entries if isinstance(entry, ShardEntry)]
    for level in card.levels:
        _verify_level(Path(folder), level, [shard for shard in shards if shard.level == level])
    return [entry.path for entry in entries]


def _verify_level(folder: Path, level: str, shards: Sequence[ShardEntry]) -> None:
    # One digest an episode instead of the episodes themselves, which need not fit in memory.
    digests: dict[str, list[str]] = {}
    checks: dict[str, LevelCheck] = {}
    for shard in shards:
        check = checks.setdefault(shard.format, LevelCheck(level))
        for episode in _read_entry(folder / shard.path, shard):
            check.add(episode)
            digests.setdefault(shard.format, []).append(episode_digest(episode))
    first = next(iter(digests), "")
    for other in digests.keys() - {first}:
        for index, (left, right) in enumerate(zip(digests[first], digests[other], strict=True)):
            if left != right:
                raise DataError(f"{folder}: level '{level}': episode {index} of {first} differs from {other}. {REPAIR}")
