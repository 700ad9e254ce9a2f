"""The data contract: shards on disk, their completion markers, the triplet, strict reading and training order."""
