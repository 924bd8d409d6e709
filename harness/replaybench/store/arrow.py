"""Shards as Arrow IPC streams, one row an episode, that plain Hugging Face `datasets` opens.

Axes that Arrow's nested lists flatten (image shape, K bins) are kept in the schema's metadata.
"""

import json
from collections.abc import Sequence
from math import prod
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
    import pyarrow as pa

SUFFIX = ".arrow"


def write_episodes(path: Path | str, episodes: Sequence[Episode]) -> None:
    """Writes episodes of one layout as one shard; the same episodes give the same bytes.

    Raises:
        DataError: An episode is malformed, or the disk refused.
    """
    import pyarrow as pa

    path = Path(path)
    layout = common_layout(path, episodes)
    schema = _schema(layout)
    columns = []
    for field in schema:
        if field.name in EPISODE_COLUMNS:
            columns.append(pa.array(scalar_column(episodes, field.name), field.type))
        else:
            columns.append(_list_array([getattr(episode, field.name) for episode in episodes], field.type))
    batch = pa.record_batch(columns, schema=schema)
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        writer.write_batch(batch)


def _schema(layout: Layout) -> "pa.Schema":
    import pyarrow as pa

    scalars = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    observation = pa.from_numpy_dtype(np.dtype(layout.observation_type))
    fields = {"observations": pa.list_(pa.list_(observation, prod(layout.observation_shape)))}
    row_shapes = _row_shapes(layout)
    for name, dtype in step_column_types(layout).items():
        number, shape = pa.from_numpy_dtype(dtype), row_shapes[name]
        fields[name] = pa.list_(pa.list_(number, prod(shape)) if shape else number)
    fields |= {name: scalars[kind] for name, kind in EPISODE_COLUMNS.items()}
    metadata = {
        "format": FORMAT_NAME,
        "schema_version": str(SCHEMA_VERSION),
        "observation_shape": json.dumps(layout.observation_shape),
        "num_bins": json.dumps(layout.num_bins),
    }
    return pa.schema(list(fields.items()), metadata=metadata)


def _row_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Returns the shape of one row of every array column."""
    shapes: dict[str, tuple[int, ...]] = {
        "observations": layout.observation_shape,
        "action_tokens": (layout.num_action_tokens,),
        "log_mu": (layout.num_action_tokens,),
        "reward": (),
        "value": (),
    }
    if layout.num_bins is not None:
        shapes["mu_logits"] = (layout.num_action_tokens, layout.num_bins)
    return shapes


def _list_array(parts: Sequence[NDArray[np.generic]], kind: "pa.ListType") -> "pa.ListArray":
    import pyarrow as pa

    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
    values = pa.array(np.concatenate(parts).reshape(-1))
    if pa.types.is_fixed_size_list(kind.value_type):
        values = pa.FixedSizeListArray.from_arrays(values, type=kind.value_type)
    return pa.ListArray.from_arrays(offsets, values, type=kind)


def read_episodes(path: Path | str, *, with_mu_logits: bool = True) -> list[Episode]:
    """Returns the episodes of a shard as read-only views of the memory-mapped file.

    Raises:
        DataError: The file is damaged, is no shard, or lacks a column.
    """
    import pyarrow as pa

    path = Path(path)
    episodes: list[Episode] = []
    with reading(path):
        with pa.ipc.open_stream(pa.py_buffer(map_file(path))) as stream:
            layout = _read_layout(path, stream.schema)
            table = stream.read_all()
        # Offsets that point outside their buffer would otherwise be followed.
        table.validate(full=True)
        for batch in table.to_batches():
            episodes += _split(path, batch, layout if with_mu_logits else layout._replace(num_bins=None))
    common_layout(path, episodes)
    return episodes


def _read_layout(path: Path, schema: "pa.Schema") -> Layout:
    """Returns the layout that the schema states, once every column's type agrees with it."""
    import pyarrow as pa

    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    version = metadata.get("schema_version", "")
    check_schema(path, metadata.get("format"), int(version) if version.isdecimal() else version)
    check_names(path, "column", schema.names, ["observations", *STEP_COLUMNS, *EPISODE_COLUMNS], ["mu_logits"])
    for name in ("observation_shape", "num_bins"):
        if name not in metadata:
            raise DataError(f"{path}: field '{name}' of the schema's metadata is missing. Write the shard again.")
    if ("mu_logits" in schema.names) != (metadata["num_bins"] != "null"):
        raise DataError(f"{path}: num_bins is {metadata['num_bins']}, which disagrees with the column mu_logits.")
    tokens, observations = schema.field("action_tokens").type, schema.field("observations").type
    for name, kind in (("action_tokens", tokens), ("observations", observations)):
        if not pa.types.is_list(kind) or not pa.types.is_fixed_size_list(kind.value_type):
            raise DataError(f"{path}: column '{name}' is {kind}, expected list<fixed_size_list>.")
    number = observations.value_type.value_type
    known = {pa.from_numpy_dtype(np.dtype(kind)): kind for kind in OBSERVATION_TYPES}
    if number not in known:
        raise DataError(f"{path}: column 'observations' holds {number}, expected {' or '.join(OBSERVATION_TYPES)}.")
    shape = tuple(json.loads(metadata["observation_shape"]))
    layout = Layout(shape, known[number], tokens.value_type.list_size, json.loads(metadata["num_bins"]))
    for field in _schema(layout):
        found = schema.field(field.name).type
        if found != field.type:
            raise DataError(f"{path}: column '{field.name}' is {found}, expected {field.type}.")
    return layout


def _split(path: Path, batch: "pa.RecordBatch", layout: Layout) -> list[Episode]:
    columns = {}
    for name, shape in _row_shapes(layout).items():
        columns[name] = _rows(path, name, batch.column(name), shape)
    scalars: dict[str, list[Any]] = {}
    for name in EPISODE_COLUMNS:
        _refuse_nulls(path, name, batch.column(name))
        scalars[name] = batch.column(name).to_pylist()
    episodes = []
    for index in range(batch.num_rows):
        own = {name: values[offsets[index] : offsets[index + 1]] for name, (offsets, values) in columns.items()}
        episodes.append(make_episode(own, {name: scalars[name][index] for name in EPISODE_COLUMNS}))
    return episodes


def _rows(
    path: Path, name: str, array: "pa.ListArray", row_shape: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Returns the offsets of a list column and all its rows, without copying either."""
    import pyarrow as pa

    _refuse_nulls(path, name, array)
    values = array.values
    _refuse_nulls(path, name, values)
    if pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
        _refuse_nulls(path, name, values)
    numbers = values.to_numpy(zero_copy_only=True)
    return array.offsets.to_numpy(zero_copy_only=True), numbers.reshape(-1, *row_shape)


def _refuse_nulls(path: Path, name: str, array: "pa.Array") -> None:
    if array.null_count:
        raise DataError(f"{path}: column '{name}' holds {array.null_count} nulls. Fill or drop those episodes.")
