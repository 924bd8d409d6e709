"""A column of a log to draw minibatches from: a tensor or, where the log is large, rows left in its mapped shards."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaybench.store.mapped import mapped_bytes, release_pages, resident_bytes

# A column below this size is copied into memory.
MAPPED_FROM_BYTES = 256 << 20
# How much of files stays in this process, its libraries' quarter of a gigabyte included, before logs give theirs back.
RESIDENT_BYTES = 512 << 20
# Rows that are drawn between two looks at that: one row may bring in the 2 MB around it.
ROWS_AT_ONCE = 64
# Spans that are searched for a row; more of them are copied into memory.
MAX_SPANS = 1024


class MappedColumn:
    """Rows that are read from mapped files when they are drawn, [N, ...].

    Args:
        parts: Arrays whose rows follow each other; those that also lie next to each other are searched as one.
        device: Where drawn rows go.
    """

    def __init__(self, parts: Sequence[NDArray[np.generic]], device: torch.device) -> None:
        spans = _joined(parts)
        with warnings.catch_warnings():
            # Nothing writes to a log.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._spans = [torch.from_numpy(span) for span in spans]
        self._starts = np.cumsum([0, *map(len, spans)])
        self._device = device

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_spans(self) -> int:
        """In how many pieces the rows lie."""
        return len(self._spans)

    @property
    def shape(self) -> torch.Size:
        """Number of rows, then the shape of one."""
        return torch.Size([len(self), *self._spans[0].shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        """Type of a number."""
        return self._spans[0].dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        """Returns the rows at these places, [B, ...].

        Args:
            index: [B] int64.
        """
        index = index.cpu()
        if mapped_bytes() <= RESIDENT_BYTES:
            return self._gather(index).to(self._device)
        pieces = []
        for piece in index.split(ROWS_AT_ONCE):
            pieces.append(self._gather(piece))
            if resident_bytes() > RESIDENT_BYTES:
                release_pages()
        return torch.cat(pieces).to(self._device)

    def _gather(self, index: Tensor) -> Tensor:
        if len(self._spans) == 1:
            return self._spans[0][index]
        order = index.argsort()
        ordered = index[order]
        rows = torch.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        bounds = np.searchsorted(ordered.numpy(), self._starts)
        for number in np.flatnonzero(np.diff(bounds)):
            own = slice(bounds[number], bounds[number + 1])
            rows[order[own]] = self._spans[number][ordered[own] - int(self._starts[number])]
        return rows

    def split(self, size: int) -> Iterator[Tensor]:
        """Yields all rows in order, `size` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self[index]


Column = Tensor | MappedColumn


def make_column(parts: Sequence[NDArray[np.generic]], device: torch.device) -> Column:
    """Returns the rows of several arrays as one column; a large one stays where it is."""
    if sum(part.nbytes for part in parts) >= MAPPED_FROM_BYTES:
        column = MappedColumn(parts, device)
        if column.num_spans <= MAX_SPANS:
            return column
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts))).to(device)


def _joined(parts: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Returns fewer arrays of the same rows: slices of one array that touch each other become one."""
    groups: list[list[NDArray[np.generic]]] = []
    for part in parts:
        if groups and _touch(groups[-1][-1], part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [_span(group) for group in groups]


def _touch(before: NDArray[np.generic], after: NDArray[np.generic]) -> bool:
    both_plain = before.flags.c_contiguous and after.flags.c_contiguous
    return (
        both_plain and before.base is after.base is not None and before.ctypes.data + before.nbytes == after.ctypes.data
    )


def _span(group: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    first, rows = group[0], sum(map(len, group))
    return (
        first
        if len(group) == 1
        else np.lib.stride_tricks.as_strided(first, (rows, *first.shape[1:]), first.strides, writeable=False)
    )
