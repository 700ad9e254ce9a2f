"""The report's part on sampled pictures: gallery, best and worst cases, and the commands that make each again."""

from __future__ import annotations

import functools
import io
import json
import shlex
from pathlib import Path
from typing import Any

from PIL import Image

from dreamcache.configs import SamplingConfig
from dreamcache.dreambooth.attention import middle
from dreamcache.dreambooth.cases import Case, Subject
from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.scoring import ROWS
from flows.evaluation_plans import COMPARED, TRAINED
from flows.pictures import data_uri
from flows.profiles import Profile
from flows.report_attention import looking
from flows.report_training import current_evaluations
from shards.files import read_json_lines, read_tar_records

GALLERY_PROMPTS = 2
EXTREMES = 3
SIDE = 160
Column = tuple[str, Evaluation, Variant]


def gallery(profile: Profile, run: Path) -> dict[str, Any] | None:
    """Rows of the same prompt and seed: without adapters, with the compared ones, with those just trained."""
    from dreamcache.dreambooth.embedders import open_image

    folders = dict(current_evaluations(profile, run))
    if TRAINED not in folders:
        return None
    columns: list[Column]
    columns = [("no adapters", folders[TRAINED], "no-adapters"), ("just trained", folders[TRAINED], "adapters")]
    if COMPARED in folders:
        columns.insert(1, ("committed adapters", folders[COMPARED], "adapters"))
    columns.append(("just trained, wrong reference", folders[TRAINED], "wrong-reference"))
    columns = [column for column in columns if column[2] in column[1].config.variants]
    rows = []
    for subject in folders[TRAINED].gallery:
        cases = folders[TRAINED].cases(subject)[:GALLERY_PROMPTS]
        for number, case in enumerate(cases):
            reference = data_uri(open_image(subject.reference), SIDE) if number == 0 else None
            rows.append({
                "reference": reference, "span": 2 * len(cases), "subject": subject.name, "prompt": case.prompt,
                "seed": case.seed, "pictures": [_picture(column, subject, case) for column in columns],
                "again": "\n\n".join(_again(profile, run, column, subject, case) for column in columns),
            })  # fmt: skip
    return {"conditions": [label for label, _, _ in columns], "rows": rows}


def extremes(profile: Profile, run: Path) -> list[dict[str, Any]]:
    """The cases of the adapters just trained with the most and the least DINO, one a subject; empty without any."""
    from dreamcache.dreambooth.embedders import open_image

    evaluation = dict(current_evaluations(profile, run)).get(TRAINED)
    if evaluation is None or "adapters" not in evaluation.config.variants:
        return []
    rows = [row for row in read_json_lines(run / TRAINED / ROWS) if row["variant"] == "adapters"]
    rows.sort(key=lambda row: row["dino"])
    subjects = {subject.name: subject for subject in evaluation.subjects}
    count = min(EXTREMES, len(subjects) // 2)
    groups = []
    for title, ordered in (("Most like their subject", rows[::-1]), ("Least like their subject", rows)):
        chosen: dict[str, dict[str, Any]] = {}
        for row in ordered:
            chosen.setdefault(row["subject"], row)
        cards = []
        for row in list(chosen.values())[:count]:
            subject = subjects[row["subject"]]
            case = next(case for case in evaluation.cases(subject) if case.key == row["case"])
            columns: list[Column] = [("just trained", evaluation, "adapters")]
            if "no-adapters" in evaluation.config.variants:
                columns.append(("no adapters", evaluation, "no-adapters"))
            image = sampled_image(columns[0], subject, case)
            assert image is not None  # it was scored
            looks = looking(run, evaluation, subject, case, middle(image.width))
            again = [_again(profile, run, column, subject, case) for column in columns]
            cards.append({
                "reference": data_uri(open_image(subject.reference), SIDE), "subject": subject.name,
                "prompt": case.prompt, "seed": case.seed, "dino": row["dino"], "clip_t": row["clip_t"],
                "pictures": [(column[0], _picture(column, subject, case)) for column in columns],
                "again": "\n\n".join([*again, f"# where the middle of such a picture looks, layer by layer\n{looks}"]),
            })  # fmt: skip
        groups.append({"title": title, "cards": cards})
    return groups if count else []


def _picture(column: Column, subject: Subject, case: Case) -> str | None:
    image = sampled_image(column, subject, case)
    return None if image is None else data_uri(image, SIDE)


def sampled_image(column: Column, subject: Subject, case: Case) -> Image.Image | None:
    """An image as it was sampled; None where it was rejected."""
    path = column[1].image_plan(column[2], subject).path
    png = _images(path, path.stat().st_mtime_ns).get(case.key)
    return None if png is None else Image.open(io.BytesIO(png))


@functools.lru_cache(maxsize=16)
def _images(path: Path, changed: int) -> dict[str, bytes]:
    return {key: parts["png"] for key, parts in read_tar_records(path)}


def _again(profile: Profile, run: Path, column: Column, subject: Subject, case: Case) -> str:
    """A command that makes one picture again, under a comment that says which."""
    label, evaluation, variant = column
    folder = f"again/{case.key}-{label.replace(', ', '-').replace(' ', '-')}"
    shown = evaluation.shown(variant, subject)
    if shown is None:
        return f"# {label}\n{_plain(profile, case)}"
    words = ["dreamcache", "personalize", str(shown.reference), case.prompt, "--seeds", str(case.seed)]
    words += ["--noun", shown.class_word]  # some adapters read it, a mask beside it or not
    if (mask := shown.mask(shown.reference)) is not None:
        words += ["--mask", str(mask)]
    if evaluation.folder == run / COMPARED:
        words += ["--adapters", str(profile.compare_with)]
    return f"# {label}\n{shlex.join([*words, '--run', str(run), '--out', folder])}"


def _plain(profile: Profile, case: Case) -> str:
    """The backbone alone, which no command of ours samples."""
    default, sampling = SamplingConfig().model_dump(), profile.evaluation.sampling.model_dump()
    changed = ", ".join(f"{name}={json.dumps(value)}" for name, value in sampling.items() if value != default[name])
    dtype = profile.evaluation.dtype
    where = "" if dtype == "float32" else f', device="cuda", dtype=torch.{dtype}'
    code = (
        ("import torch; " if where else "") + "from dreamcache import SamplingConfig, load_backbone, sample_images; "
        f"backbone = load_backbone({json.dumps(profile.backbone)}{where}); "
        f"images = sample_images(backbone, None, None, [{json.dumps(case.prompt)}], SamplingConfig({changed}), "
        f'seeds=[{case.seed}]); images[0].save("{case.key}-no-adapters.png")'
    )
    return shlex.join(["python", "-c", code])
