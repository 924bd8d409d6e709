"""Packing logged episodes against a slow walk over them, and the use of each decision by counting."""

from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaybench.episode import Episode, check_episode
from replaybench.errors import DataError
from replaybench.replay import episode_minibatches, minibatches, pack, take_steps, weighted_minibatches
from replaybench.train import steps_for

CPU = torch.device("cpu")
TOKENS, BINS = 2, 3
quick = settings(max_examples=40, deadline=None)
lengths_of_episodes = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def make_episode(index: int, num_steps: int, **changes: Any) -> Episode:
    """Returns an episode whose numbers are all different; odd ones are truncated."""
    rng = np.random.default_rng([index, num_steps])
    truncated = index % 2 == 1
    values: dict[str, Any] = {
        "observations": rng.normal(size=(num_steps + 1, 2)).astype(np.float32),
        "action_tokens": rng.integers(0, BINS, (num_steps, TOKENS)).astype(np.int16),
        "log_mu": -rng.exponential(size=(num_steps, TOKENS)).astype(np.float32),
        "mu_logits": rng.normal(size=(num_steps, TOKENS, BINS)).astype(np.float16),
        "reward": rng.normal(size=num_steps).astype(np.float32),
        "value": rng.normal(size=num_steps).astype(np.float32),
        "terminated": not truncated,
        "truncated": truncated,
        "bootstrap_value": float(rng.normal()) if truncated else 0.0,
        "behaviour_version": 10 * index,
        "task": "toy",
        "instruction": "walk",
        "seed": index,
        "success": not truncated,
        "simulator": "toy 1",
        "episode_id": f"e{index}",
    }
    return Episode(**values | changes)


def make_episodes(lengths: list[int]) -> list[Episode]:
    return [make_episode(index, length) for index, length in enumerate(lengths)]


@quick
@given(lengths=lengths_of_episodes)
def test_packing_keeps_every_decision_with_its_observations(lengths: list[int]) -> None:
    """Decision by decision, in the order of the episodes, each column is the logged one and row + 1 what followed."""
    episodes = make_episodes(lengths)
    replay = pack(episodes, CPU)
    assert replay.num_steps == sum(lengths)
    assert replay.mu_logits is not None
    n = 0
    for episode in episodes:
        assert episode.mu_logits is not None
        for step in range(episode.num_steps):
            row = int(replay.row[n])
            np.testing.assert_array_equal(replay.observations[row].numpy(), episode.observations[step])
            np.testing.assert_array_equal(replay.observations[row + 1].numpy(), episode.observations[step + 1])
            np.testing.assert_array_equal(replay.action_tokens[n].numpy(), episode.action_tokens[step])
            np.testing.assert_array_equal(replay.log_mu[n].numpy(), episode.log_mu[step])
            np.testing.assert_array_equal(replay.mu_logits[n].numpy(), episode.mu_logits[step])
            assert (replay.reward[n], replay.value[n]) == (episode.reward[step], episode.value[step])
            assert replay.behaviour_version[n] == episode.behaviour_version
            n += 1


@quick
@given(lengths=lengths_of_episodes)
def test_values_after_a_decision_stop_at_its_episodes_end(lengths: list[int]) -> None:
    """Inside an episode it is the next logged value, after a terminal decision 0, after a truncation the bootstrap."""
    episodes = make_episodes(lengths)
    replay = pack(episodes, CPU)
    next_value, ends, terminal = [], [], []
    for episode in episodes:
        last = 0.0 if episode.terminated else episode.bootstrap_value
        next_value += [*episode.value[1:].astype(float), last]
        ends += [False] * (episode.num_steps - 1) + [True]
        terminal += [False] * (episode.num_steps - 1) + [episode.terminated]
    np.testing.assert_array_equal(replay.next_value, next_value)
    np.testing.assert_array_equal(replay.ends, ends)
    np.testing.assert_array_equal(replay.terminal, terminal)


def test_a_terminal_episode_ignores_a_bootstrap_value_that_was_logged_all_the_same() -> None:
    """After termination nothing follows, whatever value somebody logged there."""
    replay = pack([make_episode(0, 3, bootstrap_value=7.0)], CPU)
    assert replay.next_value[-1] == 0.0


def test_logits_are_kept_only_if_every_episode_has_them() -> None:
    """One episode without logits makes a replay without logits, not one with holes."""
    episodes = [make_episode(0, 3), make_episode(1, 2, mu_logits=None)]
    assert pack(episodes[:1], CPU).mu_logits is not None
    assert pack(episodes, CPU).mu_logits is None


def test_packing_nothing_is_refused() -> None:
    """There is no empty replay."""
    with pytest.raises(DataError, match="no episodes"):
        pack([], CPU)


def test_packing_copies() -> None:
    """A replay of one episode is not a view of the log: writing to it leaves the episode alone."""
    episode = make_episode(0, 3)
    before = episode.log_mu.copy()
    pack([episode, make_episode(1, 2)], CPU).log_mu.zero_()
    np.testing.assert_array_equal(episode.log_mu, before)


@quick
@given(lengths=lengths_of_episodes, data=st.data())
def test_exactly_the_wanted_steps_are_taken_from_the_front(lengths: list[int], data: st.DataObject) -> None:
    """Whole episodes in order, then the first steps of one more; together as many as asked for."""
    wanted = data.draw(st.integers(1, sum(lengths)))
    episodes = make_episodes(lengths)
    taken = take_steps(episodes, wanted)
    assert sum(episode.num_steps for episode in taken) == wanted
    for found, original in zip(taken, episodes, strict=False):
        check_episode(found)
        assert found is original or (found is taken[-1] and found.num_steps < original.num_steps)
    joined = np.concatenate([episode.reward for episode in taken])
    np.testing.assert_array_equal(joined, np.concatenate([episode.reward for episode in episodes])[:wanted])


def test_a_cut_episode_is_truncated_and_bootstraps_its_own_next_value() -> None:
    """Cut after 2 of 5 steps, a successful episode is a truncated one that ends at the value logged for step 2.

    Columns keep 2 rows, observations 3, and the episode in the log stays whole.
    """
    episode = make_episode(0, 5)
    (cut,) = take_steps([episode], 2)
    assert (cut.terminated, cut.truncated, cut.success) == (False, True, False)
    assert cut.bootstrap_value == episode.value[2]
    for field in fields(Episode):
        value = getattr(episode, field.name)
        if isinstance(value, np.ndarray):
            rows = 3 if field.name == "observations" else 2
            np.testing.assert_array_equal(getattr(cut, field.name), value[:rows])
    assert episode.num_steps == 5
    assert pack([cut], CPU).next_value[-1] == episode.value[2]


def test_a_log_that_is_too_short_is_refused_with_both_numbers() -> None:
    """The error says how many steps there are, how many are needed and what to change."""
    with pytest.raises(DataError, match=r"holds 5 steps.* needs 6.*raise the replay ratio"):
        take_steps(make_episodes([2, 3]), 6)


@pytest.mark.parametrize(
    ("num_steps", "batch_size", "updates"),
    [(32, 8, 4), (32, 8, 12), (10, 4, 5), (7, 3, 14), (3, 8, 3), (5, 10, 2), (1, 4, 3)],
)
def test_every_decision_is_used_exactly_replay_ratio_times(num_steps: int, batch_size: int, updates: int) -> None:
    """Where R = updates * batch_size / steps is whole, each decision is drawn R times, also across passes' borders."""
    batches = list(minibatches(num_steps, batch_size, updates, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [batch_size] * updates
    counts = Counter(int(i) for batch in batches for i in batch)
    ratio = updates * batch_size // num_steps
    assert updates * batch_size == ratio * num_steps
    assert counts == dict.fromkeys(range(num_steps), ratio)


@quick
@given(num_steps=st.integers(1, 20), batch_size=st.integers(1, 30), updates=st.integers(0, 12))
def test_no_decision_is_ever_more_than_one_use_ahead(num_steps: int, batch_size: int, updates: int) -> None:
    """After any number of minibatches the most and the least used decision differ by at most one use."""
    counts = np.zeros(num_steps, int)
    for batch in minibatches(num_steps, batch_size, updates, np.random.default_rng(1)):
        np.add.at(counts, batch.numpy(), 1)
        assert counts.max() - counts.min() <= 1


def test_passes_are_shuffled_differently_and_only_by_the_generator() -> None:
    """Two passes differ in order; the same generator repeats them, another does not."""

    def order(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in minibatches(50, 50, 2, np.random.default_rng(seed))]

    first, second = order(0)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))
    assert order(0) == [first, second]
    assert order(1) != [first, second]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_episode_batches_hold_whole_episodes_and_each_once_a_pass(batch_size: int) -> None:
    """Every batch is a run of whole episodes in order, the first to reach the size; a pass uses each episode once."""
    lengths = (3, 1, 5, 2, 4)
    replay = pack(make_episodes(list(lengths)), CPU)
    first = np.cumsum((0, *lengths[:-1]))
    episodes = {int(start): list(range(start, start + length)) for start, length in zip(first, lengths, strict=True)}
    drawn: list[int] = []
    for batch in episode_minibatches(replay.ends, batch_size, 12, np.random.default_rng(3)):
        rows = batch.tolist()
        taken = 0
        while taken < len(rows):
            assert taken < batch_size
            episode = episodes[rows[taken]]
            assert rows[taken : taken + len(episode)] == episode
            drawn.append(episode[0])
            taken += len(episode)
        assert taken >= batch_size
    passes = [drawn[i : i + len(lengths)] for i in range(0, len(drawn) - len(lengths) + 1, len(lengths))]
    assert len(passes) >= 2
    assert all(sorted(one) == sorted(episodes) for one in passes)


def test_weighted_batches_follow_their_weights() -> None:
    """Of 40,000 draws with weights 1, 1/2, 1/4 and 0, the shares are 4/7, 2/7, 1/7 and 0 within five deviations."""
    weight = torch.tensor([1.0, 0.5, 0.25, 0.0])
    batches = list(weighted_minibatches(weight, 400, 100, np.random.default_rng(4)))
    assert [len(batch) for batch in batches] == [400] * 100
    counts = np.bincount(torch.cat(batches).numpy(), minlength=4)
    shares = np.array([4, 2, 1, 0]) / 7
    assert (np.abs(counts / 40_000 - shares) <= 5 * np.sqrt(shares * (1 - shares) / 40_000)).all()


def test_weighted_batches_are_drawn_by_the_generator_alone() -> None:
    """The same generator repeats the draws, another one does not."""

    def draws(seed: int) -> list[int]:
        (batch,) = weighted_minibatches(torch.ones(50), 60, 1, np.random.default_rng(seed))
        found: list[int] = batch.tolist()
        return found

    assert draws(0) == draws(0) != draws(1)


@pytest.mark.parametrize(("ratio", "steps"), [(1.0, 2048), (8.0, 256), (0.5, 4096), (10.24, 200), (1e9, 1)])
def test_the_replay_ratio_fixes_how_many_steps_are_taken(ratio: float, steps: int) -> None:
    """With 16 updates of 128, R = 2048 / steps: by hand 2048, 256, 4096 and 200 steps; never less than one."""
    assert steps_for(16, 128, ratio) == steps
