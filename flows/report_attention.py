"""The report's part on attention: where in the reference the subjects of a few of the gallery's pictures look."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

from PIL import Image

from dreamcache.dreambooth.cases import Case, Subject
from dreamcache.dreambooth.evaluation import Evaluation
from flows.evaluation_plans import TRAINED
from flows.pictures import data_uri
from flows.profiles import Profile
from flows.report_training import current_evaluations
from shards.files import read_tar_records

SIDE = 160


def attention(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The attention maps of the adapters just trained, a row a picture; None without any."""
    evaluation = dict(current_evaluations(profile, run)).get(TRAINED)
    if evaluation is None:
        return None
    rows = []
    for subject, plan in evaluation.attention_plans():
        for _, parts in read_tar_records(plan.path):
            rows.append(_row(run, evaluation, subject, parts))
    if not rows:
        return None
    given, area = (sum(row[name] for row in rows) / len(rows) for name in ("attention", "area"))
    return {
        "rows": rows,
        "text": f"The first picture of each of the gallery's first {len(rows)} subjects, however it came out: where in "
        "the reference the pixels marked red look, layer by layer, a mean over heads and steps; dark is little, white "
        f"is much. In the mean of pictures and layers, the reference's subject gets {given:.0%} of their attention, on "
        f"{area:.0%} of the area: what attention that saw no difference would give it.",
    }


def _row(run: Path, evaluation: Evaluation, subject: Subject, parts: dict[str, bytes]) -> dict[str, Any]:
    from dreamcache.dreambooth.embedders import open_image

    record = json.loads(parts["json"])
    case = next(case for case in evaluation.cases(subject) if case.key == record["key"])
    layers = record["layers"]
    notes = [] if record["box"] is None else ["from the middle of the picture, since no mask of its subject is there"]
    if not record["reference_masked"]:
        notes.append("as the reference's subject counts all that is not white")
    return {
        "subject": subject.name, "prompt": case.prompt, "seed": case.seed, "notes": notes,
        "reference": data_uri(open_image(subject.reference), SIDE), "generated": _picture(parts, "generated"),
        "layers": [
            {**layer, "cells": " x ".join(map(str, layer["cells"])), "picture": _picture(parts, layer["layer"])}
            for layer in layers
        ],
        **{name: sum(layer[name] for layer in layers) / len(layers) for name in ("attention", "area")},
        "again": looking(run, evaluation, subject, case, record["box"]),
    }  # fmt: skip


def _picture(parts: dict[str, bytes], name: str) -> str:
    return data_uri(Image.open(io.BytesIO(parts[f"{name}.png"])), SIDE)


def looking(
    run: Path, evaluation: Evaluation, subject: Subject, case: Case, box: tuple[int, int, int, int] | None
) -> str:
    """The command that shows where a picture's box looks in the reference; for None, its subject as it was found."""
    words = ["dreamcache", "attention-map", "--reference", str(subject.reference), "--noun", subject.class_word]
    if (mask := subject.mask(subject.reference)) is not None:
        words += ["--mask", str(mask)]
    words += ["--prompt", case.prompt, "--seed", str(case.seed)]
    before = ""
    if box is None:
        file = f"{case.key}.mask.png"
        masks = evaluation.mask_plan("adapters", subject).path
        before = f"{shlex.join(['tar', '-xf', str(masks), file])}\n"
        words += ["--region", file]
    else:
        words += ["--box", ",".join(map(str, box))]
    return before + shlex.join([*words, "--run", str(run), "--out", f"again/{case.key}-attention"])
