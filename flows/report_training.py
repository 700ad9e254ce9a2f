"""The report's part on the adapters: loss curves, the gallery, and scores with their bounds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.scoring import ROWS, SUMMARY
from dreamcache.dreambooth.summary import METRICS, compare
from flows.charts import Line, line_chart, running_mean
from flows.pictures import data_uri
from flows.plans import COMPARED, TRAINED, evaluation_of, evaluation_step, evaluations
from flows.profiles import Profile
from shards.files import read_json_lines, read_tar_records

GALLERY_SUBJECTS = 10
GALLERY_PROMPTS = 2
METRIC_NAMES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}
KINDS = {"right": "right reference", "wrong": "wrong reference", "none": "no reference"}
VARIANTS = {
    "no-adapters": ("No adapters", "the backbone alone: lower bound"),
    "adapters": ("Adapters just trained", "shown the subject's reference"),
    "wrong-reference": ("Adapters just trained, wrong reference", "shown another subject's reference"),
    "copy-paste": ("Copied reference", "the reference itself for every prompt: upper bound of likeness"),
}
COMMITTED = {
    "adapters": ("Committed adapters", "the checkpoint that the profile compares with"),
    "wrong-reference": ("Committed adapters, wrong reference", "shown another subject's reference"),
}


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
        "loss_chart": line_chart([Line("", losses, "pale"), Line("running mean", mean, "accent")], "step", "loss"),
        "validation_chart": line_chart(curves, "step", "held-out loss") if len(validations) > 1 else "",
        "held_out": held_out,
    }


def _current(profile: Profile, run: Path) -> list[tuple[str, Evaluation]]:
    return [
        (name, evaluation_of(profile, run, name))
        for name in evaluations(profile)
        if not evaluation_step(profile, run, name).changes()
    ]


def gallery(profile: Profile, run: Path) -> dict[str, Any] | None:
    """Rows of the same prompt and seed: without adapters, with the compared ones, with those just trained."""
    folders = dict(_current(profile, run))
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


def scores(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The table of scores with 95% intervals, the bounds on both sides, and paired differences."""
    current = [name for name, _ in _current(profile, run)]
    if TRAINED not in current:
        return None
    summaries = {name: json.loads((run / name / SUMMARY).read_bytes()) for name in current}
    summary = summaries[TRAINED]
    rows = [_row(*VARIANTS[variant], kinds["overall"]) for variant, kinds in summary["variants"].items()]
    differences = [
        {"label": label, "cells": _cells(kinds["overall"], signed=True)}
        for label, kinds in summary["differences"].items()
    ]
    if COMPARED in summaries:
        rows += [_row(*COMMITTED[v], kinds["overall"]) for v, kinds in summaries[COMPARED]["variants"].items()]
        committed = list(read_json_lines(run / COMPARED / ROWS))
        own = list(read_json_lines(run / TRAINED / ROWS))
        for first in summaries[COMPARED]["variants"]:
            pair = compare(
                [row for row in committed if row["variant"] == first],
                [row for row in own if row["variant"] == "no-adapters"],
            )
            label = f"committed {first} - no-adapters"
            differences.append({"label": label, "cells": _cells(pair["overall"], signed=True)})
    rows.append(
        _row("Real against real", "a subject's images with each other", summary["real_against_real"]["overall"])
    )
    number = next(iter(summary["variants"].values()))["overall"]["dino"]["groups"]
    adapters = summary["variants"].get("adapters", {}).get("overall")
    headline = [
        {"value": f"{adapters[metric]['mean']:.3f}", "label": f"{METRIC_NAMES[metric]}, just trained"}
        for metric in (("dino", "clip_t") if adapters else ())
    ]
    return {
        "text": f"Benchmark {summary['benchmark']}, {number} subjects never seen in training, "
        f"{summary['images']} images; protocol {summary['protocol']}. In brackets: 95% intervals, "
        "bootstrapped over subjects.",
        "metrics": [METRIC_NAMES[metric] for metric in METRICS],
        "rows": rows,
        "differences": differences,
        "headline": headline,
    }


def _row(label: str, note: str, estimates: dict[str, Any]) -> dict[str, Any]:
    return {"label": label, "note": note, "strong": label == VARIANTS["adapters"][0], "cells": _cells(estimates)}


def _cells(estimates: dict[str, Any], signed: bool = False) -> list[dict[str, str]]:
    sign = "+" if signed else ""
    cells = []
    for metric in METRICS:
        if (estimate := estimates.get(metric)) is None:
            cells.append({"value": "", "interval": ""})
            continue
        known = estimate["low"] is not None
        interval = f"[{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]" if known else ""
        cells.append({"value": f"{estimate['mean']:{sign}.3f}", "interval": interval})
    return cells
