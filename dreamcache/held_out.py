"""Which triplets are held out from training and which are trained on, by their keys' hashes; no torch here."""

import hashlib
from itertools import islice
from typing import TYPE_CHECKING

from shards.files import copied_key

if TYPE_CHECKING:
    from shards.triplets import TripletShards

# With fewer there is no loss to measure: each one's wrong reference is another's.
FEWEST = 2


def is_held_out(key: str, fraction: float) -> bool:
    """Whether a triplet is kept from training, with all others of its caption.

    Decided by the hash of the key alone that they are copies of, so the same in every dataset.
    """
    return key_hash(copied_key(key)) < fraction * 2**64


def is_trained_on(key: str, held_out: float, share: float) -> bool:
    """Whether a triplet, with all others of its caption, is trained on; smaller shares lie within larger ones."""
    return held_out * 2**64 <= key_hash(copied_key(key)) < (held_out + share * (1 - held_out)) * 2**64


def enough_held_out(shards: "TripletShards", fraction: float) -> bool:
    """Whether so many triplets are held out that their loss can be measured."""
    if fraction == 0:  # known without reading a shard
        return False
    keys = (key for shard in range(len(shards.counts)) for key in shards.keys(shard) if is_held_out(key, fraction))
    return len(list(islice(keys, FEWEST))) == FEWEST


def key_hash(key: str) -> int:
    """The first 64 bits of the key's sha256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
