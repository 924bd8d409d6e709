"""Files mapped into memory to be read: a log may be larger than memory, and its pages can be given back."""

import mmap
from pathlib import Path
from weakref import WeakSet

# Its third number is the count of resident pages that belong to files.
STATM = Path("/proc/self/statm")
_OPEN: "WeakSet[mmap.mmap]" = WeakSet()


def map_file(path: Path) -> mmap.mmap:
    """Returns the content of a file, of which nothing is read before it is looked at.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is empty.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _OPEN.add(mapped)
    return mapped


def mapped_bytes() -> int:
    """Returns the size of all files that are mapped, whether or not they are in memory."""
    return sum(map(len, _OPEN))


def resident_bytes() -> int:
    """Returns how much of all mapped files is in this process, or their whole size where the system does not say."""
    try:
        shared_pages = STATM.read_bytes().split()[2]
    except OSError:
        return mapped_bytes()
    return int(shared_pages) * mmap.PAGESIZE


def release_pages() -> None:
    """Takes the pages of all mapped files out of this process; they are read again when they are looked at."""
    for mapped in _OPEN:
        mapped.madvise(mmap.MADV_DONTNEED)
