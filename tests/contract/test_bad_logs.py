"""Laws for logs that went wrong after they were written: each is refused, in every format, with the file's name."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from replaybench.episode import Episode
from replaybench.errors import DataError
from replaybench.store import FORMATS, Card, LevelCard, ShardWriter, open_log, read_card, verify

SHARDS = {"hdf5": "hdf5/fresh-00001.h5", "arrow": "arrow/fresh-00001.arrow"}
formats = pytest.mark.parametrize("name", FORMATS)


def make_episode(index: int) -> Episode:
    """Returns an episode of three steps."""
    rng = np.random.default_rng(index)
    return Episode(
        observations=rng.normal(size=(4, 2)).astype(np.float32),
        action_tokens=rng.integers(0, 5, (3, 1)).astype(np.int16),
        log_mu=-rng.exponential(size=(3, 1)).astype(np.float32),
        reward=np.zeros(3, np.float32),
        value=np.zeros(3, np.float32),
        terminated=False,
        truncated=True,
        bootstrap_value=0.5,
        behaviour_version=0,
        task="toy",
        instruction="walk",
        seed=index,
        success=False,
        simulator="toy 1",
        episode_id=f"e{index}",
    )


def make_log(folder: Path, first: int = 0) -> Path:
    """Writes a log of four episodes in two shards."""
    card = Card(
        dataset="toy",
        lineage=0,
        suite="toy",
        suite_settings={},
        task="toy",
        policy="toy",
        policy_settings={},
        start_checkpoint="start",
        recipe_sha256="",
        licence="CC0-1.0",
        command="none",
        versions={},
        levels={"fresh": LevelCard(lag_updates=(0, 0))},
    )
    with ShardWriter(folder, card=card, episodes_per_shard=2) as writer:
        writer.add_checkpoint("start", 0, {"weight": torch.ones(2)})
        for index in range(first, first + 4):
            writer.add("fresh", make_episode(index))
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path / "log")


def assert_refused(log: Path, name: str, message: str) -> None:
    """Reading and verifying must both refuse, and must say which file."""
    with pytest.raises(DataError, match=message) as read:
        open_log(log).episodes("fresh", name)
    with pytest.raises(DataError, match=message) as verified:
        verify(log)
    for error in (read, verified):
        assert SHARDS[name] in str(error.value)


def claim(log: Path, path: str) -> None:
    """Makes the card agree with a file that was exchanged, as a careless or lying writer would."""
    old = next(shard for shard in read_card(log).shards if shard.path == path)
    data = (log / path).read_bytes()
    text = (log / "card.toml").read_text().replace(old.sha256, hashlib.sha256(data).hexdigest())
    # The size of this shard alone: it follows its digest.
    head, tail = text.split(f'path = "{path}"')
    tail = tail.replace(f"num_bytes = {old.num_bytes}", f"num_bytes = {len(data)}", 1)
    (log / "card.toml").write_text(f'{head}path = "{path}"{tail}')


def test_an_untouched_log_passes(log: Path) -> None:
    """The laws below would mean nothing if this one did not hold."""
    assert len(verify(log)) == 5
    for name in FORMATS:
        assert [episode.episode_id for episode in open_log(log).episodes("fresh", name)] == ["e0", "e1", "e2", "e3"]


def test_a_log_may_be_moved(log: Path, tmp_path: Path) -> None:
    """The card holds relative paths only."""
    moved = shutil.move(log, tmp_path / "elsewhere")
    assert len(verify(moved)) == 5


@formats
def test_a_truncated_shard_is_refused(log: Path, name: str) -> None:
    """One byte less is noticed by size."""
    path = log / SHARDS[name]
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(log, name, "the card says .*truncated or changed")


@formats
@pytest.mark.parametrize("position", [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_refused(log: Path, name: str, position: float) -> None:
    """One bit anywhere in the file is noticed by digest."""
    path = log / SHARDS[name]
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1
    path.write_bytes(data)
    assert_refused(log, name, "sha256 .* does not match")


@formats
def test_a_missing_shard_is_refused(log: Path, name: str) -> None:
    """A file that the card names must exist."""
    (log / SHARDS[name]).unlink()
    assert_refused(log, name, "the file that the card names is missing")


@formats
def test_a_folder_in_place_of_a_shard_is_refused(log: Path, name: str) -> None:
    """What is there must be a file."""
    (log / SHARDS[name]).unlink()
    (log / SHARDS[name]).mkdir()
    assert_refused(log, name, "the file that the card names is missing")


@formats
def test_two_exchanged_shards_are_refused(log: Path, name: str) -> None:
    """Both files are good, but each bears the other's name."""
    one, other = log / SHARDS[name].replace("00001", "00000"), log / SHARDS[name]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(DataError, match="fresh-00000.* does not match"):
        open_log(log).episodes("fresh", name)
    with pytest.raises(DataError, match="fresh-00000.* does not match"):
        verify(log)


@formats
def test_a_shard_of_another_log_is_refused(log: Path, tmp_path: Path, name: str) -> None:
    """A shard of equal size from another lineage is noticed by digest."""
    other = make_log(tmp_path / "other", first=4)
    shutil.copy(other / SHARDS[name], log / SHARDS[name])
    assert_refused(log, name, "sha256 .* does not match")


@formats
def test_a_link_out_of_the_folder_is_refused(log: Path, tmp_path: Path, name: str) -> None:
    """Even to the right bytes: the log would break when it is moved."""
    shutil.move(log / SHARDS[name], tmp_path / "outside")
    (log / SHARDS[name]).symlink_to(tmp_path / "outside")
    assert_refused(log, name, "link that leaves the log folder")


def rewrite(log: Path, name: str, episodes: list[Episode]) -> None:
    """Replaces the second shard by other well-formed episodes and makes the card agree."""
    FORMATS[name].write_episodes(log / SHARDS[name], episodes)
    claim(log, SHARDS[name])


@formats
def test_a_count_that_is_not_the_cards_is_refused(log: Path, name: str) -> None:
    """The digest matches, but the shard holds one episode less than the card says."""
    rewrite(log, name, [make_episode(2)])
    assert_refused(log, name, "holds 1 episodes of 3 steps, the card says 2 of 6")


@formats
def test_an_episode_that_occurs_in_two_shards_is_refused(log: Path, name: str) -> None:
    """It would count twice in every mean."""
    rewrite(log, name, [make_episode(2), make_episode(0)])
    for check in (verify, lambda folder: open_log(folder).episodes("fresh", name)):
        with pytest.raises(DataError, match="episode 'e0' occurs twice"):
            check(log)


@formats
def test_formats_that_hold_different_episodes_are_refused(log: Path, name: str) -> None:
    """Each file matches its digest and the counts agree, so only the comparison of all episodes can tell."""
    rewrite(log, name, [make_episode(2), make_episode(9)])
    with pytest.raises(DataError, match="level 'fresh': episode 3 of .* differs from"):
        verify(log)


def damage_hdf5(path: Path, change: Callable[[np.ndarray], None] | None) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        log_mu = file["steps/log_mu"][...]
        if change is None:
            del file["steps/log_mu"]
        else:
            change(log_mu)
            file["steps/log_mu"][...] = log_mu


def damage_arrow(path: Path, change: Callable[[np.ndarray], None] | None) -> None:
    import pyarrow as pa

    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    index = table.schema.get_field_index("log_mu")
    log_mu = np.asarray(table.column(index).to_pylist(), np.float32)
    table = table.remove_column(index)
    if change is not None:
        change(log_mu.reshape(-1, 1))
        column = pa.array(log_mu.tolist(), pa.list_(pa.list_(pa.float32(), 1)))
        table = table.add_column(index, "log_mu", column)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


DAMAGE = {"hdf5": damage_hdf5, "arrow": damage_arrow}


def spoil(log_mu: np.ndarray) -> None:
    log_mu[4] = np.nan


def raise_above_zero(log_mu: np.ndarray) -> None:
    log_mu[0] = 0.5


@formats
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "log_mu is missing.*cannot be recomputed"),
        (spoil, "episode 'e3': log_mu is not finite at step 1"),
        (raise_above_zero, "episode 'e2': log_mu has positive values"),
    ],
)
def test_a_log_without_usable_log_mu_is_refused(
    log: Path, name: str, change: Callable[[np.ndarray], None] | None, message: str
) -> None:
    """No correction can be computed without the behaviour policy's log-probabilities, and none is made up."""
    DAMAGE[name](log / SHARDS[name], change)
    claim(log, SHARDS[name])
    assert_refused(log, name, message)


@pytest.mark.parametrize("how", ["flip", "missing", "no safetensors"])
def test_a_checkpoint_that_does_not_match_is_refused(log: Path, how: str) -> None:
    """Weights are checked like shards, and a file that is no safetensors is never unpickled."""
    path = log / "checkpoints/start.safetensors"
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        torch.save({"weight": torch.ones(2)}, path)
        text = (log / "card.toml").read_text()
        old = read_card(log).checkpoints[0].sha256
        (log / "card.toml").write_text(text.replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(DataError, match="start.safetensors: .*(missing|does not match|no safetensors)"):
        open_log(log).checkpoint("start")
    with pytest.raises(DataError, match="start.safetensors: .*(missing|does not match|no safetensors)"):
        verify(log)
