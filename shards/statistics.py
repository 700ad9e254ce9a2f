"""What is in a dataset: classes, caption lengths, mask areas, models, and the accounts of every stage."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.files import read_tar_records
from shards.markers import Marker, checked_marker
from shards.triplets import MASK, RECORD

AREA_BINS = 20


class _Spread:
    """Lowest, mean and highest of values that come one by one: millions of them need not be kept."""

    def __init__(self) -> None:
        self.count, self._sum, self._lowest, self._highest = 0, 0.0, 0.0, 0.0

    def add(self, value: float) -> None:
        self._lowest = value if self.count == 0 else min(self._lowest, value)
        self._highest = value if self.count == 0 else max(self._highest, value)
        self.count, self._sum = self.count + 1, self._sum + value

    def summary(self) -> dict[str, float]:
        if not self.count:
            return {}
        return {"lowest": self._lowest, "mean": round(self._sum / self.count, 4), "highest": self._highest}


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
    words, areas, bins = _Spread(), _Spread(), Counter[int]()
    lengths: Counter[int] = Counter()
    size = 0
    for done, path in enumerate(paths, start=1):
        size += checked_marker(path).shard.bytes
        for _, parts in read_tar_records(path, (RECORD, MASK)):
            record = json.loads(parts[RECORD])
            classes[str(record.get("class", "unknown"))] += 1
            length = len(record["caption"].split())
            area = record["area"] if "area" in record else _area(parts[MASK])
            lengths[length] += 1
            words.add(length)
            bins[min(int(area * AREA_BINS), AREA_BINS - 1)] += 1
            areas.add(area)
            for role, identity in record.get("models", {}).items():
                models.setdefault(role, Counter())[identity] += 1
        report(done, len(paths))
    return {
        "triplets": areas.count,
        "shards": len(paths),
        "bytes": size,
        "classes": _ordered(classes),
        "models": {role: _ordered(counts) for role, counts in sorted(models.items())},
        "caption_words": words.summary() | {"histogram": {str(n): lengths[n] for n in sorted(lengths)}},
        "mask_area": areas.summary() | {"histogram": {f"{n / AREA_BINS:.2f}": bins[n] for n in range(AREA_BINS)}},
    }


def stage_accounts(markers: Mapping[str, Iterable[Marker]]) -> dict[str, Any]:
    """Records in and out, and rejected by reason, of every stage with `markers`; one at a time is looked at.

    Where a stage made several records of each, `copies` says how many.
    """
    accounts = {}
    for stage, found in markers.items():
        shards = records_in = records_out = copies = 0
        rejected: Counter[str] = Counter()
        for marker in found:
            shards, copies = shards + 1, max(copies, marker.copies)
            records_in, records_out = records_in + marker.records_in, records_out + marker.records_out
            rejected.update(marker.rejected)
        if shards:
            accounts[stage] = {"in": records_in, "out": records_out, "rejected": _ordered(rejected)}
            accounts[stage] |= {"copies": copies} if copies > 1 else {}
    return accounts


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _area(mask_png: bytes) -> float:
    from PIL import Image

    histogram = Image.open(io.BytesIO(mask_png)).convert("L").histogram()
    return round(sum(histogram[128:]) / sum(histogram), 4)
