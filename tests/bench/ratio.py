"""What a benchmark measures: a ratio of two times taken in turn, so that other work on the machine touches both."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """One ratio, measured once a round.

    unit: what the ratio is a multiple or a share of. note: the conditions.
    """

    name: str
    samples: list[float]
    unit: str
    note: str


def in_turn(slow: Callable[[], object], fast: Callable[[], object], rounds: int) -> list[float]:
    """Returns seconds of `slow` over seconds of `fast`, round by round; the first round warms up and is left out."""
    samples = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        slow()
        between = time.perf_counter()
        fast()
        samples.append((between - started) / (time.perf_counter() - between))
    return samples[1:]
