"""Writing a log folder with ShardWriter and reading it with open_log."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from store_episodes import assert_same, image_episode, logged_episodes, make_card, make_episode, weights, write_log

from replaybench.errors import ConfigError, DataError
from replaybench.store import FORMATS, LevelCard, ShardEntry, ShardWriter, open_log, read_card, verify


def files(folder: Path) -> list[str]:
    """Returns the files of a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("level", ["fresh", "stale"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_episodes_that_were_added(tmp_path: Path, level: str, name: str) -> None:
    """Several shards read as one list in the order of writing; expected: the episodes themselves."""
    log = open_log(write_log(tmp_path))
    assert_same(log.episodes(level, name), logged_episodes(level))


def test_logits_are_left_out_on_request(tmp_path: Path) -> None:
    """Both formats leave out the logits alone."""
    log = open_log(write_log(tmp_path))
    for name in FORMATS:
        assert all(episode.mu_logits is None for episode in log.episodes("fresh", name, with_mu_logits=False))


def test_the_folder_is_laid_out_as_documented(tmp_path: Path) -> None:
    """Five episodes of a level, two a shard, make three shards in each format."""
    write_log(tmp_path)
    expected = [
        f"{name}/{level}-0000{index}{suffix}"
        for name, suffix in (("arrow", ".arrow"), ("hdf5", ".h5"))
        for level in ("fresh", "stale")
        for index in range(3)
    ]
    assert files(tmp_path) == sorted(["card.toml", "checkpoints/start.safetensors", *expected])
    assert verify(tmp_path) == [*expected, "checkpoints/start.safetensors"]


def test_the_card_counts_what_was_written(tmp_path: Path) -> None:
    """Counts of the second shard of `fresh`; expected: by hand from episodes of 7 and 2 steps."""
    card = read_card(write_log(tmp_path))
    (entry,) = [shard for shard in card.shards if shard.path == "hdf5/fresh-00001.h5"]
    assert isinstance(entry, ShardEntry)
    assert (entry.num_episodes, entry.num_steps) == (2, 9)
    assert entry.num_bytes == os.path.getsize(tmp_path / entry.path)


def test_a_log_written_twice_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """Digests of shards, weights and card agree, so a data set can be compared by one digest."""
    one, two = open_log(write_log(tmp_path / "one")), open_log(write_log(tmp_path / "two"))
    assert one.digest == two.digest
    assert one.digest != open_log(write_log(tmp_path / "three", episodes_per_shard=3)).digest


def test_one_format_is_enough(tmp_path: Path) -> None:
    """A log may have one format; asking for the other says which there is."""
    log = open_log(write_log(tmp_path, formats=("hdf5",)))
    assert verify(tmp_path)
    assert len(log.episodes("fresh", "hdf5")) == 5
    with pytest.raises(ConfigError, match="no shards in format 'arrow', only hdf5"):
        log.episodes("fresh")


def test_weights_come_back(tmp_path: Path) -> None:
    """Views and tied tensors are saved as they look; expected: the tensors themselves."""
    log = open_log(write_log(tmp_path))
    read = log.checkpoint("start")
    assert read.keys() == weights().keys()
    for name, tensor in weights().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert log.card.checkpoints[0].version == 120


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    """A misspelt level or checkpoint gets the nearest one."""
    log = open_log(write_log(tmp_path))
    with pytest.raises(ConfigError, match="Did you mean 'fresh'"):
        log.episodes("frehs")
    with pytest.raises(ConfigError, match="Did you mean 'start'"):
        log.checkpoint("stat")
    with pytest.raises(ConfigError, match="Did you mean 'arrow'"):
        ShardWriter(tmp_path, card=make_card(), formats=("arow",))


def test_measured_numbers_can_be_added_before_closing(tmp_path: Path) -> None:
    """What is measured on a level while it is collected ends up on its card."""
    measured = LevelCard(lag_updates=(0, 0), measured={"success": 0.25})
    with ShardWriter(tmp_path, card=make_card(levels={"fresh": LevelCard()})) as writer:
        writer.add_checkpoint("start", 0, weights())
        writer.add("fresh", make_episode("a"))
        writer.update_levels({"fresh": measured})
        with pytest.raises(ConfigError, match="Unknown level 'other'"):
            writer.update_levels({"other": measured})
    assert read_card(tmp_path).levels == {"fresh": measured}


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "id twice": (lambda w: w.add("fresh", make_episode("a", 2)), DataError, "'fresh': episode 'a' occurs twice"),
    "id twice, shards apart": (
        lambda w: [w.add("fresh", make_episode(name)) for name in "bcda"],
        DataError,
        "'fresh': episode 'a' occurs twice",
    ),
    "images": (lambda w: w.add("fresh", image_episode("b")), DataError, "episode 'b': observation_shape is"),
    "no logits": (lambda w: w.add("fresh", make_episode("b", mu_logits=None)), DataError, "episode 'b': num_bins"),
    "no log_mu": (lambda w: w.add("fresh", make_episode("b", log_mu=None)), DataError, "'b': log_mu is missing"),
    "level": (lambda w: w.add("frsh", make_episode("b")), ConfigError, "Did you mean 'fresh'"),
    "checkpoint twice": (lambda w: w.add_checkpoint("start", 1, weights()), DataError, "'start' occurs twice"),
    "checkpoint name": (
        lambda w: w.add_checkpoint("../x", 1, weights()),
        DataError,
        "checkpoint '../x': .*field 'name'",
    ),
    "checkpoint version": (lambda w: w.add_checkpoint("x", -1, weights()), DataError, "field 'version'"),
    "no tensor": (lambda w: w.add_checkpoint("x", 1, {"step": 3}), DataError, "'step' is int, expected a tensor"),
    "stranger's error": (lambda w: {}["x"], KeyError, "x"),
    "no error": (lambda w: None, DataError, "level 'stale' has no shard"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_error_while_writing_leaves_no_log(tmp_path: Path, kind: str) -> None:
    """The error passes unchanged, no card or file stays, and the folder can be used again."""
    act, error, message = REFUSED[kind]
    with (
        pytest.raises(error, match=message),
        ShardWriter(tmp_path / "log", card=make_card(), episodes_per_shard=2) as writer,
    ):
        writer.add_checkpoint("start", 0, weights())
        writer.add("fresh", make_episode("a"))
        act(writer)
    assert files(tmp_path) == []
    verify(write_log(tmp_path / "log"))


def test_one_id_may_occur_in_two_levels(tmp_path: Path) -> None:
    """Ids are unique within a level."""
    with ShardWriter(tmp_path, card=make_card()) as writer:
        writer.add_checkpoint("start", 0, weights())
        for level in ("fresh", "stale"):
            writer.add(level, make_episode("a"))
    assert verify(tmp_path)


def test_a_log_without_its_start_checkpoint_is_not_completed(tmp_path: Path) -> None:
    """A run could not start from such a log."""
    with (
        pytest.raises(DataError, match="'start_checkpoint': 'start' is none"),
        ShardWriter(tmp_path, card=make_card(levels={"fresh": LevelCard()})) as writer,
    ):
        writer.add("fresh", make_episode("a"))
    assert files(tmp_path) == []


def test_a_finished_log_is_not_overwritten(tmp_path: Path) -> None:
    """A second writer is refused and leaves the log as it was."""
    digest = open_log(write_log(tmp_path)).digest
    with pytest.raises(DataError, match="already holds a complete log"):
        write_log(tmp_path)
    assert verify(tmp_path) and open_log(tmp_path).digest == digest


def test_the_remains_of_a_killed_writer_are_not_mixed_in(tmp_path: Path) -> None:
    """Shards without a card are refused rather than overwritten in part."""
    write_log(tmp_path)
    (tmp_path / "card.toml").unlink()
    with pytest.raises(DataError, match="unfinished log. Remove the folder"):
        write_log(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"formats": ()}, {"formats": ("arrow", "arrow")}, {"episodes_per_shard": 0}, {"card": None}]
)
def test_a_writer_with_impossible_settings_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Refused before anything is collected, also where the card lists files already."""
    finished = read_card(write_log(tmp_path / "log"))
    settings = {"card": make_card()} | settings
    settings["card"] = settings["card"] or finished
    with pytest.raises(ConfigError):
        ShardWriter(tmp_path / "new", **settings)


def test_a_disk_that_fills_up_leaves_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third file that meets a full disk ends the writer; the files before it are removed too."""
    real, calls = os.fsync, []

    def filling(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(DataError, match="disk is full: free some space"):
        write_log(tmp_path)
    assert len(calls) >= 5 and files(tmp_path) == []


def test_importing_the_store_is_cheap() -> None:
    """No storage library is loaded before it is used, so the command line stays quick."""
    heavy = {"h5py", "pyarrow", "torch", "safetensors"}
    script = f"import sys, replaybench.store; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
