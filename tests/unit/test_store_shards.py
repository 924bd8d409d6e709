"""The two shard formats: what goes in comes out, other libraries agree, and strange files are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from store_episodes import NUM_BINS, NUM_TOKENS, assert_same, image_episode, make_episode

from replaybench.episode import Episode
from replaybench.errors import DataError
from replaybench.store import FORMATS

KINDS: dict[str, Callable[[], list[Episode]]] = {
    "states": lambda: [make_episode("a", 4), make_episode("b", 1), make_episode("c", 6)],
    "one step": lambda: [make_episode("a", 1)],
    "no logits": lambda: [make_episode("a", 2, mu_logits=None), make_episode("b", 3, mu_logits=None)],
    "images": lambda: [image_episode("a", 1), image_episode("b", 3)],
    "state indices": lambda: [make_episode("a", 2, observations=np.zeros(3, np.float32))],
    "empty text": lambda: [make_episode("a", 2, instruction="")],
}
formats = pytest.mark.parametrize("name", FORMATS)


def write(folder: Path, name: str, episodes: list[Episode]) -> Path:
    path = folder / f"shard{FORMATS[name].SUFFIX}"
    FORMATS[name].write_episodes(path, episodes)
    return path


@formats
@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_gives_back_what_was_written(tmp_path: Path, name: str, kind: str) -> None:
    """Every field returns with its value and its type; expected: the episodes themselves."""
    episodes = KINDS[kind]()
    assert_same(FORMATS[name].read_episodes(write(tmp_path, name, episodes)), episodes)


@formats
def test_logits_can_be_left_out_when_reading(tmp_path: Path, name: str) -> None:
    """Without mu_logits nothing else changes."""
    path = write(tmp_path, name, [make_episode("a", 3)])
    assert_same(FORMATS[name].read_episodes(path, with_mu_logits=False), [make_episode("a", 3, mu_logits=None)])


@formats
def test_the_same_episodes_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    """No clock, address or order of writing enters a shard."""
    one = write(tmp_path / "one", name, KINDS["states"]()).read_bytes()
    assert one == write(tmp_path / "two", name, KINDS["states"]()).read_bytes()
    assert one != write(tmp_path / "three", name, KINDS["states"]()[::-1]).read_bytes()


@formats
def test_arrays_read_from_a_shard_cannot_be_changed(tmp_path: Path, name: str) -> None:
    """A reader hands out read-only views, so that no learner can change the log of another."""
    (episode,) = FORMATS[name].read_episodes(write(tmp_path, name, [make_episode("a")]))
    for column in (episode.observations, episode.log_mu, episode.mu_logits, episode.reward):
        assert column is not None and not column.flags.writeable and not column.flags.owndata


def test_arrow_columns_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    """Reading allocates no array memory; expected: Arrow's own count of its allocations, against 800 kB of data."""
    states = np.ones((10_001, 20), np.float32)
    path = write(tmp_path, "arrow", [make_episode("a", 10_000, observations=states)])
    before = pa.total_allocated_bytes()
    (episode,) = FORMATS["arrow"].read_episodes(path)
    assert episode.observations.nbytes == 800_080
    assert pa.total_allocated_bytes() - before < 10_000


def test_plain_h5py_sees_the_same_numbers(tmp_path: Path) -> None:
    """The layout is the documented one; expected: the episodes laid end to end by hand."""
    episodes = KINDS["states"]()
    with h5py.File(write(tmp_path, "hdf5", episodes)) as file:
        for name in ("action_tokens", "log_mu", "mu_logits", "reward", "value"):
            end_to_end = np.concatenate([getattr(episode, name) for episode in episodes])
            np.testing.assert_array_equal(file[f"steps/{name}"][...], end_to_end, strict=True)
        np.testing.assert_array_equal(
            file["observations"][...], np.concatenate([episode.observations for episode in episodes]), strict=True
        )
        assert file["episodes/num_steps"][...].tolist() == [4, 1, 6]
        assert file["episodes/instruction"].asstr()[0] == "schiebe den Würfel 🟥"
        assert file["episodes/seed"][...].tolist() == [episode.seed for episode in episodes]
        assert file["steps/reward"].chunks is None and file["steps/reward"].compression is None


def test_plain_datasets_sees_the_same_numbers(tmp_path: Path) -> None:
    """Hugging Face `datasets` opens an Arrow shard without this package, in both of its ways."""
    import datasets

    episodes = KINDS["states"]()
    path = write(tmp_path, "arrow", episodes)
    opened = [
        datasets.Dataset.from_file(str(path)),
        datasets.load_dataset("arrow", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")),
    ]
    for dataset in opened:
        assert dataset.num_rows == 3
        for row, episode in zip(dataset, episodes, strict=True):
            assert row["observations"] == episode.observations.tolist()
            assert row["action_tokens"] == episode.action_tokens.tolist()
            assert row["log_mu"] == episode.log_mu.tolist()
            assert row["mu_logits"] == episode.mu_logits.reshape(episode.num_steps, -1).tolist()  # type: ignore[union-attr]
            assert (row["terminated"], row["seed"], row["episode_id"]) == (
                episode.terminated,
                episode.seed,
                episode.episode_id,
            )


def test_arrow_keeps_the_axes_that_it_flattens(tmp_path: Path) -> None:
    """Shape and bins stand in the schema's metadata; expected: read with plain pyarrow."""
    with pa.memory_map(str(write(tmp_path, "arrow", [image_episode("a")]))) as source:
        metadata = pa.ipc.open_stream(source).schema.metadata
    assert json.loads(metadata[b"observation_shape"]) == [4, 3, 2]
    assert metadata[b"num_bins"] == b"null"
    with pa.memory_map(str(write(tmp_path, "arrow", [make_episode("a")]))) as source:
        schema = pa.ipc.open_stream(source).schema
    assert schema.metadata[b"num_bins"] == str(NUM_BINS).encode()
    assert schema.field("mu_logits").type == pa.list_(pa.list_(pa.float16(), NUM_TOKENS * NUM_BINS))


@formats
def test_a_shard_without_episodes_is_refused(tmp_path: Path, name: str) -> None:
    """An empty shard has no layout."""
    with pytest.raises(DataError, match="holds no episodes"):
        write(tmp_path, name, [])


STRANGE: dict[str, tuple[dict[str, Any], str]] = {
    "log_mu missing": ({"log_mu": None}, "log_mu is missing.*cannot be recomputed"),
    "log_mu NaN": ({"log_mu": np.full((4, 3), np.nan, np.float32)}, "log_mu is not finite at step 0"),
    "log_mu a list": ({"log_mu": [[0.0]]}, "log_mu is list, expected a NumPy array"),
    "float64 reward": ({"reward": np.zeros(4)}, "reward is float64"),
    "two axes of reward": ({"reward": np.zeros((4, 1), np.float32)}, r"reward is shape \(4, 1\)"),
    "float64 states": ({"observations": np.zeros((5, 2))}, "observations is float64"),
    "no numbers in states": ({"observations": np.zeros((5, 0), np.float32)}, "an axis has size 0"),
    "float32 logits": ({"mu_logits": np.zeros((4, 3, 5), np.float32)}, "mu_logits is float32"),
    "bins beyond the logits": (
        {"mu_logits": np.zeros((4, 3, 1), np.float16)},
        "action_tokens has bins beyond the 1 of mu_logits",
    ),
    "seed too large": ({"seed": 2**63}, "seed is 9223372036854775808, which does not fit"),
    "seed a truth value": ({"seed": True}, "seed is bool, expected int"),
    "success a number": ({"success": 1}, "success is int, expected bool"),
    "NUL in text": ({"task": "push\0v3"}, "task holds a NUL"),
    "broken text": ({"instruction": "\ud800"}, "instruction is not valid Unicode"),
    "no task": ({"task": None}, "task is NoneType"),
}


@formats
@pytest.mark.parametrize("kind", STRANGE)
def test_a_malformed_episode_is_refused_before_anything_is_written(tmp_path: Path, name: str, kind: str) -> None:
    """The error names file, episode and field, and the folder stays empty."""
    changes, message = STRANGE[kind]
    # The largest bin throughout, so that logits of one bin are too few.
    tokens = np.full((4, 3), NUM_BINS - 1, np.int16)
    episode = make_episode("odd", 4, **{"action_tokens": tokens} | changes)
    with pytest.raises(DataError, match=f"shard.*episode 'odd': {message}"):
        write(tmp_path, name, [make_episode("even"), episode])
    assert list(tmp_path.iterdir()) == []


@formats
@pytest.mark.parametrize("other", [image_episode("b"), make_episode("b", mu_logits=None)])
def test_episodes_of_two_layouts_do_not_share_a_shard(tmp_path: Path, name: str, other: Episode) -> None:
    """Columns end to end need one shape; the error names the first episode that differs."""
    with pytest.raises(DataError, match="episode 'b'.*but"):
        write(tmp_path, name, [make_episode("a"), other])


def _rewrite_hdf5(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def _replace(name: str, **settings: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        data = file[name][...]
        del file[name]
        file.create_dataset(name, **({"data": data} | settings))

    return change


def _link(target: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["steps/reward"]
        file["steps/reward"] = target

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "reward", shape=(4,))
    del file["steps/reward"]
    file.create_virtual_dataset("steps/reward", layout)


HDF5_DAMAGE: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "external link": (_link(h5py.ExternalLink("other.h5", "/reward")), "'reward' is a link to another place"),
    "soft link": (_link(h5py.SoftLink("/steps/value")), "'reward' is a link to another place"),
    "virtual": (_virtual, "/steps/reward keeps its data in other files"),
    "external file": (
        _replace("steps/reward", data=None, shape=(4,), dtype="f4", external="/etc/hostname"),
        "/steps/reward keeps its data in other files",
    ),
    "gzip": (_replace("steps/log_mu", compression="gzip"), "/steps/log_mu is compressed"),
    "checksum filter": (_replace("steps/log_mu", fletcher32=True), "/steps/log_mu is compressed or filtered"),
    "float64": (_replace("steps/value", dtype="f8"), "/steps/value is float64, expected float32"),
    "bytes": (_replace("episodes/task", data=[b"x"], dtype=h5py.string_dtype("ascii")), "expected UTF-8 strings"),
    "references": (_replace("episodes/task", data=None, shape=(1,), dtype=h5py.ref_dtype), "expected UTF-8 strings"),
    "ragged": (_replace("episodes/task", data=None, shape=(1,), dtype=h5py.vlen_dtype("f4")), "expected UTF-8"),
    "no log_mu": (lambda file: file.__delitem__("steps/log_mu"), "log_mu is missing.*cannot be recomputed"),
    "no task": (lambda file: file.__delitem__("episodes/task"), "'task' is missing"),
    "more columns": (lambda file: file.create_dataset("steps/extra", data=[1]), "'extra' is unknown"),
    "group for data": (
        lambda file: (file.__delitem__("steps/reward"), file.create_group("steps/reward")),
        "/steps/reward is a group",
    ),
    "short column": (_replace("steps/reward", data=np.zeros(3, "f4")), r"/steps/reward has shape \(3,\), expected 4"),
    "scalar": (_replace("steps/reward", data=np.float32(0)), r"/steps/reward has shape \(\)"),
    "promised rows": (
        _replace("episodes/num_steps", data=None, shape=(10**12,), dtype="i8"),
        "num_steps holds less data than its shape",
    ),
    "no steps": (lambda file: file["episodes/num_steps"].write_direct(np.zeros(1, "i8")), "values below 1"),
    "newer": (lambda file: file.attrs.__setitem__("schema_version", 2), "newer schema.*upgrade replaybench"),
    "no format": (lambda file: file.attrs.__delitem__("format"), "'format' is None"),
    "NaN": (lambda file: file["steps/log_mu"].write_direct(np.full((4, 3), np.nan, "f4")), "'a': log_mu is not fin"),
}


@pytest.mark.parametrize("kind", HDF5_DAMAGE)
def test_an_hdf5_file_that_is_no_plain_shard_is_refused(tmp_path: Path, kind: str) -> None:
    """Links, filters, other types and missing columns give an error with file and place."""
    change, message = HDF5_DAMAGE[kind]
    path = write(tmp_path, "hdf5", [make_episode("a", 4)])
    _rewrite_hdf5(path, change)
    with pytest.raises(DataError, match=f"{path.name}: .*{message}"):
        FORMATS["hdf5"].read_episodes(path)


def test_hdf5_strings_of_variable_length_are_read(tmp_path: Path) -> None:
    """What plain h5py writes for a list of str is accepted too."""
    path = write(tmp_path, "hdf5", [make_episode("a", 4)])
    _rewrite_hdf5(path, _replace("episodes/task", data=["größe"], dtype=h5py.string_dtype()))
    assert FORMATS["hdf5"].read_episodes(path)[0].task == "größe"


def _column(name: str, make: Callable[[pa.Array], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, make(table.column(name).chunk(0)))

    return change


def _metadata(**changes: str) -> Callable[[pa.Table], pa.Table]:
    encoded = {key.encode(): value.encode() for key, value in changes.items()}
    return lambda table: table.replace_schema_metadata(table.schema.metadata | encoded)


ARROW_DAMAGE: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "no log_mu": (lambda table: table.drop_columns("log_mu"), "log_mu is missing.*cannot be recomputed"),
    "no task": (lambda table: table.drop_columns("task"), "column 'task' is missing"),
    "more columns": (lambda table: table.append_column("extra", [[1]]), "column 'extra' is unknown"),
    "float64": (
        _column("reward", lambda array: array.cast(pa.list_(pa.float64()))),
        "column 'reward' is list<.*double.*expected list<.*float",
    ),
    "null text": (_column("task", lambda array: pa.nulls(1, pa.string())), "column 'task' holds 1 nulls"),
    "null steps": (
        _column("reward", lambda array: pa.array([[1.0, None, 1.0, 1.0]], array.type)),
        "column 'reward' holds 1 nulls",
    ),
    "scalar states": (_column("observations", lambda array: pa.array([1.0])), "'observations' is double, expected"),
    "half states": (
        _column("observations", lambda array: array.cast(pa.list_(pa.list_(pa.float16(), 2)))),
        "'observations' holds halffloat, expected float32 or uint8",
    ),
    "no metadata": (lambda table: table.replace_schema_metadata({}), "'format' is None"),
    "newer": (_metadata(schema_version="2"), "newer schema.*upgrade replaybench"),
    "odd version": (_metadata(schema_version="two"), "'schema_version' is 'two'"),
    "odd shape": (_metadata(observation_shape="{"), "cannot be read"),
    "other shape": (_metadata(observation_shape="[7]"), "column 'observations' is"),
    "hidden logits": (_metadata(num_bins="null"), "num_bins is null, which disagrees"),
    "no shape": (
        lambda table: table.replace_schema_metadata({b"format": b"replaybench-episodes", b"schema_version": b"1"}),
        "'observation_shape' of the schema's metadata is missing",
    ),
    "NaN": (
        _column("log_mu", lambda array: pa.array([[[float("nan")] * 3] * 4], array.type)),
        "episode 'a': log_mu is not finite",
    ),
    "no rows": (lambda table: table.slice(0, 0), "holds no episodes"),
}


@pytest.mark.parametrize("kind", ARROW_DAMAGE)
def test_an_arrow_file_that_is_no_plain_shard_is_refused(tmp_path: Path, kind: str) -> None:
    """Other types, nulls, missing columns and metadata give an error with file and place."""
    change, message = ARROW_DAMAGE[kind]
    path = write(tmp_path, "arrow", [make_episode("a", 4)])
    table = change(pa.ipc.open_stream(path.read_bytes()).read_all())
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=f"{path.name}: .*{message}"):
        FORMATS["arrow"].read_episodes(path)


def test_an_arrow_shard_may_have_several_batches(tmp_path: Path) -> None:
    """Another writer's batching does not matter; expected: the episodes themselves."""
    path = write(tmp_path, "arrow", KINDS["states"]())
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert_same(FORMATS["arrow"].read_episodes(path), KINDS["states"]())


@formats
def test_damaged_bytes_never_raise_an_error_of_a_library(tmp_path: Path, name: str) -> None:
    """Whatever bit flips or wherever the file ends, the reader returns episodes or a DataError naming the file."""
    path = write(tmp_path, name, [make_episode("a", 2)])
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(150):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data if trial % 3 else data[: rng.integers(len(data))])
        try:
            FORMATS[name].read_episodes(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 50, "every truncation must be refused"


@formats
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """No FileNotFoundError of the operating system reaches the user."""
    with pytest.raises(DataError, match="nowhere: the file is missing"):
        FORMATS[name].read_episodes(tmp_path / "nowhere")


@formats
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do and no partial file stays."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="disk is full: free some space"):
        write(tmp_path, name, [make_episode("a")])
    assert list(tmp_path.iterdir()) == []
