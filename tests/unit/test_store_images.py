"""Episodes of images in both formats: every byte, every pixel's place, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_episodes import assert_same, make_card, make_episode, weights

from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError
from replaybench.plots import contact_sheet
from replaybench.rollout import Acting, Labels, goal_plans, rollout
from replaybench.store import FORMATS, LevelCard, ShardWriter, open_log, verify
from replaybench.store.layout import episode_digest
from replaybench.suites import make_suite, rendering

SHAPE = (12, 10, 6)


def camera_episode(episode_id: str, num_steps: int) -> Episode:
    """An episode of two cameras' random images, with T+1 rows and 32 action tokens."""
    rng = np.random.default_rng([*episode_id.encode(), num_steps])
    return make_episode(
        episode_id,
        num_steps,
        observations=rng.integers(0, 256, (num_steps + 1, *SHAPE), dtype=np.uint8),
        action_tokens=rng.integers(0, 5, (num_steps, 32)).astype(np.int16),
        log_mu=-rng.exponential(size=(num_steps, 32)).astype(np.float32),
        mu_logits=rng.normal(size=(num_steps, 32, 5)).astype(np.float16),
    )


EPISODES = [camera_episode(name, num_steps) for name, num_steps in (("a", 3), ("b", 1), ("c", 5))]


def write(folder: Path, episodes: Sequence[Episode] = EPISODES) -> Path:
    """Writes the episodes, two a shard, in both formats."""
    card = make_card(levels={"fresh": LevelCard(lag_updates=(0, 0))})
    with ShardWriter(folder, card=card, episodes_per_shard=2) as writer:
        writer.add_checkpoint("start", 0, weights())
        for episode in episodes:
            writer.add("fresh", episode)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_images_come_back_byte_for_byte(tmp_path: Path, name: str) -> None:
    """Arrays, types, shapes and digests of what is read are those of what was written."""
    found = open_log(write(tmp_path)).episodes("fresh", name)
    assert_same(found, EPISODES)
    assert [episode_digest(episode) for episode in found] == [episode_digest(episode) for episode in EPISODES]


def test_a_log_of_images_is_verified(tmp_path: Path) -> None:
    """Two shards in each format and the checkpoint match the card; a changed pixel does not."""
    assert len(verify(write(tmp_path))) == 5
    shard = tmp_path / "hdf5" / "fresh-00000.h5"
    content = bytearray(shard.read_bytes())
    pixels = EPISODES[0].observations.tobytes()
    content[content.index(pixels) + 100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="fresh-00000.h5"):
        verify(tmp_path)


def test_the_sheet_of_an_episode_shows_every_image_in_its_place(tmp_path: Path) -> None:
    """Ten images of two cameras in blocks of eight: each panel holds the pixels of its decision and camera."""
    rewards = np.array([0.0] * 8 + [1.0], dtype=np.float32)
    episode = replace(camera_episode("d", 9), reward=rewards, success=True)
    panels = np.array(contact_sheet(episode, "a title").axes).reshape(4, 8)
    for step, camera in ((0, 0), (7, 1), (8, 0), (9, 1)):
        shown = panels[step // 8 * 2 + camera, step % 8].get_images()[0].get_array()
        np.testing.assert_array_equal(shown, episode.observations[step, ..., 3 * camera : 3 * camera + 3])
    assert panels[2, 0].get_title() == "8"
    assert panels[2, 1].get_title() == "9  reward +1  success"
    assert not panels[3, 2].get_images()
    with pytest.raises(ConfigError, match="no images"):
        contact_sheet(make_episode("states", 2), "a title")


def test_plain_libraries_find_the_images(tmp_path: Path) -> None:
    """h5py reads [rows, H, W, 6]; `datasets` reads each image as one row of H x W x 6 numbers, in that order."""
    import datasets
    import h5py

    write(tmp_path)
    with h5py.File(tmp_path / "hdf5" / "fresh-00000.h5") as file:
        assert file["observations"].dtype == np.uint8
        np.testing.assert_array_equal(file["observations"][:4], EPISODES[0].observations)
    table = datasets.Dataset.from_file(str(tmp_path / "arrow" / "fresh-00000.arrow"))
    np.testing.assert_array_equal(
        np.array(table[1]["observations"], np.uint8).reshape(-1, *SHAPE), EPISODES[1].observations
    )


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (EPISODES[0].observations[:-1], "observations has 3 rows, expected 4"),
        (EPISODES[0].observations.astype(np.int16), "observations is int16, expected float32 states or uint8 images"),
        (EPISODES[0].observations / 255.0, "observations is float64"),
        (EPISODES[0].observations[:, :0], "an axis has size 0"),
    ],
)
def test_wrong_images_are_refused(tmp_path: Path, observations: np.ndarray, message: str) -> None:
    """A missing last image, another type, or an empty picture; nothing is left behind."""
    broken = replace(EPISODES[0], observations=observations)
    with pytest.raises(DataError, match=message), ShardWriter(tmp_path / "log", card=make_card()) as writer:
        writer.add("fresh", broken)
    assert not (tmp_path / "log" / "card.toml").exists()


def test_cropped_and_whole_images_do_not_share_a_level(tmp_path: Path) -> None:
    """Another height than that of the episodes before is refused, and named."""
    smaller = replace(EPISODES[1], observations=np.ascontiguousarray(EPISODES[1].observations[:, 2:-2]))
    message = r"episode 'b': observation_shape is \(8, 10, 6\), but \(12, 10, 6\)"
    with pytest.raises(DataError, match=message), ShardWriter(tmp_path, card=make_card()) as writer:
        writer.add("fresh", EPISODES[0])
        writer.add("fresh", smaller)


@pytest.mark.slow
def test_rendered_episodes_go_through_both_formats_unchanged(tmp_path: Path) -> None:
    """Two Meta-World episodes of three random decisions, seen by two cameras: verified, and every byte read back."""
    if not any(rendering.probe(backend).works for backend in rendering.BACKENDS):
        pytest.skip("no OpenGL on this machine")
    task = "button-press-topdown-v3"
    suite = make_suite("metaworld-pixels", {"resolution": 64, "cameras": ["corner2", "gripperPOV"]})

    def uniform(observations: Any) -> tuple[Any, Any]:
        return np.zeros((len(observations), 32, 256), np.float32), np.zeros(len(observations), np.float32)

    labels = Labels(task, suite.instruction(task), suite.simulator, 0, "log")
    plans = goal_plans(suite, 1, 2, "test")
    episodes = rollout(uniform, [suite.make(task) for _ in range(2)], plans, Acting(max_steps=3), labels)
    assert [episode.observations.shape for episode in episodes] == [(4, 64, 64, 6)] * 2
    assert len({image.tobytes() for episode in episodes for image in episode.observations}) == 8
    assert len(verify(write(tmp_path, episodes))) == 3
    for name in FORMATS:
        found = open_log(tmp_path).episodes("fresh", name)
        assert [episode_digest(episode) for episode in found] == [episode_digest(episode) for episode in episodes]
