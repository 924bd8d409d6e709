"""A sweep over logs in an S3 bucket, on a server that speaks S3's protocol.

Not among the project's own test packages, which it would double in size: `pip install s3fs 'moto[server]'`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from replaybench.errors import DataError
from replaybench.plan import SweepSpec, sources
from replaybench.record import SweepFolder
from replaybench.store import open_log
from replaybench.sweep import claim, run_sweep

pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
pytestmark = pytest.mark.slow
ToySweep = Callable[..., SweepSpec]


@pytest.fixture(scope="module")
def bucket(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the toy logs in a bucket; the cache is empty."""
    import fsspec

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "REPLAYBENCH_CACHE": str(tmp_path_factory.mktemp("empty")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        storage = fsspec.filesystem("s3", skip_instance_cache=True)
        storage.mkdir("logs")
        storage.put(str(toy_data / "toy"), "logs/toy", recursive=True)
        yield "s3://logs/toy"
    server.stop()


def test_a_sweep_over_a_bucket_is_the_sweep_over_the_folder(
    bucket: str, toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """The same run ids and the same numbers, in two processes that fetch at once."""
    tables = []
    for place, dataset in (("here", str(toy_data / "toy")), ("there", bucket)):
        spec = toy_sweep(datasets=(dataset,))
        folder = SweepFolder(tmp_path / place)
        folder.path.mkdir()
        claim(folder, spec, sources(spec, toy_data))
        outcome = run_sweep(folder, folder.runs(), 2, lambda _: None)
        assert (outcome.failed, outcome.completed) == (0, len(folder.runs()))
        tables.append(pl.concat([pl.read_parquet(path) for path in sorted(folder.path.glob("runs/*/rows.parquet"))]))
    assert tables[0].equals(tables[1])


def test_a_bucket_without_the_log_is_named(bucket: str) -> None:
    """The message holds the address."""
    with pytest.raises(DataError, match=r"s3://logs/none/card.toml: there is no such file"):
        open_log("s3://logs/none")
