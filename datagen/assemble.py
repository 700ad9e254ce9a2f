"""Assembly: accepted images, masks and captions become a WebDataset shard of triplets."""

from __future__ import annotations

import json

from shards.files import read_json_lines, read_tar_records
from shards.markers import Marker
from shards.stage import ShardPlan
from shards.triplets import IMAGE, MASK, RECORD


def run(plan: ShardPlan) -> Marker:
    """Write `triplets/NNNNN.tar` from the plan's inputs: gates, images, masks; the record joins what each one knew."""
    gates, images, masks = plan.inputs
    accepted = {record["key"] for record in read_json_lines(gates)}
    cut_out = {key: parts for key, parts in read_tar_records(masks) if key in accepted}
    with plan.writing() as out:
        for key, parts in read_tar_records(images):
            if key not in accepted:
                continue
            record, measures = json.loads(parts[RECORD]), json.loads(cut_out[key][RECORD])
            record["models"] |= {f"masks.{role}": identity for role, identity in measures.pop("models").items()}
            out.add(record | measures, {IMAGE: parts[IMAGE], MASK: cut_out[key][MASK]})
    return out.marker
