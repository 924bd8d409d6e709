"""The first-in-first-out buffer of the buffered protocol."""

from collections import deque
from collections.abc import Iterable

import torch

from replaybench.episode import Episode
from replaybench.replay import Replay, pack, without_first


class Buffer:
    """The newest `capacity` decisions, as pieces of episodes in the order in which they were collected.

    A piece keeps its decisions together and in order, so that advantages can be estimated anew at any time; one that
    only partly fits loses its oldest decisions.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_steps = 0
        self.pieces: deque[Episode] = deque()

    def add(self, pieces: Iterable[Episode]) -> None:
        """Appends pieces and forgets what is too old."""
        for piece in pieces:
            self.pieces.append(piece)
            self.num_steps += piece.num_steps
        while (excess := self.num_steps - self.capacity) > 0:
            oldest = self.pieces.popleft()
            if oldest.num_steps > excess:
                self.pieces.appendleft(without_first(oldest, excess))
            self.num_steps -= min(oldest.num_steps, excess)

    def replay(self, device: torch.device) -> Replay:
        """Returns everything in the buffer to learn from."""
        return pack(self.pieces, device)
