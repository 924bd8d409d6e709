"""Columns of a log: what is drawn is the same wherever the rows lie, and a large log does not fill the memory."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from store_episodes import write_log

from replaybench import column as column_module
from replaybench.column import MappedColumn, make_column
from replaybench.replay import Replay, pack
from replaybench.seeding import numpy_generator
from replaybench.store import FORMATS, Log
from replaybench.store.mapped import map_file, mapped_bytes, release_pages, resident_bytes

CPU = torch.device("cpu")


def slices_of(rows: NDArray[np.generic], *bounds: int) -> list[NDArray[np.generic]]:
    """Cuts an array at these places, without copying it."""
    return [rows[start:stop] for start, stop in zip((0, *bounds), (*bounds, len(rows)), strict=True)]


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.uint8])
def test_drawn_rows_are_those_of_one_tensor(shape: tuple[int, ...], kind: type[np.generic]) -> None:
    """Three arrays, rows in any order and repeated: what a tensor of all rows gives."""
    rng = numpy_generator("column")
    rows = rng.integers(0, 100, (50, *shape)).astype(kind)
    parts = [part.copy() for part in slices_of(rows, 7, 8, 31)]
    column = MappedColumn(parts, CPU)
    whole = torch.from_numpy(rows)
    index = torch.from_numpy(rng.integers(0, 50, 64))
    assert (len(column), column.shape, column.dtype, column.num_spans) == (50, whole.shape, whole.dtype, 4)
    assert torch.equal(column[index], whole[index])
    assert torch.equal(column[index[:0]], whole[index[:0]])
    assert [len(chunk) for chunk in column.split(20)] == [20, 20, 10]
    assert torch.equal(torch.cat(list(column.split(20))), whole)


def test_slices_that_touch_are_searched_as_one() -> None:
    """Neighbours of one array join; a gap, another order, another array or a strided view does not."""
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    first, second, third = slices_of(rows, 4, 11)
    assert MappedColumn([first, second, third], CPU).num_spans == 1
    assert MappedColumn([first, third], CPU).num_spans == 2
    assert MappedColumn([second, first], CPU).num_spans == 2
    assert MappedColumn([first, rows.copy()[4:11]], CPU).num_spans == 2
    assert MappedColumn([rows[:4, :2].copy()[:2], rows[2:4, :2]], CPU).num_spans == 2
    assert torch.equal(MappedColumn([first, second], CPU)[torch.arange(11)], torch.from_numpy(rows[:11]))


def test_only_a_large_column_in_few_pieces_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small columns, and many separate arrays, are copied into one tensor."""
    rows = np.zeros((100, 4), np.float32)
    assert isinstance(make_column([rows], CPU), torch.Tensor)
    monkeypatch.setattr(column_module, "MAPPED_FROM_BYTES", rows.nbytes)
    monkeypatch.setattr(column_module, "MAX_SPANS", 2)
    assert isinstance(make_column([rows[:99]], CPU), torch.Tensor)
    assert isinstance(make_column(slices_of(rows, *range(1, 100)), CPU), MappedColumn)
    assert isinstance(make_column([part.copy() for part in slices_of(rows, 30, 60)], CPU), torch.Tensor)


def replay_of(folder: Path, format: str) -> Replay:
    return pack(Log(folder).episodes("fresh", format), CPU)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_mapped_log_gives_the_same_minibatches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Three shards a level: one span a shard, and every row as when the log is in memory."""
    write_log(tmp_path)
    expected = replay_of(tmp_path, format)
    monkeypatch.setattr(column_module, "MAPPED_FROM_BYTES", 1)
    mapped = replay_of(tmp_path, format)
    assert isinstance(mapped.observations, MappedColumn) and isinstance(mapped.mu_logits, MappedColumn)
    assert mapped.observations.num_spans == mapped.mu_logits.num_spans == 3
    index = torch.from_numpy(numpy_generator("column").permutation(mapped.num_steps))
    assert torch.equal(mapped.observations[mapped.row[index]], expected.observations[expected.row[index]])
    assert expected.mu_logits is not None
    assert torch.equal(mapped.mu_logits[index], expected.mu_logits[index])


def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    """After a look at all of a file its pages are in the process, after the release no more; what is drawn is right."""
    path = tmp_path / "rows"
    rows = np.arange(4 << 20, dtype=np.float32).reshape(-1, 16)
    path.write_bytes(rows.tobytes())
    column = MappedColumn([np.frombuffer(map_file(path), np.float32).reshape(-1, 16)], CPU)
    before = resident_bytes()
    for _ in range(2):
        assert torch.equal(torch.cat(list(column.split(1000))), torch.from_numpy(rows))
        assert resident_bytes() > before + rows.nbytes // 2
        release_pages()
        assert resident_bytes() < before + rows.nbytes // 4


def test_drawing_gives_pages_back_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log within the limit stays in the process, one beyond it goes after the draw that exceeds it."""
    path = tmp_path / "rows"
    path.write_bytes(bytes(64 * mmap.PAGESIZE))
    column = MappedColumn([np.frombuffer(map_file(path), np.uint8).reshape(64, -1)], CPU)
    released = []
    monkeypatch.setattr(column_module, "release_pages", lambda: released.append(1))
    column[torch.arange(64)]
    assert not released
    monkeypatch.setattr(column_module, "RESIDENT_BYTES", mmap.PAGESIZE)
    column[torch.arange(64).repeat(3)]
    assert released == [1, 1, 1]


def test_a_mapping_goes_with_the_last_array_that_needs_it(tmp_path: Path) -> None:
    """Nothing is kept open by the list of what is open."""
    path = tmp_path / "rows"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    before = mapped_bytes()
    array = np.frombuffer(map_file(path), np.uint8)
    assert mapped_bytes() == before + 3 * mmap.PAGESIZE
    del array
    assert mapped_bytes() == before
