"""Runs jobs as tasks of a Ray cluster, each in a folder of its own on its node, and survives the death of nodes."""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from replaybench.errors import ConfigError
from replaybench.executor import MAX_DEATHS, THREAD_VARIABLES, Done, Job, Place, Work, guarded, this_place
from replaybench.spec import Resources

REACH_S = 5.0
NODE_CHARACTERS = 8
INSTALL = "Install it on every node with `pip install 'replaybench[ray]'`"

# Contents by path, relative to the folder that a job wrote them into.
Files = dict[str, bytes]


class Cluster(NamedTuple):
    """Which Ray cluster, and what a job asks of a node.

    address: "auto" or HOST:PORT of a running cluster; None starts one on this machine.
    """

    address: str | None
    resources: Resources


class Arrival(NamedTuple):
    """What the cluster hands over: where a job has started (None: its node is lost), or the files that it wrote."""

    job: Job
    place: Place | None
    files: Files


def run_jobs_ray(
    work_into: Callable[[Path], Work], jobs: Sequence[Job], cluster: Cluster, receive: Callable[[Arrival], None]
) -> Iterator[Done]:
    """Yields every job as it ends, in the order of ending, like `run_jobs`.

    A job whose worker or node dies starts again wherever there is room; it is given up after three deaths.

    Args:
        work_into: Returns the work that writes into a folder. Pickled by reference: every node imports it.
        receive: Is told where a job runs, and is given what it wrote before the job is yielded.

    Raises:
        ConfigError: Ray is missing, the cluster cannot be reached, or no node has what a job asks for.
    """
    if not jobs:
        return
    with _connected(cluster.address) as ray:
        _check_resources(ray, cluster.resources)
        # Ray's own retries would start over without telling where.
        task = ray.remote(num_returns="streaming", max_retries=0, **cluster.resources.model_dump())(_run)
        deaths = {job.name: 0 for job in jobs}
        running = {task.remote(work_into, job.payload): job for job in jobs}
        try:
            while running:
                (stream, *_), _ = ray.wait(list(running), num_returns=1)
                job = running[stream]
                try:
                    item = ray.get(next(stream))
                except ray.exceptions.RayTaskError:
                    # Not the run's fault, which comes as a result, but that of this file or of an installation.
                    raise
                except ray.exceptions.RayError as error:
                    del running[stream]
                    receive(Arrival(job, None, {}))
                    deaths[job.name] += 1
                    if deaths[job.name] < MAX_DEATHS:
                        running[task.remote(work_into, job.payload)] = job
                    else:
                        yield Done(job, "", (f"its worker or node died {MAX_DEATHS} times", str(error)))
                    continue
                if isinstance(item, Place):
                    receive(Arrival(job, item, {}))
                    continue
                del running[stream]
                result, error_text, files = item
                if error_text is None:
                    receive(Arrival(job, None, files))
                yield Done(job, result, error_text)
        finally:
            for stream in running:
                ray.cancel(stream, force=True)


def _run(work_into: Callable[[Path], Work], payload: str) -> Iterator[Any]:
    """Runs on a node: yields its place, then (result, error, files)."""
    import ray
    import torch

    torch.set_num_threads(1)
    yield this_place(ray.get_runtime_context().get_node_id()[:NODE_CHARACTERS])
    with tempfile.TemporaryDirectory(prefix="replaybench-") as scratch:
        result, error = guarded(work_into(Path(scratch)), payload)
        paths = [path for path in Path(scratch).rglob("*") if path.is_file()]
        yield result, error, {path.relative_to(scratch).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Yields ray, connected; a connection that the caller has made is used and left alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"The executor 'ray' needs the package ray. {INSTALL}.") from error
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(address)
    variables = {"env_vars": dict.fromkeys(THREAD_VARIABLES, "1")}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=variables)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"No Ray cluster answers at '{address}' ({error}). Start one with `ray start --head` on this machine, "
            "join it with `ray start --address=HOST:PORT`, or leave --address out to use this machine alone."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Refuses a silent address at once; Ray itself tries for minutes and then ends the process."""
    if address in (None, "auto", "local"):
        return
    host, separator, port = str(address).rpartition(":")
    if not separator or not port.isdigit() or "/" in host:
        raise ConfigError(
            f"--address '{address}' must be 'auto' or HOST:PORT, as `ray start` prints it. "
            "Run the sweep on a node of the cluster."
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"No Ray cluster answers at '{address}' ({error}). Check that it runs with `ray status`, "
            "and that this machine reaches it."
        ) from error


def _check_resources(ray: Any, wanted: Resources) -> None:
    """Refuses what no node has: Ray would wait for such a node without a word."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= wanted.num_cpus and node.get("GPU", 0) >= wanted.num_gpus for node in nodes):
        offers = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
        raise ConfigError(
            f"No node of the Ray cluster has {wanted.num_cpus:g} CPU and {wanted.num_gpus:g} GPU for a run "
            f"(nodes: {offers}). Lower [resources] in the sweep, or add such a node."
        )
