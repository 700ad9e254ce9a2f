"""Cases of an evaluation drawn by lot, as one picture: what its scores are of, chosen by nobody."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation
from flows.evaluation_plans import TRAINED
from flows.pictures import contact_sheet, written
from flows.profiles import Profile
from flows.report_pictures import sampled_image
from flows.report_training import current_evaluations
from shards.files import written_at_once

SIDE = 128
CASES_A_ROW = 2
SHOWN: dict[Variant, str] = {
    "no-adapters": "no adapters",
    "adapters": "adapters",
    "wrong-reference": "adapters, wrong reference",
}


def gallery_sheet(profile: Profile, run: Path, name: str, count: int, seed: int) -> Image.Image:
    """Cases of one of a run's evaluations, `name` its folder, as `drawn_by_lot` has them.

    Images without adapters are those of the run's own evaluation. Raises ValueError where there is no such evaluation,
    or no longer by these settings.
    """
    folders = dict(current_evaluations(profile, run))
    if name not in folders or TRAINED not in folders:
        has = ", ".join(folders) or "none"
        raise ValueError(
            f"{run} has no finished {name} by its settings (finished: {has}): run evaluate-adapters for it"
        )
    return drawn_by_lot(folders[name], folders[TRAINED], count, seed)


def write_gallery(evaluation: Evaluation, path: Path) -> Path:
    """Write 20 cases of an evaluation that stands by itself as one picture; returns its path."""
    with written_at_once(path) as file:
        drawn_by_lot(evaluation, evaluation).save(file, "JPEG", quality=88, optimize=True)
    return path


def drawn_by_lot(evaluation: Evaluation, plain: Evaluation, count: int = 20, seed: int = 0) -> Image.Image:
    """Prompt, reference and sampled images of `count` cases that `seed` draws; RGB, two cases a row.

    Images without adapters are those of the evaluation `plain`; what neither has sampled is left out.
    """
    from dreamcache.dreambooth.embedders import open_image

    columns = [(label, plain if variant == "no-adapters" else evaluation, variant) for variant, label in SHOWN.items()]
    columns = [column for column in columns if column[2] in column[1].config.variants]
    every = [(subject, case) for subject in evaluation.subjects for case in evaluation.cases(subject)]
    cells = [written(text, SIDE) for text in ("prompt", "reference", *(label for label, *_ in columns))] * CASES_A_ROW
    heading = contact_sheet(cells, len(cells), SIDE).crop((0, 0, len(cells) * (SIDE + 4) - 4, SIDE // 3))
    cells = []
    for subject, case in random.Random(seed).sample(every, min(count, len(every))):
        images = [sampled_image(column, subject, case) for column in columns]
        cells += [written(case.prompt, SIDE), open_image(subject.reference)]
        cells += [image or written("rejected", SIDE) for image in images]
    sheet = contact_sheet(cells, CASES_A_ROW * (2 + len(columns)), SIDE)
    page = Image.new("RGB", (heading.width, heading.height + sheet.height), "white")
    page.paste(heading, (0, 0))
    page.paste(sheet, (0, heading.height))
    return page
