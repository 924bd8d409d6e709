"""Random streams that are named, against a hash computed by another route."""

import subprocess
from itertools import combinations

import numpy as np
import torch

from replaybench.seeding import numpy_generator, seed_for, torch_generator


def test_a_seed_is_the_first_63_bits_of_the_names_hash() -> None:
    """The seed of ("run", 7) is what coreutils' sha256sum says, so it is the same on every machine and version."""
    printed = subprocess.run(["sha256sum"], input=b"run\x1f7", capture_output=True, check=True).stdout
    bits = bin(int(printed[:64], 16))[2:].zfill(256)
    assert seed_for("run", 7) == int(bits[:63], 2)


def test_names_are_told_apart_wherever_their_parts_are_split() -> None:
    """Moving a character from one part to the next, adding an empty part or swapping parts is another stream."""
    names = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("c", "ab"), ("a", "b", "c")]
    assert all(seed_for(*one) != seed_for(*other) for one, other in combinations(names, 2))


def test_a_stream_does_not_depend_on_the_streams_drawn_before_it() -> None:
    """The draws of a name are the same alone, repeated, and after other streams or the global ones were used."""
    alone = numpy_generator("x").random(5), torch.rand(5, generator=torch_generator("x"))
    numpy_generator("y").random(100)
    torch.rand(100, generator=torch_generator("y"))
    torch.rand(3)
    np.testing.assert_array_equal(numpy_generator("x").random(5), alone[0])
    assert torch.equal(torch.rand(5, generator=torch_generator("x")), alone[1])
    assert not np.array_equal(numpy_generator("y").random(5), alone[0])


def test_torch_streams_leave_the_global_generator_alone() -> None:
    """Making and using a named stream does not advance torch's global state."""
    before = torch.get_rng_state()
    torch.rand(10, generator=torch_generator("x"))
    assert torch.equal(torch.get_rng_state(), before)
