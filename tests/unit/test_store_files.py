"""Atomic writing and digests of files."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from replaybench.errors import DataError
from replaybench.store.files import CHUNK_BYTES, atomic_write, sha256_file


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    """Missing folders are made, the temporary name keeps the suffix and is gone afterwards."""
    path = tmp_path / "deep" / "er" / "figure.png"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"whole")
        assert (temporary.parent, temporary.suffix, path.exists()) == (path.parent, ".png", False)
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever ends the block early, the name keeps its old content and the exception is not changed."""
    path = tmp_path / "card.toml"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_gets_ordinary_permissions(tmp_path: Path) -> None:
    """Others may read a log as far as the umask allows; expected: a file that Python opened plainly."""
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "disk is full: free some space"),
        (errno.EROFS, "read-only: choose another folder"),
        (errno.EACCES, "Permission is denied: choose a folder"),
        (errno.EIO, "Check the disk"),
    ],
)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_refusing_disk_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str, function: str
) -> None:
    """The error names the file and what to do; nothing is left behind."""

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, refuse)
    with (
        pytest.raises(DataError, match=f"x.bin: cannot be written .*{advice}"),
        atomic_write(tmp_path / "x.bin") as path,
    ):
        path.write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two must not leave a name without content; expected: the order by hand."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_bytes(b"x")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("size", [0, 3, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_the_digest_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    """Reading piece by piece changes nothing; expected: hashlib on all bytes at once."""
    data = bytes(index % 251 for index in range(size))
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_the_digest_of_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    """The file is named."""
    with pytest.raises(DataError, match="nothing: the file is missing"):
        sha256_file(tmp_path / "nothing")
