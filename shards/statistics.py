"""What is in a dataset: classes, caption lengths, mask areas, models, and the accounts of every stage."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.files import read_tar_records
from shards.markers import Marker, checked_marker
from shards.triplets import MASK, RECORD

AREA_BINS = 20


def triplet_statistics(
    paths: Sequence[Path], report: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Counts over the records of finished shards, as JSON values that depend on nothing but the shards.

    `classes` and `models` (role -> identity) are counts, most frequent first; `caption_words` and `mask_area` hold
    lowest, mean and highest value and a histogram: of areas, shares of the image, `AREA_BINS` bins from 0 to 1 by
    their lower edges. `report` gets the number of shards that have been read, and of all. Raises as `checked_marker`
    for an unfinished or torn shard.
    """
    classes: Counter[str] = Counter()
    models: dict[str, Counter[str]] = {}
    words: Counter[int] = Counter()
    areas: list[float] = []
    size = 0
    for done, path in enumerate(paths, start=1):
        size += checked_marker(path).shard.bytes
        for _, parts in read_tar_records(path, (RECORD, MASK)):
            record = json.loads(parts[RECORD])
            classes[str(record.get("class", "unknown"))] += 1
            words[len(record["caption"].split())] += 1
            areas.append(record["area"] if "area" in record else _area(parts[MASK]))
            for role, identity in record.get("models", {}).items():
                models.setdefault(role, Counter())[identity] += 1
        report(done, len(paths))
    bins = Counter(min(int(area * AREA_BINS), AREA_BINS - 1) for area in areas)
    return {
        "triplets": len(areas),
        "shards": len(paths),
        "bytes": size,
        "classes": _ordered(classes),
        "models": {role: _ordered(counts) for role, counts in sorted(models.items())},
        "caption_words": _summary(list(words.elements())) | {"histogram": {str(n): words[n] for n in sorted(words)}},
        "mask_area": _summary(areas) | {"histogram": {f"{n / AREA_BINS:.2f}": bins[n] for n in range(AREA_BINS)}},
    }


def stage_accounts(markers: Mapping[str, Mapping[str, Marker]]) -> dict[str, Any]:
    """Records in and out, and rejected by reason, of every stage; `markers` are by stage and number."""
    accounts = {}
    for stage, found in markers.items():
        records_in = records_out = 0
        rejected: Counter[str] = Counter()
        for marker in found.values():
            records_in, records_out = records_in + marker.records_in, records_out + marker.records_out
            rejected.update(marker.rejected)
        accounts[stage] = {"in": records_in, "out": records_out, "rejected": _ordered(rejected)}
    return accounts


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _summary(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"lowest": min(values), "mean": round(sum(values) / len(values), 4), "highest": max(values)}


def _area(mask_png: bytes) -> float:
    from PIL import Image

    histogram = Image.open(io.BytesIO(mask_png)).convert("L").histogram()
    return round(sum(histogram[128:]) / sum(histogram), 4)
