"""What lies beside a run's triplets for people and other tools: statistics, an index of the shards, the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.plans import dataset_accounts, description_step
from flows.profiles import Profile
from shards.card import dataset_card
from shards.files import replace_file
from shards.markers import Marker, checked_marker
from shards.statistics import triplet_statistics
from shards.store import bring
from shards.triplets import triplet_paths

FILES = ("statistics.json", "index.json", "README.md")


def describe(run: Path, profile: Profile | None = None) -> bool:
    """Write `RUN/triplets/` statistics.json, index.json and README.md unless they describe what lies there already.

    The same shards give the same bytes. Returns whether anything was written; raises as `triplet_paths` and
    `checked_marker` for a dataset that is not finished or damaged.
    """
    step = description_step(run, profile)
    if not step.changes():
        return False
    paths = triplet_paths(run)
    bring(paths)
    statistics = triplet_statistics(paths) | {"stages": dataset_accounts(run, paths)}
    shards = [{"name": path.name} | _entry(checked_marker(path)) for path in paths]
    index = {"triplets": statistics["triplets"], "shards": shards}
    contents = (_json(statistics), _json(index), dataset_card(statistics, step.recipe["models"]).encode())
    step.reopen()
    for name, content in zip(FILES, contents, strict=True):
        replace_file(step.folder / name, content)
    step.finish([step.folder / name for name in FILES], {})
    return True


def _entry(marker: Marker) -> dict[str, Any]:
    return {"triplets": marker.records_out, "bytes": marker.shard.bytes, "sha256": marker.shard.sha256}


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
