"""Several datasets as one: the triplets of finished runs, each under a key of its own, none twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from shards.export import described_paths
from shards.files import KEY_PATTERN, json_line, read_tar_records
from shards.imports import leave_out_shards
from shards.markers import checked_marker
from shards.run_folder import is_built, origin
from shards.stage import StageSpec, plan_shard
from shards.triplets import IMAGE, MASK, RECORD, triplet_paths

MERGE_VERSION = 2


def merge_runs(runs: Sequence[Path], out: Path, report: Callable[[int, int], None]) -> list[Path]:
    """Bring the triplets of several runs into a run folder of their own, shard by shard; returns the shards.

    A key gets its run's number in front, "1-00000-00017". A triplet whose record says just what an earlier one's does
    is the same triplet, made again by the same recipe: it is rejected. Up-to-date shards stay as they are. Raises
    FileNotFoundError for a run without triplets, ValueError for a run whose build is not finished, a torn shard, a key
    without room for the number, and a folder that holds the runs, or a dataset that was built or imported.
    """
    if (how := origin(out)) not in (None, "merged"):
        raise ValueError(f"{out} holds a dataset that was {how} there: merge into another folder")
    for run in runs:
        if run.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{out} is, or holds, one of the runs to merge: merge into another folder")
    places = [
        (number, path)
        for number, run in enumerate(runs)
        for path in (described_paths(run) if is_built(run) else triplet_paths(run))
    ]
    seen: dict[bytes, str] = {}
    chain, merged = "start", []
    for index, (number, path) in enumerate(places):
        spec = StageSpec("triplets", MERGE_VERSION, {"run": number}, suffix=".tar")
        plan = plan_shard(out, spec, index, [path], chain)
        chain = hashlib.sha256(f"{chain} {checked_marker(path).shard.sha256}".encode()).hexdigest()
        if plan.state() == "done":
            for key, parts in read_tar_records(path, (RECORD,)):
                seen.setdefault(_same(parts[RECORD]), f"{number}-{key}")
        else:
            with plan.writing() as shard:
                for key, parts in read_tar_records(path):
                    record = {**json.loads(parts[RECORD]), "key": f"{number}-{key}"}
                    if not KEY_PATTERN.fullmatch(record["key"]):
                        advice = "import it anew from files of shorter names"
                        raise ValueError(f"{path}: key {key} is too long to get {number}- in front: {advice}")
                    earlier = seen.setdefault(_same(parts[RECORD]), record["key"])
                    if earlier == record["key"]:
                        shard.add(record, {IMAGE: parts[IMAGE], MASK: parts[MASK]})
                    else:
                        matched = {"key": earlier, "caption": record["caption"], "similarity": 1.0}
                        shard.reject(record, "the same triplet in an earlier run", matched=matched)
        merged.append(plan.path)
        report(index + 1, len(places))
    leave_out_shards(out, "triplets", len(merged))
    return merged


def _same(record: bytes) -> bytes:
    """What a record says apart from its key, as a digest: the same for the same triplet."""
    content = json.loads(record)
    del content["key"]
    return hashlib.sha256(json_line(content)).digest()[:16]
