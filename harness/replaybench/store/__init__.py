"""Logs of one lineage on disk: episodes in HDF5 and Arrow shards, policy weights, and the card that vouches for them.

<folder>/card.toml                               written last: a folder that has one is complete
<folder>/<format>/<level>-00000.h5|.arrow        the same episodes in each format
<folder>/checkpoints/<name>.safetensors          policy weights
"""

from replaybench.store.card import (
    Card,
    CheckpointEntry,
    LevelCard,
    ShardEntry,
    card_digest,
    read_card,
    verify,
    write_card,
)
from replaybench.store.files import atomic_write, sha256_file
from replaybench.store.formats import FORMATS
from replaybench.store.log import Log, open_log
from replaybench.store.remote import has_card, is_url
from replaybench.store.writer import ShardWriter

__all__ = [
    "FORMATS",
    "Card",
    "CheckpointEntry",
    "LevelCard",
    "Log",
    "ShardEntry",
    "ShardWriter",
    "atomic_write",
    "card_digest",
    "has_card",
    "is_url",
    "open_log",
    "read_card",
    "sha256_file",
    "verify",
    "write_card",
]
