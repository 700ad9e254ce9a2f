"""The report's part on the dataset: what every stage took, gave and rejected, with examples of the rejects."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from datagen.dataset import STAGES
from flows.pictures import data_uri, with_mask
from shards.files import group_members, read_json_lines
from shards.markers import Marker, read_marker, rejects_path

EXAMPLES = 6
SHARDS_SEARCHED = 8


def run_markers(run: Path) -> dict[str, list[Marker]]:
    """The markers of each stage's finished shards, in the order of the shards; stages without any left out."""
    found: dict[str, list[Marker]] = {}
    for stage in STAGES:
        markers = [read_marker(path) for path in _shards(run, stage)]
        if present := [marker for marker in markers if marker is not None]:
            found[stage] = present
    return found


def stage_rows(markers: dict[str, list[Marker]]) -> list[dict[str, Any]]:
    """A row a stage: records in, of each how many copies, out, rejected; shards, seconds, records a second."""
    rows = []
    for stage, found in markers.items():
        records_in, records_out = sum(m.records_in for m in found), sum(m.records_out for m in found)
        seconds = sum(m.execution.get("seconds", 0.0) for m in found)
        row = {"name": stage, "records_in": records_in, "records_out": records_out, "shards": len(found)}
        row |= {"copies": found[-1].copies, "rejected": records_in - records_out}
        rows.append(row | {"seconds": seconds, "rate": records_in / seconds if seconds else 0.0})
    return rows


def reject_groups(run: Path, markers: dict[str, list[Marker]]) -> list[dict[str, Any]]:
    """The reasons of every stage, most frequent first, each with its count and some of its rejects."""
    groups = []
    for stage, found in markers.items():
        counts: Counter[str] = Counter()
        for marker in found:
            counts.update(marker.rejected)
        examples: dict[str, list[dict[str, Any]]] = {reason: [] for reason in counts}
        for path in _shards(run, stage)[:SHARDS_SEARCHED]:
            for record in read_json_lines(rejects_path(path)) if rejects_path(path).is_file() else ():
                listed = examples.get(record["reason"])
                if listed is not None and len(listed) < EXAMPLES:
                    listed.append(_example(run, path, record))
        groups += [
            {"stage": stage, "reason": reason, "count": count, "examples": examples[reason]}
            for reason, count in counts.most_common()
        ]
    return groups


def _example(run: Path, shard: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A reject as a picture where its image was made, with what is known of it in words."""
    parts = _stored(run / "images" / f"{shard.name.partition('.')[0]}.tar", record["key"])
    text = str(record.get("caption") or record.get("raw") or record["key"])
    picture = None
    if "jpg" in parts:
        image = Image.open(io.BytesIO(parts["jpg"])).convert("RGB")
        made = json.loads(parts["json"])
        text = f"{made['caption']}, seed {made['seed']}" if "seed" in made else made["caption"]
        masks = _stored(run / "masks" / f"{shard.name.partition('.')[0]}.tar", record["key"])
        if "mask.png" in masks:
            image = with_mask(image, Image.open(io.BytesIO(masks["mask.png"])))
        picture = data_uri(image, 150)
    if (value := record.get("value")) is not None:
        text += f" ({value:.3g})"
    if isinstance(matched := record.get("matched"), dict):
        text += f" — like “{matched['caption']}” ({matched['similarity']:.2f})"
    return {"picture": picture, "text": text}


def _stored(path: Path, key: str) -> dict[str, bytes]:
    """The parts of one record of a tar shard by extension; nothing where it is not there."""
    if read_marker(path) is None:
        return {}
    with path.open("rb") as file:
        parts = {}
        for extension, (offset, size) in group_members(path).get(key, {}).items():
            file.seek(offset)
            parts[extension] = file.read(size)
        return parts


def _shards(run: Path, stage: str) -> list[Path]:
    shard_name = re.compile(r"\d+\.(tar|jsonl)")
    return [path for path in sorted((run / stage).glob("*")) if shard_name.fullmatch(path.name)]
