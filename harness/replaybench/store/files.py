"""Writes files so that a name never stands for half a file, and says in plain words why a disk refused."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replaybench.errors import DataError, DiskError

ADVICE = {
    errno.ENOSPC: "The disk is full: free some space or choose another folder.",
    errno.EDQUOT: "Your disk quota is used up: free some space or choose another folder.",
    errno.EFBIG: "The file would exceed the allowed size: raise the limit or write smaller files.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EACCES: "Permission is denied: choose a folder that you may write to.",
    errno.EPERM: "Permission is denied: choose a folder that you may write to.",
}
CHUNK_BYTES = 1 << 20
# A card of ten thousand shards has 3 MB.
MAX_TEXT_BYTES = 64 << 20


# How the name of a file begins that is not whole yet.
TEMPORARY = ".tmp-"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path in the same folder that replaces `path` when the block ends without an exception.

    Missing folders are made. The temporary name keeps the suffix, from which some libraries tell the format.

    Raises:
        DiskError: The disk refused; nothing is left behind and an older file at `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file for this process, through the operating system: it is gone with the process.

    Args:
        wait: Whether to wait for another process that holds it.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        DiskError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _sync(path: Path) -> None:
    # Without this a crash of the machine may leave the new name with old or no content.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> DiskError:
    """Returns the error for a file that could not be written, with what to do about it."""
    advice = ADVICE.get(error.errno or 0, "Check the disk and the folder.")
    return DiskError(f"{path}: cannot be written ({error}). {advice} Then run the same command again.")


def sha256_file(path: Path | str) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hex digits, reading it piece by piece.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    with reading(Path(path)), Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()


def read_text(path: Path) -> str:
    """Returns the text of a card or record, whose size is bounded.

    Raises:
        DataError: It is too large.
        OSError, ValueError: It cannot be read, or is no UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"{path}: has more than any real one, {MAX_TEXT_BYTES >> 20} MB. Copy it again.")
    return content.decode("utf-8")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a library raises on a missing or damaged file into a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing. Copy it again or make the log again.") from error
    except PermissionError as error:
        raise DataError(f"{path}: permission to read is denied. Change its permissions.") from error
    # The storage libraries have no common base class: h5py alone raises five of these on damaged files.
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Copy it again or make the log again."
        ) from error
