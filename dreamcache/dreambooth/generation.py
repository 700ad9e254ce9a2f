"""Sampling an evaluation's images: one shard a subject and variant, each resumable on its own."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation

if TYPE_CHECKING:
    from dreamcache.adapters import AdapterSet
    from dreamcache.backbone import Backbone

Report = Callable[[dict[str, Any]], None]


def generate_cases(
    evaluation: Evaluation,
    backbone: "Backbone",
    adapters: "AdapterSet | None",
    batch_size: int = 8,
    report: Report | None = None,
) -> int:
    """Sample the images of all shards that are not up to date; returns the number of shards made.

    Args:
        evaluation: what to sample, and where to.
        backbone, adapters: the models whose identities the evaluation names; adapters may be None where no variant uses
            them.
        batch_size: images sampled at a time; it changes them by rounding only.
        report: called after each shard with stage, variant, subject, done, total and made (False: it was up to date).

    Raises:
        ValueError: when a variant needs adapters and there are none.
    """
    made = 0
    plans = evaluation.image_plans()
    for done, (variant, subject, plan) in enumerate(plans, start=1):
        if stale := plan.state() != "done":
            generate_shard(evaluation, variant, subject, backbone, adapters, batch_size)
            made += 1
        if report is not None:
            report(
                {"stage": "images", "variant": variant, "subject": subject.name, "done": done, "total": len(plans)}
                | {"made": stale}
            )
    return made


def generate_shard(
    evaluation: Evaluation,
    variant: Variant,
    subject: Subject,
    backbone: "Backbone",
    adapters: "AdapterSet | None",
    batch_size: int = 8,
) -> None:
    """Sample one subject's images for one variant: PNG, with the case and the reference's key in KEY.json.

    An image of one colour, which is what NaN turns into, is a reject.

    Raises:
        ValueError: when the variant needs adapters and there are none, or the reference's mask does not fit it.
    """
    from dreamcache.cache import cache_reference
    from dreamcache.dreambooth.embedders import open_image
    from dreamcache.reference import reference_image
    from dreamcache.sampling import sample_images

    reference = evaluation.reference(variant, subject)
    cache = None
    if reference is not None:
        if adapters is None:
            raise ValueError(f"the variant {variant} needs adapters; give them, or take it out of the variants")
        mask = None if reference.mask is None else Image.open(io.BytesIO(reference.mask))
        try:
            shown = reference_image(open_image(reference.path), mask, backbone.image_size)
        except ValueError as error:
            raise ValueError(f"{reference.path}: {error}") from error
        cache = cache_reference(backbone, shown)
    cases = evaluation.cases(subject)
    plan = evaluation.image_plan(variant, subject)
    with plan.writing({"batch_size": batch_size, "device": str(backbone.device)}, records_in=len(cases)) as out:
        images = sample_images(
            backbone,
            None if cache is None else adapters,
            cache,
            [case.prompt for case in cases],
            evaluation.config.sampling,
            seeds=[case.seed for case in cases],
            batch_size=batch_size,
        )
        for case, image in zip(cases, images, strict=True):
            record = {
                "key": case.key,
                "subject": case.subject,
                "prompt_index": case.prompt_index,
                "position": case.position,
                "prompt": case.prompt,
                "seed": case.seed,
                "reference": None if reference is None else reference.key,
                "reference_masked": None if reference is None else reference.mask is not None,
            }
            if len(image.getcolors(1) or ()) == 1:  # None: more than one colour
                out.reject(record, "image of one colour")
                continue
            content = io.BytesIO()
            image.save(content, "PNG")
            out.add(record, {"png": content.getvalue()})
