"""Logs at a URL: fetched once, when they are needed, checked against the card, and nothing else."""

import shutil
from pathlib import Path

import fsspec
import pytest
from store_episodes import write_log

from replaybench.errors import ConfigError, DataError
from replaybench.store import has_card, open_log
from replaybench.store.card import FILE_NAME
from replaybench.store.remote import fetch

URL = "memory://logs/lineage-000"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log folder that is also at URL; the cache is empty."""
    monkeypatch.setenv("REPLAYBENCH_CACHE", str(tmp_path / "cache"))
    folder = write_log(tmp_path / "log")
    storage = fsspec.filesystem("memory")
    storage.put(str(folder), URL, recursive=True)
    yield folder
    storage.rm("/logs", recursive=True)


def remote_path(name: str) -> str:
    return f"{URL}/{name}".removeprefix("memory:/")


def test_a_log_at_a_url_is_the_log_in_its_folder(log: Path) -> None:
    """Same digest, same episodes, same weights; only what was read is in the cache."""
    here, there = open_log(log), open_log(URL)
    assert has_card(URL) and not has_card("memory://logs/lineage-007")
    assert there.digest == here.digest
    assert [p.name for p in there.folder.iterdir()] == [FILE_NAME]
    for left, right in zip(here.episodes("fresh"), there.episodes("fresh"), strict=True):
        assert left.episode_id == right.episode_id
        assert (left.reward == right.reward).all()
    assert {p.suffix for p in there.folder.rglob("*") if p.is_file() and p.suffix} == {".toml", ".arrow"}
    assert there.checkpoint("start").keys() == here.checkpoint("start").keys()


def test_what_is_cached_is_not_fetched_again(log: Path) -> None:
    """With the address gone, a log whose card is known still opens; without its digest the address is asked."""
    first = open_log(URL)
    episodes = len(first.episodes("fresh"))
    fsspec.filesystem("memory").rm("/logs", recursive=True)
    try:
        assert len(open_log(URL, first.digest).episodes("fresh")) == episodes
        with pytest.raises(DataError, match=r"lineage-000/card.toml: there is no such file"):
            open_log(URL)
    finally:
        fsspec.filesystem("memory").put(str(log), URL, recursive=True)


def test_a_changed_file_is_refused_and_leaves_nothing(log: Path) -> None:
    """A shard of other bytes gets no name in the cache; the right one is taken once it is back."""
    storage = fsspec.filesystem("memory")
    shard = next(shard for shard in open_log(log).card.shards if shard.format == "arrow")
    right = storage.cat(remote_path(shard.path))
    storage.pipe(remote_path(shard.path), right[:-1] + b"?")
    there = open_log(URL)
    with pytest.raises(DataError, match=f"{shard.path}: does not match its card"):
        there.episodes("fresh")
    assert list((there.folder / shard.path).parent.iterdir()) == []
    storage.pipe(remote_path(shard.path), right)
    assert there.episodes("fresh")


def test_another_card_than_planned_is_refused(log: Path) -> None:
    """A log that changed since the plan is no longer the plan's."""
    for location in (URL, log):
        with pytest.raises(DataError, match="card changed since the sweep was planned"):
            open_log(location, "0" * 64)


def test_a_card_cannot_name_files_outside_the_cache(log: Path, tmp_path: Path) -> None:
    """A path with '..' is refused when the card is read, before anything is fetched."""
    storage = fsspec.filesystem("memory")
    path = open_log(log).card.shards[0].path
    text = storage.cat(remote_path(FILE_NAME)).decode().replace(path, f"../../{path}")
    storage.pipe(remote_path(FILE_NAME), text.encode())
    with pytest.raises(DataError, match="stays inside the log folder"):
        open_log(URL)


def test_a_missing_package_or_protocol_says_what_to_install() -> None:
    """fsspec's own words name the package; they arrive as an error of ours with the address."""
    with pytest.raises(ConfigError, match=r"nosuch://x/card.toml: cannot be read \(Protocol not known"):
        open_log("nosuch://x")
    with pytest.raises(ConfigError, match=r"adlfs"):
        open_log("abfs://x/y")


def test_a_file_in_the_cache_is_left_alone(log: Path) -> None:
    """`fetch` does not touch a file that is there, so that many processes may read it."""
    there = open_log(URL)
    there.episodes("fresh")
    shard = next(shard for shard in there.card.shards if shard.format == "arrow")
    before = (there.folder / shard.path).stat().st_mtime_ns
    fetch(URL, there.folder, shard)
    assert (there.folder / shard.path).stat().st_mtime_ns == before
    shutil.rmtree(there.folder)
