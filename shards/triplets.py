"""The triplet on disk, target image, subject mask and caption, and its strict reading against completion markers."""

from __future__ import annotations

import collections
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.files import group_members
from shards.markers import checked_marker, read_marker
from shards.run_folder import is_built
from shards.stage import StageSpec, plan_shard
from shards.store import shard_files

if TYPE_CHECKING:
    from PIL.Image import Image

TRIPLETS_VERSION = 1
IMAGE, MASK, RECORD = "jpg", "mask.png", "json"


@dataclass(frozen=True)
class Triplet:
    """One training example as stored: `KEY.jpg`, `KEY.mask.png`, `KEY.json`.

    `record` holds key, caption, subject (noun), class, place, seed, box, scores and provenance.
    """

    key: str
    jpg: bytes
    mask_png: bytes
    record: dict[str, Any]

    @property
    def image(self) -> Image:
        """The target, decoded anew at each call: PIL, RGB."""
        from PIL import Image

        return Image.open(io.BytesIO(self.jpg)).convert("RGB")

    @property
    def mask(self) -> Image:
        """The subject's mask, decoded anew at each call: PIL, L, the target's size, 255 on the subject."""
        from PIL import Image

        return Image.open(io.BytesIO(self.mask_png)).convert("L")

    @property
    def caption(self) -> str:
        """The training text."""
        return str(self.record["caption"])


class TripletShards:
    """Random access to the triplets of several shards by (shard, index), for any number of reading processes.

    Every shard is checked against its marker when the object is made, and its table of members when it is first read.
    Raises FileNotFoundError for an unfinished shard and ValueError for a torn one or one that lacks a part.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], open_shards: int = 16) -> None:
        self.paths = [Path(path) for path in paths]
        self.counts = [checked_marker(path).records_out for path in self.paths]
        self._open_shards = open_shards
        self._opened: collections.OrderedDict[int, tuple[int, list[tuple[str, dict[str, tuple[int, int]]]]]]
        self._opened = collections.OrderedDict()

    def __len__(self) -> int:
        """Triplets in all shards."""
        return sum(self.counts)

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors do not travel to other processes; a worker opens its own.
        return {**self.__dict__, "_opened": collections.OrderedDict()}

    def __del__(self) -> None:
        for descriptor, _ in getattr(self, "_opened", {}).values():
            os.close(descriptor)

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard in the order of its file."""
        return [key for key, _ in self._open(shard)[1]]

    def read(self, shard: int, index: int) -> Triplet:
        """The triplet at a place of a shard."""
        descriptor, members = self._open(shard)
        key, parts = members[index]
        # Positioned reads move no shared file offset, so forked workers do not disturb each other.
        jpg, mask, record = (_read_at(descriptor, *parts[name]) for name in (IMAGE, MASK, RECORD))
        return Triplet(key, jpg, mask, json.loads(record))

    def spread(self, count: int) -> list[Triplet]:
        """At most `count` triplets, from places spread evenly over all shards."""
        places = [(shard, index) for shard, number in enumerate(self.counts) for index in range(number)]
        count = min(count, len(places))
        return [self.read(*places[number * len(places) // count]) for number in range(count)]

    def _open(self, shard: int) -> tuple[int, list[tuple[str, dict[str, tuple[int, int]]]]]:
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        path = self.paths[shard]
        members = list(group_members(path).items())
        for key, parts in members:
            if missing := {IMAGE, MASK, RECORD} - parts.keys():
                raise ValueError(f"{path}: record {key} lacks {', '.join(f'{key}.{part}' for part in sorted(missing))}")
        if len(members) != self.counts[shard]:
            raise ValueError(f"{path}: {len(members)} records, but its marker says {self.counts[shard]}")
        while len(self._opened) >= self._open_shards:
            os.close(self._opened.popitem(last=False)[1][0])
        self._opened[shard] = os.open(path, os.O_RDONLY), members
        return self._opened[shard]


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    if len(content) != size:
        raise ValueError(f"a shard was cut short while it was read, at byte {offset + len(content)}")
    return content


def read_triplets(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Triplet]:
    """Yield the triplets of finished shards in the order of the files; strict as `TripletShards`."""
    shards = TripletShards(paths, open_shards=1)
    for shard, count in enumerate(shards.counts):
        for index in range(count):
            yield shards.read(shard, index)


def write_triplets(run: str | os.PathLike[str], index: int, triplets: Iterable[Triplet], source: str) -> Path:
    """Write triplets from elsewhere as the finished shard `RUN/triplets/INDEX.tar`; `source` names where they are from.

    For imports and tests: the dataset's own shards are written by the assemble stage.
    """
    spec = StageSpec("triplets", TRIPLETS_VERSION, {"source": source}, suffix=".tar")
    plan = plan_shard(Path(run), spec, index)
    triplets = list(triplets)
    with plan.writing(records_in=len(triplets)) as out:
        for triplet in triplets:
            out.add({**triplet.record, "key": triplet.key}, {IMAGE: triplet.jpg, MASK: triplet.mask_png})
    return plan.path


def triplet_paths(run: str | os.PathLike[str]) -> list[Path]:
    """The finished triplet shards of a run folder, in order; raises FileNotFoundError if there is none."""
    paths = [path for path in shard_files(Path(run, "triplets"), ".tar") if read_marker(path) is not None]
    if not paths:
        raise FileNotFoundError(f"{run} holds no finished triplet shard: run build-dataset for it first")
    return paths


def unfinished_part(run: str | os.PathLike[str], shards: int | None, target_triplets: int | None) -> str | None:
    """How much there is of a dataset whose build has not come to its end, such as "3 of 5 shards"; else None.

    The sizes are those that it is built to; an import or a merge has none. FileNotFoundError as `triplet_paths`.
    """
    paths = triplet_paths(run)
    if not is_built(Path(run)):
        return None
    if target_triplets is None:
        return f"{len(paths)} of {shards} shards" if len(paths) < (shards or 0) else None
    triplets = sum(checked_marker(path).records_out for path in paths)
    return f"{triplets} of {target_triplets} triplets" if triplets < target_triplets else None
