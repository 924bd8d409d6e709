"""The card: TOML that round-trips, and fields that must fit together."""

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from store_episodes import make_card, write_log

from replaybench.errors import DataError
from replaybench.store import Card, CheckpointEntry, LevelCard, ShardEntry, card_digest, read_card, write_card
from replaybench.store.toml import to_toml

plain = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


def shard(**changes: Any) -> ShardEntry:
    """Returns an entry of level `fresh`; `changes` replace fields."""
    entry: dict[str, Any] = {
        "level": "fresh",
        "format": "hdf5",
        "path": "hdf5/fresh-00000.h5",
        "sha256": "0" * 64,
        "num_bytes": 10,
        "num_episodes": 2,
        "num_steps": 5,
    }
    return ShardEntry(**entry | changes)


def start(**changes: Any) -> CheckpointEntry:
    """Returns the entry of the start checkpoint; `changes` replace fields."""
    entry = {"name": "start", "path": "checkpoints/start.safetensors", "sha256": "1" * 64, "version": 3}
    return CheckpointEntry(**entry | changes)


def full_card(**changes: Any) -> Card:
    """Returns a card with one level, one shard and one checkpoint; `changes` replace fields."""
    fields = {"levels": {"fresh": LevelCard(lag_updates=(0, 0))}, "shards": [shard()], "checkpoints": [start()]}
    return make_card(**fields | changes)


@given(st.dictionaries(keys, values, max_size=5))
def test_any_plain_table_survives_toml(table: dict[str, Any]) -> None:
    """The writer's text means the same to the standard library's reader, types and order included."""
    text = to_toml(table)
    read = tomllib.loads(text)
    assert repr(_sorted(read)) == repr(_sorted(table))
    assert to_toml(read) == to_toml(tomllib.loads(to_toml(read)))


def _sorted(value: Any) -> Any:
    # Plain values move before tables, so the order of keys may change.
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def test_numbers_that_are_no_numbers_survive_toml() -> None:
    """A measured KL may be infinite; expected: TOML's own words for it."""
    assert to_toml({"kl": [math.inf, -math.inf, math.nan]}) == "kl = [inf, -inf, nan]\n"


def test_toml_is_written_as_people_write_it() -> None:
    """Tables get headers and lists of tables double brackets; expected: by hand."""
    table = {"b": {"x": 1.5}, "a": 'q"\n\x7f', "rows": [{"n": 1}, {"n": True}], "mixed": [1, {"k": "v"}], "": []}
    assert to_toml(table) == (
        'a = "q\\"\\n\\u007F"\nmixed = [1, {k = "v"}]\n"" = []\n\n[b]\nx = 1.5\n'
        "\n[[rows]]\nn = 1\n\n[[rows]]\nn = true\n"
    )


@pytest.mark.parametrize("value", [None, b"x", {1: 2}, [None], {"a": object()}, "\ud800"])
def test_a_value_without_a_form_in_toml_is_refused(value: Any) -> None:
    """Nothing is left out or turned into text silently."""
    with pytest.raises(DataError, match="field 'settings"):
        to_toml({"settings": value})


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Every field survives, nested settings, absent and measured values included."""
    levels = {
        "fresh": LevelCard(lag_updates=(0, 0), measured={"success": 0.5, "episodes": 300, "kl": {"k1": -0.1}}),
        "matched": LevelCard(branch_updates=40),
    }
    second = shard(level="matched", path="hdf5/matched-00000.h5")
    card = full_card(levels=levels, shards=[shard(), second])
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert [path.name for path in tmp_path.iterdir()] == ["card.toml"]


def test_the_same_card_gives_the_same_bytes_and_the_digest_is_theirs(tmp_path: Path) -> None:
    """Expected: hashlib on the file."""
    for name in ("one", "two"):
        write_card(tmp_path / name, full_card())
    data = (tmp_path / "one" / "card.toml").read_bytes()
    assert data == (tmp_path / "two" / "card.toml").read_bytes()
    assert card_digest(tmp_path / "one") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a/..", "", ".", "a//b", "./a", "a\\b", "C:/x"])
@pytest.mark.parametrize("entry", [shard, start])
def test_a_path_stays_inside_the_folder(path: str, entry: Any) -> None:
    """An entry is made of relative POSIX paths in their plainest form only."""
    with pytest.raises(ValidationError, match="stays inside the log folder"):
        entry(path=path)


@pytest.mark.parametrize(
    "changes",
    [
        {"suite_settings": {"seed": None}},
        {"policy_settings": {"deep": [{"x": object()}]}},
        {"levels": {"../fresh": LevelCard()}},
        {"lineage": "0"},
        {"lineage": True},
        {"surprise": 1},
    ],
)
def test_a_malformed_card_cannot_be_made(changes: dict[str, Any]) -> None:
    """Values that a card file could not hold are refused when the card is made, not after hours of collecting."""
    with pytest.raises(ValidationError):
        make_card(**changes)


@pytest.mark.parametrize("lag", [[0, 0], (2, 5)])
def test_a_lag_range_is_a_pair(lag: Any) -> None:
    """TOML's list and Python's tuple both do."""
    assert LevelCard(lag_updates=lag).lag_updates == tuple(lag)


@pytest.mark.parametrize("lag", [(5, 2), (-1, 0), (1,), (0.0, 1.0), "01"])
def test_a_lag_range_rises_from_zero(lag: Any) -> None:
    """Lags are counts of updates, lowest first."""
    with pytest.raises(ValidationError):
        LevelCard(lag_updates=lag)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "no start": ({"checkpoints": [start(name="other")]}, "'start_checkpoint': 'start' is none of .*other"),
    "no warm start": ({"warm_start_checkpoint": "old"}, "'warm_start_checkpoint': 'old' is none of .*start"),
    "checkpoint twice": ({"checkpoints": [start(), start(path="x")]}, "'checkpoints': 'start' occurs twice"),
    "path twice": ({"shards": [shard(), shard()]}, "'path': 'hdf5/fresh-00000.h5' occurs twice"),
    "no levels": ({"levels": {}, "shards": []}, "'levels': there are none"),
    "unknown level": ({"shards": [shard(), shard(level="old", path="x")]}, "x is of level 'old'"),
    "no episodes": ({"shards": []}, "level 'fresh' has no shard in any format"),
    "empty level": (
        {"levels": {"fresh": LevelCard(), "stale": LevelCard()}},
        "level 'stale' has no shard in hdf5",
    ),
    "unequal formats": (
        {"shards": [shard(), shard(format="arrow", path="x", num_steps=6)]},
        "level 'fresh' differs between formats.*'steps': 6",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_entries_that_do_not_fit_together_are_refused(tmp_path: Path, kind: str) -> None:
    """Such a card is not written, since its existence would say that the log is complete."""
    changes, message = MISFITS[kind]
    with pytest.raises(DataError, match=f"card.toml: field .*{message}"):
        write_card(tmp_path, full_card(**changes))
    assert list(tmp_path.iterdir()) == []


DAMAGE: dict[str, tuple[str, str, str]] = {
    "newer schema": ("schema_version = 1", "schema_version = 2", "'schema_version' is 2, newer schema.*upgrade"),
    "no schema": ("schema_version = 1\n", "", "'schema_version' is None"),
    "schema a word": ("schema_version = 1", 'schema_version = "1"', "'schema_version' is '1'"),
    "missing field": ('licence = "CC-BY-4.0"\n', "", "field 'licence': Field required"),
    "unknown field": ("lineage = 0", "lineage = 0\nflavour = 1", "field 'flavour': Extra inputs"),
    "wrong type": ("lineage = 0", 'lineage = "0"', "field 'lineage': Input should be a valid integer"),
    "escaping path": ('path = "hdf5/fresh-00000.h5"', 'path = "../x"', "field 'shards.0.path': .*stays inside"),
    "absolute path": ('path = "hdf5/fresh-00000.h5"', 'path = "/x"', "field 'shards.0.path': .*stays inside"),
    "escaping checkpoint": ('path = "checkpoints/start', 'path = "../start', "field 'checkpoints.0.path'"),
    "format": ('format = "hdf5"', 'format = "pickle"', "field 'shards.0.format': Input should be 'hdf5' or 'arrow'"),
    "digest": ('sha256 = "0', 'sha256 = "', "field 'shards.0.sha256'"),
    "not TOML": ("lineage = 0", "lineage = ", "cannot be read .TOMLDecodeError"),
    "too deep": ("lineage = 0", "lineage = " + "[" * 5000, "cannot be read|nested too deeply"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_card_is_refused(tmp_path: Path, kind: str) -> None:
    """The error names the card and the field."""
    old, new, message = DAMAGE[kind]
    write_card(tmp_path, full_card())
    path = tmp_path / "card.toml"
    text = path.read_text()
    assert old in text, "the damage must hit"
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=f"card.toml: .*{message}"):
        read_card(tmp_path)


def test_a_card_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 give an error that names the card."""
    (tmp_path / "card.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="card.toml: cannot be read .UnicodeDecodeError"):
        read_card(tmp_path)


def test_a_folder_without_a_card_is_no_complete_log(tmp_path: Path) -> None:
    """The card is written last, so shards alone are refused."""
    write_log(tmp_path / "log")
    (tmp_path / "log" / "card.toml").unlink()
    with pytest.raises(DataError, match="there is no card, so this is no complete log folder"):
        read_card(tmp_path / "log")
