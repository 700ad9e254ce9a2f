"""Gates: which masked images are good enough to train on, from stored scores alone; no model is loaded."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from datagen.config import StageConfig
from shards.files import read_tar_records
from shards.markers import Marker
from shards.stage import ShardPlan

GATES_VERSION = 1


class GatesConfig(StageConfig):
    """Limits of acceptance; a record at a limit passes."""

    min_box_score: float = Field(default=0.3, ge=0, le=1, description="Grounding DINO's customary box threshold")
    min_predicted_iou: float = Field(default=0.7, ge=0, le=1)
    min_area: float = Field(default=0.02, ge=0, le=1, description="share of the image that the subject covers")
    max_area: float = Field(default=0.75, ge=0, le=1)
    max_border: float = Field(default=25 / 512, ge=0, description="mask pixels on the image's edges, share of the side")


def gate_fault(record: dict[str, Any], config: GatesConfig) -> tuple[str, float | None] | None:
    """The first reason against a masks record and the value that failed, or None if it is accepted."""
    if record["box"] is None:
        return "no box", None
    checks = (
        ("low box score", record["score"], record["score"] >= config.min_box_score),
        ("subject too small", record["area"], record["area"] >= config.min_area),
        ("subject too large", record["area"], record["area"] <= config.max_area),
        ("touches the border", record["border"], record["border"] <= config.max_border),
        ("low predicted IoU", record["predicted_iou"], record["predicted_iou"] >= config.min_predicted_iou),
    )
    return next(((reason, value) for reason, value, passed in checks if not passed), None)


def run(plan: ShardPlan, config: GatesConfig) -> Marker:
    """Write the accepted keys of a shard of masks, and the others with the reason and the value that failed."""
    with plan.writing() as out:
        for key, parts in read_tar_records(plan.inputs[0], ("json",)):
            fault = gate_fault(json.loads(parts["json"]), config)
            if fault is None:
                out.add({"key": key})
            else:
                out.reject({"key": key}, fault[0], value=fault[1])
    assert out.marker is not None
    return out.marker
