"""Benchmark of off-policy corrections on replayed robot trajectories."""

__version__ = "0.1.0"
