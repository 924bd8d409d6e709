"""What a benchmark measures: a ratio of two times taken in turn, so that other work on the machine touches both."""

from typing import NamedTuple


class Ratio(NamedTuple):
    """One ratio, measured once a round.

    unit: what the ratio is a multiple or a share of. note: the conditions.
    """

    name: str
    samples: list[float]
    unit: str
    note: str
