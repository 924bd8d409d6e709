"""Times iterations of the authors' trainer against the textbook loop that does the same work.

python tests/bench/run.py trainer
"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from plain_loop import PlainNetwork, plain_iterations
from ratio import Ratio

from replaybench.buffered import iterations, start_policy
from replaybench.diagnostics import Rows
from replaybench.plan import check, load_sweep, runs, sources
from replaybench.policy.linear import Linear
from replaybench.spec import RunSpec
from replaybench.store import Log, open_log
from replaybench.sweep import make_data

ROUNDS = 8
# Of an iteration: 90 value-only updates (two weight gradients' worth each) and 10 of everything, at batch 512.
VALUE_GFLOP = 90 * 2 * 2 * 512 * (512 * 256 + 256) / 1e9
FULL_GFLOP = 10 * 3 * 2 * 512 * (39 * 512 + 512 * 512 + 512 * 1024 + 512 * 256) / 1e9


def ratios() -> Iterator[Ratio]:
    """Yields the speed-ups of an iteration, and its distance from the floor of matrix products and simulator steps."""
    torch.set_num_threads(2)
    with TemporaryDirectory() as folder:
        run, log = authors_run(Path(folder))
        policy = start_policy(run.buffered, run, log, torch.device("cpu"))  # type: ignore[arg-type]
        plain = plain_iterations(run, log, PlainNetwork(policy))  # type: ignore[arg-type]
        loops = {"ours": iterations(run, log, policy, Rows()), "plain": plain, "bfloat16": in_bfloat16(run, log)}
        # The first iteration builds the simulators.
        took = {name: [seconds(loop)] for name, loop in loops.items()}
        floors_s = []
        for _ in range(ROUNDS):
            for name, loop in loops.items():
                took[name].append(seconds(loop))
            floors_s.append(floor_seconds(log))
    ours_s, plain_s, bfloat16_s = (np.array(took[name][1:]) for name in ("ours", "plain", "bfloat16"))
    note = "authors preset, 500 environment steps and 100 updates of 512 an iteration, 2 threads"
    yield Ratio("trainer_vs_plain", list(plain_s / ours_s), "times faster than the textbook loop", note)
    floor = f"{VALUE_GFLOP + FULL_GFLOP:.0f} GFLOP at the rate of 512 x 512 products, and 500 simulator steps"
    yield Ratio("trainer_vs_floor", list(ours_s / floors_s), f"times the floor of {floor}", note)
    yield Ratio(
        "trainer_bfloat16_vs_float32", list(ours_s / bfloat16_s), "times faster with precision = bfloat16", note
    )


def authors_run(data: Path) -> tuple[RunSpec, Log]:
    """Returns a run of the preset `authors` and its log, made in `data`."""
    spec = load_sweep("authors").model_copy(update={"lineages": (0,)})
    found = sources(spec, data)
    make_data(found, spec.lineages, 1, "bench", lambda progress: None)
    run = next(one for one in runs(spec, found, check(spec, found)) if (one.baseline, one.level) == ("gipo", "stale"))
    return run, open_log(Path(run.data_folder))


def in_bfloat16(run: RunSpec, log: Log) -> Iterator[object]:
    """Returns the iterations of the same run with its updates' products in bfloat16."""
    train = run.train.model_copy(update={"precision": "bfloat16"})
    policy = start_policy(run.buffered, run, log, torch.device("cpu"))  # type: ignore[arg-type]
    return iterations(run.model_copy(update={"train": train}), log, policy, Rows())


def seconds(loop: Iterator[object]) -> float:
    """Returns what the next iteration takes."""
    started = time.perf_counter()
    next(loop)
    return time.perf_counter() - started


def floor_seconds(log: Log) -> float:
    """Returns what the work would take if matrix products and the simulator were all there is."""
    from replaybench.evaluate import open_world

    layer, inputs = Linear(512, 512).requires_grad_(False), torch.randn(512, 512)
    layer(inputs)
    started = time.perf_counter()
    for _ in range(20):
        layer(inputs)
    rate = 20 * 2 * 512**3 / 1e9 / (time.perf_counter() - started)
    environment = open_world(log.card.suite, log.card.suite_settings, log.card.task, collectors=2).environments[0]
    simulator = environment.simulator  # type: ignore[attr-defined]
    environment.reset((1, 0), None)  # type: ignore[arg-type]
    action = torch.zeros(4).numpy()
    started = time.perf_counter()
    for _ in range(100):
        simulator.step(action)
    return (VALUE_GFLOP + FULL_GFLOP) / rate + 5 * (time.perf_counter() - started)
