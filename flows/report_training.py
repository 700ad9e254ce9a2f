"""The report's part on the adapters: loss curves and the gallery."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation
from flows.charts import Line, line_chart, running_mean
from flows.evaluation_plans import COMPARED, TRAINED, evaluation_of, evaluations
from flows.pictures import data_uri
from flows.plans import evaluation_step
from flows.profiles import Profile
from shards.files import read_tar_records

GALLERY_SUBJECTS = 10
GALLERY_PROMPTS = 2
POINTS = 2000  # of a curve: more are not seen
KINDS = {"right": "right reference", "wrong": "wrong reference", "none": "no reference"}


def training(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The loss curves and the last held-out losses, or None where nothing was trained."""
    log = run / "training" / "log.csv"
    if not log.is_file():
        return None
    with log.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    smooth = running_mean([loss for _, loss in losses], max(1, len(losses) // 20))
    mean = [(step, value) for (step, _), value in zip(losses, smooth, strict=True)]
    every = 1 + len(losses) // POINTS
    validations = [row for row in rows if "validation_right" in row]
    curves = [
        Line(label, [(row["step"], row[f"validation_{name}"]) for row in validations], name)
        for name, label in KINDS.items()
    ]
    config = profile.training
    held_out = [
        {"label": "just trained", **{name: row[f"validation_{name}"] for name in KINDS}} for row in validations[-1:]
    ]
    compared = run / COMPARED / "held-out.json"
    if compared.is_file():
        held_out.append({"label": "committed", **json.loads(compared.read_text())})
    return {
        "steps": int(rows[-1]["step"]) if rows else 0,
        "text": f"{config.steps:,} steps of {config.batch_size} triplets, learning rate {config.learning_rate:g}, "
        f"captions dropped with p = {config.caption_dropout:g}; {config.held_out:.0%} of the triplets, by hash of the "
        "key, are held out.",
        "loss_chart": line_chart(
            [Line("", losses[::every], "pale"), Line("running mean", mean[::every], "accent")], "step", "loss"
        ),
        "validation_chart": line_chart(curves, "step", "held-out loss") if len(validations) > 1 else "",
        "held_out": held_out,
    }


def current_evaluations(profile: Profile, run: Path) -> list[tuple[str, Evaluation]]:
    """A run's evaluations that are up to date, by name."""
    return [
        (name, evaluation_of(profile, run, name))
        for name in evaluations(profile)
        if not evaluation_step(profile, run, name).changes()
    ]


def gallery(profile: Profile, run: Path) -> dict[str, Any] | None:
    """Rows of the same prompt and seed: without adapters, with the compared ones, with those just trained."""
    folders = dict(current_evaluations(profile, run))
    if TRAINED not in folders:
        return None
    columns: list[tuple[str, Evaluation, Variant]]
    columns = [("no adapters", folders[TRAINED], "no-adapters"), ("just trained", folders[TRAINED], "adapters")]
    if COMPARED in folders:
        columns.insert(1, ("committed adapters", folders[COMPARED], "adapters"))
    columns.append(("just trained, wrong reference", folders[TRAINED], "wrong-reference"))
    columns = [column for column in columns if column[2] in column[1].config.variants]
    rows = []
    for subject in folders[TRAINED].subjects[:: max(1, len(folders[TRAINED].subjects) // GALLERY_SUBJECTS)]:
        images = [
            dict(read_tar_records(evaluation.image_plan(variant, subject).path)) for _, evaluation, variant in columns
        ]
        cases = folders[TRAINED].cases(subject)[:GALLERY_PROMPTS]
        for number, case in enumerate(cases):
            pictures = [
                data_uri(Image.open(io.BytesIO(found[case.key]["png"])), 160) if case.key in found else None
                for found in images
            ]
            reference = data_uri(Image.open(subject.reference), 160) if number == 0 else None
            row = {"reference": reference, "span": len(cases), "subject": subject.name, "pictures": pictures}
            rows.append({**row, "prompt": case.prompt, "seed": case.seed})
    return {"conditions": [label for label, _, _ in columns], "rows": rows}
