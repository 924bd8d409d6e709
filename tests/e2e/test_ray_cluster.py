"""Sweeps on a Ray cluster of two and three nodes: the pool's tables, a killed node, and one fetch of each file."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaybench.errors import ConfigError
from replaybench.executor_ray import Cluster
from replaybench.plan import SweepSpec, sources
from replaybench.record import SweepFolder
from replaybench.spec import Resources
from replaybench.sweep import Progress, claim, due_runs, run_sweep

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow
ToySweep = Callable[..., SweepSpec]

COUNTED = """
import os
from fsspec.implementations.local import LocalFileSystem

class Counted(LocalFileSystem):
    \"\"\"Local files under a protocol of their own; every read of one is noted.\"\"\"

    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path, *args, **kwargs):
        return super()._strip_protocol(path.removeprefix("counted://"), *args, **kwargs)

    def _note(self, path):
        with open(os.environ["COUNTED_READS"], "a") as file:
            file.write(path + "\\n")

    def get_file(self, rpath, lpath, **kwargs):
        self._note(rpath)
        return super().get_file(rpath, lpath, **kwargs)

    def _open(self, path, *args, **kwargs):
        self._note(path)
        return super()._open(path, *args, **kwargs)
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of reads through `counted://`, a protocol that this process and every node know; an empty cache."""
    folder = tmp_path_factory.mktemp("counted")
    (folder / "counted.py").write_text(COUNTED)
    (folder / "counted-1.dist-info").mkdir()
    (folder / "counted-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 1\n")
    (folder / "counted-1.dist-info" / "entry_points.txt").write_text("[fsspec.specs]\ncounted = counted:Counted\n")
    import fsspec

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("COUNTED_READS", str(folder / "reads"))
        patch.setenv("REPLAYBENCH_CACHE", str(folder / "cache"))
        patch.setattr(sys, "path", [str(folder), *sys.path])
        fsspec.register_implementation("counted", "counted.Counted", clobber=True)
        yield folder / "reads"


@pytest.fixture(scope="module")
def cluster(counted: Path) -> Iterator[Any]:
    """A cluster whose head runs one run at a time; nodes are added by the tests."""
    from ray.cluster_utils import Cluster as LocalCluster

    local = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    yield local
    local.shutdown()


def silent(progress: Progress) -> None:
    """Listens to nothing."""


def claimed(spec: SweepSpec, data: Path, out: Path) -> SweepFolder:
    folder = SweepFolder(out)
    folder.path.mkdir(parents=True)
    claim(folder, spec, sources(spec, data))
    return folder


def tables(folder: SweepFolder) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((folder.path / "runs").glob("*/rows.parquet"))])


def test_three_nodes_and_a_killed_one_give_the_tables_of_the_pool(
    cluster: Any, counted: Path, toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """Killing a node in mid-sweep costs its running run one more attempt elsewhere; nothing is lost or doubled.

    The logs are at a URL: of each file that a run needs there is one read in all, as the nodes share this machine.
    """
    own = tmp_path / "mine.py"
    own.write_text((Path(sources.__code__.co_filename).parents[2] / "baselines" / "gipo.py").read_text())
    spec = toy_sweep(baselines=("zero", "ppo_clip", str(own)), levels=("stale",))
    pool = claimed(spec, toy_data, tmp_path / "pool")
    run_sweep(pool, pool.runs(), 2, silent)

    from_url = spec.model_copy(update={"datasets": (f"counted://{toy_data / 'toy'}",)})
    folder = claimed(from_url, toy_data, tmp_path / "ray")
    assert [run.run_id() for run in folder.runs()] == [run.run_id() for run in pool.runs()]
    nodes = {node.node_id[:8]: node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
    seen: list[tuple[str, str]] = []
    killed: list[str] = []
    heard: list[Progress] = []
    write_running = folder.write_running

    def watch(run_id: str, place: Any) -> None:
        """Notes where each run starts; kills the first added node on which one has just started."""
        write_running(run_id, place)
        seen.append((run_id, place["node"]))
        if place["node"] in nodes and not killed:
            killed.append(run_id)
            cluster.remove_node(nodes[place["node"]], allow_graceful=False)

    folder.write_running = watch  # type: ignore[method-assign]
    outcome = run_sweep(folder, folder.runs(), Cluster(cluster.address, Resources()), heard.append)
    assert outcome.failed == 0 and outcome.completed == len(pool.runs())
    ended = Counter(progress.latest for progress in heard if progress.latest)
    assert ended == Counter(run.run_id() for run in pool.runs()), "a run ended twice or never"
    starts = Counter(run_id for run_id, _ in seen)
    assert len({node for _, node in seen}) == 3
    assert {run_id for run_id, count in starts.items() if count > 1} == set(killed)
    assert tables(folder).equals(tables(pool))
    assert due_runs(folder, folder.runs(), None, None) == []
    assert not list((folder.path / "running").glob("*"))
    reads = Counter(line for line in counted.read_text().splitlines() if "card.toml" not in line)
    assert reads and set(reads.values()) == {1}
    for spec_path in folder.path.glob("runs/*/spec.json"):
        assert "counted://" in spec_path.read_text()
        assert str(own) in spec_path.read_text() or "mine" not in spec_path.parent.name


def test_a_cluster_without_what_a_run_asks_for_is_refused(
    cluster: Any, toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """Instead of waiting for ever for a node with a GPU."""
    folder = claimed(toy_sweep(), toy_data, tmp_path / "out")
    with pytest.raises(ConfigError, match="No node of the Ray cluster has 1 CPU and 1 GPU"):
        run_sweep(folder, folder.runs(), Cluster(cluster.address, Resources(num_gpus=1)), silent)
