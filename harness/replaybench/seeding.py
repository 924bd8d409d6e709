"""Independent random streams derived from names, so that no draw depends on the order of another."""

import hashlib

import numpy as np
import torch


def seed_for(*parts: object) -> int:
    """Returns a 63-bit seed that is a hash of the parts' text, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(*parts: object) -> np.random.Generator:
    """Returns a NumPy generator for the stream named by the parts."""
    return np.random.default_rng(seed_for(*parts))


def torch_generator(*parts: object) -> torch.Generator:
    """Returns a CPU torch generator for the stream named by the parts."""
    generator = torch.Generator()
    generator.manual_seed(seed_for(*parts))
    return generator
