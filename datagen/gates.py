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
    max_subjects: int | None = Field(default=None, ge=1, description="boxes of the noun that stand apart")


def gate_fault(record: dict[str, Any], config: GatesConfig) -> tuple[str, float | None] | None:
    """The first reason against a masks record and the value that failed, or None if it is accepted."""
    if record["box"] is None:
        return "no box", None
    subjects = count_subjects(record["boxes"], config.min_box_score)
    checks = (
        ("low box score", record["score"], record["score"] >= config.min_box_score),
        ("subject too small", record["area"], record["area"] >= config.min_area),
        ("subject too large", record["area"], record["area"] <= config.max_area),
        ("touches the border", record["border"], record["border"] <= config.max_border),
        ("low predicted IoU", record["predicted_iou"], record["predicted_iou"] >= config.min_predicted_iou),
        ("several subjects", subjects, config.max_subjects is None or subjects <= config.max_subjects),
    )
    return next(((reason, value) for reason, value, passed in checks if not passed), None)


def count_subjects(boxes: list[dict[str, Any]], min_score: float) -> int:
    """How many of the boxes of at least that score stand apart: none of them shares half of the smaller with another.

    Detectors box a thing twice, or a part of it with the whole; such a box is no second subject.
    """
    apart: list[list[float]] = []
    for box in (one["box"] for one in boxes if one["score"] >= min_score):
        if all(_shared(box, other) < 0.5 for other in apart):
            apart.append(box)
    return len(apart)


def _shared(first: list[float], second: list[float]) -> float:
    """What two boxes (left, top, right, bottom) share, of the smaller one's area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(width, 0.0) * max(height, 0.0) / smaller


def run(plan: ShardPlan, config: GatesConfig) -> Marker:
    """Write the accepted keys of a shard of masks, and the others with the reason and the value that failed."""
    with plan.writing() as out:
        for key, parts in read_tar_records(plan.inputs[0], ("json",)):
            fault = gate_fault(json.loads(parts["json"]), config)
            if fault is None:
                out.add({"key": key})
            else:
                out.reject({"key": key}, fault[0], value=fault[1])
    return out.marker
