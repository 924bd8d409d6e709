"""Times random minibatches from mapped shards against tensors in memory and against a plain h5py loop.

python tests/bench/run.py reading
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch
from large_log import STATE, write_random_log
from ratio import Ratio

from replaybench.column import Column, MappedColumn
from replaybench.replay import Replay, pack
from replaybench.seeding import numpy_generator
from replaybench.store import Log

ROUNDS, BATCHES, BATCH_SIZE = 15, 200, 512
LOOP_BATCHES = 2
NUM_EPISODES = 200


def ratios() -> Iterator[Ratio]:
    """Yields the speed of drawing from either format, as a share of memory and as a multiple of the loop."""
    with TemporaryDirectory() as folder:
        write_random_log(Path(folder), NUM_EPISODES, logits=False)
        log = Log(folder)
        episodes = {format: log.episodes("fresh", format) for format in ("arrow", "hdf5")}
        replay = pack(episodes["arrow"], torch.device("cpu"))
        mapped = {
            format: MappedColumn([episode.observations for episode in found], torch.device("cpu"))
            for format, found in episodes.items()
        }
        shard = next(entry for entry in log.card.shards if entry.format == "hdf5")
        rng = numpy_generator("bench", "reading")
        samples: dict[str, list[float]] = {}
        for _ in range(ROUNDS + 1):
            index = torch.from_numpy(rng.integers(0, replay.num_steps, (BATCHES, BATCH_SIZE)))
            memory = seconds(lambda: draw(replay, replay.observations, index))  # noqa: B023  called at once
            with h5py.File(log.folder / shard.path) as file:
                loop = BATCHES / LOOP_BATCHES * seconds(lambda: plain_loop(file, replay, index[:LOOP_BATCHES]))  # noqa: B023
            for format, column in mapped.items():
                own = seconds(lambda: draw(replay, column, index))  # noqa: B023
                samples.setdefault(f"{format}_vs_memory", []).append(memory / own)
                samples.setdefault(f"{format}_vs_h5py_loop", []).append(loop / own)
    note = f"batches of {BATCH_SIZE} of {replay.num_steps} steps, {STATE} float32 a state, warm cache"
    for name, values in samples.items():
        unit = "times the speed of tensors in memory" if "memory" in name else "times the speed of an h5py loop"
        # The first round warms up.
        yield Ratio(name, values[1:], unit, note)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def draw(replay: Replay, observations: Column, index_NB: torch.Tensor) -> None:
    """Gathers what an update reads of a minibatch."""
    for index in index_NB:
        observations[replay.row[index]], replay.action_tokens[index], replay.log_mu[index]


def plain_loop(file: h5py.File, replay: Replay, index_NB: torch.Tensor) -> None:
    """Gathers the same item by item through h5py."""
    columns = [file["observations"], file["steps/action_tokens"], file["steps/log_mu"]]
    for index in index_NB:
        rows = [replay.row[index].tolist(), index.tolist(), index.tolist()]
        for column, places in zip(columns, rows, strict=True):
            torch.from_numpy(np.stack([column[place] for place in places]))
