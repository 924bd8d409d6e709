"""The errors that a user can meet. Each message says what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class ReplayBenchError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class ConfigError(ReplayBenchError):
    """A spec, recipe, preset, name or option is wrong."""


class DataError(ReplayBenchError):
    """A shard, card or checkpoint is missing, damaged or does not match its card."""

    exit_code = 3


class DiskError(DataError):
    """A file could not be written. It stops a sweep, whose unwritten runs stay due, rather than failing a run."""

    exit_code = 1


class ContractError(ReplayBenchError):
    """A baseline, policy or suite breaks its contract."""


class NumericalError(ReplayBenchError):
    """A computation left the range of its floating-point type."""

    exit_code = 1


class RunFailed(ReplayBenchError):
    """A run of a sweep ended without a result."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Returns the error for a name that does not exist, with the nearest one and the list."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
