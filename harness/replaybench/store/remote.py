"""Brings log folders from where fsspec reads them (s3://, hf://, file://, ...) into a cache, each file once a machine.

The cache folder is named by the card's SHA-256, so it holds one log whatever the address, and never a changed one. A
file is fetched when it is first needed, under a lock, and gets its name once its digest matches the card.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replaybench.errors import ConfigError, DataError
from replaybench.store.card import FILE_NAME, FileEntry
from replaybench.store.files import atomic_write, sha256_file, write_error

MAX_CARD_BYTES = 1 << 26


def is_url(location: Path | str) -> bool:
    """Whether a log folder is named by a URL rather than a path."""
    return isinstance(location, str) and "://" in location


def cache_folder() -> Path:
    """Returns the folder that $REPLAYBENCH_CACHE names, else ~/.cache/replaybench."""
    return Path(os.environ.get("REPLAYBENCH_CACHE") or Path.home() / ".cache" / "replaybench")


def has_card(location: Path | str) -> bool:
    """Whether there is a complete log folder.

    Raises:
        ConfigError: The URL's protocol is unknown or its package is missing.
        DataError: The storage does not answer.
    """
    if not is_url(location):
        return (Path(location) / FILE_NAME).exists()
    url = f"{location}/{FILE_NAME}"
    with _storage(url) as (storage, path):
        return bool(storage.exists(path))


def fetch_card(url: str, sha256: str | None = None) -> Path:
    """Returns the cache folder of the log at `url`, with its card in place.

    Args:
        sha256: Of the card, where it is known; then a cached one is not looked for again.

    Raises:
        ConfigError: The URL's protocol is unknown or its package is missing.
        DataError: There is no card, or it is another one.
    """
    if sha256 is not None and (cache_folder() / sha256 / FILE_NAME).is_file():
        return cache_folder() / sha256
    address = f"{url}/{FILE_NAME}"
    with _storage(address) as (storage, path), storage.open(path, "rb") as file:
        content = file.read(MAX_CARD_BYTES + 1)
    if len(content) > MAX_CARD_BYTES:
        raise DataError(f"{address}: has more than {MAX_CARD_BYTES} bytes, so this is no card. Check the address.")
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise DataError(f"{address}: the card changed since the sweep was planned. Start a new sweep.")
    folder = cache_folder() / found
    with atomic_write(folder / FILE_NAME) as temporary:
        temporary.write_bytes(content)
    return folder


def fetch(url: str, folder: Path, entry: FileEntry) -> None:
    """Brings a file that the card names into its cache folder, unless it is there.

    Raises:
        DataError: It is missing, or does not match the card.
    """
    target = folder / entry.path
    if target.exists():
        return
    address = f"{url}/{entry.path}"
    with _locked(folder):
        if target.exists():
            return
        with atomic_write(target) as temporary:
            with _storage(address) as (storage, path):
                storage.get_file(path, str(temporary))
            if sha256_file(temporary) != entry.sha256:
                raise DataError(f"{address}: does not match its card (changed or damaged). Copy the log there again.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        file = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise write_error(folder, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _storage(url: str) -> Iterator[tuple[Any, str]]:
    """Yields the file system behind a URL and the path on it; what it raises names the URL."""
    import fsspec

    try:
        # An instance of its own: one that is shared remembers listings, and would not see a file that came later.
        storage, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: cannot be read ({error}). Install that package, or correct the URL.") from error
    try:
        yield storage, path
    except FileNotFoundError as error:
        raise DataError(f"{url}: there is no such file. Check the address and that the log is complete.") from error
    # The storage libraries have no common base class: botocore's, for example, is Exception.
    except Exception as error:
        raise DataError(
            f"{url}: cannot be read ({type(error).__name__}: {error}). Check the address and your access."
        ) from error
