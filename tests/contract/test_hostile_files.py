"""Mutated real files: each is read right or refused with a DataError, in bounded time and memory, or the law is broken.

Every input is read in a fork with limits, so that a crash or a hang is seen. FUZZ_INPUTS sets how many (`make fuzz`).
"""

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_bad_logs import make_log

from replaybench.errors import ConfigError, DataError
from replaybench.policy.openvla_oft import OpenVLAOFT
from replaybench.policy.openvla_oft.adapt import AdaptSettings, adapt
from replaybench.policy.openvla_oft.checkpoint import read_tensors
from replaybench.policy.openvla_oft.config import NAMED
from replaybench.record import read_json
from replaybench.seeding import torch_generator
from replaybench.store import FORMATS, limited, open_log, read_card
from replaybench.store import log as store_log
from replaybench.store.checkpoint import check_checkpoint, write_checkpoint
from replaybench.store.limited import verify_limited

NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "500"))
# Beyond what the process holds already.
MEMORY_BYTES = 1 << 30
CPU_S = 5
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "hdf5": ("hdf5/fresh-00000.h5", lambda path: FORMATS["hdf5"].read_episodes(path)),
    "arrow": ("arrow/fresh-00000.arrow", lambda path: FORMATS["arrow"].read_episodes(path)),
    "card": ("card.toml", lambda path: read_card(path.parent)),
    "checkpoint": ("checkpoints/start.safetensors", check_checkpoint),
    "manifest": ("manifest.json", read_json),
    "vla config": ("vla/config.json", lambda path: OpenVLAOFT.from_pretrained(path.parent)),
    "vla statistics": ("vla/dataset_statistics.json", lambda path: OpenVLAOFT.from_pretrained(path.parent)),
    "vla index": ("vla/model.safetensors.index.json", lambda path: OpenVLAOFT.from_pretrained(path.parent)),
    "vla adapter": ("vla/lora_adapter/adapter_config.json", lambda path: OpenVLAOFT.from_pretrained(path.parents[1])),
    "vla part": ("vla/proprio_projector--5000_checkpoint.pt", read_tensors),
}
# A vocabulary of its real size would take most of the time.
SMALL_TEXT = NAMED["tiny"]["text_config"] | {"num_hidden_layers": 1}
Mutation = tuple[str, float, bytes]
SPECIAL = [b"\0" * 8, b"\xff" * 8, b"\xff" * 4, b"\x7f\xff\xff\xff", b"[" * 5000, b"9" * 5000, b"../", b'"', b"\n"]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "cut", "number", "number"]),
        # Headers are where lies about sizes stand.
        st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
        st.one_of(st.sampled_from(SPECIAL), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=3,
)


def mutate(data: bytes, changes: list[Mutation]) -> bytes:
    for kind, place, new in changes:
        start = int(place * len(data))
        if kind == "replace":
            data = data[:start] + new + data[start + len(new) :]
        elif kind == "insert":
            data = data[:start] + new + data[start:]
        elif kind == "delete":
            data = data[:start] + data[start + len(new) :]
        elif kind == "number":
            # Text stays well-formed, so that what it says is reached.
            data = data[:start] + re.sub(rb"\d+", str(int.from_bytes(new[:8])).encode(), data[start:], count=1)
        else:
            data = data[:start]
    return data


def fate(read: Callable[[Path], object], path: Path) -> str:
    """Returns "read", "refused", or what else became of a limited process that read the file."""
    child = os.fork()
    if child == 0:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            read(path)
            os._exit(0)
        except (DataError, ConfigError):
            os._exit(3)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return {0: "read", 3: "refused"}.get(code, "raised another error")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a manifest beside its card."""
    folder = make_log(tmp_path_factory.mktemp("hostile") / "log")
    manifest = {"run_id": "toy", "wall_s": 1.5, "versions": {"torch": "2"}, "host": {"cores": 2, "names": ["a", "b"]}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    write_checkpoint(folder / READERS["checkpoint"][0], {"w": torch.ones(3, 2), "b": torch.zeros(3)})
    write_vla(folder / "vla")
    return folder


def write_vla(folder: Path) -> None:
    """Writes an OpenVLA-OFT checkpoint in shards, with an adapter and a part in a file of its own as torch saves it."""
    statistics = {"toy": {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}}
    settings = NAMED["tiny"] | {"norm_stats": statistics, "use_proprio": True, "text_config": SMALL_TEXT}
    model = OpenVLAOFT.from_config(settings, generator=torch_generator("hostile"))
    adapt(model, AdaptSettings(rank=2))
    model.save_pretrained(folder, max_shard_bytes=200_000)
    saved = folder / "proprio_projector.safetensors"
    torch.save(load_file(saved), folder / Path(READERS["vla part"][0]).name)
    saved.unlink()


@pytest.mark.parametrize("kind", READERS)
def test_a_mutated_file_is_read_or_refused(kind: str, original: Path, tmp_path: Path) -> None:
    """Nothing else: no other exception, no crash, no hang, no gigabyte for a file of a few kilobytes."""
    name, read = READERS[kind]
    path = shutil.copytree(original, tmp_path / "copy") / name
    data = path.read_bytes()
    assert fate(read, path) == "read"
    fates: dict[str, int] = {"read": 0, "refused": 0}

    @settings(
        max_examples=NUM_INPUTS // len(READERS),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations)
    def law(changes: list[Mutation]) -> None:
        path.write_bytes(mutate(data, changes))
        found = fate(read, path)
        assert found in fates
        fates[found] += 1

    law()
    print(f"{kind}: {sum(fates.values())} inputs, {fates}")
    assert fates["refused"] > 0


@pytest.mark.parametrize(
    "path", ["../outside.arrow", "/etc/passwd", "arrow/a\\u0000b.arrow", "arrow/" + "a" * 5000, "arrow/../../x"]
)
def test_a_card_cannot_name_a_file_outside_or_an_impossible_one(path: str, original: Path, tmp_path: Path) -> None:
    """Reading refuses it before any file is touched."""
    text = (original / "card.toml").read_text().replace("arrow/fresh-00000.arrow", path)
    (tmp_path / "card.toml").write_text(text)
    with pytest.raises(DataError, match="path"):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff{}", "[]"])
def test_json_that_would_exhaust_the_reader_is_refused(text: str, tmp_path: Path) -> None:
    """Deep nesting and numbers of thousands of digits."""
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(DataError, match="manifest.json"):
        read_json(path)


def test_text_larger_than_any_real_one_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 1 TB takes no memory."""
    for name, read in (("manifest.json", read_json), ("card.toml", lambda path: read_card(path.parent))):
        path = tmp_path / name
        path.touch()
        os.truncate(path, 1 << 40)
        with pytest.raises(DataError, match="more than any"):
            read(path)


def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on no file was written or checked on this machine."""
    monkeypatch.setenv("REPLAYBENCH_CACHE", str(tmp_path / "cache"))


def test_a_strangers_log_is_checked_in_a_process_with_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound one passes, a damaged one keeps its message, and one that needs too much is refused like any other."""
    log = make_log(tmp_path / "log")
    forget(monkeypatch, tmp_path)
    with pytest.raises(DataError, match="MemoryError|killed the process that checked it"):
        verify_limited(log, memory_bytes=16 << 20)
    assert len(verify_limited(log)) == 5
    (log / "arrow/fresh-00001.arrow").write_bytes(b"x")
    with pytest.raises(DataError, match="arrow/fresh-00001.arrow: .*truncated or changed"):
        verify_limited(log)
    monkeypatch.setattr(limited, "WALL_S", 0.01)
    with pytest.raises(DataError, match="took over 0.01 s"):
        verify_limited(log)


def test_a_file_is_read_here_only_after_a_process_with_limits_survived_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's shards and checkpoints are checked once, all of a level's together; what is written here never."""
    log = open_log(make_log(tmp_path / "log"))
    checked: list[list[str]] = []
    real = limited.verify_limited

    def watched(folder: Path, paths: list[str]) -> list[str]:
        checked.append(sorted(paths))
        return real(folder, paths)

    monkeypatch.setattr(limited, "verify_limited", watched)
    log.episodes("fresh")
    assert checked == []
    forget(monkeypatch, tmp_path)
    expected = sorted(shard.path for shard in log.card.shards if (shard.level, shard.format) == ("fresh", "arrow"))
    for _ in range(2):
        log.episodes("fresh")
        assert checked == [expected]
    log.checkpoint("start")
    assert checked == [expected, ["checkpoints/start.safetensors"]]


def test_a_strangers_log_that_kills_its_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads the log lives on, and has read nothing of it itself."""
    log = open_log(make_log(tmp_path / "log"))
    forget(monkeypatch, tmp_path)
    monkeypatch.setattr(limited, "MEMORY_BYTES", 16 << 20)
    monkeypatch.setattr(store_log, "read_shard", lambda *_, **__: pytest.fail("read in this process"))
    with pytest.raises(DataError, match="MemoryError|killed the process that checked it"):
        log.episodes("fresh")
