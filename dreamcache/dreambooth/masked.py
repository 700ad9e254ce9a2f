"""Masked metrics' images: what a mask stage reads, and the subject alone on a plain ground (paper S2.1)."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.config import Background, Variant
from dreamcache.dreambooth.evaluation import Evaluation
from shards.files import read_tar_records

COLOURS: dict[Background, tuple[int, int, int]] = {
    "white": (255, 255, 255), "grey": (127, 127, 127), "black": (0, 0, 0),
}  # fmt: skip


def write_pictures(evaluation: Evaluation, variant: Variant | None, subject: Subject) -> None:
    """Write one subject's images of one variant, or its real images for None, as a mask stage reads them.

    KEY.jpg is the image upright, RGB, of its own size; KEY.json has the noun to look for, the class word.

    Raises:
        ValueError: when an image cannot be read or, where it is to be sampled, has not been.
    """
    from dreamcache.dreambooth.embedders import open_image

    records, images = read_images(evaluation, variant, subject)
    with evaluation.picture_plan(variant, subject).writing(records_in=len(records)) as out:
        for record, image in zip(records, images, strict=True):
            content = io.BytesIO()
            open_image(image).save(content, "JPEG", quality=95, subsampling=0)
            out.add({"key": record["key"], "subject": subject.class_word}, {"jpg": content.getvalue()})


def read_images(
    evaluation: Evaluation, variant: Variant | None, subject: Subject
) -> tuple[list[dict[str, Any]], list[Image.Image | Path]]:
    """The records and images of one subject's images of one variant, or of its real images for None.

    Of copy-paste there is one image, the reference, for all records.

    Raises:
        ValueError: when the images have not been sampled yet.
    """
    if variant is None:
        keys = [subject.image_key(path) for path in subject.images]
        return [{"key": key, "subject": subject.name} for key in keys], list(subject.images)
    if variant in ("copy-paste", "given"):
        reference = subject.image_key(subject.reference) if variant == "copy-paste" else None
        cases = evaluation.cases(subject)
        records = [
            {
                "key": case.key, "subject": case.subject, "prompt_index": case.prompt_index, "position": case.position,
                "prompt": case.prompt, "seed": None, "reference": reference, "reference_masked": None,
            }
            for case in cases
        ]  # fmt: skip
        if variant == "copy-paste":
            return records, [subject.reference]
        assert evaluation.given is not None
        return records, [evaluation.given[case.key] for case in cases]
    source = evaluation.image_plan(variant, subject)
    if source.state() != "done":
        raise ValueError(f"{source.path}: images not sampled yet, or by other settings; run generate_cases first")
    parts = [content for _, content in read_tar_records(source.path)]
    return [json.loads(content["json"]) for content in parts], [Image.open(io.BytesIO(c["png"])) for c in parts]


def read_masks(evaluation: Evaluation, variant: Variant | None, subject: Subject) -> dict[str, bytes]:
    """The masks by key of one subject's images of one variant, or of its real images for None, as far as found."""
    if variant is not None:
        return evaluation.found_masks(variant, subject)
    masks = evaluation.real_masks(subject)
    return {subject.image_key(path): mask for path, mask in masks.items() if mask is not None}


def subject_alone(image: Image.Image, mask: bytes, background: Background) -> Image.Image | None:
    """The image (RGB), its background of one colour where the mask (PNG, L) is under 128; None for an empty mask.

    Raises:
        ValueError: when the mask is no readable image, or has another size than the image.
    """
    try:
        chosen = np.asarray(Image.open(io.BytesIO(mask)).convert("L")) >= 128
    except (OSError, SyntaxError) as error:
        raise ValueError("the mask is not a readable image") from error
    pixels = np.array(image)
    if chosen.shape != pixels.shape[:2]:
        raise ValueError(f"the mask is {chosen.shape[1]} x {chosen.shape[0]}, its image {image.width} x {image.height}")
    if not chosen.any():
        return None
    pixels[~chosen] = COLOURS[background]
    return Image.fromarray(pixels)
