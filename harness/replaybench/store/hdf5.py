"""Shards in HDF5: episodes end to end in contiguous, uncompressed columns that plain h5py opens.

/steps/{action_tokens, log_mu, reward, value[, mu_logits]} have one row a decision (N in all), /observations one row
more an episode (N+E), /episodes/* one row an episode (E).
"""

import io
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from replaybench.episode import STEP_COLUMNS, Episode
from replaybench.errors import DataError
from replaybench.store.files import atomic_write, reading
from replaybench.store.layout import (
    EPISODE_COLUMNS,
    FORMAT_NAME,
    OBSERVATION_TYPES,
    SCHEMA_VERSION,
    Layout,
    check_names,
    check_schema,
    common_layout,
    make_episode,
    scalar_column,
    step_column_types,
)
from replaybench.store.mapped import map_file

if TYPE_CHECKING:
    import h5py

SUFFIX = ".h5"
SCALAR_TYPES = {bool: "bool", int: "int64", float: "float64"}


def write_episodes(path: Path | str, episodes: Sequence[Episode]) -> None:
    """Writes episodes of one layout as one shard; the same episodes give the same bytes.

    Raises:
        DataError: An episode is malformed, or the disk refused.
    """
    import h5py

    path = Path(path)
    layout = common_layout(path, episodes)
    # Built in memory: the HDF5 library takes the process down with it when a disk is full.
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        _write_columns(file, episodes, layout)
    with atomic_write(path) as temporary:
        temporary.write_bytes(image.getbuffer())


def _write_columns(file: "h5py.File", episodes: Sequence[Episode], layout: Layout) -> None:
    import h5py

    file.attrs.create("format", FORMAT_NAME.encode(), dtype=h5py.string_dtype("utf-8", len(FORMAT_NAME)))
    file.attrs["schema_version"] = SCHEMA_VERSION
    _write_rows(file, "observations", [episode.observations for episode in episodes])
    for name in step_column_types(layout):
        _write_rows(file, f"steps/{name}", [getattr(episode, name) for episode in episodes])
    num_steps = np.asarray([episode.num_steps for episode in episodes], np.int64)
    file.create_dataset("episodes/num_steps", data=num_steps, track_times=False)
    for name, kind in EPISODE_COLUMNS.items():
        values = scalar_column(episodes, name)
        if kind is str:
            # Of fixed length: strings of variable length lie in a heap on which damage makes HDF5 hang.
            texts = [value.encode() for value in values]
            dtype = h5py.string_dtype("utf-8", max(1, *map(len, texts)))
            file.create_dataset(f"episodes/{name}", data=np.asarray(texts, dtype), track_times=False)
        else:
            file.create_dataset(f"episodes/{name}", data=values, dtype=SCALAR_TYPES[kind], track_times=False)


def _write_rows(file: "h5py.File", name: str, parts: Sequence[NDArray[np.generic]]) -> None:
    # Episode by episode, so that a shard of images is never held twice in memory.
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    dataset = file.create_dataset(name, shape=shape, dtype=parts[0].dtype, track_times=False)
    start = 0
    for part in parts:
        dataset[start : start + len(part)] = part
        start += len(part)


def read_episodes(path: Path | str, *, with_mu_logits: bool = True) -> list[Episode]:
    """Returns the episodes of a shard as read-only views of the memory-mapped file.

    Raises:
        DataError: The file is damaged, is no shard, or holds links, filters or types that a shard may not have.
    """
    import h5py

    path = Path(path)
    # A finished shard never changes, and some network file systems cannot lock.
    with reading(path), h5py.File(path, "r", locking=False) as file:
        name = file.attrs.get("format")
        check_schema(path, name.decode() if isinstance(name, bytes) else name, file.attrs.get("schema_version"))
        episodes = _split(*_read_columns(path, file, map_file(path), with_mu_logits))
    common_layout(path, episodes)
    return episodes


def _read_columns(
    path: Path, file: "h5py.File", mapped: mmap.mmap, with_mu_logits: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, list[Any]]]:
    root = _members(path, file, ["observations", "steps", "episodes"])
    steps = _members(path, root["steps"], list(STEP_COLUMNS), ["mu_logits"])
    tables = _members(path, root["episodes"], ["num_steps", *EPISODE_COLUMNS])
    num_steps = _column(path, mapped, tables["num_steps"], ("int64",), None)
    if (num_steps < 1).any():
        raise DataError(f"{path}: /episodes/num_steps has values below 1. Leave empty episodes out.")
    total, count = sum(num_steps.tolist()), len(num_steps)
    arrays = {"observations": _column(path, mapped, root["observations"], OBSERVATION_TYPES, total + count)}
    for name, dtype in STEP_COLUMNS.items():
        arrays[name] = _column(path, mapped, steps[name], (np.dtype(dtype).name,), total)
    if with_mu_logits and "mu_logits" in steps:
        arrays["mu_logits"] = _column(path, mapped, steps["mu_logits"], ("float16",), total)
    scalars = {"num_steps": num_steps.tolist()}
    for name, kind in EPISODE_COLUMNS.items():
        if kind is str:
            scalars[name] = _text(path, tables[name], count)
        else:
            scalars[name] = _column(path, mapped, tables[name], (SCALAR_TYPES[kind],), count).tolist()
    return arrays, scalars


def _members(
    path: Path, group: "h5py.Group | h5py.Dataset", required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the members of a group, none of which may be a link to somewhere else."""
    import h5py

    if not isinstance(group, h5py.Group):
        raise DataError(f"{path}: {group.name} is a data set, expected a group.")
    names = list(group)
    check_names(path, f"{group.name.rstrip('/')}:", names, required, optional)
    for name in names:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: {group.name}: '{name}' is a link to another place. Store the data itself.")
    return {name: group[name] for name in names}


def _check_plain(path: Path, dataset: Any) -> None:
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {dataset.name} is a group, expected a data set.")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{path}: {dataset.name} keeps its data in other files. Store the data itself.")
    if dataset.id.get_create_plist().get_nfilters():
        raise DataError(f"{path}: {dataset.name} is compressed or filtered. Write it without filters.")


def _check_rows(path: Path, dataset: "h5py.Dataset", rows: int | None) -> None:
    if not dataset.shape or (rows is not None and len(dataset) != rows):
        raise DataError(f"{path}: {dataset.name} has shape {dataset.shape}, expected {rows or 'some'} rows.")


def _column(path: Path, mapped: mmap.mmap, dataset: Any, dtypes: Sequence[str], rows: int | None) -> NDArray[Any]:
    _check_plain(path, dataset)
    if dataset.dtype not in [np.dtype(name) for name in dtypes]:
        raise DataError(f"{path}: {dataset.name} is {dataset.dtype}, expected {' or '.join(dtypes)}.")
    _check_rows(path, dataset, rows)
    # A shape costs a few bytes; without this a damaged one would allocate any amount of memory.
    if dataset.id.get_storage_size() < dataset.nbytes:
        raise DataError(f"{path}: {dataset.name} holds less data than its shape {dataset.shape} says. Write it again.")
    offset = dataset.id.get_offset()
    if offset is None or offset % dataset.dtype.alignment or offset + dataset.nbytes > len(mapped):
        column: NDArray[Any] = dataset[...]
        column.flags.writeable = False
        return column
    return np.frombuffer(mapped, dataset.dtype, dataset.size, offset).reshape(dataset.shape)


def _text(path: Path, dataset: Any, rows: int) -> list[str]:
    import h5py

    _check_plain(path, dataset)
    info = h5py.check_string_dtype(dataset.dtype)
    if info is None or info.encoding != "utf-8":
        raise DataError(f"{path}: {dataset.name} is {dataset.dtype}, expected UTF-8 strings (h5py.string_dtype()).")
    _check_rows(path, dataset, rows)
    texts: list[str] = dataset.asstr()[...].tolist()
    return texts


def _split(arrays: dict[str, NDArray[Any]], scalars: dict[str, list[Any]]) -> list[Episode]:
    episodes = []
    start = 0
    for index, steps in enumerate(scalars["num_steps"]):
        own = {name: column[start : start + steps] for name, column in arrays.items()}
        # Each episode before this one has one observation more than decisions.
        own["observations"] = arrays["observations"][start + index : start + index + steps + 1]
        episodes.append(make_episode(own, {name: scalars[name][index] for name in EPISODE_COLUMNS}))
        start += steps
    return episodes
